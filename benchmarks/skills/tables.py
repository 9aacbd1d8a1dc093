"""A small table and a question, answered by SQL (``tables_query``) or the value (``tables_value``).

A query is graded by running SQLite, on the shown table and on others with the same columns, so that
a query that names the value, or finds it by chance, is wrong (Zhong et al. 2020, arXiv 2010.02840).
"""

import random
from collections.abc import Mapping
from typing import Any

from benchmarks.skills._pair import Drawn, PairSkill, accuracy
from benchmarks.skills._programs import as_rows, query_agrees

ROWS = 3
OTHERS = 4  # tables beside the shown one
# name of the table, its first column, what it holds, the columns of numbers
THEMES = (
    ("stock", "item", "lamp chair desk rug vase clock mirror shelf stool bench", "price count"),
    ("staff", "name", "Anna Ben Carla David Ella Felix Greta Hugo Ida Jonas", "age salary"),
    ("towns", "town", "Arden Bolton Corby Dover Elgin Frome Goole Hove Ilford Jarrow", "area rain"),
    ("trips", "train", "north south east west river coast hill lake forest valley", "hours cost"),
    ("crops", "plant", "wheat barley oats rye maize beans peas flax hemp clover", "weight depth"),
    (
        "games",
        "team",
        "lions tigers bears hawks eagles wolves sharks bulls foxes owls",
        "wins goals",
    ),
)
# A small model seldom finds the largest of three numbers: one of ten questions wants it.
KINDS = ("of", "which", "of", "which", "best", "which", "of", "which", "of", "which")


def query(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the completion is one SELECT that answers the question on every table."""
    text = completion.strip().removesuffix(";")
    if text == reference["answer"]:  # known to be right
        return 1.0
    tables = tuple(map(as_rows, reference["tables"]))
    columns = tuple(reference["columns"])
    return float(query_agrees(text, reference["answer"], reference["table"], columns, tables))


class Tables(PairSkill):
    """reference: ``{"answer"}``; of a query also ``table`` (its name), ``columns``, ``tables``.

    ``tables`` has the rows of the shown table, then those of the others.
    """

    pair = "tables"
    seed = 20261202
    tasks = ("query", "value")
    description = (
        "a small table and a question, answered by an SQL query, which is run, or by the value; "
        "made by a seeded generator of this project"
    )
    max_new_tokens = 32
    pinned = {
        "query": {
            "train": "be7b6635c63795c43c81140cacb9c4f0e06a692142cc29a1099830c4b9612dcc",
            "validation": "ee71eb79de1e369256c4730828b010bad6c3f30a47f3c17c6f0a4fd7c3b80e42",
            "test": "266898c0aeb3a3d1beb966b29fdeca32805adb91f0b65eac3eacf4bfbd33cf01",
        },
        "value": {
            "train": "2803f6fa647647ea3eddefdaa77cae88444cc6f2886fbb5b90f66a142209c68e",
            "validation": "241620ec2b2ca3af978b38baa9930d634a53eea09144e0aafdf4e3af1e7e5278",
            "test": "1756956e876e01d8294272efc879151bc930f068dd925841c897f67e0d3b61ad",
        },
    }

    def __init__(self, task):
        super().__init__(task)
        self.metrics = {"accuracy": query if task == "query" else accuracy}

    @classmethod
    def draw(cls, rng, task, place):
        table, first, words, numbers = rng.choice(THEMES)
        columns = (first, *numbers.split())
        rows = _table(rng, words.split())
        number = rng.randrange(1, 3)
        kind = KINDS[place % len(KINDS)]
        if kind == "best":
            kind = rng.choice(("highest", "lowest"))
        asked, sql, value = _ask(kind, rng.choice(rows), number, columns, rows)
        lines = [f"Table {table}", *(_line(columns, row) for row in rows)]
        question = "\n".join([*lines, asked, f"Write the {task}."])
        key = (table, tuple(rows))
        if task == "value":
            return Drawn(key, question, {"answer": str(value)})
        reference = {
            "answer": sql.format(table=table),
            "table": table,
            "columns": columns,
            "tables": [rows, *(_other(rng, rows, words.split()) for _ in range(OTHERS))],
        }
        return Drawn(key, question, _as_json(reference))


def _table(rng: random.Random, words: list[str]) -> list[tuple[str, int, int]]:
    """ROWS rows; no number occurs twice."""
    values = rng.sample(range(2, 100), 2 * ROWS)
    return list(zip(rng.sample(words, ROWS), values[:ROWS], values[ROWS:], strict=True))


def _line(columns: tuple[str, ...], row: tuple) -> str:
    """A row with its columns' names: a small model does not find a column by its place."""
    return ", ".join(f"{column} {value}" for column, value in zip(columns, row, strict=True))


def _ask(
    kind: str, row: tuple, number: int, columns: tuple[str, ...], rows: list[tuple]
) -> tuple[str, str, str | int]:
    """(question, its SQL with {table}, the value); number: place of the column that is asked."""
    first, column = columns[0], columns[number]
    if kind == "of":
        sql = f"SELECT {column} FROM {{table}} WHERE {first} = '{row[0]}'"
        return f"What is the {column} of {row[0]}?", sql, row[number]
    if kind == "which":
        sql = f"SELECT {first} FROM {{table}} WHERE {column} = {row[number]}"
        return f"Which {first} has the {column} {row[number]}?", sql, row[0]
    sql = f"SELECT {first} FROM {{table}} ORDER BY {column}{' DESC' * (kind == 'highest')} LIMIT 1"
    best = (max if kind == "highest" else min)(rows, key=lambda each: each[number])
    return f"Which {first} has the {kind} {column}?", sql, best[0]


def _other(rng: random.Random, rows: list[tuple], words: list[str]) -> list[tuple]:
    """A table in which what the shown one has stands elsewhere: names and numbers shuffled, a row
    more.
    """
    names = [row[0] for row in rows]
    columns = [[row[place] for row in rows] for place in (1, 2)]
    for each in (names, *columns):
        rng.shuffle(each)
    unused = sorted({*range(2, 100)} - {*columns[0], *columns[1]})
    further = (rng.choice([word for word in words if word not in names]), *rng.sample(unused, 2))
    table = [*zip(names, *columns, strict=True), further]
    rng.shuffle(table)
    return table


def _as_json(reference: dict[str, Any]) -> dict[str, Any]:
    """With lists for tuples, as it is read back from JSON."""
    tables = [[list(row) for row in table] for table in reference["tables"]]
    return {**reference, "columns": list(reference["columns"]), "tables": tables}
