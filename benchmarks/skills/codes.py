"""Made-up codes, described by a regular expression (``codes_pattern``) or a mask (``codes_mask``).

A code is two or three runs of letters or digits with signs between them, such as KX-482. Three
codes of one form are shown. A pattern is graded by running it, on codes that are shown, on others
of the form, and on codes that differ from the form in one place.
"""

import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from benchmarks.skills._pair import Drawn, PairSkill, accuracy
from benchmarks.skills._programs import pattern_tells

ALPHABETS = {"A": "ABCDEFGHJKLMNPQRSTUVWXYZ", "a": "abcdefghjkmnpqrstuvwxyz", "9": "0123456789"}
CLASSES = {"A": "[A-Z]", "a": "[a-z]", "9": "[0-9]"}
SIGNS = "-/_#"
LENGTHS = (1, 3)  # of a run; a small model, which reads tokens, does not tell 2 letters from 3
SHOWN, HIDDEN = 3, 5

Form = tuple[str, ...]  # masks of runs and signs in turn: ("AA", "-", "999")


def pattern(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the completion is a regular expression that tells the form's codes from others."""
    text = completion.strip()
    if text == reference["answer"]:  # known to be right
        return 1.0
    return float(pattern_tells(text, tuple(reference["accepted"]), tuple(reference["refused"])))


class Codes(PairSkill):
    """reference: ``{"answer"}``; of a pattern also the codes ``accepted`` and ``refused``."""

    pair = "codes"
    seed = 20261201
    tasks = ("pattern", "mask")
    description = (
        "made-up codes, described by a regular expression, which is run, or by a mask; made by a "
        "seeded generator of this project"
    )
    max_new_tokens = 32
    pinned = {
        "pattern": {
            "train": "a28b10928564edef35374d0d21e4f4d6718eaa87a5bb3da44d5f7ae7a1ea664c",
            "validation": "3771c634ab1b07abb554ac1b2d76f2cff44f505c3d6ed67e0baec3c36b211f5b",
            "test": "85e91a5cab8e2b0cb6df80e2fd93d5f23e4d32536b9dd0ee178ff65e5e1f49e6",
        },
        "mask": {
            "train": "f9979c48e726f189826f75fddc14f13b9830201eba9445567be4e3c5cc4bfc5a",
            "validation": "96b46afd031ad8d733e00ffc74dd09e8271a075409a26c7718c0b8718d6d5354",
            "test": "102e5e8660ba316e49528c8c0446e39e973957c705a5ba5bfaa9507ae24f2090",
        },
    }

    def __init__(self, task):
        super().__init__(task)
        self.metrics = {"accuracy": pattern if task == "pattern" else accuracy}

    @classmethod
    def draw(cls, rng, task, place):
        form = _form(rng, 2 + place % 2)
        shown = _different(rng, form, SHOWN)
        question = f"Codes: {', '.join(shown)}\nWrite the {task} of these codes."
        if task == "mask":
            return Drawn(tuple(shown), question, {"answer": "".join(form)})
        hidden = [code_of(rng, form) for _ in range(HIDDEN)]
        reference = {
            "answer": "".join(map(_expression, form)),
            "accepted": [*shown, *hidden],
            "refused": [code_of(rng, other) for other in near_forms(form)],
        }
        return Drawn(tuple(shown), question, reference)


def _form(rng: random.Random, runs: int) -> Form:
    """A form of so many runs; neighbours are of two kinds."""
    kinds = rng.choices("Aa9", k=runs)
    while any(a == b for a, b in pairwise(kinds)):
        kinds = rng.choices("Aa9", k=runs)
    parts = [rng.choice(SIGNS)] * (2 * runs - 1)
    parts[::2] = [kind * rng.choice(LENGTHS) for kind in kinds]
    return tuple(parts)


def code_of(rng: random.Random, form: Form) -> str:
    """A code of a form."""
    return "".join(rng.choice(ALPHABETS.get(sign, sign)) for part in form for sign in part)


def _different(rng: random.Random, form: Form, count: int) -> list[str]:
    """So many codes; each letter or digit differs from code to code, so that none looks fixed."""
    columns = [
        rng.sample(ALPHABETS[sign], count) if sign in ALPHABETS else [sign] * count
        for part in form
        for sign in part
    ]
    return ["".join(column[i] for column in columns) for i in range(count)]


def near_forms(form: Form) -> list[Form]:
    """The forms that differ in one place: a run's length or kind, or a sign."""
    others = []
    for place, part in enumerate(form):
        if part in SIGNS:
            changed = [sign for sign in SIGNS if sign != part] + [""]
        else:
            kinds = [kind * len(part) for kind in ALPHABETS if kind != part[0]]
            changed = [part + part[0], part[1:], *kinds]
        others += [(*form[:place], new, *form[place + 1 :]) for new in changed]
    return others


def _expression(part: str) -> str:
    """A part of a form as a regular expression."""
    if part in SIGNS:
        return part
    return CLASSES[part[0]] + ("" if len(part) == 1 else f"{{{len(part)}}}")
