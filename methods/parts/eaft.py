"""EAFT, entropy-adaptive fine-tuning: tokens where the model is sure count less.

    w_t = H_top(p(. | x, y_<t)) / ln top        (arXiv 2601.02151)

H_top is - sum of p ln p over the ``top`` likeliest tokens. p is the live model in the learning pass
itself, and no gradient goes through w. A token that differs from one the model is sure of (a
"confident conflict") hardly counts; nor does one that the model knows.

H_top is near the whole entropy where ``top`` tokens have nearly all of the probability. With
``renormalise: true`` these tokens' probabilities are divided by their sum, as in LLaMA-Factory's
code, which also divides by 3.0 instead of ln 20 = 2.996. The weights are not normalised: the mean
is over the number of tokens.

The paper's setting: top 20, learning rate 1e-5, batches of 64, 10 epochs; it picks checkpoints by
the mean over all benchmarks, those of retention included.

State: nothing. Cost: a top-k over each token's logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.packing import Positions, Row
from harness.learning.part import Part, PartConfig


@dataclass
class EAFTConfig(PartConfig):
    top: int = option(20, "likeliest tokens that the entropy is of", min=2)
    renormalise: bool = option(False, "whether their probabilities are divided by their sum")


class EAFT(Part):
    Config = EAFTConfig
    config: EAFTConfig

    def weights(
        self, rows: Sequence[Row], positions: Positions, logits: torch.Tensor
    ) -> torch.Tensor:
        top = min(self.config.top, logits.shape[-1])
        largest = logits.topk(top, sorted=False).values
        whole = largest if self.config.renormalise else logits
        logprobs = largest - whole.logsumexp(-1, keepdim=True)
        return -(logprobs.exp() * logprobs).sum(-1) / math.log(top)
