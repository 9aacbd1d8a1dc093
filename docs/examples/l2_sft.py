"""Supervised fine-tuning that is pulled back to where the stage began: an L2 penalty (L2-SP, arXiv
1802.01483).

The loss is that of methods/sft.py plus ``strength / 2 * |weights - weights at the start of the
stage|^2``.
"""

from dataclasses import dataclass

from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.stage import Stage
from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from harness.learning.weights import Weights


@dataclass
class L2Config(TrainingConfig):
    strength: float = option(0.1, "weight of the penalty; 0 is plain supervised fine-tuning", min=0)


class L2SFT(Method):
    Config = L2Config
    config: L2Config

    def learn(self, stage: Stage) -> None:
        strength = self.config.strength
        with learning(stage, self.config) as trainer:
            # The weights in float32, one at a time, wherever the trainer has them
            start = Weights({name: weight.clone() for name, weight in trainer.effective()})
            # A resumed stage gets these back, not the weights at which it was killed
            stage.keep(start=start)
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                logged = trainer.token_mean(rows, cross_entropy)
                square = 0.0
                for name, weight in trainer.effective():
                    pull = weight - start[name].to(weight)
                    square += pull.square().sum().item()
                    trainer.add_gradient(name, pull, strength)
                step.log(**logged, distance=square**0.5, **trainer.update())
