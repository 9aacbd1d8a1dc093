"""Estimates from final records: a mean, or the difference of two models, with its 95% interval.

A mean has an interval over seeds (Student's t), or over examples where there is one seed: Wilson's
for an accuracy, else 1.96 standard errors. A difference of two models is paired, over seeds or over
examples.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.report.data import ReportData
from harness.report.estimates import Estimate

# A spread below it is 0 up to rounding. A spread of 0 between a few seeds is no certainty.
NO_SPREAD = 1e-12


class Learner(NamedTuple):
    """A model that is measured on a skill right after the stage that taught it the skill."""

    skill: str
    stage: int  # 0: before training
    label: str | None  # of the method in the report; None: the base model

    @property
    def series(self) -> str:
        """Its name in column ``series``."""
        return self.label or "base"


def trained_models(results: ReportData) -> Iterator[Learner]:
    """The model of every method that learns a skill, skill by skill."""
    for skill in results.skills:
        yield from _trained_on(results, skill)


def all_models(results: ReportData) -> Iterator[Learner]:
    """The base model and then the model of every method that learns a skill, skill by skill."""
    for skill in results.skills:
        yield Learner(skill, 0, None)
        yield from _trained_on(results, skill)


def _trained_on(results: ReportData, skill: str) -> Iterator[Learner]:
    for label, series in results.series.items():
        if skill in series.order:
            yield Learner(skill, series.order.index(skill) + 1, label)


def skill_records(
    results: ReportData, model: Learner, metric: str, split: str | None = None
) -> pd.DataFrame:
    """Final records of a metric of the model's skill; split: the report's if left out."""
    table = results.records
    measured = (
        (table["kind"] == "skill")
        & (table["name"] == model.skill)
        & (table["metric"] == metric)
        & (table["split"] == (split or results.split))
    )
    return _of_model(table[measured & table["final"]], model)


def task_records(results: ReportData, model: Learner, task: str) -> pd.DataFrame:
    """Final records of the one metric that counts of a retention task."""
    table = results.records
    measured = (
        (table["kind"] == "retention")
        & (table["name"] == task)
        & (table["metric"] == results.retention[task]["metric"])
    )
    return _of_model(table[measured & table["final"]], model)


def _of_model(records: pd.DataFrame, model: Learner) -> pd.DataFrame:
    records = records[records["stage"] == model.stage]
    if model.label is None:
        return records.head(1)  # there is one base model, however many runs have it on record
    return records[records["label"] == model.label]


def estimate(records: pd.DataFrame, scale: float = 1.0, tasks: int = 1) -> Estimate | None:
    """Mean and interval of records, one a seed; None where no seed is complete.

    scale: factor of the value and the bounds; 100 says that the values are fractions. tasks: how
    many records a seed has; the estimate is of their mean, and their errors are independent.
    """
    complete = records.groupby("seed")["value"].transform("count") == tasks
    records = records[complete].dropna(subset=["value"])
    if records.empty:
        return None
    values = records.groupby("seed")["value"].mean()
    if len(values) > 1:
        mean, low, high = metrics.t_interval(values)
        spread = np.ptp(values)
        how = f"{len(values)} seeds"
    else:
        mean = values.iloc[0]
        spread = 1.96 * math.sqrt((records["stderr"] ** 2).sum(skipna=False)) / tasks
        low, high = mean - spread, mean + spread
        how = "one model"
    if spread < NO_SPREAD:
        low = high = math.nan
    if len(records) == 1 and scale == 100:
        low, high = metrics.score_interval(mean, records["stderr"].iloc[0], records["n"].iloc[0])
    if tasks == 1 and records["n"].notna().all():
        how += f", n = {int(records['n'].iloc[0])}"
    return Estimate(mean * scale, low * scale, high * scale, how, records=records)


def difference(
    results: ReportData, mine: pd.DataFrame, other: pd.DataFrame, scale: float = 1.0
) -> Estimate | None:
    """Mean and interval of what the records ``mine`` have over ``other``; None without a pair.

    The records are of one measure, or of several tasks; the estimate is then of the mean over the
    tasks. Over the seeds that both have the interval is Student's t of the paired differences; the
    base model is paired with every seed. Of one seed it is a bootstrap over the examples, which
    both models answered. There is none where the scores of the examples are not on disk.
    """
    keys = ["name"] if (other["stage"] == 0).all() else ["name", "seed"]
    pairs = mine.merge(other, on=keys, suffixes=("", "_other"))
    pairs["gap"] = pairs["value"] - pairs["value_other"]
    complete = pairs.groupby("seed")["gap"].transform("count") == mine["name"].nunique()
    pairs = pairs[complete]
    gaps = pairs.groupby("seed")["gap"].mean()
    if gaps.empty:
        return None
    low, high, how = _paired_interval(results, pairs, gaps)
    return Estimate(gaps.mean() * scale, low * scale, high * scale, how)


def _paired_interval(
    results: ReportData, pairs: pd.DataFrame, gaps: pd.Series
) -> tuple[float, float, str]:
    """(low, high, how) of the mean of ``gaps``, one a seed; pairs: the records behind them."""
    if len(gaps) > 1:
        how = f"{len(gaps)} seeds, paired"
        spread = np.ptp(gaps)
        _, low, high = metrics.t_interval(gaps)
    else:
        draws = _paired_draws(results, pairs)
        if draws is None:
            return math.nan, math.nan, "no interval: scores of the same examples are not at hand"
        how = "one seed, paired over examples"
        spread = np.ptp(draws)
        low, high = metrics.percentile_interval(draws)
    if spread < NO_SPREAD:
        return math.nan, math.nan, f"no interval: {how}, and all differ by the same"
    return low, high, how


def _paired_draws(results: ReportData, pairs: pd.DataFrame) -> np.ndarray | None:
    """Bootstrap draws of the difference, averaged over the tasks; None where scores are missing.

    The examples of a task are resampled once for both models. pairs: one row a task.
    """
    draws = []
    for number, pair in enumerate(pairs.itertuples()):
        scores, places = results.together(_evaluations(pair))
        if scores is None or len(places) < 2:
            return None
        sums = metrics.bootstrap_means(scores, seed=number)
        means = sums[..., 0] / sums[..., 1]
        draws.append(means[:, 0] - means[:, 1])
    return np.mean(draws, axis=0)


def _evaluations(pair: Any) -> list[tuple[int, str, str, float]]:
    """The two evaluations (folder, key, metric, value) of a row of pairs of records."""
    # The teacher's record has a metric of its own name, the scores of its answers have the skill's.
    metric = pair.metric_other if pair.metric == "teacher_accuracy" else pair.metric
    return [
        (pair.folder, pair.evaluation, metric, pair.value),
        (pair.folder_other, pair.evaluation_other, metric, pair.value_other),
    ]
