"""The pooled records that count, as arrays of runs, stages and columns.

Two kinds of arrays, named as in harness/base/metrics.py and in the papers: R has the accuracy of
every skill, D the value of every retention task, both at the ends of all stages. Where a method has
references, "R+" and "D+" are the same with two rows behind the last stage: of the joint run, and of
the single runs, each of its own skill.

Runs may learn the skills in several sequences. A column of R is then the k-th skill of the run's
own sequence, as the formulas want it. "S" has the same by skill: column i is the series' i-th
skill, row i + 1 the stage that teaches it, and the last row the end of the run ("S+" as above).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.results.formats import JOINT, SINGLE
from harness.results.pooling import Pool

Kind = Literal["R", "S", "D", "R+", "S+", "D+"]
KINDS: tuple[Literal["R", "D"], ...] = ("R", "D")
WITH_REFERENCES: dict[str, Kind] = {"R": "R+", "D": "D+"}
BY_SKILL: dict[Kind, Kind] = {"R": "S", "R+": "S+"}
PLACES = {JOINT: 0, SINGLE: 1}  # of a reference behind the last stage


class RunId(NamedTuple):
    """One run of a label: index of its folder, seed, and sequence, "" where there is one."""

    folder: int
    seed: int
    sequence: str = ""

    @property
    def text(self) -> str:
        return f"seed {self.seed}" + (f" {self.sequence}" if self.sequence else "")

    @property
    def key(self) -> tuple[int, str]:
        """What runs of two labels share that are a pair."""
        return self.seed, self.sequence


def run_ids(records: pd.DataFrame) -> list[RunId]:
    """The run of each record."""
    columns = records[["folder", "seed", "sequence"]]
    return [RunId(int(f), int(s), str(name)) for f, s, name in columns.itertuples(index=False)]


@dataclass(frozen=True)
class Arrays:
    """The final records of one label and kind, in four arrays [runs, T + 1, columns].

    columns: skills in the label's order, or retention tasks; values, stderr (standard errors) and
    answers (how many a value is the mean of): NaN where nothing is on record; keys: of evaluations,
    None where there is none; own: the columns of each run, where they differ.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    stderr: np.ndarray
    answers: np.ndarray
    keys: np.ndarray
    own: tuple[tuple[str, ...], ...] = ()

    def names(self, run: int) -> tuple[str, ...]:
        """The columns of a run."""
        return self.own[run] if self.own else self.columns

    def cell(self, run: int, stage: int, column: int) -> list[Any]:
        """Value, standard error, answers and key of one measurement."""
        return [array[run, stage, column] for array in self.all()]

    def set_cell(self, run: int, stage: int, column: int, cell: list[Any]) -> None:
        for array, value in zip(self.all(), cell, strict=True):
            array[run, stage, column] = value

    def of(self, runs: list[int]) -> "Arrays":
        """The same of some of the runs, of which some may be there twice."""
        values, stderr, answers, keys = (array[runs] for array in self.all())
        return Arrays(self.columns, values, stderr, answers, keys)

    def picked(self, cells: list[tuple[list[int], list[int]]]) -> "Arrays":
        """The same with these rows and columns of each run."""
        values, stderr, answers, keys = (
            np.array([of_run[np.ix_(*at)] for of_run, at in zip(array, cells, strict=True)])
            for array in self.all()
        )
        return Arrays(self.columns, values, stderr, answers, keys)

    def all(self) -> tuple[np.ndarray, ...]:
        """The four arrays."""
        return self.values, self.stderr, self.answers, self.keys


@dataclass(frozen=True)
class PooledMeasurements:
    """What was measured by the metrics that count.

    skill_records, retention_records: records with a label, of all steps; runs: {label: its runs, by
    seed}; arrays: {(kind, label): final records}; tasks_in_mean: {retention task: whether its
    metric may be averaged with accuracies}; answers, protocol_of: {("skill" or "retention", name):
    number of answers, protocol}, of the first record.
    """

    skill_records: pd.DataFrame
    retention_records: pd.DataFrame
    runs: dict[str, list[RunId]]
    arrays: dict[tuple[Kind, str], Arrays]
    tasks_in_mean: dict[str, bool]
    answers: dict[tuple[str, str], int]
    protocol_of: dict[tuple[str, str], str]

    def complete(self, label: str) -> int:
        """Number of runs whose last stage is measured on every skill."""
        R = self.arrays["R", label].values
        return int(np.isfinite(R[:, -1]).all(axis=1).sum()) if R.size else 0

    def retention_mean(self, array: np.ndarray) -> np.ndarray:
        """Mean over the tasks that may be averaged: array [..., T + 1, tasks] -> [..., T + 1]."""
        in_mean = np.array(list(self.tasks_in_mean.values()), bool)
        return array[..., in_mean].mean(-1) if in_mean.any() else np.full(array.shape[:-1], np.nan)


