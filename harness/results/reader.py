"""Reads records.jsonl into a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from harness.base.errors import UserError
from harness.base.json_text import parse_json
from harness.results.formats import REMEDY, Record, short_json

CHUNK = 16_000_000  # bytes of records.jsonl read at a time
COLUMNS = tuple(Record.__annotations__)
TEXTS = (
    "run",
    "method",
    "skill",
    "kind",
    "name",
    "split",
    "metric",
    "protocol",
    "evaluation",
    "reference",
    "sequence",
)
WHOLE_NUMBERS = ("seed", "stage", "step")
AMOUNTS = ("prompts", "prompts_learned", "tokens", "seconds")
NUMBERS = (*WHOLE_NUMBERS, "value", "stderr", "n", *AMOUNTS)


def read_records(path: Path) -> tuple[pd.DataFrame, int]:
    """(table, number of lines that are no JSON objects) of records.jsonl.

    The table has a column a key of a record, and no row where there is no file. Texts are
    categorical; ``sequence`` is "" where a record has none. A number that is missing or not finite
    is NaN, in ``seed``, ``stage`` and ``step`` 0. Raises UserError where a text is something else,
    as a list.
    """
    chunks = []
    broken = 0
    if path.is_file():
        with open(path, "rb") as file:
            while lines := file.readlines(CHUNK):
                rows, bad = json_objects(lines)
                broken += bad
                chunks.append(_table(rows, path))
    if not chunks:
        return _table([], path), broken
    return chunks[0] if len(chunks) == 1 else _joined(chunks), broken


def _table(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    table = pd.DataFrame(
        {column: pd.Series([row.get(column) for row in rows], dtype=object) for column in COLUMNS}
    )
    for column in TEXTS:
        _check_texts(table[column], path)
        texts = table[column].fillna("") if column == "sequence" else table[column]
        table[column] = pd.Categorical(texts)
    for column in NUMBERS:
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        table[column] = numbers.replace([np.inf, -np.inf], np.nan)
    for column in WHOLE_NUMBERS:
        # Numbers beyond those that a float counts by are none.
        table[column] = table[column].where(table[column].abs() < 2**53, 0).astype(np.int64)
    table["final"] = table["final"].map(lambda final: final is not False).astype(bool)
    return table


def _check_texts(column: pd.Series, path: Path) -> None:
    """Raises UserError for a value that is neither a text nor missing."""
    is_text = column.map(type).isin((str, type(None)))
    if not is_text.all():
        value = short_json(column[~is_text].iloc[0])
        raise UserError(path, f"a record's `{column.name}` is {value}, not a text", REMEDY)


def _joined(chunks: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of several, whose texts get common categories."""
    for column in TEXTS:
        categories = pd.Index([]).append([chunk[column].cat.categories for chunk in chunks])
        categories = categories.unique()
        for chunk in chunks:
            chunk[column] = chunk[column].cat.set_categories(categories)
    return pd.concat(chunks, ignore_index=True)


def json_objects(lines: Sequence[str] | Sequence[bytes]) -> tuple[list[dict[str, Any]], int]:
    """JSON objects of lines, and how many lines are none; blank lines are left out."""
    try:
        return _parsed_at_once(lines), 0
    except (ValueError, RecursionError):
        return _parsed_one_by_one(lines)


def _parsed_at_once(lines: Sequence[str] | Sequence[bytes]) -> list[dict[str, Any]]:
    """All lines by one call, which is several times faster than one a line.

    Raises ValueError unless each line is one JSON object.
    """
    if lines and isinstance(lines[0], bytes):
        rows = parse_json(b"[" + b",".join(cast(Sequence[bytes], lines)) + b"]")
    else:
        rows = parse_json("[" + ",".join(cast(Sequence[str], lines)) + "]")
    if len(rows) != len(lines) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not one JSON object")
    return rows


def _parsed_one_by_one(
    lines: Sequence[str] | Sequence[bytes],
) -> tuple[list[dict[str, Any]], int]:
    rows = []
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    return rows, broken
