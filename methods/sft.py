"""Supervised fine-tuning: cross-entropy on the demonstration.

The completion is the demonstration and the token that ends a turn; the prompt carries no loss. The mean is over all
completion tokens of the optimizer step, whatever micro-batches they fall into (TRL's SFTTrainer has the same mean), so a
long demonstration weighs more than a short one.
"""

import torch.nn.functional as F

from harness.method import Method
from harness.training import Row, learning


class SFT(Method):
    def learn(self, stage):
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = [Row(stage.prompt_tokens(e), stage.demonstration_tokens(e)) for e in step.examples]
                count = sum(len(r.completion) for r in rows)

                def loss(logits, at):
                    return F.cross_entropy(logits, at.tokens, reduction="sum") / count

                value = trainer.backward(rows, loss)
                step.log(loss=value, completion_tokens=count / len(rows), **trainer.update())
