"""Merging of what the stages learned: task arithmetic, TIES and DARE have it in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.weights import Weights


@dataclass
class TaskVectorConfig(PartConfig):
    """Options of a merger of task vectors."""

    scale: float = option(0.4, "lambda, the factor of the merged vector", min=0, max=1000)
    begin: str = option(
        "base",
        "where a stage's training begins: base model or merged one",
        choices=("base", "merged"),
    )


class TaskVectors(Part):
    """A stage ends with theta_B + scale f(tau_1, ..., tau_k), in float32.

    theta_B are the weights of the base model, tau_k is what training of stage k changed. Sums over
    the stages are enough for f; ``kept`` has them, and ``bytes_kept`` is their size for a weight.
    """

    Config = TaskVectorConfig
    config: TaskVectorConfig
    bytes_kept: ClassVar[int] = 4

    def __init__(self, config: TaskVectorConfig) -> None:
        super().__init__(config)
        self.restarts = config.begin == "base"
        self.kept: dict[str, Weights] = {}

    def wants_weights(self) -> str:
        is_base = self.config.begin == "base"
        return "its stages begin at the base model; take begin: merged" if is_base else ""

    def read(self, vectors: Mapping[str, torch.Tensor]) -> None:
        """Look at all of a stage's task vector before ``add``."""

    def add(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        """Take in the task vector of a weight; returns f of all stages so far."""
        raise NotImplementedError

    def total(self, what: str, name: str, new: torch.Tensor) -> torch.Tensor:
        """The sum of ``new`` over the stages, this one included."""
        sums = self.kept.setdefault(what, Weights())
        sums[name] = sums[name].to(new.device) + new if name in sums else new
        return sums[name]

    @torch.no_grad()
    def begin(self, stage: Stage) -> None:
        if not self.restarts or stage.step or stage.begins_run:
            return
        base = stage.start("run")
        for name, weight in stage.model.named_parameters():
            weight.copy_(base.get_parameter(name))

    @torch.no_grad()
    def merge(self, weights: Mapping[str, torch.Tensor]) -> None:
        stage = self.stage
        for name, weight in weights.items():
            weight.sub_(stage.start_weight("stage", name).to(weight))
        self.read(weights)
        for name, weight in weights.items():
            merged = self.add(name, weight.clone())
            weight.copy_(stage.start_weight("run", name)).add_(merged, alpha=self.config.scale)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        size = self.bytes_kept * outlook.parameters
        if self.config.begin == "merged":
            work = work.with_start("stage", outlook)
        return replace(
            work.with_start("run", outlook),
            held=work.held + size,
            kept=work.kept + size * (outlook.later > 0),
        )

    def state_dict(self) -> dict[str, Any]:
        return {what: dict(sums) for what, sums in self.kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = {what: Weights(sums) for what, sums in state.items()}
