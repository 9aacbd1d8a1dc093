"""Proximal supervised fine-tuning (PSFT), arXiv 2508.17784.

SFT as PPO's clipped objective with advantage 1 on every token of the demonstration:

    -min(r, 1 + clip_high),    r = p(y*_t) / p_old(y*_t)

p_old is the model before the step, scored once. A token that has become likelier by more than
``clip_high`` has no gradient until the next step. The paper's lower bound of 0.2 does nothing and
is no option: the advantage is never negative, and below the bound the smaller of the two is r. The
loss is the mean over the tokens of an update, as in methods/sft.py; its value lies near -1. Parts
that weigh tokens multiply each token's term.

A step's batch is cut into ``inner_batches`` updates. With ``inner_batches`` and ``inner_epochs`` 1
the ratio is 1, and its gradient, grad log p, is that of SFT. The paper has 64 prompts in
mini-batches of 8, clips at 0.28, and a learning rate of 1e-6 with warm-up (its script
run_psft.sh): ``preset: psft``.

Dropout is off by default: a ratio of two passes under different dropout would be noise.

State: nothing. Cost: a scoring pass over the demonstrations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.base.settings import only_with, option
from harness.learning.inner import InnerOptions, clipped, completion_logprobs, mean_of
from harness.learning.logprobs import token_logprobs
from harness.learning.method import Method
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Positions, Row, TokenValues
from harness.learning.part import TokenWeights
from harness.learning.stage import Stage
from harness.learning.teacher import live_scorer
from harness.learning.trainer import TrainingConfig, learning
from harness.models import ranks


@dataclass
class PSFTConfig(InnerOptions, TrainingConfig):
    inner_batches: int = option(
        8, "parts that a step's batch is cut into, each with an update of its own", min=1
    )
    clip_high: float = option(0.28, "the ratio p / p_old is clipped at 1 plus this", min=0)
    dropout: str = option(
        "none", "the model's own dropout where it learns", choices=("keep", "none")
    )

    def check_effects(self) -> None:
        only_with(self, self.several, "inner_batches or inner_epochs above 1", "clip_high")


class PSFT(Method):
    Config = PSFTConfig
    config: PSFTConfig
    joins = ("examples", "weights", "demonstrations")

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            policy = live_scorer(stage, trainer.limit)
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                old = completion_logprobs(policy, rows, 1.0) if config.several else []
                updates: list[dict[str, float]] = []
                for part in config.cut(len(rows)):
                    learned = rows[part.start : part.stop]
                    loss = ProximalLoss(
                        config,
                        learned,
                        TokenWeights(stage.parts, learned),
                        old[part.start : part.stop] if updates else None,
                    )
                    value = trainer.backward(learned, loss)
                    outside = float(ranks.summed(loss.outside)) / loss.count
                    updates.append({"loss": value, "outside_clip": outside, **trainer.update()})
                tokens = sum(len(row.completion) for row in rows)
                step.log(**mean_of(updates), completion_tokens=tokens / len(rows))

    def work(self, outlook: Outlook) -> Work:
        tokens = outlook.prompt + outlook.demonstration
        return Work(learned=tokens * self.config.inner_epochs, scored=tokens * self.config.several)


class ProximalLoss:
    """The loss of one update over ``rows``, called chunk by chunk.

    count: completion tokens in all; old: log p_old of each row's, None where p is p_old itself;
    outside: how many have become likelier than the clip lets them.
    """

    def __init__(
        self,
        config: PSFTConfig,
        rows: Sequence[Row],
        weights: TokenWeights,
        old: Sequence[torch.Tensor] | None,
    ) -> None:
        self.config, self.weights = config, weights
        self.count = sum(len(row.completion) for row in rows)
        self.old = None if old is None else TokenValues.of_rows(old, old[0].device)
        self.outside = torch.zeros(())

    def __call__(self, logits: torch.Tensor, positions: Positions) -> torch.Tensor:
        """The chunk's loss, a scalar, from logits [tokens, vocabulary]."""
        config = self.config
        logprobs = token_logprobs(logits, positions.tokens)
        old = logprobs.detach() if self.old is None else self.old.at(positions)
        ratio = (logprobs - old).exp()
        self.outside = self.outside.to(ratio) + (ratio.detach() > 1 + config.clip_high).sum()
        terms = clipped(ratio, 1.0, 1.0, config.clip_high)  # r is never below 0
        weights = self.weights.at(positions, logits)
        return (terms if weights is None else terms * weights).sum() / self.count
