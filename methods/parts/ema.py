"""EMA: a stage ends with an exponential moving average of its weights.

    m_n = decay m_(n-1) + (1 - decay) theta_n,    the stage ends with m_n / (1 - decay^n)

theta_n are the weights after the n-th step of the stage, in float32, and m_0 = 0: the average is of
the steps' weights alone, as Adam's averages are (arXiv 1412.6980, section 3). Near ``decay: 1`` it
is their plain mean. With ``start: true`` m_0 are the weights at the start of the stage and nothing
is divided, as in most codes. The start then keeps the share decay^n: 82% after 20 steps of 0.99, so
that a short stage hardly learns.

The live weights learn as without the part, and evaluations inside a stage are of them. A teacher
that is an average of its own (SDFT's) is not touched.

Settings of the field: decay 0.99 to 0.9999, for thousands of steps.

State: nothing between stages; within one the average, a float32 for each weight, which checkpoints
hold. Cost: that memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.trainer import Trainer
from harness.learning.weights import Weights


@dataclass
class EMAConfig(PartConfig):
    decay: float = option(0.99, "share of the average that a step leaves", min=0, max=0.999999)
    start: bool = option(False, "whether the average begins with the start of the stage")


class EMA(Part):
    Config = EMAConfig
    config: EMAConfig

    def begin(self, stage: Stage) -> None:
        self.average = Weights()
        self.trainer: Trainer | None = None
        stage.keep(ema=self.average)

    @torch.no_grad()
    def loss(self, trainer: Trainer, step: Step) -> Mapping[str, float]:
        """Take hold of the weights before the step."""
        self.trainer = trainer
        if not self.average:
            for name, weight in trainer.effective():
                self.average[name] = weight.clone()
        return {}

    @torch.no_grad()
    def updated(self, step: Step) -> None:
        decay = self.config.decay
        share = 1 - decay  # of this step's weights
        if not self.config.start:
            share /= 1 - decay ** (self.stage.step + 1)  # 1 in the first step
        assert self.trainer is not None  # since the step's ``loss``
        for name, weight in self.trainer.effective():
            self.average[name] = self.average[name].to(weight.device).lerp_(weight, share)

    def merge(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            weight.copy_(self.average[name])

    def end(self, stage: Stage) -> None:
        stage.let_go(self.average)
        self.average, self.trainer = Weights(), None

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        return replace(work, held=work.held + 4 * outlook.parameters)
