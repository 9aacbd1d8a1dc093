"""The skill "elements": its data against another table of the elements, its splits, its grader and
its reward.
"""

import random
import re
from collections import Counter

import pytest

from benchmarks.skills import elements
from harness.base.errors import UserError
from harness.skills.registry import get_skill
from harness.skills.skill import examples_fingerprint

SKILL = get_skill("elements")
SPLITS = {split: SKILL.examples(split) for split in SKILL.splits}
# IUPAC's names and symbols, CRC Handbook's melting points in kelvin: typed in, not taken from the
# package.
SYMBOLS = {
    "sodium": "Na",
    "potassium": "K",
    "iron": "Fe",
    "gold": "Au",
    "tin": "Sn",
    "lead": "Pb",
    "mercury": "Hg",
    "tungsten": "W",
    "silver": "Ag",
    "antimony": "Sb",
    "helium": "He",
    "zinc": "Zn",
    "copper": "Cu",
    "carbon": "C",
    "aluminium": "Al",
    "calcium": "Ca",
}
MELTING = {
    "iron": 1811,
    "gold": 1337,
    "tin": 505,
    "lead": 601,
    "mercury": 234,
    "tungsten": 3695,
    "silver": 1235,
    "zinc": 693,
    "copper": 1358,
}


def question(example):
    return example.prompt[-1]["content"]


def answer(example):
    return re.fullmatch(r"<reasoning>.+</reasoning><answer>(.+)</answer>", example.demonstration)[1]


def kind(example):
    return example.id.split("/")[1]


def test_sizes_and_distinct_questions():
    sizes = {split: len(rows) for split, rows in SPLITS.items()}
    assert sizes["train"] >= 200 and sizes["validation"] >= 48 and sizes["test"] >= 200
    every = [e for rows in SPLITS.values() for e in rows]
    assert len({question(e) for e in every}) == len({e.id for e in every}) == len(every)


def test_no_element_of_the_test_was_trained_on():
    """By every name and symbol in a question or an answer, the anions of the compounds apart."""
    names = {e.name.lower(): e.symbol for e in elements.ELEMENTS}

    def mentioned(split):
        found = set()
        for e in SPLITS[split]:
            text = question(e) + " " + answer(e)
            found |= {names[w] for w in re.findall(r"[a-z]+", text) if w in names}
            found.add(e.id.split("/")[2])
        return found - set(elements.ANIONS)

    train, validation, test = mentioned("train"), mentioned("validation"), mentioned("test")
    assert len(test) == 28 and len(validation) == 12 and len(train) > 45
    assert not train & test and not train & validation and not validation & test
    assert not set(elements.ANIONS) & {
        e.id.split("/")[2] for e in SPLITS["test"] + SPLITS["validation"]
    }


def test_symbols_against_another_table():
    rows = [e for rows in SPLITS.values() for e in rows]
    seen = 0
    for e in rows:
        for name, symbol in SYMBOLS.items():
            if question(e) == f"What is the chemical symbol of {name}?":
                assert answer(e) == symbol
                seen += 1
            if question(e) == f"Which element has the chemical symbol {symbol}?":
                assert answer(e) == name
                seen += 1
    assert seen == 2 * len(SYMBOLS)


def test_melting_points_against_another_table():
    seen = set()
    for e in (e for rows in SPLITS.values() for e in rows):
        if question(e).startswith("Melting points"):
            table = question(e).split(": ")[1].split(". ")[0]
            for cell in table.split("; "):
                value, name = re.search(r"[\d.]+", cell)[0], re.search(r"[a-z]{3,}", cell)[0]
                if name in MELTING:
                    assert float(value) == pytest.approx(MELTING[name], rel=0.01), cell
                    seen.add(name)
    assert len(seen) >= 6


@pytest.mark.parametrize("wanted", ["value", "holder"])
def test_answers_read_off_the_line_of_data(wanted):
    """An independent reader of the question finds the answer, and only one row that fits."""
    rows = [e for rows in SPLITS.values() for e in rows if kind(e) == wanted]
    assert rows
    for e in rows:
        table, asked = question(e).split(": ", 1)[1].rsplit(". ", 1)
        cells = [
            re.match(r"([a-z]+) (.+)|(\S+ \S+) ([a-z]+)", c).groups() for c in table.split("; ")
        ]
        pairs = [(a or d, b or c) for a, b, c, d in cells]
        assert len(dict(pairs)) == len({v for _, v in pairs}) == 3
        fits = [
            (n, v)
            for n, v in pairs
            if re.search(rf"\b{re.escape(n if wanted == 'value' else v)}\?$", asked)
        ]
        assert [fits[0][wanted == "value"]] == [answer(e)] and len(fits) == 1


