"""Texts whose likelihood is measured in bits per byte: six kinds, each document a unit.

Prose, dialogue, instructions with good answers and other languages are our own
(``data/texts.jsonl``). Code is HumanEval's. Arithmetic is made here, by a fixed walk through small
numbers, so that it is the same on every machine.

The source of a function that a YAML file names is part of the protocol of its task, as in utils.py.
"""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "data"
SUMS = 22  # documents of arithmetic
STORIES = [
    ("{name} has {a} {things} and buys {b} more.", "+", "{name} now has {r} {things}."),
    ("There are {s} {things} in the shop and {b} are sold.", "-", "{r} {things} are left."),
    ("{name} packs {c} boxes with {d} {things} in each.", "*", "There are {r} {things} in all."),
    ("{name} shares {p} {things} among {c} friends.", "/", "Each of them gets {r} {things}."),
]
PEOPLE = ["Anna", "Peter", "Maria", "David", "Laura", "Thomas", "Julia"]
THINGS = ["apples", "books", "stamps", "coins", "pencils", "cards", "eggs", "stones", "shells"]


def story(i: int) -> tuple[str, str]:
    """Problem number ``i`` and its worked solution."""
    problem, sign, end = STORIES[i % 4]
    a, b = 11 + i * 7 % 48, 12 + i * 11 % 37
    c, d = 2 + i * 5 % 8, 3 + i * 3 % 9
    left, right = {"+": (a, b), "-": (a + b, b), "*": (c, d), "/": (c * d, c)}[sign]
    result = {"+": a + b, "-": a, "*": c * d, "/": d}[sign]
    names = {"name": PEOPLE[i % 7], "things": THINGS[i % 9]}
    values = {"a": a, "b": b, "c": c, "d": d, "s": a + b, "p": c * d, "r": result}
    told = problem.format(**names, **values)
    return told, f" {left} {sign} {right} = {result}. {end.format(**names, **values)}"


def sums() -> list[dict[str, str]]:
    """[{"prompt", "text"}]: three worked problems of different kinds each."""
    documents = []
    for number in range(SUMS):
        parts = ["".join(story(3 * number + k)) for k in range(3)]
        documents.append({"prompt": "", "text": "\n".join(parts)})
    return documents


def _dataset(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _own(kind: str) -> dict[str, Any]:
    lines = (DATA / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
    return _dataset([{"prompt": row["prompt"], "text": row["text"]} for row in rows])


# lm-eval calls these with the task's metadata as keywords.
def prose(**_):
    return _own("prose")


def dialogue(**_):
    return _own("dialogue")


def languages(**_):
    return _own("languages")


def answers(**_):
    return _own("answers")


def arithmetic(**_):
    return _dataset(sums())


def bits(doc, results):
    """Log-likelihood of the text given the prompt, with the text's bytes as weight."""
    loglikelihood, _ = results[0]
    return {"bits_per_byte": (loglikelihood, len(doc["text"].encode()))}
