"""SFA, sequential fine-tuning with averaging (arXiv 2501.05559, "Soup to go").

    theta <- (1 - beta) theta + beta theta_0,    every round(period T) steps and after the last one

T are the steps of the stage, theta the float32 weights after a step, theta_0 those at the start of
the ``stage`` (the paper: the model after the last task) or of the ``run``. With ``period: 1`` it is
WiSE-FT with alpha = 1 - beta; the paper finds shorter periods better. AdamW's moments go on as
they are, and so does the schedule.

Where T is no multiple of the period the last two averages are nearer to each other, so that the
start weighs more: of 14 steps 4, 8, 12 and 14.

State: nothing; theta_0 is read from where the run keeps it. Cost: a second copy of the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.trainer import Trainer


@dataclass
class SFAConfig(PartConfig):
    beta: float = option(0.5, "share of the start in an average", min=0, max=1)
    period: float = option(0.25, "steps between averages, as a share of the stage", above=0, max=1)
    of: str = option("stage", "whose start theta_0 is", choices=("stage", "run"))


class SFA(Part):
    Config = SFAConfig
    config: SFAConfig

    def wants_weights(self) -> str:
        return "it averages weights that are trained themselves"

    def loss(self, trainer: Trainer, step: Step) -> Mapping[str, float]:
        self.trainer = trainer
        return {}

    @torch.no_grad()
    def updated(self, step: Step) -> None:
        done, steps = self.stage.step + 1, self.stage.steps_in_all
        if done % max(1, round(self.config.period * steps)) and done < steps:
            return
        start = self.stage.start(self.config.of)
        for name, master in self.trainer.masters.items():
            theta_0 = start.get_parameter(name).to(master)
            self.trainer.change(name, master.detach().lerp(theta_0, self.config.beta))
        self.trainer.copy_to_model()

    def end(self, stage: Stage) -> None:
        self.__dict__.pop("trainer", None)  # it was closed, or never made in a resumed stage

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        return work.with_start(self.config.of, outlook)