def measure(pool: Pool) -> PooledMeasurements:
    """Sorts the records of a pool."""
    skill_records, retention_records = _counting(pool, pool.records)
    finals = {
        "R": skill_records[skill_records["final"]],
        "D": retention_records[retention_records["final"]],
    }
    runs = _runs(pool)
    arrays: dict[tuple[Kind, str], Arrays] = {}
    for kind in KINDS:
        by_label = dict(list(finals[kind].groupby("label", observed=True)))
        for label, series in pool.series.items():
            columns = series.order if kind == "R" else tuple(pool.retention)
            shape = (len(runs[label]), len(series.order) + 1, len(columns))
            arrays[kind, label] = _arrays(by_label.get(label), runs[label], shape, columns)
        _share_the_base(runs, {label: arrays[kind, label] for label in pool.series})
        for label, of_label in _references(pool, kind, runs):
            several = bool(pool.series[label].orders)  # then every single run has its record
            joined = _joined(arrays[kind, label], of_label, first_alone=not several)
            arrays[WITH_REFERENCES[kind], label] = joined
    for label, series in pool.series.items():
        orders = [series.order_of(run.sequence) for run in runs[label]]
        for by_place, by_skill in BY_SKILL.items():
            if (by_place, label) in arrays:
                both = _placed(arrays[by_place, label], orders, len(series.order) + 1)
                arrays[by_place, label], arrays[by_skill, label] = both
    of_tasks = retention_records["name"]
    tasks_in_mean = {
        task: metrics.in_unit_interval(
            entry["metric"],
            retention_records.loc[of_tasks == task, "value"],
            entry.get("higher_is_better", True),
        )
        for task, entry in pool.retention.items()
    }
    first = pd.concat([finals["R"], retention_records]).drop_duplicates(["kind", "name"])
    answers = first[["kind", "name", "n"]].dropna().itertuples(index=False)
    protocols = first[["kind", "name", "protocol"]].itertuples(index=False)
    return PooledMeasurements(
        skill_records=skill_records,
        retention_records=retention_records,
        runs=runs,
        arrays=arrays,
        tasks_in_mean=tasks_in_mean,
        answers={(kind, name): int(n) for kind, name, n in answers},
        protocol_of={(kind, name): protocol for kind, name, protocol in protocols},
    )


def _references(
    pool: Pool, kind: Literal["R", "D"], runs: dict[str, list[RunId]]
) -> Iterator[tuple[str, Arrays]]:
    """(label, its references' final records [runs, 2, columns]) where there are any."""
    records = _counting(pool, pool.references)[KINDS.index(kind)]
    is_one = records["reference"].isin(list(PLACES))
    records = records[records["final"] & (records["stage"] > 0) & is_one]
    places = records["reference"].astype(object).map(PLACES)
    for label, of_label in records.assign(stage=places).groupby("label", observed=True):
        name = str(label)
        # One for all sequences of a seed, in the same folder.
        alone = [RunId(run.folder, run.seed) for run in runs[name]]
        of_runs = [RunId(*run) for run in zip(of_label["folder"], of_label["seed"], strict=True)]
        of_label = of_label[[run in alone for run in of_runs]]
        if not of_label.empty:
            columns = pool.series[name].order if kind == "R" else tuple(pool.retention)
            once = list(dict.fromkeys(alone))
            shape = (len(once), len(PLACES), len(columns))
            arrays = _arrays(of_label, once, shape, columns)
            yield name, arrays.of([once.index(run) for run in alone])


def _joined(stages: Arrays, references: Arrays, first_alone: bool) -> Arrays:
    """Stages and references as one, [runs, T + 3, columns].

    first_alone: take stage 1 of the sequence for the first skill alone. Retention has no single
    runs.
    """
    parts = zip(stages.all(), references.all(), strict=True)
    values, stderr, answers, keys = (np.concatenate(pair, axis=1) for pair in parts)
    joined = Arrays(stages.columns, values, stderr, answers, keys)
    for run in np.flatnonzero(np.isfinite(values[:, -1]).any(axis=1)) if first_alone else ():
        joined.set_cell(int(run), -1, 0, joined.cell(int(run), 1, 0))
    return joined


