"""Random mask: the control of STM, which masks as many tokens of each row, drawn at random.

    w_t = 0 for m_i tokens of row i, else 1

m_i are the tokens of row i that STM masks at the same ``threshold`` and ``of``. With ``share`` each
token is masked with that chance instead, and no model is asked. A row's mask is the same in all
passes, as STM's is, and differs between seeds. The loss is the mean over the tokens that are
left. arXiv 2501.14315 has a random mask of 24% beside STM.

State: nothing between stages. Cost: that of STM; with ``share`` none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.base.seeds import seed_for
from harness.base.settings import only_with, option
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.weighting import StartConfig, StartWeighting, mean_over_kept, row_key


@dataclass
class RandomMaskConfig(StartConfig):
    threshold: float = option(2.5, "of the STM whose share is masked", min=1)
    share: float | None = option(
        None, "share of the tokens that is masked, instead of STM's", min=0, max=1
    )

    def check_effects(self) -> None:
        only_with(
            self, self.share is None, "STM's share, where share is left out", "threshold", "of"
        )


class RandomMask(StartWeighting):
    Config = RandomMaskConfig
    config: RandomMaskConfig

    def row_weights(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        share, least = self.config.share, -math.log(self.config.threshold)
        masks = []
        kept = [s >= least for s in self.scores.of(rows)] if share is None else []
        for number, row in enumerate(rows):
            seed = seed_for(self.stage.seed, "random mask", row_key(row))
            generator, count = torch.Generator().manual_seed(seed), len(row.completion)
            if share is None:
                masks.append(kept[number][torch.randperm(count, generator=generator)])
            else:
                masks.append(torch.rand(count, generator=generator) >= share)
        return mean_over_kept(masks)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        return work if self.config.share is not None else super().work(outlook, work, earlier)
