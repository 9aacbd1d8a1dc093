"""Estimates of the report: a value with its 95% interval, and where the interval comes from.

Several runs (seeds): Student's t over the seeds. One run: over its examples, see
``Estimator.interval``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.report.measurements import Arrays, Kind, PooledMeasurements
from harness.report.resampling import Draws, draw
from harness.results.pooling import Pool

# A function of arrays [..., T + 1, columns] that gives one number for each: [...].
ArrayFunction = Callable[[np.ndarray], np.ndarray]

# Seeds or draws that differ by less are alike, to rounding.
ALIKE_WITHIN = 1e-12


class IntervalSource(StrEnum):
    """Where a 95% interval comes from, or why there is none."""

    SEEDS = "seeds"
    BOOTSTRAP = "bootstrap"
    ERRORS = "errors"
    WILSON = "wilson"
    APART = "apart"
    ALIKE = "alike"


HOW = {
    IntervalSource.SEEDS: "over seeds (Student's t)",
    IntervalSource.BOOTSTRAP: (
        "over examples (one run; percentile bootstrap, the same resample at every stage)"
    ),
    IntervalSource.ERRORS: (
        "over examples (one run; normal, from standard errors, where item scores are missing or do "
        "not make up the value)"
    ),
    IntervalSource.WILSON: (
        "over examples (one run; Wilson's, for one accuracy, and for a mean where all answers are "
        "right or all wrong)"
    ),
    IntervalSource.APART: (
        "differences between stages whose item scores are missing or do not make up the values"
    ),
    IntervalSource.ALIKE: "where all examples, or all seeds, give the same number",
}
NO_INTERVAL = (IntervalSource.APART, IntervalSource.ALIKE)


class Interval(NamedTuple):
    """A 95% interval, NaN where there is none; ``source`` is None where there is no value."""

    low: float
    high: float
    source: IntervalSource | None

    @classmethod
    def none(cls, source: IntervalSource | None) -> "Interval":
        return cls(np.nan, np.nan, source)


@dataclass
class Estimate:
    """One number of the report: value and 95% bounds in the metric's own unit.

    how: how value and interval came about; detail: what was measured, on what; by: where the
    interval comes from; records: those that the value is the mean of, for paired differences.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    how: str = ""
    detail: str = ""
    by: IntervalSource | None = None
    records: pd.DataFrame | None = field(default=None, repr=False, compare=False)


def how_of(source: IntervalSource | None) -> str:
    """HOW, as part of a sentence on one number."""
    if source is None:
        return ""
    return ("no interval: " if source in NO_INTERVAL else "95% interval ") + HOW[source]


