"""Prints a suite's published numbers, and those of results folders beside them.

    python -m benchmarks.published SUITE [RESULTS_DIR ...]

Columns are those of the papers' tables: OP (mean of the tasks at the end), the mean of OP over all
stages, which some papers call OP, BWT over T - 1 and over T, forgetting, the gain on what is
learned and the drop of other abilities since the base model, and each task at the end, in points.
Published rows say how they were read; their protocol is not this project's (the suite's page in
docs/reference/skills lists the differences).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from harness.base import metrics
from harness.base.console import padded
from harness.base.errors import Parser, UserError, reported
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.frontier import mean_gain
from harness.report.tables import retention_change

FOLDER = Path(__file__).resolve().parent
KEYS = ["order", "model", "method", "source", "read"]
COLUMNS = [*KEYS[:3], "column", "value", "sd", *KEYS[3:], "note"]
READ = ("text", "second-hand")
FIRST = ("OP", "mean OP_t", "BWT", "BWT/T", "forgetting", "Gain", "Drop")  # before the tasks


def published_numbers(suite: str) -> pd.DataFrame:
    """The rows of a suite's file. Raises UserError where it has other columns or values."""
    path = FOLDER / f"{suite}.csv"
    frame = pd.read_csv(path, dtype={name: str for name in COLUMNS if name not in ("value", "sd")})
    if list(frame.columns) != COLUMNS or not set(frame["read"]) <= set(READ):
        raise UserError(path, f"has other columns than {', '.join(COLUMNS)}")
    return frame.fillna({name: "" for name in COLUMNS if name not in ("value", "sd")})


def published_rows(suite: str) -> list[dict[str, str]]:
    """A row a source, order, model and method: its keys, and {column: number as text}."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for entry in published_numbers(suite).to_dict("records"):
        key = tuple(entry[name] for name in KEYS)
        row = rows.setdefault(key, dict(zip(KEYS, key, strict=True)))
        spread = "" if math.isnan(entry["sd"]) else f" (sd {entry['sd']:g})"
        row[entry["column"]] = f"{entry['value']:.2f}{spread}"
    return list(rows.values())


def notes(suite: str) -> list[str]:
    """What is said of single numbers, a line for each note."""
    said: dict[str, list[str]] = {}
    for entry in published_numbers(suite).to_dict("records"):
        if entry["note"]:
            where = " ".join(filter(None, [entry["order"], entry["model"], entry["method"]]))
            said.setdefault(entry["note"], []).append(f"{where}, {entry['column']}")
    return [f"{note}: {'; '.join(places)}" for note, places in said.items()]


def measured_rows(folder: Path) -> list[dict[str, str]]:
    """A row a method of a results folder, with 95% intervals."""
    data = ReportData([folder])
    rows = []
    for label, run in data.series.items():
        row = dict(zip(KEYS, ["", run.model, label, str(folder), "measured"], strict=True))
        row["OP"] = _points(data.estimate(label, metrics.average_accuracy))
        row["mean OP_t"] = _points(data.estimate(label, metrics.anytime_accuracy))
        for name, function in (
            ("BWT", metrics.backward_transfer),
            ("BWT/T", metrics.backward_transfer_trace),
            ("forgetting", metrics.forgetting),
            ("Gain", mean_gain),
        ):
            row[name] = _points(data.estimate(label, function, difference=True))
        if data.retention:
            change = retention_change(data)
            drop = data.estimate(label, lambda D: -change(D), "D", difference=True)
            row["Drop"] = _points(drop)
        for place, task in enumerate(run.order):
            row[task] = _points(data.estimate(label, lambda R, i=place: R[..., -1, i], "S"))
        rows.append(row)
    return rows


def _points(estimate: Estimate) -> str:
    """In points, ± half of the interval; empty where it is not defined."""
    if not math.isfinite(estimate.value):
        return ""
    half = (estimate.high - estimate.low) / 2
    return f"{100 * estimate.value:.2f}" + (f" ±{100 * half:.1f}" if math.isfinite(half) else "")


def table(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], sources: Mapping[str, int]
) -> Iterator[str]:
    """Lines of the rows that have one of ``columns``; sources by their number, to keep lines short.

    Lines are as long as they must be: a narrow terminal wraps them, a file has them whole.
    """
    names = ["order", "model", "method", "read", "source"]
    cells = [[*names, *columns]]
    for row in rows:
        if any(name in row for name in columns):
            number = f"[{sources[row['source']]}]"
            cells.append(
                [*(row[n] for n in names[:-1]), number, *(row.get(c, "") for c in columns)]
            )
    yield from padded(cells, left=range(len(names)))


def source_numbers(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """{source: its number}, from 1 in the order of the rows."""
    return {source: i for i, source in enumerate(dict.fromkeys(r["source"] for r in rows), 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of a suite."""
    suites = sorted(path.stem for path in FOLDER.glob("*.csv"))
    options = Parser(prog="benchmarks.published", description="Published and measured numbers.")
    options.add_argument("suite", choices=suites)
    options.add_argument("folders", nargs="*", metavar="RESULTS_DIR", type=Path)
    args = options.parse_args(arguments)
    with reported():
        rows = published_rows(args.suite)
        for folder in args.folders:
            rows += measured_rows(folder)
        numbers = source_numbers(rows)
        names = dict.fromkeys(name for row in rows for name in row if name not in KEYS)
        for columns in ([n for n in FIRST if n in names], [n for n in names if n not in FIRST]):
            if columns:
                print(*table(rows, columns, numbers), "", sep="\n")
        print(*(f"[{number}] {source}" for source, number in numbers.items()), sep="\n")
        print(*notes(args.suite), sep="\n")
        print("In points. Measured: ± half of a 95% interval. Published: sd over seeds.")


if __name__ == "__main__":
    main()
