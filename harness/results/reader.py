"""Reads records.jsonl into a table."""

import json

import numpy as np
import pandas as pd

from harness.base.errors import UserError
from harness.results.formats import REMEDY, short_json

CHUNK = 16_000_000  # bytes of records.jsonl read at a time
COLUMNS = (
    "run",
    "method",
    "seed",
    "stage",
    "skill",
    "step",
    "final",
    "kind",
    "name",
    "split",
    "metric",
    "value",
    "stderr",
    "n",
    "protocol",
    "evaluation",
    "prompts",
    "tokens",
    "seconds",
)
TEXTS = ("run", "method", "skill", "kind", "name", "split", "metric", "protocol", "evaluation")


def read_records(path):
    """records.jsonl as a table (texts categorical) and the number of lines that could not be read,
    as a cut last one.
    """
    chunks, broken = [], 0
    if path.is_file():
        with open(path, "rb") as file:
            while lines := file.readlines(CHUNK):
                rows, bad = json_objects(lines)
                broken += bad
                chunks.append(_chunk(rows, path))
    table = chunks[0] if len(chunks) == 1 else _joined(chunks) if chunks else _chunk([], path)
    return table, broken


def _chunk(rows, path):
    """Rows as a table; a number that is none becomes NaN. Raises UserError where a text is
    something else, as a list.
    """
    table = pd.DataFrame(
        {c: pd.Series([row.get(c) for row in rows], dtype=object) for c in COLUMNS}
    )
    for column in TEXTS:
        text = table[column].map(type).isin((str, type(None)))
        if not text.all():
            raise UserError(
                path,
                f"a record's `{column}` is {short_json(table.loc[~text, column].iloc[0])}, not a text",
                REMEDY,
            )
        table[column] = pd.Categorical(table[column])
    for column in ("seed", "stage", "step", "value", "stderr", "n", "prompts", "tokens", "seconds"):
        table[column] = (
            pd.to_numeric(table[column], errors="coerce")
            .astype(float)
            .replace([np.inf, -np.inf], np.nan)
        )
    for column in ("seed", "stage", "step"):
        table[column] = table[column].fillna(0).astype(np.int64)
    table["final"] = table["final"].map(lambda x: x is not False).astype(bool)
    return table


def _joined(chunks):
    for column in TEXTS:
        union = pd.Index([]).append([c[column].cat.categories for c in chunks]).unique()
        for chunk in chunks:
            chunk[column] = chunk[column].cat.set_categories(union)
    return pd.concat(chunks, ignore_index=True)


def json_objects(lines):
    """JSON objects of lines (texts or bytes), and how many are none."""
    if not lines:
        return [], 0
    comma = b"," if isinstance(lines[0], bytes) else ","
    try:  # one call for all is several times faster than one a line
        rows = json.loads(
            (b"[" if comma == b"," else "[") + comma.join(lines) + (b"]" if comma == b"," else "]")
        )
        if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
            return rows, 0
    except ValueError:
        pass
    rows, broken = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    return rows, broken
