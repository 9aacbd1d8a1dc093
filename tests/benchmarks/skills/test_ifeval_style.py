"""Instructions in the manner of IFEval: every check against lm-eval's own on thousands of made
answers, what is generated, what it shares with other prompts, rewards, and a run with its order.
"""

import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from benchmarks.skills import _constraints as constraints
from benchmarks.skills import ifeval_style as skill_file
from benchmarks.skills._instruction_words import OF_SPLIT, PHRASES, WORDINGS
from harness.evaluation.suite import FOLDER
from harness.runs.reading import read_order, read_sections
from harness.runs.sequence import run_order
from harness.skills.overlap import find_overlaps
from harness.skills.registry import get_skill
from harness.skills.skill import examples_fingerprint
from harness.skills.words import normalise
from tests.conftest import read_lines

ROOT = Path(__file__).resolve().parents[3]
ORDERS = ROOT / "benchmarks" / "orders" / "retaining"
SKILL = get_skill("ifeval_style")
SPLITS = ("train", "validation", "test")
CASES = ("change_case:english_lowercase", "change_case:english_capital")


def question(example):
    return example.prompt[-1]["content"]


def instructions_of(example):
    return example.reference["instructions"]


@cache
def lm_eval_checkers():
    """lm-eval's own code of its task, as the retention suite of the project loads it."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(FOLDER / "tasks"))
    import utils

    patch.undo()
    return utils._ifeval()


def theirs(answer, instructions, asked="q"):
    """(strict, loose) verdicts of lm-eval on each instruction."""
    module = lm_eval_checkers()
    document = {
        "key": 0,
        "prompt": asked,
        "instruction_id_list": [each["id"] for each in instructions],
        "kwargs": [{k: v for k, v in each.items() if k != "id"} for each in instructions],
    }
    found = module.process_results(document, [answer])
    return found["inst_level_strict_acc"], found["inst_level_loose_acc"]


def changed(rng, answer):
    """An answer with something done to it that a constraint may mind."""
    lines = answer.split("\n")
    place = rng.randrange(len(answer) + 1)
    return rng.choice(
        [
            answer,
            answer.upper(),
            answer.lower(),
            answer.replace("*", ""),
            answer.replace("\n", "\n\n"),
            answer.replace("\n\n", "\n"),
            answer.replace("***", "\n***\n***"),
            answer.replace(". ", ", "),
            answer.strip('"'),
            answer + "\n* more",
            answer + "\n- more",
            answer + " P. P. S. and p.s. so",
            answer + "\n***",
            "***" + answer,
            "Sure:\n" + answer,
            f"```json\n{answer}\n```",
            f'"{answer}"',
            "\n".join(lines[1:]),
            "\n".join(lines[:-1]),
            "\n".join(lines + lines),
            "\n******\n".join([answer, rng.choice([answer, "x", ""])]),
            answer[:place],
            answer[place:],
            answer[:place] + rng.choice(["[a]", "*b*", "**c**", "<<d>>", "<<>>", ",", "SECTION 2"]),
            f"<<t>>\nSection 1{answer}Section2 ",
            "",
            " \n",
        ]
    )


def test_every_check_is_lm_evals_on_made_answers():
    """Answers of the same prompt and of others, changed; both verdicts occur for every kind."""
    rng = random.Random(0)
    examples = [e for split in SPLITS for e in SKILL.examples(split)]
    verdicts = Counter()
    for _ in range(1800):
        one, other = rng.choice(examples), rng.choice(examples)
        kept = [each for each in instructions_of(one) if each["id"] not in CASES]
        if not kept:
            continue
        answer = rng.choice([one, one, one, other]).demonstration
        for _ in range(rng.randint(0, 2)):
            answer = changed(rng, answer)
        strict, loose = theirs(answer, kept)
        assert constraints.strict(answer, kept) == strict, (answer, kept)
        assert constraints.loose(answer, kept) == loose, (answer, kept)
        verdicts.update((each["id"], right) for each, right in zip(kept, strict, strict=True))
    kinds = set(constraints.CHECKS) - set(CASES)
    assert set(verdicts) == {(kind, right) for kind in kinds for right in (True, False)}
    assert min(verdicts.values()) >= 5


@pytest.mark.parametrize(
    ("instruction", "answer", "right"),
    [
        ({"id": "keywords:frequency", "keyword": "sea", "frequency": 2}, "Seaside sea", True),
        ({"id": "keywords:frequency", "keyword": "sea", "frequency": 2}, "The sea", False),
        ({"id": "keywords:forbidden_words", "forbidden_words": ["sea"]}, "Seaside", True),
        ({"id": "keywords:existence", "keywords": ["sea"]}, "SEASIDE", True),
        ({"id": "detectable_format:json_format"}, "```\n[1]\n```", True),
        ({"id": "detectable_format:json_format"}, "[" * 100_000, False),
        ({"id": "detectable_format:json_format"}, "a [1]", False),
        ({"id": "detectable_format:title"}, "<< >>", False),
        ({"id": "startend:quotation"}, '"', False),
        ({"id": "startend:quotation"}, ' "a" ', True),
        ({"id": "startend:end_checker", "end_phrase": "So. "}, '"And SO."', True),
        ({"id": "length_constraints:number_paragraphs", "num_paragraphs": 2}, "a***b***", True),
        ({"id": "length_constraints:number_paragraphs", "num_paragraphs": 2}, "a***\n***b", False),
        ({"id": "combination:two_responses"}, "a\n******\n a", False),
        ({"id": "combination:two_responses"}, "******a******b******", True),
        ({"id": "change_case:english_lowercase"}, "no capital, 3 signs", True),
        ({"id": "change_case:english_lowercase"}, "123", False),
        ({"id": "change_case:english_capital"}, "ÀLL OF IT", True),
        ({"id": "change_case:english_capital"}, "ALL of it", False),
        ({"id": "punctuation:no_comma"}, "", False),
    ],
)
def test_single_answers(instruction, answer, right):
    if "frequency" in instruction:
        instruction = {**instruction, "relation": "at least"}
    assert constraints.follows(answer, instruction) is right
    if instruction["id"] not in CASES and len(answer) < 1000:
        assert theirs(answer, [instruction])[0] == [right]


def test_cases_are_lm_evals_but_for_its_detector_of_english():
    """What lm-eval takes is taken here; where they differ the letters are right."""
    langdetect = pytest.importorskip("langdetect")
    langdetect.DetectorFactory.seed = 0
    rng = random.Random(3)
    examples = SKILL.examples("test")
    for _ in range(40):
        answer = changed(rng, rng.choice(examples).demonstration)
        for kind, case in zip(CASES, (str.lower, str.upper), strict=True):
            text = rng.choice([answer, case(answer)])
            mine = constraints.follows(text, {"id": kind})
            assert mine >= theirs(text, [{"id": kind}])[0][0], text
            if mine:
                assert text == case(text)


# ---- what is generated ---------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_every_prompt_can_be_satisfied_and_its_demonstration_does(split):
    examples = SKILL.examples(split)
    assert len(examples) == skill_file.SIZES[split]
    for example in examples:
        for name, metric in SKILL.metrics.items():
            assert metric(example.demonstration, example.reference) == 1, (name, example)
        assert SKILL.reward(example.demonstration, example.reference) == 1
        strict, _ = theirs(
            example.demonstration, [e for e in instructions_of(example) if e["id"] not in CASES]
        )
        assert all(strict)


def test_prompts_say_all_that_is_checked():
    """Words, numbers and phrases of every constraint stand in the prompt."""
    for split in SPLITS:
        for example in SKILL.examples(split):
            text = question(example)
            for each in instructions_of(example):
                for name, value in each.items():
                    values = value if isinstance(value, list) else [value]
                    if name not in ("id", "relation", "let_relation"):
                        assert all(re.search(rf"\b{re.escape(str(v))}", text) for v in values), text
                relation = each.get("relation") or each.get("let_relation")
                if relation:
                    assert {"at least": "at least", "less than": "fewer than"}[relation] in text


def test_kinds_are_even_and_go_together():
    """By lm-eval's own table of conflicts, and each kind is the first of as many prompts."""
    registry = lm_eval_checkers().instructions_registry
    conflicts = registry.conflict_make(registry.INSTRUCTION_CONFLICTS)
    for split in SPLITS:
        counts = Counter()
        for example in SKILL.examples(split):
            kinds = [each["id"] for each in instructions_of(example)]
            assert 1 <= len(kinds) <= 3
            counts.update(kinds)
            for kind in kinds:
                assert not conflicts[kind] & (set(kinds) - {kind}), kinds
        assert set(counts) == set(constraints.CHECKS)
        assert min(counts.values()) >= len(SKILL.examples(split)) / 20
    lengths = Counter(len(instructions_of(e)) for e in SKILL.examples("train"))
    assert min(lengths.values()) > 200


