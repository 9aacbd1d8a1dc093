"""The data of a report: results folders pooled, estimates of what they measured, what is missing.

``ReportData`` is what tables, pictures and page are made from. Its parts: pooling.py reads the
folders and refuses what cannot be compared; measurements.py sorts the records into arrays;
estimates.py has values and intervals; missing.py and costs.py have the rest.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from harness.report import costs
from harness.report.estimates import Estimator
from harness.report.measurements import WITH_REFERENCES, measure
from harness.report.missing import missing
from harness.results.folders import Json
from harness.results.items import ItemScores, Joint, item_scores, join_items
from harness.results.overlap import sentence
from harness.results.pooling import open_pool
from harness.results.questions import AskedQuestion


class ReportData:
    """What one or several results folders hold.

    Raises UserError for a folder that is no results folder of this version, and where the folders
    (or the records of one) measured the same thing under two protocols, metrics or splits.

    Lists by folder: ``folders`` (paths), ``heads`` (results.json with the methods and metrics that
    count), ``names``. By skill or task: ``skills`` and ``retention`` (entries of results.json),
    ``continuous`` (the same for the continuous metrics of tasks), ``grader`` and ``metric`` (before
    and after a judge), ``tasks_in_mean``; ``n`` and ``protocol_of`` by ("skill" or "retention",
    name). By label: ``series``, ``runs``, ``R`` and
    ``D`` (values [runs, T + 1, columns]; a column of R is the k-th skill of the run's own sequence,
    ``order_of``); by (kind, label): ``stderr``, ``answers`` and ``keys`` of the same shape.
    ``references``: labels with joint or single runs; ``reference_records``: records of all
    reference runs. ``records`` has one row a record, with ``label`` and ``folder`` added;
    ``skill_records`` and ``retention_records`` are those that count. ``estimate``, ``compare``,
    ``of_records``, ``of_items``, ``bases`` and ``base_estimate`` are those of the Estimator;
    ``read_items`` keeps what ``items`` reads. ``missing`` and ``overlaps`` are lines for people.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        every_point: bool = False,
        sequence: str | None = None,
    ) -> None:
        """every_point: let every point of a grid count as a method of its own; sequence: see
        ``of_sequences``.
        """
        self.folders = [Path(folder) for folder in folders]
        pool = open_pool(self.folders, every_point, sequence)
        measured = measure(pool)
        self._pool = pool
        self._measured = measured
        estimator = Estimator(pool, measured)
        self.estimate = estimator.estimate
        self.compare = estimator.compare
        self.of_records = estimator.of_records
        self.bases = estimator.bases
        self.base_estimate = estimator.base_estimate
        self.of_items = estimator.of_items
        self.combine = estimator.combine
        self.read_items = estimator.entries.items
        self.is_readable = estimator.entries.is_readable

        self.heads = pool.heads
        self.names = pool.names
        self.protocols = pool.protocols
        self.grader = pool.grader
        self.metric = pool.metric
        self.split = pool.split
        self.skills = pool.skills
        self.retention = {t: e for t, e in pool.retention.items() if "of" not in e}
        self.continuous = {t: e for t, e in pool.retention.items() if "of" in e}
        self.series = pool.series
        self.records = pool.records
        self.reference_records = pool.references

        self.skill_records = measured.skill_records
        self.retention_records = measured.retention_records
        self.runs = measured.runs
        self.tasks_in_mean = measured.tasks_in_mean
        self.n = measured.answers
        self.protocol_of = measured.protocol_of
        arrays = measured.arrays
        self.R = {label: arrays["R", label].values for label in pool.series}
        self.D = {label: arrays["D", label].values for label in pool.series}
        self.stderr = {key: of_label.stderr for key, of_label in arrays.items()}
        self.answers = {key: of_label.answers for key, of_label in arrays.items()}
        self.keys = {key: of_label.keys for key, of_label in arrays.items()}

        self.references = [label for label in pool.series if ("R+", label) in arrays]
        self.missing = missing(pool, measured)
        overlaps = (overlap for head in pool.heads for overlap in head.get("overlap") or ())
        self.overlaps = list(dict.fromkeys(map(sentence, overlaps)))

    @cached_property
    def with_every_point(self) -> "ReportData":
        """The same with every point of its grids as a method of its own."""
        has_grid = any(
            "grid" in entry for f in self._pool.folders for entry in f.results["methods"].values()
        )
        return ReportData(self.folders, every_point=True) if has_grid else self

    @property
    def has_sequences(self) -> bool:
        """Whether runs are of several sequences of skills."""
        return any(series.orders for series in self.series.values())

    @cached_property
    def of_sequences(self) -> dict[str, "ReportData"]:
        """{sequence of ``orders``: its runs alone, as if it were the only one}; {} without any."""
        names = dict.fromkeys(n for series in self.series.values() for n in series.orders)
        every_point = any(folder.every_point for folder in self._pool.folders)
        return {name: ReportData(self.folders, every_point, name) for name in names}

    def order_of(self, label: str, run: int) -> tuple[str, ...]:
        """The skills in the sequence of a label's run."""
        return self.series[label].order_of(self.runs[label][run].sequence)

    @property
    def in_mean(self) -> list[str]:
        """The retention tasks that may be averaged."""
        return [task for task, counts in self.tasks_in_mean.items() if counts]

    def asked(self, kind: str, names: Iterable[str]) -> float:
        """Questions a run of some skills or retention tasks together; NaN where nobody knows."""
        return float(sum(self.n.get((kind, name), np.nan) for name in names))

    # -- estimates

    def complete(self, label: str) -> int:
        """Number of runs whose last stage is measured on every skill."""
        return self._measured.complete(label)

    def retention_mean(self, array: np.ndarray) -> np.ndarray:
        """Mean over the tasks that may be averaged: array [..., T + 1, tasks] -> [..., T + 1]."""
        return self._measured.retention_mean(array)

    def with_references(self, label: str) -> np.ndarray | None:
        """R of a label with two rows behind it, joint and single; None without references."""
        arrays = self._measured.arrays.get(("R+", label))
        return None if arrays is None else arrays.values

    def final_arrays(
        self, kind: Literal["R", "D"], label: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, keys of evaluations and numbers of answers of a kind, [runs, stages, columns].

        Behind the stages are the rows of references, where the label has them: measurements.py.
        """
        arrays = self._measured.arrays
        extended = WITH_REFERENCES[kind]
        found = arrays[(extended, label) if (extended, label) in arrays else (kind, label)]
        return found.values, found.keys, found.answers

    # -- evaluations

    def evaluation(self, folder: int, key: str | None) -> Json:
        """The file of one evaluation, {} where it is missing; folder: its index."""
        return self._pool.folders[folder].evaluation(key)

    def evaluation_keys(self, folder: int) -> set[str]:
        """Keys of all evaluations of a folder on disk."""
        return self._pool.folders[folder].evaluation_keys()

    def questions(self, folder: int, protocol: object) -> dict[str, AskedQuestion]:
        """{item id: what a retention task of this protocol asked}, {} where it is not kept."""
        return self._pool.folders[folder].questions(protocol)

    def items(self, folder: int, key: str | None, metric: str) -> ItemScores | None:
        """{item id: (score times weight, weight)} of an evaluation, None where there is none."""
        return item_scores(self.evaluation(folder, key), metric)

    def together(self, evaluations: Sequence[tuple[int, str | None, str, float]]) -> Joint:
        """Joins the items of evaluations (folder, key, metric, value) of the same examples.

        Returns scores and weights [items, members, 2] and the places of the members. An evaluation
        without items, with other items than the first one or with a mean that is not its value is
        left out.
        """
        return join_items(
            [(self.items(folder, key, metric), value) for folder, key, metric, value in evaluations]
        )

    # -- costs and training

    def provenance(self) -> list[Json]:
        """run.json of every run that has one, with the index of its ``folder`` added."""
        return costs.provenance(self._pool)

    def stages(self) -> pd.DataFrame:
        """One row a finished stage: label, folder, seed, counts, ``seconds_PART``, memory."""
        return costs.stages(self._pool)

    def base_costs(self) -> dict[str, list[dict[str, float]]]:
        """{row of ``bases``: seconds per part of measuring the base model, one dict a folder}."""
        return costs.base_costs(self._pool, self.bases())

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row an optimizer step, at most about 400 a stage: its diagnostics."""
        return costs.training(self._pool, 400)
