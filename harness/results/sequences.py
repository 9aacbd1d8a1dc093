"""A results folder with several sequences of its skills: one of them alone, and what they share."""

from pathlib import Path
from typing import Any

import pandas as pd

from harness.base.errors import UserError
from harness.results.formats import REMEDY, SINGLE
from harness.results.reader import TEXTS

Json = dict[str, Any]


def check_orders(head: Json, table: pd.DataFrame, path: Path) -> None:
    """Raises UserError unless sequences have every skill once, and records a sequence of them."""
    orders = head.get("orders") or {}
    skills = sorted(skill["name"] for skill in head["skills"])
    for name, order in orders.items():
        if sorted(order) != skills:
            problem = f"`orders.{name[:60]}` is not every skill once"
            raise UserError(path / "results.json", problem, REMEDY)
    on_record = set(table.loc[table["method"].isin(list(head["methods"])), "sequence"])
    if unknown := sorted(on_record - set(orders or [""])):
        problem = f"has records of sequence {unknown[0][:60]!r}, which results.json does not name"
        raise UserError(path / "records.jsonl", problem, REMEDY)


def with_singles(head: Json, table: pd.DataFrame) -> pd.DataFrame:
    """The records, with those of each first stage once more as a single run of its skill.

    A skill that begins a sequence is learned alone there, from the base model and by the same
    draws, so that it has no single run of its own. head: results.json.
    """
    number = {skill["name"]: k for k, skill in enumerate(head["skills"], 1)}
    skill, method = (table[column].astype(object) for column in ("skill", "method"))
    is_first = table["final"] & (table["stage"] == 1) & table["reference"].isna()
    is_own = (table["kind"] == "skill") & (table["name"].astype(object) == skill)
    asked = method.isin(list(head.get("references") or ())) & skill.isin(list(number))
    found = table[is_first & is_own & asked]
    if found.empty:
        return table
    method = method[found.index] + f".{SINGLE}-" + skill[found.index].map(number).astype(str)
    copies = found.assign(
        method=method,
        run=method + "-seed" + found["seed"].astype(str),
        reference=SINGLE,
        sequence="",
    )
    joined = pd.concat([table.astype(dict.fromkeys(TEXTS, object)), copies], ignore_index=True)
    return joined.astype(dict.fromkeys(TEXTS, "category"))


def of_sequence(head: Json, table: pd.DataFrame, name: str) -> tuple[Json, pd.DataFrame]:
    """results.json and records of one sequence, as if the order had it alone.

    Joint and single runs are the same for all. A folder without it has no methods left.
    """
    order = (head.get("orders") or {}).get(name)
    mine = table["sequence"].astype(object).isin([name])
    shared = table["reference"].notna() & table["sequence"].astype(object).isin([""])
    place = {skill: k for k, skill in enumerate(order or ())}
    skills = sorted(head["skills"], key=lambda skill: place.get(skill["name"], len(place)))
    alone = {key: value for key, value in head.items() if key != "orders"}
    alone |= {"skills": skills, "methods": head["methods"] if order else {}}
    table = table[(mine | shared) & bool(order)]
    return alone, table.assign(sequence=pd.Categorical([""] * len(table)))