class Estimator:
    """Estimates of what was measured."""

    def __init__(self, pool: Pool, measurements: PooledMeasurements) -> None:
        self.pool = pool
        self.measurements = measurements
        # Tables ask for the draws of one run many times over. They take 40 MB where 50 skills are
        # learned, so that not all can be kept.
        self.draws = lru_cache(maxsize=64)(self._draws)

    def estimate(
        self,
        label: str,
        function: ArrayFunction,
        kind: Kind = "R",
        detail: str = "",
        difference: bool = False,
    ) -> Estimate:
        """``function`` of each run's array [..., T + 1, columns]: its mean and 95% interval.

        Over seeds (Student's t) where at least two runs give a number; where one does, over its
        examples. difference: whether it compares stages; see ``interval``.
        """
        array = self.measurements.arrays[kind, label].values
        values = np.asarray(function(array), float) if array.size else np.array([])
        runs = np.flatnonzero(np.isfinite(values))
        if not len(runs):
            return Estimate(np.nan, detail=detail)
        seeds = [self.measurements.runs[label][run].seed for run in runs]
        values = values[runs]
        each = ", ".join(f"seed {s}: {v:.4g}" for s, v in zip(seeds, values, strict=True))
        if len(runs) == 1:
            low, high, source = self.interval(kind, label, int(runs[0]), function, difference)
            how = ", ".join(filter(None, (each, how_of(source))))
            return Estimate(float(values[0]), low, high, how, detail, source)
        mean, low, high = metrics.t_interval(values)
        interval = Interval(low, high, IntervalSource.SEEDS)
        if np.ptp(values) < ALIKE_WITHIN:  # A spread of 0 between a few seeds is no certainty.
            interval = Interval.none(IntervalSource.ALIKE)
        how = f"mean of {len(runs)} seeds, {how_of(interval.source)} ({each})"
        return Estimate(mean, interval.low, interval.high, how, detail, interval.source)

    def interval(
        self,
        kind: Kind,
        label: str,
        run: int,
        function: ArrayFunction,
        difference: bool = False,
    ) -> Interval:
        """The 95% interval over examples of ``function`` of one run.

        The function is a mean of entries of the run's array or, if so said, a ``difference`` of
        stages. The interval is, in this order:

        * Wilson's for a single accuracy (metrics.score_interval of the record);
        * the percentile bootstrap, where all entries that the function needs are resampled jointly;
        * from standard errors. Not for a difference: they do not know how the same examples fare at
          both stages, and the interval would be far too wide;
        * where every resample gives the same number: Wilson's for a mean of 0 or 1 (as if the
          examples of all its columns were one test's), none for anything else.
        """
        arrays = self.measurements.arrays[kind, label]
        drawn, joint = self.draws(kind, label, run)
        source = _source(function, drawn[0], joint, difference)
        if source not in (IntervalSource.BOOTSTRAP, IntervalSource.ERRORS):
            return Interval.none(source)
        stages, columns = _needed(function, drawn[0])
        names = [arrays.columns[i] for i in columns]
        in_mean = self.measurements.tasks_in_mean
        fraction = not difference and all(kind == "R" or in_mean[name] for name in names)
        if fraction and len(stages) == len(columns) == 1:
            value, stderr, answers, _ = arrays.cell(run, stages[0], columns[0])
            low, high = metrics.score_interval(value, stderr, answers)
            if np.isfinite(low):
                return Interval(float(low), float(high), IntervalSource.WILSON)
        draws = function(drawn)
        if np.ptp(draws) > ALIKE_WITHIN:
            low, high = metrics.percentile_interval(draws)
            return Interval(float(low), float(high), source)
        of_kind = "skill" if kind == "R" else "retention"
        answers = [self.measurements.answers.get((of_kind, name), 0) for name in names]
        if fraction and draws[0] in (0, 1) and all(answers):
            low, high = metrics.wilson_interval(draws[0] * sum(answers), sum(answers))
            return Interval(float(low), float(high), IntervalSource.WILSON)
        return Interval.none(IntervalSource.ALIKE)

    def _draws(self, kind: Kind, label: str, run: int) -> Draws:
        arrays = self.measurements.arrays[kind, label]
        if kind == "R":
            column_metrics = [self.pool.metric[name] for name in arrays.columns]
        else:
            column_metrics = [self.pool.retention[name]["metric"] for name in arrays.columns]
        folder = self.pool.folders[self.measurements.runs[label][run].folder]
        return draw(arrays, run, column_metrics, folder.evaluation)

    # -- the base model

    def bases(self) -> dict[str, str]:
        """The base models: {row label: label of the most complete series that starts from it}."""
        label_of: dict[str, str] = {}
        for label, series in self.pool.series.items():
            best = label_of.get(series.model)
            complete = self.measurements.complete
            if best is None or complete(label) > complete(best):
                label_of[series.model] = label
        alone = len(label_of) == 1
        return {"base" if alone else f"base ({model})": label for model, label in label_of.items()}

    def base_estimate(
        self, names: Sequence[str], row: str, kind: Kind = "R", detail: str = ""
    ) -> Estimate:
        """The base model's mean over ``names`` (skills for R, tasks for D).

        row: one of ``bases``. The interval is over examples, never over seeds: there is one base
        model, not one a seed.
        """
        model = self.pool.series[self.bases()[row]].model
        for label, series in self.pool.series.items():
            arrays = self.measurements.arrays[kind, label]
            if series.model != model or not names or not set(names) <= set(arrays.columns):
                continue
            mean = _mean_of_base(arrays, names)
            for run, values in enumerate(arrays.values):
                value = float(mean(values))
                if np.isfinite(value):
                    low, high, source = self.interval(kind, label, run, mean)
                    return Estimate(value, low, high, how_of(source), detail, source)
        return Estimate(np.nan, detail=detail)


def _mean_of_base(arrays: Arrays, names: Sequence[str]) -> ArrayFunction:
    columns = [arrays.columns.index(name) for name in names]
    return lambda array: array[..., 0, columns].mean(-1)


def _gives_number(function: ArrayFunction, array: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the entries under ``mask`` are all that the function needs.

    A function gives NaN where an entry that it needs is NaN.
    """
    return bool(np.isfinite(function(np.where(mask, array, np.nan))))


def _source(
    function: ArrayFunction, array: np.ndarray, joint: np.ndarray, difference: bool
) -> IntervalSource | None:
    """What an interval can come from: the entries that the function needs decide."""
    if _gives_number(function, array, joint):
        return IntervalSource.BOOTSTRAP
    if difference:
        return IntervalSource.APART
    return IntervalSource.ERRORS if np.isfinite(function(array)) else None


def _needed(function: ArrayFunction, array: np.ndarray) -> tuple[list[int], list[int]]:
    """Stages and columns that the function needs of an array [T + 1, columns]."""
    stage, column = np.indices(array.shape)
    stages = [k for k in range(array.shape[0]) if not _gives_number(function, array, stage != k)]
    columns = [i for i in range(array.shape[1]) if not _gives_number(function, array, column != i)]
    return stages, columns
