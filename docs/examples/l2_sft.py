"""Supervised fine-tuning that is pulled back to where the stage began: an L2 penalty (L2-SP, arXiv
1802.01483).

The loss is that of methods/sft.py plus ``strength / 2 * |weights - weights at the start of the
stage|^2``.
"""

from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.stage import Stage
from harness.learning.trainer import TrainingConfig, cross_entropy, learning


@dataclass
class L2Config(TrainingConfig):
    strength: float = option(0.1, "weight of the penalty; 0 is plain supervised fine-tuning", min=0)


class L2SFT(Method):
    Config = L2Config
    config: L2Config

    def learn(self, stage: Stage) -> None:
        with learning(stage, self.config) as trainer:
            masters = list(trainer.masters.values())  # the weights, in float32
            start = torch.nn.ParameterList(m.detach().clone() for m in masters)
            # A resumed stage gets these back, not the weights at which it was killed
            stage.keep(start=start.requires_grad_(False))
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                logged = trainer.token_mean(rows, cross_entropy)
                pairs = zip(masters, start, strict=True)
                distance = sum((m - s).square().sum() for m, s in pairs)
                (self.config.strength / 2 * distance).backward()
                step.log(**logged, distance=distance.detach().sqrt(), **trainer.update())
