"""What the tests of the report do with fabricated results folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.report.table import Cell, Table
from tests.fabricate import METHODS, SKILLS

TWO = {name: METHODS[name] for name in ("sft", "sdft")}
ONE_SKILL = dict(list(SKILLS.items())[:1])

Record = dict[str, Any]


def raw(folder: Path, **wanted: Any) -> list[Record]:
    """The records whose keys have the ``wanted`` values."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def rewrite_records(folder: Path, change: Callable[[Record], Record]) -> None:
    """Adds what ``change`` returns to every record."""
    records = [record | change(record) for record in raw(folder)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file; ``change`` returns the new value or changes the old one in place."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def row(table: Table, label: str) -> dict[str, Cell]:
    return dict(table.rows)[label]


def wilson(right: float, n: float, z: float = 1.959963984540054) -> list[float]:
    """The two p for which (right / n - p)^2 = z^2 p (1 - p) / n."""
    return sorted(np.roots([1 + z * z / n, -2 * right / n - z * z / n, (right / n) ** 2]).real)
