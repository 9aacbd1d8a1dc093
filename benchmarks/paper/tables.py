"""A table of the harness's report from a frame of numbers."""

from collections import defaultdict

import pandas as pd

from benchmarks.paper.form import TITLES
from harness.report.estimates import Estimate
from harness.report.table import Cell, Column, Table, Unit

# Units of the columns; other metrics keep their own unit.
KINDS: dict[str, Unit] = {"%": "%", "tokens": "count"}


def number_table(frame: pd.DataFrame, name: str, title: str, note: str) -> Table:
    """One row a series (and task, where there are several) and one column a value of ``x``.

    name: of the table's files. A table of the report has fractions where a frame has per cent.
    """
    columns = {}
    for first in frame.drop_duplicates("x").to_dict("records"):
        x, unit = first["x"], first["unit"]
        heading = TITLES.get(x, x)
        if unit not in KINDS:
            heading += f" ({unit})"
        columns[x] = Column(x, heading, unit=KINDS.get(unit, "own"))
    several_tasks = frame["panel"].nunique() > 1
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for number in frame.to_dict("records"):
        label = number["series"]
        if several_tasks:
            label = f"{number['panel']}: {label}"
        scale = 0.01 if columns[number["x"]].unit == "%" else 1
        value, low, high = (number[bound] * scale for bound in ("value", "low", "high"))
        rows[label][number["x"]] = Estimate(value, low, high, number["source"], number["note"])
    stub = "task: method" if several_tasks else "method"
    return Table(name, title, note, list(columns.values()), list(rows.items()), stub=stub)
