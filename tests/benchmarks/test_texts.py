"""The data of the embedded suite: enough items, right answers, and bits per byte by hand."""

import json
import re
from collections import Counter

import pytest
import torch
import transformers

from harness.evaluation.retention import run_suite
from harness.evaluation.suite import FOLDER, load_suite

SUITE = load_suite("embedded")


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "tasks"))


def jsonl(name):
    return [json.loads(line) for line in (FOLDER / "tasks/data" / name).read_text().splitlines()]


def test_every_accuracy_has_300_items_or_is_coarse():
    kinds = Counter()
    for entry in SUITE.tasks:
        (task,) = SUITE.load(entry)["tasks"].values()
        kind = entry.metric.partition(",")[0]
        kinds[kind] += 1
        if kind != "bits_per_byte":
            assert entry.coarse == (len(task.eval_docs) < 300), entry.task
            assert entry.higher_is_better
        else:
            assert not entry.higher_is_better and len(task.eval_docs) >= 20
    assert kinds == {"acc": 3, "acc_norm": 1, "inst_level_loose_acc": 1, "bits_per_byte": 6}
    assert {t.task for t in load_suite("text").tasks} == {
        t.task for t in SUITE.tasks if t.task.startswith("text_")
    }
    assert not any(t.coarse for t in load_suite("embedded_1").tasks)  # as it was


def test_instructions_are_checkable_and_their_answers_good():
    """Every answer follows its instructions to the letter; an empty one follows none."""
    import utils

    rows = jsonl("following.jsonl")
    assert len(rows) >= 150 and len({row["prompt"] for row in rows}) == len(rows)
    assert [row["key"] for row in rows] == list(range(len(rows)))
    old = {row["prompt"] for row in jsonl("instructions.jsonl")}
    assert not old & {row["prompt"] for row in rows}
    kinds = Counter(kind for row in rows for kind in row["instruction_id_list"])
    assert len(kinds) >= 13 and sum(kinds.values()) >= 150
    # IFEval guesses the language for these, at random
    assert not any(kind.startswith(("change_case", "language")) for kind in kinds)
    for row in rows:
        good = utils.instruction_scores(row, [row["answer"]])
        assert all(good["inst_level_strict_acc"]), row["answer"]
        assert not any(utils.instruction_scores(row, [""])["inst_level_loose_acc"])


def test_facts_have_one_right_answer_among_four():
    rows = jsonl("facts.jsonl") + jsonl("more_facts.jsonl")
    assert len({row["text"] for row in rows}) == len(rows) == 335
    assert all(len({row["answer"], *row["distractors"]}) == 4 for row in rows)
    right = {row["text"]: row["answer"] for row in rows}
    assert right["The capital of Poland is"] == "Warsaw"
    assert right["The past tense of buy is"] == "bought"


def test_pairs_of_grammar_are_once_there():
    import grammar

    more = grammar.rows(grammar.MORE)
    assert len(more) == len({tuple(sorted(row["choices"])) for row in more}) == 315
    assert set(Counter(row["phenomenon"] for row in more).values()) == {15, 30}
    sentences = {tuple(sorted(row["choices"])) for row in more}
    assert {tuple(sorted(row["choices"])) for row in grammar.rows()} <= sentences
    assert sum(row["answer"] for row in more) == 157  # a model of NaN takes the first


def test_sums_are_right():
    import texts

    documents = [row["text"] for row in texts.sums()]
    assert len(set(documents)) == texts.SUMS
    for document in documents:
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", document)
        assert len(equations) == 3
        for left, sign, right, result in equations:
            a, b = int(left), int(right)
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
            assert value == int(result) > 0
            assert max(a, b, value) < 120
        # the story tells the numbers of the equation, and its end the result
        lines = document.split("\n")
        for line, (left, sign, right, result) in zip(lines, equations, strict=True):
            told, _, end = line.partition(f" {left} {sign} {right} = ")
            assert {left, right} <= set(re.findall(r"\d+", told))
            assert re.findall(r"\d+", end)[-1] == result


def test_bits_per_byte_are_those_of_a_naive_model(tiny):
    """In the chat template and without a context; float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    live = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    metric = {"metric": "bits_per_byte,none"}
    tasks = [
        {"task": "text_languages", **metric},
        {"task": "text_dialogue", "chat_template": True, **metric},
    ]
    for result, kind in zip(
        run_suite(load_suite(tasks), live, tokenizer, limit=3),
        ("languages", "dialogue"),
        strict=True,
    ):
        rows = [row for row in jsonl("texts.jsonl") if row["kind"] == kind][:3]
        total = 0.0
        for row in rows:
            context = [tokenizer.eos_token_id]
            if row["prompt"]:
                chat = [{"role": "user", "content": row["prompt"]}]
                text = tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=True
                )
                context = tokenizer(text, add_special_tokens=False).input_ids
            tokens = tokenizer(row["text"], add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([context + tokens])).logits[0, len(context) - 1 : -1]
            scores = logits.log_softmax(-1)[range(len(tokens)), tokens]
            total -= scores.sum().item() / torch.log(torch.tensor(2.0, dtype=torch.float64)).item()
        size = sum(len(row["text"].encode()) for row in rows)
        assert result["value"] == pytest.approx(total / size, rel=1e-5)
        assert (result["higher_is_better"], result["continuous"]) == (False, {})
