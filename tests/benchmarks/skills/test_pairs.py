"""The four pairs of skills that interfere: what is drawn, and their graders against checks of
another kind. Hostile queries and patterns end at the limits of the sandbox.
"""

import json
import random
import re
import sqlite3
import time
from collections import Counter

import numpy as np
import pytest
import yaml

from benchmarks.retention.tasks.sandbox import SandboxError, run
from benchmarks.skills import _pair, _programs
from benchmarks.skills.codes import ALPHABETS, near_forms
from benchmarks.skills.messages import ITEMS as SOLD
from benchmarks.skills.messages import LABELS, OF
from benchmarks.skills.tables import THEMES
from harness.runs.reading import read_order
from harness.skills.overlap import find_overlaps
from harness.skills.registry import get_skill

PAIRS = {
    "messages": ("satisfaction", "urgency"),
    "notes": ("object", "line"),
    "tables": ("query", "value"),
    "codes": ("pattern", "mask"),
}
NAMES = [f"{pair}_{task}" for pair, tasks in PAIRS.items() for task in tasks]


@pytest.fixture(scope="module")
def skills():
    return {name: get_skill(name) for name in NAMES}


@pytest.fixture
def sandbox():
    try:
        run("pass")
    except SandboxError as error:
        pytest.skip(str(error))


def all_rows(skill):
    return [example for split in skill.splits for example in skill.examples(split)]


def asked(example):
    return example.prompt[-1]["content"]


# ---- what is drawn -------------------------------------------------------------------------------


def test_sizes_and_answers(skills):
    for name, skill in skills.items():
        for split, size in _pair.SIZES.items():
            assert len(skill.examples(split)) == size, name
            assert set(skill.checksums) == set(_pair.SIZES), name
        for example in all_rows(skill):
            assert skill.grade(example.demonstration, example.reference) == 1
            assert skill.reward(f" {example.demonstration}\n", example.reference) == 1


def test_who_guesses_is_right_as_often_as_the_skill_says(skills, tmp_path):
    """One word for all of a split; an order puts it on record, and nothing where none is shown."""
    for name, skill in skills.items():
        rows = skill.examples("test")[:20]
        guesses = [np.mean([skill.grade(w, e.reference) for e in rows]) for w in LABELS]
        assert guesses == pytest.approx([skill.chance] * len(LABELS)), name
    order = {"model": {"name": "embedded"}, "skills": NAMES, "methods": {"sft": {}}}
    order |= {"budget": {"prompts": 8, "batch_size": 4}}
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(order))
    about = read_order(tmp_path / "order.yaml").about()["skills"]
    assert [entry.get("chance") for entry in about] == [0.25, 0.25, *[None] * 6]


def test_draws_are_the_same_again(skills):
    _pair._rows.cache_clear()
    for name, skill in skills.items():
        again = get_skill(name)
        assert [again.load(s) for s in again.splits] == [skill.load(s) for s in skill.splits]


def test_no_question_was_taught(skills):
    """In no split of any of the eight, and none nearly; nor twice in the measured ones."""
    measured = {
        (name, split): skill.examples(split)
        for name, skill in skills.items()
        for split in ("validation", "test")
    }
    assert find_overlaps(list(skills.values()), measured) == []
    questions = Counter(asked(e) for skill in skills.values() for e in all_rows(skill))
    assert max(questions.values()) == 1


def test_the_prompts_of_a_pair_differ_in_a_word(skills):
    for pair, tasks in PAIRS.items():
        ends = {
            asked(skills[f"{pair}_{task}"].examples("test")[0]).split("\n")[-1].replace(task, "...")
            for task in tasks
        }
        assert len(ends) == 1, pair


