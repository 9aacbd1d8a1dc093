"""Several updates on one batch: its cut, and the ratio p / p_old with its clips.

p_old is the policy before the step's first update. Each completion token's log-probability under it
is scored once, in a forward pass of its own. With one update for each batch p_old is p: the ratio
is 1 and no clip acts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.logprobs import token_logprobs
from harness.learning.packing import Row, chunks
from harness.learning.shares import own_rows
from harness.learning.teacher import Teacher
from harness.models import ranks
from harness.models.forward import on_device
from harness.models.sharded import sharded


@dataclass
class InnerOptions:
    """For methods that make several updates on one batch of a step.

    Schedule and learning rate go by steps: all updates of a step have one rate.
    """

    inner_batches: int = option(
        1, "pieces that a step's batch is cut into, each with an update of its own", min=1
    )
    inner_epochs: int = option(1, "passes over a step's batch", min=1)
    clip_high: float = option(0.2, "the ratio p / p_old is clipped at 1 plus this", min=0)

    @property
    def several(self) -> bool:
        """Whether a step may make more than one update."""
        return self.inner_batches * self.inner_epochs > 1

    def cut(self, prompts: int) -> Iterator[range]:
        """The prompts of each update of a step, as even as may be and in their order."""
        parts = max(1, min(self.inner_batches, prompts))
        for _ in range(self.inner_epochs):
            for part in range(parts):
                yield range(part * prompts // parts, (part + 1) * prompts // parts)


@torch.no_grad()
def completion_logprobs(
    scorer: Teacher, rows: Sequence[Row], temperature: float
) -> list[torch.Tensor]:
    """Log-probabilities [completion tokens] of each row's completion, in nats."""
    vocabulary = scorer.model.config.get_text_config().vocab_size
    found = scorer.states(rows)
    scored: dict[int, torch.Tensor] = {}
    for i in own_rows(scorer.model, rows):
        states = found[i]
        tokens = on_device(torch.tensor(rows[i].completion), states.device)
        parts = [
            token_logprobs(scorer.head(states[part]).float() / temperature, tokens[part])
            for part in chunks(len(tokens), vocabulary, states.device)
        ]
        scored[i] = torch.cat(parts)
    if sharded(scorer.model):
        for of_rank in ranks.gathered({i: values.cpu() for i, values in scored.items()}):
            scored |= {i: values.to(scorer.model.device) for i, values in of_rank.items()}
    return [scored[i] for i in range(len(rows))]


def sequence_ratios(old: Iterable[torch.Tensor], now: Iterable[torch.Tensor]) -> torch.Tensor:
    """(p(y) / p_old(y))^(1/|y|) of each row [rows], from log-probabilities of its tokens."""
    means = [(a - b).mean() for a, b in zip(now, old, strict=True)]
    return torch.stack(means).exp() if means else torch.empty(0)


def clipped(
    ratio: torch.Tensor, advantages: torch.Tensor | float, low: float, high: float
) -> torch.Tensor:
    """PPO's loss [tokens] (arXiv 1707.06347, equation 7): -min(r A, clip(r, 1 - low, 1 + high) A).

    A token whose ratio has left the interval in the direction of its advantage has no gradient.
    """
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def mean_of(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a step logs of several updates: the mean of each number."""
    names = dict.fromkeys(name for update in updates for name in update)
    found = {name: [u[name] for u in updates if name in u] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
