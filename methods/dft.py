"""Dynamic fine-tuning (DFT), Wu et al. 2025, arXiv 2508.05629, equation 9: cross-entropy weighted
by the token's probability.

Each token's loss is -p log p with the p in front a constant: the gradient is that of SFT with
tokens that the model finds unlikely weighted down, which takes the 1/p out of SFT read as a policy
gradient.

The weights are not normalised: the sum is divided by the number of completion tokens of the
optimizer step, as in SFT here and as in TRL's SFTTrainer with ``loss_type="dft"``. So losses and
gradients are smaller than SFT's; AdamW does not mind.
"""

from harness.learning.method import Method
from harness.learning.packing import Row
from harness.learning.trainer import learning


def weighted_cross_entropy(logits, tokens):
    """Sum of -p log p over tokens; logits [tokens, vocabulary], tokens [tokens]."""
    logprob = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return -(logprob.detach().exp() * logprob).sum()


class DFT(Method):
    def learn(self, stage):
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = [
                    Row(stage.prompt_tokens(e), stage.demonstration_tokens(e))
                    for e in step.examples
                ]
                step.log(**trainer.token_mean(rows, weighted_cross_entropy), **trainer.update())
