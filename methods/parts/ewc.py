"""Elastic weight consolidation, online EWC (arXiv 1612.00796; arXiv 1805.06370, "progress &
compress").

    L = the method's loss + (strength / 2) sum_i F_i (theta_i - theta*_i)^2

theta* are the weights at the start of the stage. F is the diagonal of the Fisher information of the
earlier skills, from ``examples`` of what each stage learned, at its end:

    F_i = mean over x of (d log p(y | x) / d theta_i)^2

* ``fisher: sampled`` samples y from the model, at temperature 1; ``empirical`` takes the
  demonstration. Squares are of the gradient of one whole sequence. The square of a batch's mean
  gradient, or of gradients while training, is another quantity, which some codes use.
* Answers and demonstrations are those of the skill's questions, whatever the method learned: with
  `cpt` F is not of the texts, with `self_sft` and ``empirical`` not of the answers that it learned.
* Each skill's F is divided by its mean over all weights, so that ``strength`` means the same
  whatever the length of answers. Other codes' strengths (TRACE: 400, with 1/2) are in their units.
* Online: F <- ``gamma`` F + F of the stage. There is one theta*, the last one.
* ``coupled``, and what ``strength`` is measured by: as in L2-SP, for a weight whose F is the mean.
  Most weights have less, and give way further. The penalty begins with the second stage.

State: F, a float32 for each weight. Cost: theta* and F in memory, and one pass forward and backward
over each of ``examples``, with an answer to sample for ``sampled``.

The method's folder holds ``fisher.json``: sequences, and F's mean before it was divided.
"""

from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.importance import ImportanceConfig, ImportancePenalty
from harness.learning.logprobs import token_logprobs


@dataclass
class EWCConfig(ImportanceConfig):
    fisher: str = option("sampled", "whose answers y are", choices=("sampled", "empirical"))

    @property
    def is_sampled(self) -> bool:
        return self.fisher == "sampled"


class EWC(ImportancePenalty):
    Config = EWCConfig
    config: EWCConfig
    what, file = "Fisher information", "fisher.json"
    wanted = "fisher: empirical"

    def output(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return token_logprobs(logits, tokens).sum()

    def add(self, total: torch.Tensor, gradient: torch.Tensor) -> None:
        total.addcmul_(gradient, gradient)
