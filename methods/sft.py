"""Supervised fine-tuning (SFT): cross-entropy on the demonstration.

    L = - mean over tokens of log p(y_t | x, y_<t)

The completion is the demonstration and the token that ends a turn; the prompt carries no loss. The
mean is over all completion tokens of the optimizer step, across its micro-batches (as in TRL's
SFTTrainer), so a long demonstration weighs more than a short one.

State: nothing. Cost: a pass forward and backward over prompt and demonstration.
"""

from harness.learning.method import Method
from harness.learning.stage import Stage
from harness.learning.trainer import cross_entropy, learning


class SFT(Method):
    joins = ("examples", "weights", "demonstrations")

    def learn(self, stage: Stage) -> None:
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                step.log(**trainer.token_mean(rows, cross_entropy), **trainer.update())
