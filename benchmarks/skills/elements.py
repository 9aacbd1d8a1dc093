"""Science questions about the chemical elements, with the answer tags of Science Q&A.

They have the answer form of Science Q&A in arXiv 2601.19897 and are small enough for a model of
135M parameters on a CPU. Such a model half knows the fact (the symbol of an element), or reads it
off a line of data in the question. What it lacks is mostly the form of the answer. The data are
those of the package ``molmass`` (BSD-3-Clause). Every element belongs to one split: no question of
the test, nor any fact in it, is about an element that was trained on.
"""

import random
import re
from itertools import zip_longest

from molmass import ELEMENTS, Formula

from harness.skills.graders import answer_tag
from harness.skills.skill import Example, Skill

# A small model follows no description of a form, but it imitates an earlier turn. A turn from
# another field gives away none of the reasoning that is to be learned.
OPENING = [
    {
        "role": "system",
        "content": "Answer in the form <reasoning>...</reasoning><answer>...</answer>",
    },
    {"role": "user", "content": "What is the capital of France?"},
    {
        "role": "assistant",
        "content": "<reasoning>The capital of France is Paris.</reasoning><answer>Paris</answer>",
    },
]
QUANTITIES = (  # attribute of a molmass element, plural, question with the value, unit
    ("tmelt", "Melting points", "melts at", "K"),
    ("tboil", "Boiling points", "boils at", "K"),
    ("density", "Densities", "has the density", "g/cm3"),
)
SINGULAR = {"tmelt": "melting point", "tboil": "boiling point", "density": "density"}
ANIONS = {"O": 2, "F": 1, "Cl": 1}  # symbol: charge; what the compounds are made with
HELD_OUT = {"test": 28, "validation": 12}  # elements; the rest is for training
# The elements with a value of each quantity.
MEASURED = [e for e in ELEMENTS if e.number <= 94 and e.tmelt and e.tboil and e.density]
NAMES = {e.name.lower() for e in ELEMENTS}
SYMBOLS = {e.symbol for e in ELEMENTS}


def _name(element):
    return element.name.lower()


def symbol(element, others, rng):
    """Recall: the symbol of an element."""
    n, s = _name(element), element.symbol
    return f"What is the chemical symbol of {n}?", f"The chemical symbol of {n} is {s}.", s


def name(element, others, rng):
    """Recall: the element of a symbol."""
    n, s = _name(element), element.symbol
    return f"Which element has the chemical symbol {s}?", f"The chemical symbol {s} is {n}.", n


def _rows(quantity, element, others, rng):
    """The rows (name, value with unit) of three elements, and that of the asked one.

    The values differ, and the asked element is in any of the three places.
    """
    key, _, _, unit = quantity
    rows = {getattr(element, key): element}
    while len(rows) < 3:
        other = rng.choice(others)
        rows.setdefault(getattr(other, key), other)
    rows = [(_name(e), f"{value:g} {unit}") for value, e in rows.items()]
    answer = rows.pop(0)
    rows.insert(element.number % 3, answer)  # evenly over the three places
    return rows, answer


def value(element, others, rng, quantity=None):
    """Reading: the value of an element in a line of data; a drawn quantity unless it is given."""
    quantity = quantity or rng.choice(QUANTITIES)
    key, plural, _, _ = quantity
    rows, (n, v) = _rows(quantity, element, others, rng)
    table = "; ".join(f"{a} {b}" for a, b in rows)
    return f"{plural}: {table}. What is the {SINGULAR[key]} of {n}?", f"The data give {n} {v}.", v


def holder(element, others, rng, quantity=None):
    """Reading: the element with a value in a line of data."""
    quantity = quantity or rng.choice(QUANTITIES)
    _, plural, verb, _ = quantity
    rows, (n, v) = _rows(quantity, element, others, rng)
    table = "; ".join(f"{b} {a}" for a, b in rows)
    return f"{plural}: {table}. Which element {verb} {v}?", f"The data give {v} {n}.", n


