"""TALR, token-adaptive loss reweighting: unlikely tokens count less (arXiv 2509.20758).

    w_t = max(p(y_t | x, y_<t)^(1 / tau), floor),    tau = median over rows of the mean of -log p

p is the live model without dropout, and no gradient goes through w. tau is over all rows of the
optimizer step, the mean over a row's completion tokens; codes that take the micro-batch get another
tau for each way of cutting a step. With ``tau`` it is fixed. The weights are not normalised: the
mean is over the number of tokens, so that losses and gradients are smaller than SFT's.

EAFT's paper describes it the other way round. The paper's setting: floor 0.01, learning rate 1e-6.

State: nothing. Cost: a further forward pass over each row.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.part import PartConfig
from harness.learning.weighting import RowWeighting, row_logprobs

SMALLEST = 1e-6  # tau of rows that the model is sure of


@dataclass
class TALRConfig(PartConfig):
    floor: float = option(0.01, "smallest weight of a token", min=0, max=1)
    tau: float | None = option(None, "temperature; the step's median loss if left out", above=0)


class TALR(RowWeighting):
    Config = TALRConfig
    config: TALRConfig

    def row_weights(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        scores = row_logprobs(self.stage, rows)
        tau = self.config.tau or statistics.median(-each.mean().item() for each in scores)
        heat = max(tau, SMALLEST)
        return [(each / heat).exp().clamp(min=self.config.floor) for each in scores]

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        length = outlook.prompt + (outlook.demonstration or outlook.answer)
        return replace(work, scored=work.scored + length)
