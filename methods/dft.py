"""Dynamic fine-tuning (DFT), Wu et al. 2025, arXiv 2508.05629, equation 9.

    L = - mean over tokens of sg(p(y_t | x, y_<t)) log p(y_t | x, y_<t)

Cross-entropy weighted by the token's probability: each token's loss is -p log p, in which the first
p is a constant (sg). The gradient is that of SFT with less weight on tokens that the model finds
unlikely. Read as a policy gradient, SFT divides by p; DFT takes that 1/p out.

The weights are not normalised: the sum is divided by the number of completion tokens of the
optimizer step, as in SFT here and as in TRL's SFTTrainer with ``loss_type="dft"``. Losses and
gradients are therefore smaller than SFT's, which AdamW's step does not depend on.

State: nothing. Cost: that of `sft`.
"""

import torch

from harness.learning.logprobs import token_logprobs
from harness.learning.method import Method
from harness.learning.stage import Stage
from harness.learning.trainer import learning


def weighted_cross_entropy(
    logits: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of -p log p over tokens; logits [tokens, vocabulary], tokens and weights [tokens]."""
    logprobs = token_logprobs(logits, tokens)
    losses = logprobs.detach().exp() * logprobs
    return -(losses if weights is None else losses * weights).sum()


class DFT(Method):
    joins = ("examples", "weights", "demonstrations")

    def learn(self, stage: Stage) -> None:
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                step.log(**trainer.token_mean(rows, weighted_cross_entropy), **trainer.update())
