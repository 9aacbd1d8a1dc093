"""What a number of the report is made of: entries of the runs' arrays, and the items behind."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from harness.base import intervals
from harness.report.measurements import Kind, PooledMeasurements
from harness.results.items import ItemScores, item_scores, join_items
from harness.results.pooling import Pool

# A function of arrays [..., T + 1, columns] that gives one number for each: [...]. It is linear, or
# piecewise so (a maximum).
ArrayFunction = Callable[[np.ndarray], np.ndarray]

# Item scores of one run are read where it has at most so many evaluations: they take minutes.
MOST_FILES = 400
STEP = 1e-6  # of the derivative of a function of arrays
AT_ONCE = 256  # derivatives: 50 skills in turn have 2,550 entries


class Term(NamedTuple):
    """A number that each run of a label gives, and its sign in a difference of labels.

    runs: their places in the label's arrays, one a run, in the same order in every term.
    """

    label: str
    runs: Sequence[int]
    function: ArrayFunction
    sign: float = 1.0


class Entry(NamedTuple):
    """One measurement in a number: of the place-th of its runs, with its derivative by it."""

    place: int
    weight: float
    value: float
    stderr: float
    answers: float
    folder: int
    key: str | None
    is_readable: bool


class Test(NamedTuple):
    """What each item of one test adds to a number, [items, runs], and the same of one answer."""

    parts: np.ndarray
    flip: float


class Entries:
    """Finds the entries and items of numbers; keeps item scores, which tables ask for often."""

    def __init__(self, pool: Pool, measurements: PooledMeasurements) -> None:
        self.pool = pool
        self.measurements = measurements
        self.items = lru_cache(maxsize=1000)(self._items)  # of 300 items: some 60 MB

    def of(self, kind: Kind, terms: Sequence[Term]) -> dict[str, list[Entry]]:
        """{skill or task: the entries that the terms need of it}."""
        entries: dict[str, list[Entry]] = {}
        for term in terms:
            arrays = self.measurements.arrays[kind, term.label]
            for place, run in enumerate(term.runs):
                gradient = term.sign * _gradient(term.function, arrays.values[run])
                folder = self.measurements.runs[term.label][run].folder
                is_readable = self.is_readable(kind, term.label, run)
                names = arrays.names(run)
                for stage, column in np.argwhere(gradient):
                    value, stderr, answers, key = arrays.cell(run, stage, column)
                    weight = float(gradient[stage, column])
                    entries.setdefault(names[column], []).append(
                        Entry(place, weight, value, stderr, answers, folder, key, is_readable)
                    )
        return entries

    def is_readable(self, kind: Kind, label: str, run: int) -> bool:
        """Whether the item scores of a label's run are few enough to be read."""
        keys = self.measurements.arrays[kind, label].keys[run]
        return sum(isinstance(key, str) for key in keys.ravel()) <= MOST_FILES

    def metric(self, kind: Kind, name: str) -> str:
        """The metric that counts of a skill or a retention task."""
        return self.pool.retention[name]["metric"] if kind[0] == "D" else self.pool.metric[name]

    def tests(
        self, entries: dict[str, list[Entry]], metrics: Mapping[str, str], runs: int
    ) -> list[Test] | None:
        """The tests of a number over ``runs`` runs; metrics: of the entries, by their name.

        None where item scores are missing, are too many to read, or do not make up the values.
        """
        tests = []
        for name, of_name in entries.items():
            metric = metrics[name]
            joint = join_items(
                [
                    (self.items(e.folder, e.key, metric) if e.is_readable else None, e.value)
                    for e in of_name
                ]
            )
            if joint.scores is None or len(joint.members) < len(of_name):
                return None
            parts = np.zeros((len(joint.scores), runs))
            added = intervals.parts_of(joint.scores, [e.value for e in of_name])
            for entry, part in zip(of_name, added.T, strict=True):
                parts[:, entry.place] += entry.weight * part
            tests.append(Test(parts, max(abs(e.weight) for e in of_name) / runs))
        return tests

    def _items(self, folder: int, key: str | None, metric: str) -> ItemScores | None:
        return item_scores(self.pool.folders[folder].evaluation(key), metric)


def _gradient(function: ArrayFunction, array: np.ndarray) -> np.ndarray:
    """The derivative of a function by each entry of an array [T + 1, columns].

    Central differences: of a maximum that two entries share, each has half.
    """
    gradient = np.zeros(array.shape)
    needed = np.argwhere(_needed(function, array))
    for first in range(0, len(needed), AT_ONCE):
        stage, column = needed[first : first + AT_ONCE].T
        steps = np.zeros((len(stage), *array.shape))
        steps[np.arange(len(stage)), stage, column] = STEP
        change = np.asarray(function(array + steps)) - np.asarray(function(array - steps))
        gradient[stage, column] = change / (2 * STEP)
    return np.where(np.abs(gradient) > STEP, gradient, 0.0)


def _needed(function: ArrayFunction, array: np.ndarray) -> np.ndarray:
    """Which entries a function may need: those of the stages and of the columns that it needs.

    It gives NaN where an entry that it needs is NaN.
    """
    stages, columns = (np.eye(n, dtype=bool) for n in array.shape)
    of_stage = np.isnan(function(np.where(stages[:, :, None], np.nan, array)))
    of_column = np.isnan(function(np.where(columns[:, None, :], np.nan, array)))
    return np.logical_and.outer(of_stage, of_column) & np.isfinite(array)
