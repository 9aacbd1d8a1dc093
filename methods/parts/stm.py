"""STM, selective token masking: tokens that the model finds unlikely are not learned.

    w_t = 1 where 1 / p_0(y_t | x, y_<t) <= threshold, else 0        (arXiv 2501.14315)

p_0 is the model at the start of the ``stage`` or of the ``run``: a token's weight is the same in
all passes. The paper scores with the model that is taught, at perplexity 2.5, which masks 20-24% of
its tokens. The loss is the mean over the tokens that are left, as where labels are masked; a step
whose tokens are all masked has no gradient. A random mask of the same share (``random_mask``) is
the control that the paper runs too.

State: nothing between stages. Cost: p_0 in memory, and a forward pass over each row once a stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.base.settings import option
from harness.learning.packing import Row
from harness.learning.weighting import StartConfig, StartWeighting, mean_over_kept


@dataclass
class STMConfig(StartConfig):
    threshold: float = option(2.5, "largest perplexity of a token that is learned", min=1)


class STM(StartWeighting):
    Config = STMConfig
    config: STMConfig
    apart: ClassVar = {"random_mask": "each would divide by the tokens that it keeps alone"}

    def row_weights(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        least = -math.log(self.config.threshold)
        return mean_over_kept([logprobs >= least for logprobs in self.scores.of(rows)])
