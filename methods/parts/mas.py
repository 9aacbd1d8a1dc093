"""Memory aware synapses (MAS), arXiv 1711.09601: EWC's penalty with another importance.

    F_i = mean over x of |d ||f(x)||^2 / d theta_i|

f(x) are the logits of a completion's tokens, and ||f||^2 is the sum of their squares: what a weight
does to the output counts, whether that is right or wrong. The completion is an answer of the model
(``answers: sampled``) or the demonstration, and enters by the tokens that are read alone. The
gradient is of one whole sequence.

All else is as in `ewc`: F is divided by its mean over all weights, so that ``strength`` means what
it means there, and earlier skills' F is kept by ``gamma``. The paper adds up (``gamma: 1``).

State: F, a float32 for each weight. Cost: that of `ewc`.

The method's folder holds ``importance.json``: sequences, and F's mean before it was divided.
"""

from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.importance import ImportanceConfig, ImportancePenalty


@dataclass
class MASConfig(ImportanceConfig):
    answers: str = option(
        "sampled", "which completions are read", choices=("sampled", "demonstrations")
    )

    @property
    def is_sampled(self) -> bool:
        return self.answers == "sampled"


class MAS(ImportancePenalty):
    Config = MASConfig
    config: MASConfig
    what, file = "importance of weights", "importance.json"
    wanted = "answers: demonstrations"

    def output(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return logits.square().sum()

    def add(self, total: torch.Tensor, gradient: torch.Tensor) -> None:
        total.add_(gradient.abs())
