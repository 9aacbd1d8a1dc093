"""What a number of the report is made of: entries of the runs' arrays, and the items behind."""

from collections.abc import Callable, Sequence
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


class Term(NamedTuple):
    """A number that each run of a label gives, and its sign in a difference of labels.

    runs: their places in the label's arrays, one a seed, in the same order in every term.
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
                files = sum(isinstance(key, str) for key in arrays.keys[run].ravel())
                is_readable = files <= MOST_FILES
                for stage, column in np.argwhere(gradient):
                    value, stderr, answers, key = arrays.cell(run, stage, column)
                    weight = float(gradient[stage, column])
                    entries.setdefault(arrays.columns[column], []).append(
                        Entry(place, weight, value, stderr, answers, folder, key, is_readable)
                    )
        return entries

    def tests(self, kind: Kind, entries: dict[str, list[Entry]], runs: int) -> list[Test] | None:
        """The tests of a number over ``runs`` runs.

        None where item scores are missing, are too many to read, or do not make up the values.
        """
        tests = []
        for name, of_name in entries.items():
            metric = self.pool.metric[name] if kind == "R" else self.pool.retention[name]["metric"]
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

    Central differences: of a maximum that two entries share, each has half. An entry that is not on
    record has none: the function does not need it, or its number were NaN.
    """
    if not array.size:
        return np.zeros(array.shape)
    steps = np.eye(array.size).reshape(array.size, *array.shape) * STEP
    change = np.asarray(function(array + steps)) - np.asarray(function(array - steps))
    gradient = np.where(np.isfinite(array), change.reshape(array.shape) / (2 * STEP), 0.0)
    return np.where(np.abs(gradient) > STEP, gradient, 0.0)
