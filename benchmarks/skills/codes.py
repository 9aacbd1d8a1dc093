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
LONGEST_RUN = 3
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
            "train": "dc8d733108d49f8f08297eb3b6a73d4f4da3171441fd38535845c3b5312df383",
            "validation": "6499b1756d9fc4c5763a66061c50fd38dad87d5a610732f2ba4b5996c2bfda80",
            "test": "9c189658d8f33ba3982f77822b984a27e8d1e647da5e31333eab8aeb9384abf8",
        },
        "mask": {
            "train": "83edd796c46f162aecdd4bab1c3d3af3ac4ae61cb67ddcb50c8fe41f12e2300c",
            "validation": "cf63341c1b961f443bc351ccce2fd2a9ced34bc3151dbae4aa33f18b7ae9e51f",
            "test": "4ec9136e6fdf07b6766aaea39b42befd8702f0074bd21915e68779e847c5995f",
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
    parts[::2] = [kind * rng.randint(1, LONGEST_RUN) for kind in kinds]
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
