"""What records say along training: the curve of a skill, and what a stage has cost."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import pandas as pd

from benchmarks.paper.estimates import Learner, estimate
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import accuracy_curves_table


@dataclass(frozen=True)
class TrainingCurves:
    """The accuracy of every skill along a whole sequence, and the axis that it is drawn on."""

    curves: pd.DataFrame  # label, name, x, value, low, high, seeds; empty without records
    axis: TrainingAxis


@lru_cache(maxsize=8)
def training_curves(results: ReportData) -> TrainingCurves:
    """The curves that the harness's own report draws of these results."""
    axis = TrainingAxis(results)
    return TrainingCurves(accuracy_curves_table(results, axis), axis)


class Point(NamedTuple):
    """The accuracy at one moment of a stage; steps and prompts count from the stage's start."""

    step: int
    prompts: float
    accuracy: Estimate  # in per cent


def stage_curve(results: ReportData, model: Learner) -> Iterator[Point]:
    """The accuracy on the model's skill along the stage that teaches it, from its start on."""
    table = results.skill_records
    mine = table[(table["label"] == model.label) & (table["name"] == model.skill)]
    before = mine[(mine["stage"] == model.stage - 1) & mine["final"]]
    inside = mine[mine["stage"] == model.stage]
    start = pd.Series({"step": 0, "prompts": 0})
    if len(before):
        start = before[["step", "prompts"]].max()
    for _, records in pd.concat([before, inside]).groupby("step", observed=True):
        accuracy = estimate(records, 100)
        if accuracy is not None:
            prompts = records["prompts"].median() - start["prompts"]
            yield Point(int(records["step"].iloc[0] - start["step"]), prompts, accuracy)


class Spending(NamedTuple):
    """What a stage has used."""

    prompts: float
    steps: float

    @property
    def known(self) -> bool:
        """Whether the stage is over."""
        return math.isfinite(self.prompts)


def spending(results: ReportData, model: Learner) -> Spending:
    """Prompts and optimizer steps of the model's stage, medians over seeds; NaN while it runs."""
    table = results.skill_records
    finals = table[(table["label"] == model.label) & table["final"]]
    ends = finals.groupby("stage")[["prompts", "step"]].median()
    prompts, steps = ends.reindex([model.stage - 1, model.stage]).diff().iloc[-1]
    return Spending(prompts, steps)
