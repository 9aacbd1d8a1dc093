"""Prints what results folders hold of the skills ``drifting_facts_*``, stage by stage.

    python -m benchmarks.drifting_facts RESULTS_DIR ...

A row is of a method, the stage after which it was measured, and the stage whose facts are asked:

* changed: those of the stage just learned. ``trained words`` is efficacy, ``paraphrases``
  generalisation, ``old value`` how often an earlier value is given, whatever else is.
* untouched: those of an earlier stage, which nothing changed since: locality.
* to change: those of a stage to come, by the values that it will tell; ``old value`` says how well
  the present ones are known.
* unrelated: capitals of the real world.

In points, the mean of the runs, ± half of a 95% interval.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.skills.drifting_facts import DriftingFacts
from harness.base.console import padded
from harness.base.errors import Parser, UserError, reported
from harness.report.data import ReportData

NAMES = {f"drifting_facts_{task}": int(task) for task in DriftingFacts.tasks}
COLUMNS = {  # column: (split, metric)
    "trained words": ("efficacy", "accuracy"),
    "paraphrases": ("test", "accuracy"),
    "new value": ("test", "new_value"),
    "old value": ("test", "old_value"),
}
UNRELATED = {"paraphrases": ("unrelated", "accuracy")}
HEAD = ("method", "after", "facts of", "which are")


def rows_of(data: ReportData) -> Iterator[list[str]]:
    """The cells of each row.

    Raises UserError for a method that learns none of the skills, or not in their turn.
    """
    for label, series in data.series.items():
        stages = {NAMES[name]: place for place, name in enumerate(series.order, 1) if name in NAMES}
        if not stages or list(stages) != sorted(stages) or series.orders:
            raise UserError(
                data.folders[0],
                f"{label} does not learn the stages of drifting_facts in their turn",
                "give results of benchmarks/orders/drift.yaml, or of an order with these skills",
            )
        records = data.records[data.records["final"] & (data.records["label"] == label)]
        for after, place in {0: 0, **stages}.items():
            of_stage = records[records["stage"] == place]
            when = "base" if after == 0 else f"stage {after}"
            for asked in stages:
                state = (
                    "changed" if asked == after else "untouched" if asked < after else "to change"
                )
                cells = _cells(data, label, of_stage, f"drifting_facts_{asked}", COLUMNS)
                yield [label, when, f"stage {asked}", state, *cells]
            cells = _cells(data, label, of_stage, "drifting_facts_1", UNRELATED)
            yield [label, when, "the world", "unrelated", *cells]


def _cells(
    data: ReportData,
    label: str,
    records: pd.DataFrame,
    name: str,
    columns: dict[str, tuple[str, str]],
) -> Iterator[str]:
    """A cell for each of COLUMNS, from the records of one skill after one stage."""
    for column in COLUMNS:
        split, metric = columns.get(column, ("", ""))
        mine = records[
            (records["name"] == name)
            & (records["split"] == split)
            & (records["metric"] == metric)
            & records["value"].notna()
        ]
        if (mine["stage"] == 0).any():
            mine = mine.iloc[:1]  # one base model, not one a run
        estimate = data.of_records(label, mine)
        half = (estimate.high - estimate.low) / 2
        value = "" if math.isnan(estimate.value) else f"{100 * estimate.value:.1f}"
        yield value + (f" ±{100 * half:.1f}" if math.isfinite(half) else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table a folder."""
    options = Parser(prog="benchmarks.drifting_facts", description="Facts that change, by stage.")
    options.add_argument("folders", nargs="+", metavar="RESULTS_DIR", type=Path)
    args = options.parse_args(arguments)
    with reported():
        for folder in args.folders:
            rows = [[*HEAD, *COLUMNS], *rows_of(ReportData([folder]))]
            print(str(folder), *padded(rows, left=range(len(HEAD))), "", sep="\n")


if __name__ == "__main__":
    main()
