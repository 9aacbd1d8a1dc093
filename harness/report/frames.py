"""Results in Python: what a report holds, as data frames.

    from harness.results import open_results

    results = open_results("results/quickstart")  # several folders are pooled, as by report.py
    results.matrix.loc["sft"]
    results.answers.where(label="sft", name="elements", stage=2).collect()

What is asked for is read or computed then, and kept. Values are in the metric's own unit
(accuracies as fractions), unrounded, and equal those of the report.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.base.errors import UserError, did_you_mean
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.table import Table

RUN = ["label", "folder", "seed", "sequence"]
EVALUATION = [*RUN, "stage", "step", "final", "kind", "name", "split", "evaluation"]
ESTIMATE = ["table", "row", "column", "value", "low", "high", "by", "how", "detail"]
BOUNDS = {"": "value", " low": "low", " high": "high"}  # endings of the columns of an estimate


def open_results(
    *folders: str | Path, every_point: bool = False, sequence: str | None = None
) -> "Results":
    """The results of one folder, or of several that are pooled.

    every_point: let every point of a grid count as a method of its own, selected or not; sequence:
    take the runs of this sequence of ``orders`` alone. Raises UserError for a folder that is no
    results folder of this version, and for records that must not be compared.
    """
    if not folders:
        raise UserError("open_results", "wants a folder", "give one that run_sequence.py wrote")
    return Results(ReportData(folders, every_point, sequence))


class Results:
    """What one or several results folders hold; ``data`` has the parts that it is made of.

    label: a method's name in the order; folder: the order's name, or the folder's where two are
    alike; sequence: name in ``orders``, "" where there is one.
    """

    def __init__(self, data: ReportData) -> None:
        self.data = data

    def __repr__(self) -> str:
        runs = sum(map(len, self.data.runs.values()))
        of = f"methods {', '.join(self.data.series)}; skills {', '.join(self.data.skills)}"
        return f"<Results of {', '.join(self.data.names)}: {runs} runs; {of}>"

    @property
    def missing(self) -> list[str]:
        """What the folders lack, in lines."""
        return self.data.missing

    # -- what was measured

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row a measured number, of all metrics, steps and runs.

        Those of joint, single and relearning runs have their kind in ``reference``.
        """
        kinds = (self.data.records, self.data.reference_records)
        tables = [table.astype({"label": object}) for table in kinds if len(table)]
        records = pd.concat(tables, ignore_index=True) if tables else self.data.records.copy()
        records["folder"] = records["folder"].map(dict(enumerate(self.data.names)))
        first = ["label", "folder"]
        return records[[*first, *(name for name in records.columns if name not in first)]]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The accuracy of each skill along training, mean over runs: one row a label, skill, x.

        Columns: label, name, x, value, low, high (a 95% interval by the records alone), seeds,
        stderr, stage; of several sequences of skills also ``sequence``. x is optimizer steps where
        all methods take the same, else stages.
        """
        from harness.report.pictures import source_of  # which loads matplotlib

        return source_of(self.data).curves.reset_index(drop=True)

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """The accuracy of each skill (columns) after each stage (rows; 0 is the base model).

        One block a run: ``matrix.loc["sft"].groupby("stage").mean()`` is the mean over runs.
        """
        return self._matrix(self.data.R, self.data.order_of, list(self.data.skills))

    @cached_property
    def retention(self) -> pd.DataFrame:
        """The same of the retention tasks, and of their continuous metrics (TASK METRIC)."""
        tasks = (*self.data.retention, *self.data.continuous)
        return self._matrix(self.data.D, lambda label, run: tasks, list(tasks))

    def _matrix(
        self,
        arrays: dict[str, np.ndarray],
        names_of: Callable[[str, int], Sequence[str]],
        columns: list[str],
    ) -> pd.DataFrame:
        """arrays: {label: [runs, T + 1, columns]}; names_of: the columns of a label's run."""
        keys: list[tuple[object, ...]] = []
        rows: list[dict[str, float]] = []
        for label, runs in self.data.runs.items():
            for place, run in enumerate(runs):
                names = names_of(label, place)
                of_run = (label, self.data.names[run.folder], run.seed, run.sequence)
                for stage, values in enumerate(arrays[label][place]):
                    keys.append((*of_run, stage))
                    rows.append(dict(zip(names, values.tolist(), strict=True)))
        index = pd.MultiIndex.from_tuples(keys, names=[*RUN, "stage"]) if keys else None
        return pd.DataFrame(rows, index=index, columns=columns, dtype=float)

    # -- what the report says of it

    @cached_property
    def _tables(self) -> list[Table]:
        from harness.report import build  # which loads matplotlib

        return build._all_tables(self.data)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The report's tables by the name of their files: main, comparisons, retention, ...

        A column of estimates is followed by its bounds, HEADING low and HEADING high.
        """
        return {table.name: table_frame(table) for table in self._tables}

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """Every number of the tables that has a value: one row each, with its 95% interval.

        low, high: NaN without an interval; by: where the interval comes from, or why there is none
        (harness.report.estimates.IntervalSource); how: the same in words, with each run's value;
        detail: what was measured, by which protocol.
        """
        rows = [
            (
                *(table.name, label, column.heading, cell.value, cell.low, cell.high),
                *(str(cell.by or ""), cell.how, cell.detail or column.note),
            )
            for table in self._tables
            for label, cells in table.rows
            for column in table.columns
            if isinstance(cell := cells.get(column.key), Estimate) and math.isfinite(cell.value)
        ]
        return pd.DataFrame(rows, columns=ESTIMATE)

    # -- answers

    @property
    def answers(self) -> "LazyAnswers":
        """Every answer on record, one row an item, read when it is collected."""
        records = self.records
        of_runs = records[records["evaluation"].notna() & records["label"].notna()]
        index = of_runs[EVALUATION].drop_duplicates(ignore_index=True)
        return LazyAnswers(self.data, index.astype({"evaluation": object}))


class LazyAnswers:
    """A lazy frame of the items of evaluations: none is read before ``collect``.

    index: one row an evaluation: of which run, when, of what, and the key of its file. ``len`` is
    their number; a loop over it reads one evaluation at a time, as a frame.
    """

    def __init__(self, data: ReportData, index: pd.DataFrame) -> None:
        self._data = data
        self.index = index

    def where(self, **columns: object) -> "LazyAnswers":
        """Those with these values in the columns of ``index``, each one value or a list of some.

        Raises UserError for a column that is not there.
        """
        chosen = self.index
        for name, wanted in columns.items():
            if name not in chosen:
                remedy = did_you_mean(name, chosen.columns)
                raise UserError(f"answers: {name[:80]}", "there is no such column", remedy)
            among = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
            chosen = chosen[chosen[name].astype(object).isin(among)]
        return LazyAnswers(self._data, chosen)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"<Answers of {len(self)} evaluations, read by collect()>"

    def __iter__(self) -> Iterator[pd.DataFrame]:
        folders = {name: place for place, name in enumerate(self._data.names)}
        for of_row in self.index.to_dict("records"):
            key = of_row["evaluation"]
            evaluation = self._data.evaluation(folders[of_row["folder"]], key)
            items = [_flat(item) for item in evaluation.get("items") or []]
            yield pd.DataFrame([{**of_row, **_beside(item, of_row)} for item in items])

    def collect(self) -> pd.DataFrame:
        """All items in one frame: the columns of ``index``, then what the items hold.

        A metric's score is in ``scores.METRIC``. Evaluations whose answers were not kept are left
        out. Raises UserError for a damaged file.
        """
        frames = [frame for frame in self if len(frame)]
        if not frames:
            return self.index.iloc[:0].copy()
        return pd.concat(frames, ignore_index=True)


def table_frame(table: Table) -> pd.DataFrame:
    """A table of the report as numbers and texts, without rows that have neither.

    In a column of estimates a text, as the number of examples, is left out.
    """
    columns: list[pd.Series] = []
    for column in table.columns:
        cells = [cells.get(column.key) for _, cells in table.rows]
        if any(isinstance(cell, Estimate) for cell in cells):
            for ending, bound in BOUNDS.items():
                numbers = [getattr(c, bound) if isinstance(c, Estimate) else np.nan for c in cells]
                columns.append(pd.Series(numbers, name=column.heading + ending, dtype=float))
        else:
            columns.append(pd.Series(cells, name=column.heading))
    index = pd.Index([label for label, _ in table.rows], name=table.stub)
    return pd.concat(columns, axis=1).set_axis(index).dropna(how="all")


def _flat(item: dict[str, Any]) -> dict[str, Any]:
    """An item with a column a score."""
    scores = item.get("scores") or {}
    plain = {key: value for key, value in item.items() if key != "scores"}
    return {**plain, **{f"scores.{metric}": score for metric, score in scores.items()}}


def _beside(item: dict[str, Any], of_row: dict[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in of_row}