def test_data_are_pinned_and_the_same_at_every_load():
    assert set(SKILL.checksums) == set(SKILL.splits)
    random.seed(1)
    skill_file.topics.cache_clear()
    for split in SKILL.splits:
        assert examples_fingerprint(get_skill("ifeval_style").load(split)) == SKILL.checksums[split]


# ---- what is apart -------------------------------------------------------------------------------


def test_splits_share_neither_topics_nor_wordings():
    topics = {split: {t.name for t in skill_file.topics(split)} for split in SPLITS}
    assert [len(topics[split]) for split in SPLITS] == [32, 6, 10]
    assert len(set().union(*topics.values())) == 48
    sentences = [s for split in SPLITS for t in skill_file.topics(split) for s in t.sentences]
    assert len(set(sentences)) == len(sentences) == 240
    for kind, wordings in WORDINGS.items():
        assert len(set(wordings)) == len(wordings) == 6, kind
        cuts = [wordings[OF_SPLIT[split]] for split in SPLITS]
        assert sum(cuts, ()) == wordings and all(cuts)
    assert len({phrase for phrases in PHRASES.values() for phrase in phrases}) == 6


def test_no_question_is_taught():
    every = [question(e) for split in SPLITS for e in SKILL.examples(split)]
    assert len(set(every)) == len(every)
    measured = {(SKILL.name, s): SKILL.examples(s) for s in ("validation", "test")}
    assert find_overlaps([SKILL], measured) == []