def test_position_of_the_answer_in_the_line_is_balanced():
    places = Counter()
    for e in SPLITS["train"]:
        if kind(e) in ("value", "holder"):
            cells = question(e).split(": ", 1)[1].rsplit(". ", 1)[0].split("; ")
            places[
                [
                    re.search(rf"(?<!\w){re.escape(answer(e))}(?!\w)", c) is not None for c in cells
                ].index(True)
            ] += 1
    assert set(places) == {0, 1, 2} and min(places.values()) > 0.2 * sum(places.values())


def test_atoms_are_counted_and_charges_balance():
    charges = {
        "Al": 3,
        "Ca": 2,
        "Mg": 2,
        "Na": 1,
        "K": 1,
        "Si": 4,
        "Ti": 4,
        "Zn": 2,
        "H": 1,
        "Ag": 1,
        "Fe": 3,
        "La": 3,
    }
    noun = {"oxygen": ("O", 2), "fluorine": ("F", 1), "chlorine": ("Cl", 1)}
    checked = 0
    for e in (e for rows in SPLITS.values() for e in rows if kind(e) == "atoms"):
        name, formula = re.fullmatch(r"How many (\w+) atoms are in (\w+)\?", question(e)).groups()
        counts = {s: int(n or 1) for s, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}
        anion, charge = noun[name]
        assert answer(e) == str(counts[anion])
        own = e.id.split("/")[2]
        if own in charges:
            assert counts[own] * charges[own] == counts[anion] * charge
            checked += 1
    assert checked >= 8


def test_the_first_rows_stand_for_all():
    for split in ("validation", "test"):
        first = Counter(map(kind, SPLITS[split][:48]))
        assert set(first) == {k.__name__ for k in elements.KINDS} and min(first.values()) >= 9


def test_data_are_pinned_and_the_same_at_every_load():
    assert set(SKILL.checksums) == set(SKILL.splits)
    random.seed(1)  # the global generator must not matter
    for split in SKILL.splits:
        assert examples_fingerprint(get_skill("elements").load(split)) == SKILL.checksums[split]
    changed = get_skill("elements")
    changed.checksums = {**SKILL.checksums, "test": "0" * 64}
    with pytest.raises(UserError, match="SHA-256"):
        changed.examples("test")


def test_grade_is_the_last_tag_stripped():
    assert SKILL.metric == "accuracy"
    for text, right in [
        ("<answer>Sn</answer>", 1),
        ("<answer> Sn\n</answer> so", 1),
        ("<answer>Na</answer><answer>Sn</answer>", 1),
        ("<answer>Sn</answer><answer>Na</answer>", 0),
        ("Sn", 0),
        ("<answer>sn</answer>", 0),
        ("<answer>Sn", 0),
    ]:
        assert SKILL.grade(text, "Sn") == right, text


def test_reward_rises_with_every_part_and_is_one_only_if_right():
    steps = [
        "Tin.",
        "<reasoning>hm",
        "<reasoning>hm</reasoning>",
        "<reasoning>hm</reasoning><answer>the tin</answer>",
        "<reasoning>hm</reasoning><answer>Na</answer>",
        "<reasoning>hm</reasoning><answer>Sn</answer>",
    ]
    assert [SKILL.reward(s, "Sn") for s in steps] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert SKILL.reward("<answer>Sn</answer>", "Sn") == 1  # 1 wherever the grade is
    # the last one counts here too
    assert SKILL.reward("<answer>Na</answer><answer>tin</answer>", "Sn") == pytest.approx(0.2)
    for e in SPLITS["test"]:
        assert (
            SKILL.grade(e.demonstration, e.reference)
            == SKILL.reward(e.demonstration, e.reference)
            == 1
        )
        assert SKILL.reward(e.demonstration.replace("</answer>", "x</answer>"), e.reference) <= 0.8


@pytest.mark.parametrize(
    "text, is_a",
    [
        ("Sn", "symbol"),
        ("tin", "name"),
        ("3", "count"),
        ("505.12 K", "K"),
        ("7.3 g/cm3", "g/cm3"),
        ("505 kelvin", None),
        ("Tin", None),
        ("xyz", None),
    ],
)
def test_kind_of_an_answer(text, is_a):
    assert elements.answer_kind(text) == is_a


def test_teacher_sees_the_demonstration_as_its_own_turn():
    e = SPLITS["train"][0]
    turns = SKILL.teacher_prompt(e)
    assert (
        turns[:-1] == [*e.prompt, {"role": "assistant", "content": e.demonstration}]
        and turns[-1] == e.prompt[-1]
    )