def atoms(element, others, rng):
    """Counting: atoms of the anion in a binary compound.

    The element has its commonest positive oxidation state; None where it has none.
    """
    # molmass marks the commonest states with a star, as in "3*, 2".
    state = re.search(r"(?<![-\d])(\d+)\*", element.oxistates)
    if not state or element.symbol in ANIONS:
        return None
    anion, charge = rng.choice(sorted(ANIONS.items()))
    n = int(state[1])
    own, count = (1, n // charge) if n % charge == 0 else (charge, n)
    compound = f"{element.symbol}{own if own > 1 else ''}{anion}{count if count > 1 else ''}"
    total = Formula(compound).composition()[anion].count
    part = f"{anion}{total if total > 1 else ''}"
    noun = {"O": "oxygen", "F": "fluorine", "Cl": "chlorine"}[anion]
    return f"How many {noun} atoms are in {compound}?", f"{compound} has {part}.", str(total)


KINDS = (symbol, name, value, holder, atoms)


def answer_kind(text):
    """What an answer is, whether right or wrong: "symbol", "name", "count", a unit, or None."""
    if text in SYMBOLS:
        return "symbol"
    if text in NAMES:
        return "name"
    number = re.fullmatch(r"\d+(?:\.\d+)?(?: (K|g/cm3))?", text)
    return (number[1] or "count") if number else None


def _example(identity, question, reasoning, answer):
    prompt = [*OPENING, {"role": "user", "content": question}]
    demonstration = f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"
    return Example(identity, prompt, demonstration, answer)


def _further(elements, rows):
    """Readings of the quantities that ``rows`` do not ask for, of each element."""
    asked = {row.id: row.prompt[-1]["content"] for row in rows}
    rng = random.Random("elements further")
    further = []
    for kind in (value, holder):
        for element in elements:
            others = [e for e in elements if e is not element]
            identity = f"test/{kind.__name__}/{element.symbol}"
            for quantity in QUANTITIES:
                if not asked[identity].startswith(quantity[1]):
                    parts = kind(element, others, rng, quantity)
                    further.append(_example(f"{identity}/{quantity[0]}", *parts))
    rng.shuffle(further)
    return further


class Elements(Skill):
    """Five kinds of question, one a kind for each element of the split; in the test each element's
    data are all read.
    """

    name = "elements"
    description = (
        "symbols, data and formulas of the chemical elements in reasoning and answer tags; from "
        "molmass, BSD-3-Clause"
    )
    max_new_tokens = 48
    teacher_template = "three_turn"
    metrics = {"accuracy": answer_tag}
    checksums = {
        "train": "a6b23e6bb54ae7680fea03c2d266438b2b2c8ad46334da4a5fe74c461025962b",
        "validation": "82811dc1a278e8b331e2abcb28824cb2fa48f16c5999cb82f30980a36126f10e",
        "test": "dec49760a7482539f65b01b3bb1e45d097642b473b7ad2ed8efd36a97b26bb5e",
    }

    def load(self, split):
        rng = random.Random(20260119)
        # The anions occur in questions of every split.
        free = [e for e in MEASURED if e.symbol not in ANIONS]
        rng.shuffle(free)
        test, validation = HELD_OUT["test"], HELD_OUT["test"] + HELD_OUT["validation"]
        mine = {
            "test": free[:test],
            "validation": free[test:validation],
            "train": free[validation:] + [e for e in MEASURED if e.symbol in ANIONS],
        }[split]
        rng = random.Random(f"elements {split}")
        queues = []
        for kind in KINDS:
            rows = []
            for element in rng.sample(mine, len(mine)):
                parts = kind(element, [e for e in mine if e is not element], rng)
                if parts:
                    rows.append(_example(f"{split}/{kind.__name__}/{element.symbol}", *parts))
            queues.append(rows)
        # The kinds take turns, so that the first rows of a split are a sample of all of it.
        rows = [row for turn in zip_longest(*queues) for row in turn if row]
        return rows + _further(mine, rows) if split == "test" else rows

    def reward(self, completion, reference):
        """1 if the answer is right, otherwise a sum of parts.

        0.2 for each: reasoning opened, reasoning closed, an answer in tags, of the right kind.
        """
        if self.grade(completion, reference):
            return 1.0
        found = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
        reached = [
            completion.lstrip().startswith("<reasoning>"),
            bool(re.search(r"<reasoning>.+?</reasoning>", completion, re.DOTALL)),
            bool(found),
            bool(found) and answer_kind(found[-1].strip()) == answer_kind(reference),
        ]
        return 0.2 * sum(reached)
