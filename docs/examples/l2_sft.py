"""Supervised fine-tuning that is pulled back to where the stage began: an L2 penalty (L2-SP, arXiv
1802.01483).

The loss is that of methods/sft.py plus ``strength / 2 * |weights - weights at the start of the
stage|^2``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.packing import Row
from harness.learning.trainer import TrainingConfig, learning


@dataclass
class L2Config(TrainingConfig):
    strength: float = option(0.1, "weight of the penalty; 0 is plain supervised fine-tuning", min=0)


class L2SFT(Method):
    Config = L2Config

    def learn(self, stage):
        with learning(stage, self.config) as trainer:
            start = torch.nn.ParameterList(
                m.detach().clone() for m in trainer.masters
            ).requires_grad_(False)
            # a resumed stage gets these back, not the weights at which it was killed
            stage.keep(start=start)
            for step in stage.steps():
                rows = [
                    Row(stage.prompt_tokens(e), stage.demonstration_tokens(e))
                    for e in step.examples
                ]
                count = sum(len(r.completion) for r in rows)
                value = trainer.backward(
                    rows,
                    lambda logits, at: F.cross_entropy(logits, at.tokens, reduction="sum") / count,
                )
                distance = sum((m - s).square().sum() for m, s in zip(trainer.masters, start))
                (self.config.strength / 2 * distance).backward()
                step.log(loss=value, distance=distance.detach().sqrt(), **trainer.update())
