"""Tether: in a stage no weight moves further than a share of its tensor's mean size."""

from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig


@dataclass
class TetherConfig(PartConfig):
    share: float = option(0.1, "largest move, as a share of the tensor's mean size", above=0)


class Tether(Part):
    Config = TetherConfig
    config: TetherConfig

    def update(self, name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        start = self.stage.start_weight("stage", name).to(after)
        most = float(self.config.share * start.abs().mean())
        return start + (after - start).clamp(-most, most)

    def work(self, outlook: Outlook, work: Work, earlier: list[Outlook]) -> Work:
        return work.with_start("stage", outlook)
