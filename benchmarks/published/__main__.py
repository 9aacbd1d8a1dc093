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

from benchmarks.published.numbers import FIRST, KEYS, measures, published_numbers, suites
from harness.base.console import padded
from harness.base.errors import Parser, reported
from harness.report.data import ReportData
from harness.report.estimates import Estimate


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
        row |= {name: _points(found) for name, found in measures(data, label).items()}
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
    options = Parser(prog="benchmarks.published", description="Published and measured numbers.")
    options.add_argument("suite", choices=suites())
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
