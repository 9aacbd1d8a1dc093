"""Estimates from final records: a mean, or the difference of two models, with its 95% interval.

A mean has an interval over questions and seeds from its records (harness.base.intervals), Wilson's
for an accuracy. A difference of two models is paired, by seed and by question.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.base import intervals, metrics
from harness.report.data import ReportData
from harness.report.estimates import Estimate


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
    by_seed = records.assign(variance=records["stderr"] ** 2).groupby("seed")
    values = by_seed["value"].mean()
    errors = by_seed["variance"].sum(min_count=tasks) ** 0.5 / tasks
    mean = float(values.mean())
    spread = intervals.of_records(values, errors)
    half = spread.quantile() * spread.stderr if spread else math.nan
    low, high = mean - half, mean + half
    if scale == 100 and tasks == 1:
        stderr, quantile = records["stderr"].iloc[0], None
        if len(values) > 1:
            stderr, quantile = (spread.stderr, spread.quantile()) if spread else (math.nan, None)
        low, high = metrics.score_interval(mean, stderr, records["n"].iloc[0], quantile=quantile)
    how = f"{len(values)} seeds" if len(values) > 1 else "one model"
    if tasks == 1 and records["n"].notna().all():
        how += f", n = {int(records['n'].iloc[0])}"
    return Estimate(mean * scale, low * scale, high * scale, how, records=records)


def difference(
    results: ReportData, mine: pd.DataFrame, other: pd.DataFrame, scale: float = 1.0
) -> Estimate | None:
    """Mean and interval of what the records ``mine`` have over ``other``; None without a pair.

    The records are of one measure, or of several tasks; the estimate is then of the mean over the
    tasks. It is paired over the seeds that both have, and the base model with every seed, and over
    the questions, which both models answered. Where the scores of these are not on disk, the
    interval is Student's t over seeds; of one seed there is none.
    """
    keys = ["name"] if (other["stage"] == 0).all() else ["name", "seed"]
    pairs = mine.merge(other, on=keys, suffixes=("", "_other"))
    pairs["gap"] = pairs["value"] - pairs["value_other"]
    complete = pairs.groupby("seed")["gap"].transform("count") == mine["name"].nunique()
    pairs = pairs[complete]
    gaps = pairs.groupby("seed")["gap"].mean()
    if gaps.empty:
        return None
    low, high, how = _paired_interval(results, pairs, gaps, scale == 100)
    return Estimate(gaps.mean() * scale, low * scale, high * scale, how)


def _paired_interval(
    results: ReportData, pairs: pd.DataFrame, gaps: pd.Series, is_fraction: bool
) -> tuple[float, float, str]:
    """(low, high, how) of the mean of ``gaps``, one a seed; pairs: the records behind them."""
    how = f"{len(gaps)} seeds, paired" if len(gaps) > 1 else "one seed, paired over examples"
    tests = _paired_tests(results, pairs, list(gaps.index))
    if tests is not None:
        flip = 1 / len(tests) / len(gaps) if is_fraction else 0.0
        spread = intervals.spread(tests, flips=[flip] * len(tests))
    elif len(gaps) == 1:
        return math.nan, math.nan, "no interval: scores of the same examples are not at hand"
    else:
        spread = intervals.of_records(gaps, [])
    if spread is None:
        return math.nan, math.nan, f"no interval: {how}, and all differ by the same"
    half = spread.quantile() * spread.stderr
    return gaps.mean() - half, gaps.mean() + half, how


def _paired_tests(
    results: ReportData, pairs: pd.DataFrame, seeds: list[int]
) -> list[np.ndarray] | None:
    """Of each task what its examples add to the difference, [examples, seeds].

    None where scores are missing. pairs: one row a task and seed.
    """
    tests = []
    tasks = pairs["name"].unique()
    for _, of_task in pairs.groupby("name", sort=False, observed=True):
        rows = list(of_task.set_index("seed").loc[seeds].reset_index().itertuples())
        evaluations = [evaluation for row in rows for evaluation in _evaluations(row)]
        scores, places = results.together(evaluations)
        if scores is None or len(places) < len(evaluations):
            return None
        parts = intervals.parts_of(scores, [value for *_, value in evaluations])
        tests.append((parts[:, ::2] - parts[:, 1::2]) / len(tasks))
    return tests


def _evaluations(pair: Any) -> list[tuple[int, str, str, float]]:
    """The two evaluations (folder, key, metric, value) of a row of pairs of records."""
    # The teacher's record has a metric of its own name, the scores of its answers have the skill's.
    metric = pair.metric_other if pair.metric == "teacher_accuracy" else pair.metric
    return [
        (pair.folder, pair.evaluation, metric, pair.value),
        (pair.folder_other, pair.evaluation_other, metric, pair.value_other),
    ]
