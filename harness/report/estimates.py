"""Estimates of the report: a value with its 95% interval, and where the interval comes from.

The interval holds what varies: the questions of a test, the seeds where there are several, and the
sequences of skills where the order has several, by harness.base.intervals. Two methods are compared
in pairs, on the questions, seeds and sequences that they share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.base import intervals, metrics
from harness.base.intervals import Spread
from harness.report.crossing import Crossing, are_apart, crossing, number_of
from harness.report.entries import ArrayFunction, Entries, Entry, Term
from harness.report.measurements import Arrays, Kind, PooledMeasurements, RunId, run_ids
from harness.report.names import model_names
from harness.results.formats import ORACLE
from harness.results.pooling import Pool

TEACHER = "teacher_accuracy"  # the metric of a skill under the teacher's prompt


class IntervalSource(StrEnum):
    """Where a 95% interval comes from, or why there is none."""

    BOTH = "both"
    ITEMS = "items"
    WILSON = "wilson"
    SEEDS = "seeds"
    ERRORS = "errors"
    APART = "apart"
    ALIKE = "alike"
    RUNS = "runs"
    RUN = "run"


HOW = {
    IntervalSource.BOTH: "over questions and seeds together",
    IntervalSource.ITEMS: "over questions alone (one run: what another seed changes is not in it)",
    IntervalSource.WILSON: (
        "by Wilson's formula over the questions of one run, for an accuracy or a mean of accuracies"
    ),
    IntervalSource.SEEDS: (
        "over seeds alone (Student's t), where item scores are missing or do not make up the values"
    ),
    IntervalSource.ERRORS: (
        "from the standard errors on record, where item scores are missing or do not make up the "
        "value"
    ),
    IntervalSource.APART: (
        "differences of one run whose item scores are missing or do not make up the values"
    ),
    IntervalSource.ALIKE: "where all questions, or all seeds, give the same number",
    IntervalSource.RUNS: "over seeds alone (Student's t) for numbers of whole runs, as of curves",
    IntervalSource.RUN: "numbers of one whole run, as of its curves",
}
NO_INTERVAL = (IntervalSource.APART, IntervalSource.ALIKE, IntervalSource.RUN)


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
    interval comes from; spread: the variance behind it, by level, where the scores of items and
    runs are at hand; records: those that the value is the mean of, for paired differences; apart:
    whether each of its runs has a seed and a sequence of its own.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    how: str = ""
    detail: str = ""
    by: IntervalSource | None = None
    spread: Spread | None = field(default=None, repr=False, compare=False)
    records: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    apart: bool = False


def how_of(source: IntervalSource | None) -> str:
    """HOW, as part of a sentence on one number."""
    if source is None:
        return ""
    return ("no interval: " if source in NO_INTERVAL else "95% interval ") + HOW[source]


class Weighted(NamedTuple):
    """A number of a label in a sum, with its weight."""

    kind: Kind
    label: str
    function: ArrayFunction
    weight: float


class Estimator:
    """Estimates of what was measured."""

    def __init__(self, pool: Pool, measurements: PooledMeasurements) -> None:
        self.pool = pool
        self.measurements = measurements
        self.entries = Entries(pool, measurements)

    def estimate(
        self,
        label: str,
        function: ArrayFunction,
        kind: Kind = "R",
        detail: str = "",
        difference: bool = False,
    ) -> Estimate:
        """``function`` of each run's array [..., T + 1, columns]: its mean and 95% interval.

        difference: whether it compares stages; see ``interval``.
        """
        values = self._values(kind, label, function)
        runs = np.flatnonzero(np.isfinite(values))
        return self._estimate(
            kind, [Term(label, runs.tolist(), function)], values[runs], detail, difference
        )

    def compare(
        self,
        first: tuple[str, ArrayFunction],
        second: tuple[str, ArrayFunction],
        kind: Kind = "R",
        detail: str = "",
    ) -> Estimate:
        """What the first label's number is above the second's, paired by run and by question.

        first, second: a label, and a function of its arrays. Seeds and sequences that only one of
        them has are left out.
        """
        numbers = [self._values(kind, label, function) for label, function in (first, second)]
        places = [
            {run.key: i for i, run in enumerate(self.measurements.runs[label])}
            for label, _ in (first, second)
        ]
        shared = [
            (places[0][key], places[1][key])
            for key in places[0]
            if key in places[1]
            and np.isfinite(numbers[0][places[0][key]] - numbers[1][places[1][key]])
        ]
        mine, other = [one for one, _ in shared], [two for _, two in shared]
        terms = [Term(first[0], mine, first[1]), Term(second[0], other, second[1], -1.0)]
        return self._estimate(kind, terms, numbers[0][mine] - numbers[1][other], detail, True)

    def combine(self, parts: Sequence[Weighted], detail: str = "") -> Estimate:
        """A sum of numbers of several labels and kinds, weighted, paired by run and by question.

        Its interval is that of a difference. Runs that only some of the labels have are left out.
        """
        numbers = [self._values(kind, label, function) for kind, label, function, _ in parts]
        places = [
            {run.key: i for i, run in enumerate(self.measurements.runs[label])}
            for _, label, _, _ in parts
        ]
        shared = [
            run
            for run in self.measurements.runs[parts[0].label]
            if all(
                run.key in of and np.isfinite(n[of[run.key]])
                for of, n in zip(places, numbers, strict=True)
            )
        ]
        if not shared:
            return Estimate(np.nan, detail=detail)
        crossed = crossing(shared)
        shared = [shared[place] for place in crossed.places]
        values = np.zeros(len(shared))
        entries: dict[str, list[Entry]] = {}
        metric_of: dict[str, str] = {}
        fractions = True
        for (kind, label, function, weight), of, n in zip(parts, places, numbers, strict=True):
            runs = [of[run.key] for run in shared]
            values += weight * n[runs]
            terms = [Term(label, runs, function, weight)]
            for name, of_name in self.entries.of(kind, terms).items():
                key = f"{kind}/{name}"
                entries.setdefault(key, []).extend(of_name)
                metric_of[key] = self.entries.metric(kind, name)
                fractions &= kind[0] != "D" or self.measurements.tasks_in_mean[name]
        found = self._of_entries(entries, metric_of, fractions, values, crossed, difference=True)
        return _with_interval(values, shared, *found, detail)

    def _values(self, kind: Kind, label: str, function: ArrayFunction) -> np.ndarray:
        if (kind, label) not in self.measurements.arrays:  # a method without references
            return np.array([])
        array = self.measurements.arrays[kind, label].values
        return np.asarray(function(array), float) if array.size else np.array([])

    def _estimate(
        self, kind: Kind, terms: Sequence[Term], values: np.ndarray, detail: str, difference: bool
    ) -> Estimate:
        """values: of the runs of the terms."""
        if not len(values):
            return Estimate(np.nan, detail=detail)
        runs = [self.measurements.runs[terms[0].label][i] for i in terms[0].runs]
        crossed = crossing(runs)
        values, runs = values[crossed.places], [runs[i] for i in crossed.places]
        terms = [term._replace(runs=[term.runs[i] for i in crossed.places]) for term in terms]
        found = self.interval(kind, terms, values, difference, crossed)
        return _with_interval(values, runs, *found, detail)

    def of_records(self, label: str, records: pd.DataFrame) -> Estimate:
        """The mean of ``records`` of one name, split and metric, one a run of a label.

        Metrics that do not count have their interval as those that do.
        """
        records = records[np.isfinite(records["value"])]
        if records.empty:
            return Estimate(np.nan)
        first = records.iloc[0]
        kind: Kind = "D" if first["kind"] == "retention" else "R"
        metric = str(first["metric"]).removeprefix(ORACLE)
        places = {run: place for place, run in enumerate(self.measurements.runs[label])}
        runs = run_ids(records)
        crossed = crossing(runs)
        records, runs = records.iloc[crossed.places], [runs[i] for i in crossed.places]
        entries = []
        columns = records[["value", "stderr", "n", "folder", "evaluation"]]
        for place, (value, stderr, n, folder, key) in enumerate(columns.itertuples(index=False)):
            run = places[runs[place]]
            is_readable = self.entries.is_readable(kind, label, run)
            entries.append(Entry(place, 1.0, value, stderr, n, int(folder), key, is_readable))
        name, values = str(first["name"]), records["value"].to_numpy(float)
        is_share = self._is_share(kind, name, metric)
        found = self._of_entries({name: entries}, {name: metric}, is_share, values, crossed)
        return _with_interval(values, runs, *found)

    def of_items(
        self, label: str, runs: Sequence[int], parts: np.ndarray, detail: str = ""
    ) -> Estimate:
        """The mean of what each item adds to a number in each run of a label: [items, runs].

        runs: places of the runs among the label's. One answer more or less changes an item's part
        by 1, as in shares of items.
        """
        ids = [self.measurements.runs[label][run] for run in runs]
        crossed = crossing(ids)
        parts, ids = parts[:, crossed.places], [ids[i] for i in crossed.places]
        grid = parts.reshape(len(parts), *crossed.shape)
        spread = intervals.spread([grid], crossed.levels, [1 / len(ids)])
        values = parts.mean(axis=0)
        interval = Interval.none(IntervalSource.ALIKE)
        if spread is not None:
            half, mean = spread.quantile() * spread.stderr, float(values.mean())
            source = IntervalSource.BOTH if len(ids) > 1 else IntervalSource.ITEMS
            interval = Interval(mean - half, mean + half, source)
        return _with_interval(values, ids, interval, spread, detail)

    def _is_share(self, kind: Kind, name: str, metric: str) -> bool:
        """Whether a metric, of those that count or not, is a mean of scores in [0, 1]."""
        if kind == "D":
            entry = self.pool.retention.get(name)
            return bool(
                entry and entry["metric"] == metric and self.measurements.tasks_in_mean[name]
            )
        graders = self.pool.skills.get(name, {}).get("graders") or ()
        known = (self.pool.metric.get(name), self.pool.grader.get(name), TEACHER, *graders)
        return metric in known or metric.startswith("pass@")

    def interval(
        self,
        kind: Kind,
        terms: Sequence[Term],
        values: np.ndarray,
        difference: bool = False,
        crossed: Crossing | None = None,
    ) -> tuple[Interval, Spread | None]:
        """The 95% interval of the mean of the runs' ``values``, and the spread behind it.

        crossed: their seeds and sequences; None: seeds alone.

        The number is a mean of entries of the runs' arrays or, if so said, a ``difference`` of
        them. Its variance is, in this order:

        * over questions, seeds and sequences (harness.base.intervals) where all item scores are at
          hand;
        * from the seeds and the standard errors on record;
        * over seeds alone, or none for one run, where the number is a difference: the errors do not
          know how the same questions fare at both stages.

        An accuracy, or a mean of accuracies, has the score interval with this variance
        (metrics.score_interval): it lies in [0, 1], and has a width where all answers are wrong.
        """
        entries = self.entries.of(kind, terms)
        in_mean = self.measurements.tasks_in_mean
        fractions = all(kind[0] != "D" or in_mean[name] for name in entries)
        metric_of = {name: self.entries.metric(kind, name) for name in entries}
        crossed = crossed or Crossing(list(range(len(values))), (len(values),))
        return self._of_entries(entries, metric_of, fractions, values, crossed, difference)

    def _of_entries(
        self,
        entries: dict[str, list[Entry]],
        metric_of: Mapping[str, str],
        fractions: bool,
        values: np.ndarray,
        crossed: Crossing,
        difference: bool = False,
    ) -> tuple[Interval, Spread | None]:
        """``interval`` of a number that is made of ``entries``.

        metric_of: their metrics, by name; fractions: whether all of these are shares.
        """
        mean, runs = float(values.mean()), len(values)
        if not entries:  # the base model's change since the base model
            return Interval.none(IntervalSource.ALIKE), None
        tests = self.entries.tests(entries, metric_of, runs)
        if tests is not None:
            source = IntervalSource.BOTH if runs > 1 else IntervalSource.ITEMS
            flips = [test.flip * (fractions and difference) for test in tests]
            grids = [test.parts.reshape(len(test.parts), *crossed.shape) for test in tests]
            spread = intervals.spread(grids, crossed.levels, flips)
        elif not difference:
            source = IntervalSource.ERRORS
            grid = values.reshape(crossed.shape)
            spread = intervals.of_records(grid, _errors(entries, runs), levels=crossed.levels)
        elif runs > 1:
            source, grid = IntervalSource.SEEDS, values.reshape(crossed.shape)
            spread = intervals.of_records(grid, [], levels=crossed.levels)
        else:
            return Interval.none(IntervalSource.APART), None
        if fractions and not difference:
            interval = _of_fractions(mean, spread, entries, source, runs)
            if interval is not None:
                return interval, spread
        if spread is None:
            return Interval.none(IntervalSource.ALIKE), None
        half = spread.quantile() * spread.stderr
        return Interval(mean - half, mean + half, source), spread

    # -- the base model

    def bases(self) -> dict[str, str]:
        """The base models: {row label: label of the most complete series that starts from it}."""
        label_of: dict[str, str] = {}
        for label, series in self.pool.series.items():
            best = label_of.get(series.model)
            complete = self.measurements.complete
            if best is None or complete(label) > complete(best):
                label_of[series.model] = label
        alone, names = len(label_of) == 1, model_names(label_of)
        return {
            "base" if alone else f"base ({names[model]})": label
            for model, label in label_of.items()
        }

    def base_estimate(
        self, names: Sequence[str], row: str, kind: Kind = "R", detail: str = ""
    ) -> Estimate:
        """The base model's mean over ``names`` (skills for R, tasks for D).

        row: one of ``bases``. The interval is over examples, never over seeds: there is one base
        model, not one a seed.
        """
        model = self.pool.series[self.bases()[row]].model
        kind = "S" if kind == "R" else kind
        for label, series in self.pool.series.items():
            arrays = self.measurements.arrays[kind, label]
            if series.model != model or not names or not set(names) <= set(arrays.columns):
                continue
            mean = _mean_of_base(arrays, names)
            for run, values in enumerate(arrays.values):
                value = np.atleast_1d(mean(values))
                if np.isfinite(value).all():
                    interval, _ = self.interval(kind, [Term(label, [run], mean)], value)
                    low, high, source = interval
                    return Estimate(float(value[0]), low, high, how_of(source), detail, source)
        return Estimate(np.nan, detail=detail)


def _with_interval(
    values: np.ndarray,
    runs: Sequence[RunId],
    interval: Interval,
    spread: Spread | None,
    detail: str = "",
) -> Estimate:
    """The mean of ``values``, one a run, with its interval and how both came about."""
    low, high, source = interval
    each = ", ".join(f"{run.text}: {v:.4g}" for run, v in zip(runs, values, strict=True))
    how = ", ".join(filter(None, (each, how_of(source))))
    if len(values) > 1:
        how = f"mean of {number_of(runs)}, {how_of(source)} ({each})"
    mean, apart = float(values.mean()), are_apart(runs)
    return Estimate(mean, low, high, how, detail, source, spread, apart=apart)


def _mean_of_base(arrays: Arrays, names: Sequence[str]) -> ArrayFunction:
    columns = [arrays.columns.index(name) for name in names]
    return lambda array: array[..., 0, columns].mean(-1)


def _errors(entries: dict[str, list[Entry]], runs: int) -> np.ndarray:
    """The standard errors [runs] of a number that is made of independent entries."""
    variances = np.zeros(runs)
    for of_name in entries.values():
        for entry in of_name:
            variances[entry.place] += (entry.weight * entry.stderr) ** 2
    return np.sqrt(variances)


def _of_fractions(
    mean: float,
    spread: Spread | None,
    entries: dict[str, list[Entry]],
    source: IntervalSource,
    runs: int,
) -> Interval | None:
    """The score interval of a mean of fractions, None where it is not defined.

    One accuracy of one run needs its record alone. All right or all wrong is as one test of all
    questions, each asked once.
    """
    answers = sum(of_name[0].answers for of_name in entries.values())
    error = spread.stderr if spread else math.nan
    quantile = spread.quantile() if spread and runs > 1 else None
    if runs == 1:
        source = IntervalSource.WILSON
        alone = [entry for of_name in entries.values() for entry in of_name]
        if len(alone) == 1 and np.isfinite(alone[0].stderr):
            error = alone[0].stderr
    elif mean in (0, 1):
        source = IntervalSource.BOTH
    low, high = metrics.score_interval(mean, error, answers, quantile=quantile)
    return Interval(float(low), float(high), source) if np.isfinite(low) else None
