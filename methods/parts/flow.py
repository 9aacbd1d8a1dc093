"""FLOW: samples that the model found hard at first count less (arXiv 2502.02797).

    w_i = exp(-l_i / tau),    tau = median of l_i over the stage's samples

l_i is the loss of sample i under p_0, the model at the start of the ``stage`` or of the ``run``:
the ``mean`` of its tokens' -log p, or their ``sum``, with which long samples hardly count. tau is
over the different examples that the stage draws; replayed examples of other skills get weights by
the same tau.

The weights are fixed for the stage, and a sample's tokens all have its weight. They are not
normalised: losses and gradients are smaller than SFT's, by 1/e at the median.

The paper's method has no parameter.

State: nothing between stages. Cost: p_0 in memory, and a forward pass over each example before the
first step.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.base.settings import option
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.weighting import StartConfig, StartWeighting


@dataclass
class FlowConfig(StartConfig):
    loss: str = option("mean", "over the tokens of a sample", choices=("mean", "sum"))


class Flow(StartWeighting):
    Config = FlowConfig
    config: FlowConfig
    wants: ClassVar = {"demonstrations": "learns from rows that are not known before its steps"}

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        drawn = [stage.examples[i] for i in dict.fromkeys(stage.draws())]
        losses: list[float] = []
        for first in range(0, len(drawn), stage.batch_size):
            batch = drawn[first : first + stage.batch_size]
            losses += self._losses(stage.demonstration_rows(batch))
            stage.show("losses at the start", len(losses), len(drawn))
        self.tau = max(statistics.median(losses), 1e-6)

    def _losses(self, rows: Sequence[Row]) -> list[float]:
        mean = self.config.loss == "mean"
        return [-(s.mean() if mean else s.sum()).item() for s in self.scores.of(rows)]

    def row_weights(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        weights = (-torch.tensor(self._losses(rows)) / self.tau).exp()
        return [w.expand(len(row.completion)) for w, row in zip(weights, rows, strict=True)]
