"""Questions that are taught and tested: counted as a plain loop counts them, and told."""

import io
import json
import random
import time

import pytest

from harness.base.console import Progress
from harness.report.build import write_report
from harness.results.overlap import sentence
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.skills.overlap import BLOCK, NEAR, SHINGLE, find_overlaps
from harness.skills.registry import get_skill
from harness.skills.skill import Example, Skill
from tests.conftest import write_rows
from tests.fabricate import fabricate
from tests.report.folders import ONE_SKILL, TWO


class Questions(Skill):
    """A skill of the given prompts; a text is a user turn."""

    splits = ("train", "test")

    def __init__(self, name, train, test, note=""):
        self.name, self.overlap_note = name, note
        self.prompts = {"train": train, "test": test}

    def load(self, split):
        prompts = [
            [{"role": "user", "content": p}] if isinstance(p, str) else p
            for p in self.prompts[split]
        ]
        return [Example(str(i), prompt, None, "x") for i, prompt in enumerate(prompts)]


def overlaps(*skills):
    measured = {(skill.name, "test"): skill.examples("test") for skill in skills}
    return find_overlaps(skills, measured)


def counts(*skills):
    return {(o["skill"], o["train"]): (o["same"], o["near"]) for o in overlaps(*skills)}


def test_questions_without_words_are_compared_as_they_are():
    """Signs alone: symbols, code, emoji. An empty question is no question."""
    mine = Questions("mine", ["∑ ∫", "😀", "=>", ""], ["∑  ∫\n", "😁", "=>", "", "a"])
    assert counts(mine) == {("mine", "mine"): (2, 0)}


def texts(rng, count, words, vocabulary=30):
    return [" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(words)) for _ in range(count)]


def by_hand(asked, taught):
    """How many of ``asked`` stand in ``taught``, and how many others nearly do: pair by pair."""

    def shingles(text):
        words = text.split()
        runs = {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
        return runs or {tuple(words)}

    same = near = 0
    for question in asked:
        pairs = [(shingles(question), shingles(other)) for other in taught]
        same += question in taught
        is_near = any(len(a & b) >= NEAR * len(a | b) for a, b in pairs)
        near += is_near and question not in taught
    return same, near


@pytest.mark.parametrize(("seed", "block"), [(0, BLOCK), (1, BLOCK), (1, 1000)])
def test_counts_are_those_of_a_plain_loop(seed, block, monkeypatch):
    monkeypatch.setattr("harness.skills.overlap.BLOCK", block)
    rng = random.Random(seed)
    preamble = texts(rng, 1, 40)[0] if seed % 2 else ""
    taught = [f"{preamble} {t}" for n in (3, 8, 25, 120) for t in texts(rng, 40, n)]
    asked = rng.sample(taught, 20) + [f"{preamble} {t}" for t in texts(rng, 40, 25)]
    for text in rng.sample(taught, 80):  # with one or two words changed, left out or added
        words = text.split()
        for _ in range(rng.choice([1, 1, 2])):
            words[rng.randrange(len(words))] = rng.choice(["new", "", "two more"])
        asked.append(" ".join(words))
    taught, asked = ([" ".join(t.split()) for t in each] for each in (taught, asked))
    same, near = by_hand(asked, taught)
    assert same >= 20 and near > 5
    assert counts(Questions("s", taught, asked)) == {("s", "s"): (same, near)}


def test_a_question_is_known_by_its_words():
    taught = ["What is 2 + 2?", "答案是什么？", "Who led the rescue after the flood?"]
    asked = ["  what is “2 + 2”", "答案 是 什么", "Who led the rescue after a flood?", "2 + 3?", ""]
    assert counts(Questions("s", taught, asked)) == {("s", "s"): (3, 0)}


def test_system_turns_and_what_all_prompts_begin_with_do_not_count():
    def chat(system, question):
        opening = [
            {"role": "user", "content": "an example of a question that is much longer than mine"},
            {"role": "assistant", "content": "an example of an answer that is as long as that"},
        ]
        turn = {"role": "user", "content": question}
        return [{"role": "system", "content": system}, *opening, turn]

    train = [chat(f"system {i}", f"symbol of {e}?") for i, e in enumerate(("iron", "gold"))]
    test = [chat("another system", "symbol of tin?"), chat("another system", "symbol of gold?")]
    assert counts(Questions("s", train, test)) == {("s", "s"): (1, 0)}
    # The same history before another question is another question.
    history = [
        {"role": "user", "content": "Tell me of Oslo."},
        {"role": "assistant", "content": "No"},
    ]
    turns = [[*history, {"role": "user", "content": text}] for text in ("Why?", "When?")]
    assert counts(Questions("s", turns[:1], turns[1:])) == {}


def test_all_skills_of_an_order_are_compared_and_a_note_is_told():
    first = Questions("first", ["a b c", "d"], ["x", "e f"], note="meant")
    second = Questions("second", ["e f", "x", "g"], ["a b c", "g"])
    assert counts(first, second) == {
        ("first", "second"): (2, 0),
        ("second", "first"): (1, 0),
        ("second", "second"): (1, 0),
    }
    assert [sentence(o) for o in overlaps(first, second)] == [
        "first: of 2 test questions 2 stand in the train split of second",
        "second: of 2 test questions 1 stand in the train split of first",
        "second: of 2 test questions 1 stand in its own train split",
    ]
    (own,) = overlaps(Questions("first", ["a"], ["a", "b"], note="meant"))
    assert sentence(own) == "first: of 2 test questions 1 stand in its own train split (meant)"


def test_the_projects_own_skills_have_none():
    skills = [get_skill(name) for name in ("bfcl_tools", "elements", "bulletins")]
    measured = {(s.name, split): s.examples(split) for s in skills for split in s.splits[1:]}
    assert find_overlaps(skills, measured) == []


def test_ten_thousand_rows_take_seconds():
    """Also where all share a long preamble."""
    rng = random.Random(0)
    preamble = texts(rng, 1, 100)[0]
    rows = [f"{preamble} {t}" for t in texts(rng, 10_000, 15, 5000)]
    start = time.monotonic()
    assert counts(Questions("s", rows[:8000], rows[7990:])) == {("s", "s"): (10, 0)}
    assert time.monotonic() - start < 10


def test_plan_start_and_report_tell(order_file, tmp_path):
    path = order_file(methods={"sft": {}}, budget={"prompts": 2, "batch_size": 2})
    rows = [json.loads(line) for line in (tmp_path / "vowels-train.jsonl").open()]
    write_rows(tmp_path / "vowels-test.jsonl", [*rows[:3], {"prompt": "new?", "reference": "x"}])
    changes = ["skills.vowels.overlap=facts to be learned"]
    order, out, screen = read_order(path, changes), tmp_path / "out", io.StringIO()
    line = "vowels: of 4 test questions 3 stand in its own train split (facts to be learned)"
    assert f"overlap of test and train: {line}\n" in plan(order, out)
    run_order(order, out, Progress(stream=screen))
    assert f"overlap of test and train: {line}\n" in screen.getvalue()
    text, page = write_report(out)
    assert f"\n  {line}" in text and line in page.read_text()


def test_folders_from_before_have_no_overlap(tmp_path):
    fabricate(tmp_path / "out", skills=ONE_SKILL, methods=TWO, n=5, retention={})
    text, page = write_report(tmp_path / "out")
    assert "taught and tested" not in text + page.read_text()
