"""Which way of sampling gives a model's own log-probabilities: tried on a few tokens.

What is right is one pass over each row alone, without padding and without a cache, which is also
what training computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import torch

from harness.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sampling.drawing import Growing

FLOAT32 = 1e-4  # nats between two passes in float32
# Nats between passes with and without the model's own cache that are taken for rounding. A
# recurrence adds in another order than a whole row.
RECURRENCE = 5e-4  # in float32
SHORT, SHORT_AT_MOST = 0.5, 2.0  # in shorter dtypes; and where passes without a cache round as much
UNITS = 8  # times a short dtype's epsilon that it may always differ by, in nats
# Ways of ``generate``: with the model's own cache, so without padding, and without both.
PADDED, ALONE, UNCACHED = "generate", "generate, one length", "generate, no cache"
LIKELIEST = 10  # tokens of each distribution that are compared
LENGTHS = (3, 8, 13)  # of the prompts, which begin alike
COMPLETIONS = 2  # of each prompt
NEW_TOKENS = 5


class Complete(Protocol):
    """Completes ``answers``, so many ``completions`` of each of ``prompts``."""

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        completions: int,
        answers: Growing,
    ) -> None: ...


@dataclass(frozen=True)
class Way:
    """A way of sampling. pads: whether prompts of different lengths may be in one batch."""

    complete: Complete
    pads: bool


class _Forced:
    """Rows whose tokens are known; ``seen`` gets the distributions that a way offers for them."""

    def __init__(self, completions: Sequence[list[int]], device: torch.device) -> None:
        self.completions = completions
        self.live = list(range(len(completions)))
        self.limit = max(map(len, completions))
        self.device = device
        self.seen: list[list[torch.Tensor]] = [[] for _ in completions]

    def add(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        logprobs = logits.float().log_softmax(-1)
        tokens = []
        for row, seen in zip(self.live, logprobs, strict=True):
            tokens.append(self.completions[row][len(self.seen[row])])
            self.seen[row].append(seen)
        going_on = [
            j for j, row in enumerate(self.live) if len(self.seen[row]) < len(self.completions[row])
        ]
        self.live = [self.live[j] for j in going_on]
        return torch.tensor(tokens, device=self.device), going_on


def find_way(model: PreTrainedModel, ways: Mapping[str, Way], place: str = "model") -> str:
    """The name of the first of ``ways`` whose log-probabilities are the model's own.

    In float32 they may differ by FLOAT32; where the first way fails, by twice what the model's own
    cache differs, each prompt alone. In shorter dtypes by that as well, and padding may round by
    as much again. Raises UserError at ``place`` if none is near enough.
    """
    prompts, completions = _rows(model)
    was_training = model.training
    model.eval()  # Dropout would move what is compared.
    try:
        own = _own(model, prompts, completions)
    finally:
        model.train(was_training)
    distances: dict[str, float] = {}

    def distance(name: str) -> float:
        if name not in distances:
            distances[name] = _distance(model, ways[name], prompts, completions, own)
        return distances[name]

    tolerance = FLOAT32
    if model.dtype != torch.float32:
        tolerance = UNITS * torch.finfo(model.dtype).eps
        rounding = distance(ALONE)
        if rounding <= SHORT or rounding <= min(4 * distance(UNCACHED), SHORT_AT_MOST):
            tolerance = max(tolerance, 2 * rounding, 2 * min(distance(PADDED), 2 * rounding))
    elif distance(next(iter(ways))) > FLOAT32 and distance(ALONE) <= RECURRENCE:
        tolerance = max(FLOAT32, 2 * distance(ALONE))
    for name in ways:
        if distance(name) <= tolerance:
            return name
    raise UserError(
        place,
        f"{type(model).__name__} cannot be sampled from: no way gives its own log-probabilities "
        f"(the nearest is {min(distances.values()):.2g} nats off)",
        "use a causal language model that transformers' generate takes",
    )


def _rows(model: PreTrainedModel) -> tuple[list[list[int]], list[list[int]]]:
    """(prompts of different lengths that begin alike, COMPLETIONS of each, which end apart)."""
    vocabulary = model.config.get_text_config().vocab_size
    kinds = torch.linspace(1, vocabulary - 1, 61).long().tolist()
    tokens = [kinds[i * i % 61] for i in range(1, 200)]
    prompts = [tokens[:2] + tokens[9 * i : 9 * i + n - 2] for i, n in enumerate(LENGTHS)]
    count = COMPLETIONS * len(LENGTHS)
    return prompts, [tokens[7 * i : 7 * i + NEW_TOKENS - i % 3] for i in range(count)]


@torch.no_grad()
def _own(
    model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]]
) -> list[torch.Tensor]:
    """The model's own log-probabilities [tokens, vocabulary] for each completion."""
    out = []
    for i, completion in enumerate(completions):
        prompt = prompts[i // COMPLETIONS]
        ids = torch.tensor([prompt + completion[:-1]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
        out.append(logits.float().log_softmax(-1))
    return out


def _distance(
    model: PreTrainedModel,
    way: Way,
    prompts: list[list[int]],
    completions: list[list[int]],
    own: list[torch.Tensor],
) -> float:
    """The largest difference in nats, over the likeliest tokens of each side; inf after an error.

    Unlikely tokens are hardly ever drawn, and their logits round more.
    """
    seen: dict[int, torch.Tensor] = {}
    # Prompts of one length are neighbours.
    lengths = [0 if way.pads else len(prompt) for prompt in prompts]
    for _, group in groupby(range(len(prompts)), key=lengths.__getitem__):
        members = list(group)
        rows = [i * COMPLETIONS + k for i in members for k in range(COMPLETIONS)]
        forced = _Forced([completions[row] for row in rows], model.device)
        try:
            way.complete(model, [prompts[i] for i in members], COMPLETIONS, forced)
        except Exception:  # A model that a way does not fit may raise anything.
            return float("inf")
        seen |= {row: torch.stack(each) for row, each in zip(rows, forced.seen, strict=True)}
    largest = 0.0
    for row, right in enumerate(own):
        likeliest = right.topk(min(LIKELIEST, right.shape[-1])).indices
        for tokens in (likeliest, seen[row].argmax(-1, keepdim=True)):
            moved = (seen[row].gather(-1, tokens) - right.gather(-1, tokens)).abs().max().item()
            largest = max(largest, moved if moved == moved else float("inf"))
    return largest
