"""The first screen of a report: a row and a sentence a method on what it learned, forgot, cost.

Numbers are those of the other tables; nothing is computed here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.base import power
from harness.base.console import clock
from harness.report.cost_table import MEASURING, SECONDS
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.table import Cell, Column, Row, Table
from harness.report.tables import interval_note

MOST_VERDICTS = 12  # sentences; the table has every method
COPIED = {"main": ("acc", "bwt", "retention"), "own_stage": ("gain",)}  # columns of tables
CHANGES = (  # column, what it changes, its words where it rose and where it fell
    ("gain", "the skills", "learned {}", "lost {} of the skills"),
    ("bwt", "earlier skills", "gained {} of earlier skills", "forgot {} of earlier skills"),
    (
        "retention",
        "prior abilities",
        "gained {} of prior abilities",
        "forgot {} of prior abilities",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A sentence on one method.

    smallest: the changes that would be told of what shows none, "" where each is told.
    """

    label: str
    text: str
    smallest: str = ""


def summary_table(main: Table, gains: Table, cost: Table) -> Table:
    """One row a method: accuracy at the end, learned, changes since, cost of learning."""
    found: dict[str, tuple[Column, dict[str, Cell]]] = {}
    for table in (main, gains):
        rows = dict(table.rows)
        for column in table.columns:
            if column.key in COPIED[table.name]:
                cells = {label: of_row.get(column.key) for label, of_row in rows.items()}
                found[column.key] = (column, cells)
    costs = dict(cost.rows)
    labels = [label for label, of_row in main.rows if isinstance(of_row.get("acc"), Estimate)]
    rows_of: list[Row] = []
    for label in labels:
        cells = {key: cells.get(label) for key, (_, cells) in found.items()}
        rows_of.append((label, {**cells, **_cost(costs.get(label, {}))}))
    columns = [found[key][0] for key in ("gain", "bwt", "retention", "acc") if key in found]
    columns.append(
        Column("learning", "learning", unit="seconds", note="seconds of a run without measuring")
    )
    note = (
        "Points of accuracy; the accuracy at the end in per cent, learning in seconds a run. "
        "Learned: right after each skill's own stage, less the base model; then what became of "
        f"earlier skills since, and of what the model could do before. {interval_note(rows_of)}"
    )
    return Table("summary", "Summary", note, columns, rows_of)


def _cost(cells: dict[str, Cell]) -> dict[str, Cell]:
    """Seconds of learning and tokens of a row of the table of costs."""
    seconds = [
        value
        for key, value in cells.items()
        if key.startswith(SECONDS) and key.removeprefix(SECONDS) not in MEASURING
        if isinstance(value, float)
    ]
    return {"learning": sum(seconds), "tokens": cells.get("tokens")} if seconds else {}


def verdicts(results: ReportData, summary: Table) -> list[Verdict]:
    """A sentence a method; of more than MOST_VERDICTS none, the table is the shorter text."""
    rows = dict(summary.rows)
    methods = [label for label in results.series if label in rows]
    if len(methods) > MOST_VERDICTS:
        return []
    return [_verdict(label, summary, rows[label]) for label in methods]


def _verdict(label: str, summary: Table, cells: dict[str, Cell]) -> Verdict:
    said, untold, smallest = [], [], []
    for key, of, rose, fell in CHANGES:
        cell = cells.get(key)
        if not isinstance(cell, Estimate) or not math.isfinite(cell.value):
            continue
        if cell.low <= 0 <= cell.high:
            untold.append(f"{of} ({summary.text(Column('', '', signed=True), cell)})")
            if cell.spread:
                size = summary.text(Column("", ""), power.detectable(cell.spread))
                smallest.append(f"{size} points of {of}")
            continue
        size = summary.text(Column("", ""), replace(cell, value=abs(cell.value)))
        words = (fell if cell.value < 0 else rose).format(f"{size} points")
        said.append(words if math.isfinite(cell.low) else f"{words} (without an interval)")
    if untold:
        said.append(f"no change can be told of {_listed(untold)}")
    if not said:
        return Verdict(label, "has not measured its last stage in any run.")
    return Verdict(label, "; ".join([*said, *_price(cells)]) + ".", _listed(smallest))


def _listed(words: list[str]) -> str:
    """One, two and three; "" of none."""
    *before, last = words or [""]
    return f"{', '.join(before)} and {last}" if before else last


def _price(cells: dict[str, Cell]) -> Iterator[str]:
    """What a run cost, nothing where that is not on record."""
    seconds, tokens = cells.get("learning"), cells.get("tokens")
    if isinstance(seconds, float):
        counted = f", {tokens:,.0f} tokens" if isinstance(tokens, float) else ""
        unit = "hours" if seconds >= 3600 else "minutes"
        yield f"cost {clock(seconds)} {unit}{counted} a run"