def test_messages_say_their_label(skills):
    """Read back from the sentences; both labels of a message are drawn independently."""
    level = {
        phrase.format(item=item): (name, label)
        for name, phrases in OF.items()
        for label, each in phrases.items()
        for phrase in each
        for item in SOLD.split()
    }
    both = Counter()
    for name in OF:
        skill = skills[f"messages_{name}"]
        for split in skill.splits:
            rows = skill.examples(split)
            labels = Counter(e.reference["answer"] for e in rows)
            assert labels == {label: len(rows) // len(LABELS) for label in LABELS}
        for example in all_rows(skill):
            text = asked(example).split("\n")[0].removeprefix("Message: ")
            said = {
                level[a][0]: level[a][1]
                for cut in re.finditer(r"(?<=[.?]) ", text)
                for a in (text[: cut.start()], text[cut.end() :])
                if a in level
            }
            assert said[name] == example.reference["answer"] and len(said) == 2
            both[said["satisfaction"] == said["urgency"]] += 1
    assert 0.2 < both[True] / both.total() < 0.3


def test_notes_hold_what_is_written(skills):
    for task in PAIRS["notes"]:
        for example in all_rows(skills[f"notes_{task}"]):
            note, fields, _ = asked(example).split("\n")
            wanted = re.findall(r"(\w+) \((\w+)\)", fields)
            answer = example.reference["answer"]
            if task == "object":
                values = json.loads(answer)
                assert list(values) == [field for field, _ in wanted]
                assert [type(v) for v in values.values()] == [
                    int if kind == "number" else str for _, kind in wanted
                ]
                written = [str(value) for value in values.values()]
            else:
                written = answer.split(" | ")
            assert len(written) == len(wanted) in (3, 4)
            assert all(value in note for value in written)


def answer_by_hand(question):
    """What a reader of the table answers, without SQL."""
    _, *lines, sentence, _ = question.split("\n")
    rows = [dict(cell.split(" ") for cell in line.split(", ")) for line in lines]
    first = next(iter(rows[0]))
    if match := re.fullmatch(r"What is the (\w+) of (\w+)\?", sentence):
        (row,) = (row for row in rows if row[first] == match[2])
        return row[match[1]]
    if match := re.fullmatch(r"Which (\w+) has the (highest|lowest) (\w+)\?", sentence):
        order = sorted(rows, key=lambda row: int(row[match[3]]))
        return order[-1 if match[2] == "highest" else 0][match[1]]
    match = re.fullmatch(r"Which (\w+) has the (\w+) (\d+)\?", sentence)
    (row,) = (row for row in rows if row[match[2]] == match[3])
    return row[match[1]]


def sqlite_rows(sql, reference, rows):
    base = sqlite3.connect(":memory:")
    base.execute(f"CREATE TABLE {reference['table']} ({', '.join(reference['columns'])})")
    base.executemany(f"INSERT INTO {reference['table']} VALUES (?, ?, ?)", rows)
    return base.execute(sql).fetchall()


def test_tables_are_answered(skills):
    """Values and queries against a reader of the question; the other tables answer otherwise."""
    for example in all_rows(skills["tables_value"]):
        assert example.reference["answer"] == answer_by_hand(asked(example))
    others = 0
    for example in all_rows(skills["tables_query"]):
        reference = example.reference
        results = [
            sqlite_rows(reference["answer"], reference, rows) for rows in reference["tables"]
        ]
        assert results[0] == [(type(results[0][0][0])(answer_by_hand(asked(example))),)]
        others += any(each != results[0] for each in results[1:])
    assert others > 0.95 * sum(_pair.SIZES.values())
    assert {len(numbers.split()) for *_, numbers in THEMES} == {2}


def kind_of(sign):
    return next((kind for kind, letters in ALPHABETS.items() if sign in letters), sign)


def test_codes_have_their_form(skills):
    """The mask by the shown codes alone; the pattern by Python's ``re`` on all codes."""
    for example in all_rows(skills["codes_mask"]):
        shown = asked(example).split("\n")[0].removeprefix("Codes: ").split(", ")
        assert {"".join(map(kind_of, code)) for code in shown} == {example.reference["answer"]}
    for example in all_rows(skills["codes_pattern"]):
        reference = example.reference
        assert all(re.fullmatch(reference["answer"], code) for code in reference["accepted"])
        assert not any(re.fullmatch(reference["answer"], code) for code in reference["refused"])
        assert ", ".join(reference["accepted"][:3]) in asked(example)
    assert ("AAA", "-", "99") in near_forms(("AA", "-", "99"))
    assert ("AA", "-", "99") not in near_forms(("AA", "-", "99"))


# ---- graders -------------------------------------------------------------------------------------


def test_answers_of_the_other_skill_are_wrong(skills):
    """A label apart, which both may share, no answer of the one counts for the other."""
    for pair, tasks in PAIRS.items():
        for mine, other in (tasks, tasks[::-1]):
            right = skills[f"{pair}_{mine}"].examples("test")[:40]
            wrong = skills[f"{pair}_{other}"].examples("test")[:40]
            if pair in ("messages", "tables", "codes") and mine in ("query", "pattern"):
                right, wrong = right[:3], wrong[:3]  # each is run
            grade = skills[f"{pair}_{mine}"].grade
            scores = [
                grade(b.demonstration, a.reference) for a, b in zip(right, wrong, strict=True)
            ]
            assert pair == "messages" or sum(scores) == 0


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ('{"count": 3, "name": "Ida"}', True),
        (' {"name":"Ida","count":3}\n', True),
        ('{"name": "Ida", "count": 3.0}', True),
        ('{"name": "Ida", "count": "3"}', False),
        ('{"name": "Ida"}', False),
        ('{"name": "Ida", "count": 3, "day": "Friday"}', False),
        ('[{"name": "Ida", "count": 3}]', False),
        ("Ida | 3", False),
        ('{"name": "Ida", "count": 3} ok', False),
        ('{"name": "Ida", "count": NaN}', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_objects(completion, right, skills):
    reference = {"answer": "", "object": {"name": "Ida", "count": 3}}
    assert skills["notes_object"].grade(completion, reference) == right


def test_rewards_tell_near_from_far(skills):
    reward = skills["codes_mask"].reward
    reference = {"answer": "AA-999"}
    ladder = [reward(text, reference) for text in ("", "x", "AA", "AA-99", "AA-999")]
    assert ladder == sorted(ladder) and ladder[0] == 0 and ladder[3] < 0.5 and ladder[4] == 1


def test_queries_are_run(skills, sandbox):
    """Made queries: right where SQLite here gives the same rows on all tables."""
    example = skills["tables_query"].examples("test")[1]  # Which ... has the ... n?
    reference = example.reference
    (column, table, by, value) = re.fullmatch(
        r"SELECT (\w+) FROM (\w+) WHERE (\w+) = (\d+)", reference["answer"]
    ).groups()
    made = {
        f"select t.{column} from {table} as t where t.{by} in ({value});": True,
        f"SELECT {column} FROM {table} WHERE {by} >= {value} AND {by} <= {value}": True,
        f"SELECT\n  {column}\nFROM {table}\nWHERE {by} = {value}": True,
        f"SELECT\t{column} FROM {table} WHERE {by} = {value};\n": True,
        f"SELECT({column}) FROM {table} WHERE {by} = {value}": True,
        f"SELECTED {column} FROM {table} WHERE {by} = {value}": False,
        f"SELECT '{answer_by_hand(asked(example))}'": False,  # the value of the shown table
        f"SELECT {column} FROM {table} WHERE {by} > {value}": False,
        f"SELECT * FROM {table} WHERE {by} = {value}": False,
        f"SELECT nothing FROM {table}": False,
        f"SELECT {column} FROM {table}; SELECT 1": False,
        f"DELETE FROM {table}": False,
        "": False,
        "SELECT": False,
    }
    for sql, right in made.items():
        try:
            same = all(
                sqlite_rows(sql, reference, rows)
                == sqlite_rows(reference["answer"], reference, rows)
                for rows in reference["tables"]
            )
        except sqlite3.Error:
            same = False
        assert skills["tables_query"].grade(sql, reference) == float(right) == float(same), sql


def test_patterns_are_run(skills, sandbox):
    """Made patterns: right where Python's ``re`` here tells the codes apart."""
    example = skills["codes_pattern"].examples("test")[0]
    reference, gold = example.reference, example.reference["answer"]
    rng = random.Random(0)
    made = [f"^{gold}$", f"(?:{gold})", gold.replace("[0-9]", r"\d"), ".*", "(", "", "'", "\\"]
    made += ["".join(rng.sample(gold, len(gold))) for _ in range(3)] + [gold[:-1], gold + "?"]
    right = 0
    for pattern in made:
        try:
            compiled = re.compile(pattern)
            expected = all(map(compiled.fullmatch, reference["accepted"])) and not any(
                map(compiled.fullmatch, reference["refused"])
            )
        except re.error:
            expected = False
        assert skills["codes_pattern"].grade(pattern, reference) == float(expected), pattern
        right += expected
    assert right >= 2
    assert _programs.pattern_tells("A-1", ("A-1",), ("A-2",))
    assert not _programs.pattern_tells("A-1", ("A-1", "B-2"), ())
    assert not _programs.pattern_tells("A-1", ("A-1",), ("A-1",))


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
HOSTILE_QUERIES = {
    "endless": f"SELECT * FROM ({ENDLESS}SELECT max(i) FROM n)",
    "memory": "SELECT length(zeroblob(900000000))",
    "growing": "SELECT replace(hex(zeroblob(40000)), '00', hex(zeroblob(40000)))",
    "product": "SELECT count(*) FROM " + ", ".join(f"t AS t{i}" for i in range(15)),
    "extension": "SELECT load_extension('/lib/x86_64-linux-gnu/libc.so.6')",
}
HOSTILE_PATTERNS = {
    "time": "(?:" + ".?" * 20 + "){20}!",
    "nested": "((((.*)*)*)*)*!",
    "size": "(((((((.{99}){99}){99}){99}){99}){99}){99})|x",
    "deep": "(" * 99 + "a" + ")" * 99,
    "code": '"]); import os; os._exit(0); re.compile(["',
}


@pytest.mark.parametrize("kind", HOSTILE_QUERIES)
def test_hostile_queries_are_wrong_and_end(kind, sandbox):
    table = tuple((f"w{i}", i, i + 50) for i in range(8))
    start = time.monotonic()
    columns = ("item", "price", "count")
    query = HOSTILE_QUERIES[kind]
    assert not _programs.query_agrees(query, "SELECT price FROM t", "t", columns, (table,))
    assert time.monotonic() - start < _programs.SECONDS + 30


@pytest.mark.parametrize("kind", HOSTILE_PATTERNS)
def test_hostile_patterns_are_wrong_and_end(kind, sandbox, monkeypatch):
    monkeypatch.setattr(_programs, "SECONDS", 1.0)
    start = time.monotonic()
    assert not _programs.pattern_tells(HOSTILE_PATTERNS[kind], ("ABC-123-abc",) * 3, ("x",))
    assert time.monotonic() - start < 31


def test_an_endless_query_ends_by_its_steps(sandbox, monkeypatch):
    """At the same place on every machine: where it may take more of them, it ends by itself."""
    count = "SELECT * FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT "
    count += "20000) SELECT max(i) FROM n)"
    arguments = ("SELECT 20000", "t", ("a", "b"), ((("x", 1),),))
    assert _programs.query_agrees(count, *arguments)
    _programs.query_agrees.cache_clear()
    monkeypatch.setattr(_programs, "STEPS", 20_000)
    assert not _programs.query_agrees(count, *arguments)