def _placed(arrays: Arrays, orders: list[tuple[str, ...]], stages: int) -> tuple[Arrays, Arrays]:
    """(by the place in each run's own sequence, by skill) of arrays whose columns are by skill.

    Both are ``arrays`` itself where all runs have the series' order; stages: rows of these, base
    included, before those of references.
    """
    if all(order == arrays.columns for order in orders):
        return arrays, arrays
    every = list(range(arrays.values.shape[1]))
    placed, by_skill = [], []
    for order in orders:
        taught = [order.index(name) + 1 for name in arrays.columns]
        placed.append((every, [arrays.columns.index(name) for name in order]))
        by_skill.append(([0, *taught, stages - 1, *every[stages:]], list(range(len(order)))))
    in_place = replace(arrays.picked(placed), own=tuple(orders))
    return in_place, arrays.picked(by_skill)


def _counting(pool: Pool, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those of skills and of retention tasks that have a label and the metric that counts.

    Those of a task's continuous metrics have the name of their entry, "TASK METRIC".
    """
    metric = records["metric"].astype(object)
    labelled = records["label"].notna()
    # A column of texts is categorical: map looks each different name up once.
    counting = records["name"].map(pool.metric).astype(object)
    skills = (records["kind"] == "skill") & (metric == counting)
    skills &= labelled & (records["split"] == pool.split)
    entry_of = {(e.get("of", task), e["metric"]): task for task, e in pool.retention.items()}
    tasks = records[(records["kind"] == "retention") & labelled]
    measured = zip(tasks["name"], tasks["metric"], strict=True)
    names = pd.Series([entry_of.get(pair) for pair in measured], tasks.index, dtype=object)
    tasks = tasks.assign(name=names.astype("category"))
    return records[skills], tasks[names.notna()]


def _runs(pool: Pool) -> dict[str, list[RunId]]:
    """{label: its runs with any record, by seed and folder}."""
    runs: dict[str, list[RunId]] = {label: [] for label in pool.series}
    columns = ["label", "folder", "seed", "sequence"]
    labelled = pool.records.loc[pool.records["label"].notna(), columns]
    for label, folder, seed, sequence in labelled.drop_duplicates().itertuples(index=False):
        runs[label].append(RunId(int(folder), int(seed), str(sequence)))
    for label, of_label in runs.items():
        place = {name: k for k, name in enumerate(pool.series[label].orders)}
        of_label.sort(key=lambda run: (run.seed, place.get(run.sequence, 0), run.folder))
    return runs


def _arrays(
    finals: pd.DataFrame | None,
    runs: list[RunId],
    shape: tuple[int, int, int],
    columns: tuple[str, ...],
) -> Arrays:
    """The final records of one label, each in its place [run, stage, column] of ``shape``."""
    values, stderr, answers = np.full((3, *shape), np.nan)
    keys = np.full(shape, None, object)
    arrays = Arrays(columns, values, stderr, answers, keys)
    if finals is None or not columns:
        return arrays
    finals = finals[finals["name"].isin(columns) & finals["stage"].between(0, shape[1] - 1)]
    keys_of_runs = [finals["folder"], finals["seed"].astype(int), finals["sequence"].astype(object)]
    of_runs = pd.MultiIndex.from_arrays(keys_of_runs)
    place_of_run = {tuple(run): i for i, run in enumerate(runs)}
    place_of_column = {name: i for i, name in enumerate(columns)}
    places = (
        of_runs.map(place_of_run).to_numpy(int),
        finals["stage"].to_numpy(int),
        finals["name"].astype(object).map(place_of_column).to_numpy(int),
    )
    values[places] = finals["value"]
    stderr[places] = finals["stderr"]
    answers[places] = finals["n"]
    keys[places] = finals["evaluation"].astype(object)
    return arrays


def _share_the_base(runs: dict[str, list[RunId]], arrays: dict[str, Arrays]) -> None:
    """Gives runs without a stage 0 on record the base of their folder: it is the same model."""
    base: dict[tuple[int, str], list[Any]] = {}
    for folder, label, run, i in _cells_of_stage_0(runs, arrays):
        if np.isfinite(arrays[label].values[run, 0, i]):
            base.setdefault((folder, arrays[label].columns[i]), arrays[label].cell(run, 0, i))
    for folder, label, run, i in _cells_of_stage_0(runs, arrays):
        cell = base.get((folder, arrays[label].columns[i]))
        if cell is not None and np.isnan(arrays[label].values[run, 0, i]):
            arrays[label].set_cell(run, 0, i, cell)


def _cells_of_stage_0(
    runs: dict[str, list[RunId]], arrays: dict[str, Arrays]
) -> list[tuple[int, str, int, int]]:
    """(folder, label, place of the run, place of the column) of every cell of every run."""
    return [
        (folder, label, run, i)
        for label, of_label in arrays.items()
        for run, (folder, *_) in enumerate(runs[label])
        for i in range(len(of_label.columns))
    ]