def runs(text, length):
    words = normalise(text).split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_no_prompt_is_one_of_the_retention_suite():
    """No run of eight words is shared with the project's own prompts in IFEval's form."""
    data = FOLDER / "tasks" / "data"
    others = [
        row["prompt"]
        for name in ("following.jsonl", "instructions.jsonl")
        for row in read_lines(data / name)
    ]
    assert len(others) > 150
    theirs_ = set().union(*(runs(text, 8) for text in others))
    mine = set().union(*(runs(question(e), 8) for s in SPLITS for e in SKILL.examples(s)))
    assert not mine & theirs_


def test_no_wording_is_lm_evals():
    """lm-eval's descriptions of the same constraints stand in no prompt."""
    registry = lm_eval_checkers().instructions_registry
    for split in SPLITS:
        for example in SKILL.examples(split):
            text = normalise(question(example))
            for each in instructions_of(example):
                arguments = {name: value for name, value in each.items() if name != "id"}
                check = registry.INSTRUCTION_DICT[each["id"]](each["id"])
                described = normalise(check.build_description(**arguments))
                assert described not in text, described


# ---- scores and reward ---------------------------------------------------------------------------

TWO = {
    "instructions": [
        {"id": "punctuation:no_comma"},
        {"id": "detectable_format:number_bullet_lists", "num_bullets": 2},
    ]
}


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("* a\n* b", (1, 1, 1, 1)),
        ("Sure, here:\n* a\n* b", (0, 1, 0.5, 1)),
        ("* a", (0, 0, 0.5, 0.5)),
        ("a, b", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_scores_and_reward(answer, scores):
    names = ("prompt_strict", "prompt_loose", "instructions_strict", "instructions_loose")
    found = {name: metric(answer, TWO) for name, metric in SKILL.metrics.items()}
    assert found == dict(zip(names, scores, strict=True)) and SKILL.metric == "prompt_strict"
    assert SKILL.reward(answer, TWO) == SKILL.metrics["instructions_strict"](answer, TWO)


def test_the_reward_is_the_grader_on_made_answers():
    rng = random.Random(5)
    examples = SKILL.examples("train")
    seen = Counter()
    for _ in range(500):
        example = rng.choice(examples)
        answer = changed(rng, example.demonstration)
        reward = SKILL.reward(answer, example.reference)
        scores = {n: metric(answer, example.reference) for n, metric in SKILL.metrics.items()}
        assert reward == scores["instructions_strict"]
        assert (reward == 1) == (scores["prompt_strict"] == 1)
        assert scores["prompt_loose"] >= scores["prompt_strict"]
        assert scores["instructions_loose"] >= scores["instructions_strict"]
        seen[reward] += 1
    assert {0, 0.5, 1} <= set(seen)


def test_feedback_names_the_constraints_that_are_broken_and_no_others():
    skill = get_skill("ifeval_style")
    for example in skill.examples("test")[:100]:
        assert skill.feedback(example.demonstration, example.reference) is None
        answer = example.demonstration.upper() + ", so"
        told = skill.feedback(answer, example.reference)
        broken = [
            alone.split(": ", 1)[1]
            for each in instructions_of(example)
            if (alone := skill.feedback(answer, {"instructions": [each]}))
        ]
        assert bool(told) == bool(broken)
        assert not told or len(told) >= max(map(len, broken))
        share = skill.reward(answer, example.reference)
        assert len(broken) == round((1 - share) * len(instructions_of(example)))


def test_references_are_json():
    reference = instructions_of(SKILL.examples("test")[0])
    assert json.loads(json.dumps(reference)) == reference


# ---- orders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ifeval", "ifeval_embedded"])
def test_orders_train_on_the_skill_and_keep_ifeval_out_of_retention(name):
    sections = read_sections(ORDERS / f"{name}.yaml")
    assert [spec.name for spec in sections.skill_specs] == ["ifeval_style"]
    order = yaml.safe_load((ORDERS / f"{name}.yaml").read_text())
    assert "grpo" in order["methods"] and "sft" in order["methods"]
    tasks = order["retention"]
    assert "ifeval" not in json.dumps(tasks) and tasks not in ("embedded", "retaining", "paper")


def test_an_order_runs_through(tiny, tmp_path):
    """SFT, own answers and GRPO with the tiny model, by the order with less of everything."""
    order = yaml.safe_load((ORDERS / "ifeval_embedded.yaml").read_text())
    order |= {
        "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
        "budget": {"prompts": 4, "batch_size": 2},
        "rollout": {"max_new_tokens": 8},
        "evaluate": {"examples": 4, "max_new_tokens": 8},
    }
    order["methods"]["grpo"] = {"group_size": 2, "learning_rate": 1e-3}
    del order["retention"]
    path = tmp_path / "order.yaml"
    path.write_text(yaml.safe_dump(order, sort_keys=False))
    run_order(read_order(path), tmp_path / "out")
    records = read_lines(tmp_path / "out" / "records.jsonl")
    final = [r for r in records if r["stage"] == 1 and r["final"]]
    assert {r["method"] for r in final} == set(order["methods"])
    assert {r["metric"] for r in final} >= set(SKILL.metrics)
    assert all(0 <= r["value"] <= 1 for r in final if r["metric"] in SKILL.metrics)
