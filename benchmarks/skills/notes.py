"""A short note, written as a JSON object (``notes_object``) or as a line (``notes_line``).

The question names three or four fields in the order that is wanted. The line has their values with
`` | `` between them; the object has them by name, a count as a number.
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.skills._pair import Drawn, PairSkill, accuracy
from harness.skills.graders import comparable
from harness.skills.strict_json import decoded

VALUES = {
    "name": (
        "Anna Ben Carla David Ella Felix Greta Hugo Ida Jonas Karin Leo Maria Nora Oscar Paula "
        "Quentin Rosa Simon Tina Ulrich Vera Walter Xenia Yusuf Zoe"
    ),
    "item": (
        "lamps chairs desks rugs vases clocks mirrors shelves stools books pens plates cups knives "
        "towels candles boxes bags tents maps"
    ),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "place": (
        "Arden Bolton Corby Dover Elgin Frome Goole Hove Ilford Jarrow Kendal Luton Margate Norwich"
    ),
}
NOTES = (
    "{name} ordered {count} {item} for {day}, to be sent to {place}.",
    "On {day} {name} will pick up {count} {item} in {place}.",
    "Please send {count} {item} to {name} in {place} by {day}.",
    "{count} {item} go to {place} on {day}; ask for {name}.",
    "{name} from {place} called: {count} {item}, needed on {day}.",
    "For {day}: {count} {item}, {place}, contact {name}.",
    "The shop in {place} wants {count} {item} on {day}, says {name}.",
    "{name} sold {count} {item} in {place} last {day}.",
)
FIELDS = {"name": "text", "item": "text", "count": "number", "day": "text", "place": "text"}


def same_object(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the completion is a JSON object with the wanted values by name, and nothing else.

    The order of names does not count, the types of values do: 3 is not "3". A name that stands
    twice is wrong.
    """
    try:
        value = decoded(completion.strip())
        return float(comparable(value) == comparable(reference["object"]))
    except (ValueError, RecursionError):
        return 0.0


class Notes(PairSkill):
    """reference: ``{"answer"}``; of an object also ``object``, the value itself."""

    pair = "notes"
    seed = 20261203
    tasks = ("object", "line")
    description = (
        "a short note as a JSON object of given fields, or as a line of their values; made by a "
        "seeded generator of this project"
    )
    max_new_tokens = 56
    pinned = {
        "object": {
            "train": "1526afede857363abbe7364a51adc6cbb24426953b73569422370d10f6fe22a2",
            "validation": "b66de2dac5e0e02e771a126cae1bb24da66587c4369d5ef08b769452af7c4eae",
            "test": "86b8e2e97d97aadc291f67902d715302729556c61384366c7f986ce483a0bc9f",
        },
        "line": {
            "train": "36837148b0a6e0921248085319349def694aea7bbb55b9686e537584707da96a",
            "validation": "57623917cb479e9bcbf2923d697e7361a110169d7fed01617a1f24913faa19c3",
            "test": "228a9499415c0b63249955d8dfd9fed680236c29e6853c7a3790c2afec8b73bc",
        },
    }

    def __init__(self, task):
        super().__init__(task)
        self.metrics = {"accuracy": same_object if task == "object" else accuracy}

    @classmethod
    def draw(cls, rng, task, place):
        values = {field: rng.choice(words.split()) for field, words in VALUES.items()}
        values["count"] = rng.randint(2, 60)
        fields = rng.sample(list(FIELDS), 3 + place % 2)
        note = rng.choice(NOTES).format(**values)
        schema = ", ".join(f"{field} ({FIELDS[field]})" for field in fields)
        question = f"Note: {note}\nFields: {schema}\nWrite the {task}."
        wanted = {field: values[field] for field in fields}
        if task == "line":
            return Drawn(note, question, {"answer": " | ".join(map(str, wanted.values()))})
        return Drawn(note, question, {"answer": json.dumps(wanted), "object": wanted})
