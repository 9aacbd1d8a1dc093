"""Runs what a model wrote, SQL and regular expressions, in the sandbox of benchmarks/retention.

A text of the model is data of a program of ours, never Python. Limits: SECONDS of wall clock and
MEMORY for a program; beside them STEPS of SQLite's machine for a query, which end an endless one at
the same place on every machine. A longer text than LONGEST is not run.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from benchmarks.retention.tasks.sandbox import run

SECONDS = 3.0
MEMORY = 256 << 20  # bytes
STEPS = 1_000_000
CELL = 100_000  # bytes of a text or blob that a query may make
LONGEST = 200  # characters of a query or pattern
SELECT = re.compile(r"SELECT\b", re.IGNORECASE)  # what a query begins with
SPECIAL = frozenset(r".^$*+?{}[]\|()")  # characters of a pattern that are not themselves

Row = tuple[str | int, ...]

_LIMITS = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))\n"
_QUERY = """
import sqlite3

def result(query, name, columns, rows):
    base = sqlite3.connect(":memory:", isolation_level=None)
    base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, {cell})
    base.execute(f"CREATE TABLE {{name}} ({{', '.join(columns)}})")
    base.executemany(f"INSERT INTO {{name}} VALUES ({{', '.join('?' * len(columns))}})", rows)
    base.execute("PRAGMA query_only = 1")
    base.set_progress_handler(lambda: 1, {steps})
    return base.execute(query).fetchmany({most})

query, wanted, name, columns, tables = {data!r}
for rows in tables:
    assert result(query, name, columns, rows) == result(wanted, name, columns, rows)
"""
_PATTERN = """
import re
pattern, accepted, refused = {data!r}
pattern = re.compile(pattern)
assert all(map(pattern.fullmatch, accepted)) and not any(map(pattern.fullmatch, refused))
"""


@lru_cache(maxsize=10_000)
def query_agrees(
    query: str,
    wanted: str,
    name: str,
    columns: tuple[str, ...],
    tables: tuple[tuple[Row, ...], ...],
) -> bool:
    """Whether SQLite answers ``query`` as it answers ``wanted``, on each of ``tables``.

    name, columns: of every table; tables: the rows of each. Raises SandboxError where this machine
    cannot shut a program off.
    """
    if len(query) > LONGEST or not SELECT.match(query):
        return False
    most = 2 + max(map(len, tables))
    data = (query, wanted, name, columns, tables)
    return run(_LIMITS + _QUERY.format(cell=CELL, steps=STEPS, most=most, data=data), SECONDS)


@lru_cache(maxsize=10_000)
def pattern_tells(pattern: str, accepted: tuple[str, ...], refused: tuple[str, ...]) -> bool:
    """Whether the regular expression (Python's ``re``) matches all of the accepted, wholly, and
    none of the refused. Raises SandboxError where this machine cannot shut a program off.
    """
    if len(pattern) > LONGEST:
        return False
    if SPECIAL.isdisjoint(pattern):  # it matches itself and nothing else: nothing to run
        return all(code == pattern for code in accepted) and pattern not in refused
    return run(_LIMITS + _PATTERN.format(data=(pattern, accepted, refused)), SECONDS)


def as_rows(table: Sequence[Sequence[str | int]]) -> tuple[Row, ...]:
    """Rows of a reference, which JSON holds as lists, as tuples."""
    return tuple(map(tuple, table))
