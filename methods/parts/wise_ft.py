"""WiSE-FT: a stage ends between where it began and what it learned (arXiv 2109.01903, equation 1).

    theta = (1 - alpha) theta_0 + alpha theta_k

theta_k are the weights that training made, in float32, theta_0 those at the start of the ``stage``
or of the ``run``. The next stage goes on from theta. With ``of: run`` the weights of the base model
are mixed in once more after every stage, so that after k stages the first one has alpha^k.

The paper takes alpha 0.5 where no data choose. A choice by scores on retention tasks would be one
on the test; ``python -m harness.wise_ft`` evaluates several alphas of finished runs and chooses by
validation.

State: nothing; theta_0 is read from where the run keeps it. Cost: a second copy of the weights, at
the end of the stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig


@dataclass
class WiSEFTConfig(PartConfig):
    alpha: float = option(0.5, "share of what the stage learned", min=0, max=1)
    of: str = option("stage", "whose start theta_0 is", choices=("stage", "run"))


class WiSEFT(Part):
    Config = WiSEFTConfig
    config: WiSEFTConfig

    def merge(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            start = self.stage.start_weight(self.config.of, name)
            weight.lerp_(start.to(weight), 1 - self.config.alpha)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        return work.with_start(self.config.of, outlook)
