"""Grading from the command line gives a run's own scores; the examples of docs/examples run as they
stand.
"""

import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.evaluation.completions_file import grade
from harness.grade import find_skill
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.skills.registry import get_skill
from harness.skills.signs import GRADERS
from harness.skills.skill import Skill
from harness.skills.words import normalise
from tests.conftest import read_lines, write_rows

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def command(*arguments, cwd=ROOT):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "harness.grade", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
    )


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The cat, a dog and an owl.", "cat dog and owl"),
        ("A stroke", "stroke"),
        ("Hepatitis A", "hepatitis a"),
        ("A", "a"),
        ("the", "the"),
        ("Hepatitis A is a virus", "hepatitis a is virus"),
        ("The answer is A.", "answer is a"),
        ("U.S.", "u s"),
        ("", ""),
        ("?", ""),
    ],
)
def test_normalisation_drops_articles_and_no_letter_that_is_an_answer(text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize(
    "grader, completion, reference, score",
    [
        ("contains", "The patient has hepatitis B.", "Hepatitis A", 0),
        ("contains", "Hepatitis A is likely.", "hepatitis A", 1),
        ("contains", "The answer is A.", "A", 1),
        ("contains", "It is the stroke.", "a stroke", 1),
        ("normalised_match", "", "A", 0),
        ("normalised_match", "The", "A", 0),
        ("normalised_match", "a", "A", 1),
        ("token_f1", "", "A", 0),
        ("answer_tag", "<answer>\nB\n</answer>", ["A", "B"], 1),
        ("answer_tag", "<answer>C</answer>", ["A", "B"], 0),
    ],
)
def test_graders_on_answers_of_one_letter_and_on_lists(grader, completion, reference, score):
    assert GRADERS[grader](completion, reference) == score


def test_reasoning_that_was_cut_off_is_no_answer(tmp_path):
    texts = ["<think>Maybe Rome, or", "<think>Oslo?</think>Rome", "Oslo?</think>Rome", "Rome"]
    reference = {"question": "Where?", "answer": "Rome"}
    rows = [{"completion": text, "reference": reference} for text in texts]
    graded = grade(get_skill("wiki"), write_rows(tmp_path / "rows.jsonl", rows))
    assert [row["scores"]["contains"] for row in graded] == [0, 1, 1, 1]


def test_the_authors_graders_see_the_reasoning(tmp_path):
    thought = "<think>Action: g\nAction Input: {}</think>\nAction: f\nAction Input: {}"
    rows = [{"completion": thought, "reference": [{"Action": "f", "Action_Input": "{}"}]}]
    [row] = grade(get_skill("tooluse"), write_rows(tmp_path / "tools.jsonl", rows))
    assert row["scores"] == {"accuracy": 0, "accuracy_json": 1}
    letters = "<think><answer>B</answer></think><answer>A</answer>", "<think><answer>A</answer>"
    rows = [{"completion": text, "reference": "A"} for text in letters]
    first, last = grade(get_skill("science"), write_rows(tmp_path / "letters.jsonl", rows))
    assert first["scores"] == {
        "accuracy": 1,
        "accuracy_released": 1,
        "accuracy_letter": 1,
        "accuracy_choice": 1,
    }
    assert last["scores"] == {
        "accuracy": 1,
        "accuracy_released": 1,
        "accuracy_letter": 0,
        "accuracy_choice": 0,
    }


def test_scores_of_a_project_skill(tmp_path):
    """The demonstrations of a skill are right answers; an empty answer is none."""
    skill = get_skill("elements")
    examples = skill.examples("train")[:10]
    rows = [{"id": e.id, "reference": e.reference, "completion": e.demonstration} for e in examples]
    rows += [{"id": e.id, "reference": e.reference, "completion": ""} for e in examples[:6]]
    graded = grade(skill, write_rows(tmp_path / "rows.jsonl", rows))
    assert [row["score"] for row in graded] == [1.0] * 10 + [0.0] * 6
    for row, given in zip(graded, rows, strict=True):
        assert row["scores"][skill.metric] == row["score"] and set(row["scores"]) == set(
            skill.metrics
        )
        assert {k: row[k] for k in given} == given


def test_command(tmp_path):
    """Means, standard errors and the written rows, beside numbers worked out here."""
    skill = get_skill("elements")
    examples = skill.examples("validation")[:8]
    right = [True, False, True, True, False, True, True, False]
    rows = [
        {"reference": e.reference, "completion": f"<answer>{e.reference if r else 'none'}</answer>"}
        for e, r in zip(examples, right, strict=True)
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    done = command("elements", "in.jsonl", "--out", "new/out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # sample standard deviation of zeros and ones, over root n
    stderr = math.sqrt(5 / 8 * 3 / 8 / 7)
    assert f"elements {skill.metric} 0.6250 stderr {stderr:.4f} n 8\n" in done.stdout
    assert [row["score"] for row in read_lines(tmp_path / "new/out.jsonl")] == [
        float(r) for r in right
    ]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"reference": "x"}, "row 2: completion: must be a text"),
        ({"reference": "x", "completion": 3}, "row 2: completion: must be a text"),
        ({"completion": "x"}, "row 2: reference: is missing"),
        ([1], "row 2: is not a JSON object"),
    ],
)
def test_wrong_rows(row, said, tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [{"reference": "x", "completion": "y"}, row])
    with pytest.raises(UserError) as caught:
        grade(get_skill("elements"), path)
    assert str(caught.value).startswith(f"{path}, {said}")


@pytest.mark.parametrize("skill", ["elements", "codes_mask", "superni_task002", "trace_fomc"])
@pytest.mark.parametrize("nothing", ["", " \n", [], [None], None, math.nan])
def test_a_reference_of_nothing_is_refused_by_every_skill(skill, nothing, tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [{"reference": nothing, "completion": "y"}])
    with pytest.raises(UserError, match="row 1: `reference` "):
        grade(get_skill(skill), path)


class Strict(Skill):
    name = "strict"
    metrics: ClassVar = {"first": lambda completion, reference: completion == reference["first"]}


def test_a_reference_of_another_skill(tmp_path):
    path = write_rows(
        tmp_path / "in.jsonl",
        [{"reference": {"first": "a"}, "completion": "a"}, {"reference": 5, "completion": "a"}],
    )
    with pytest.raises(
        UserError,
        match=r"row 2: reference: cannot be compared \(.*TypeError: .*\); "
        "it must read as in the skill strict",
    ):
        grade(Strict(), path)


def test_wrong_arguments_end_in_one_line(tmp_path):
    path, good = (
        write_rows(tmp_path / "in.jsonl", []),
        write_rows(tmp_path / "good.jsonl", [{"reference": "x", "completion": "y"}]),
    )
    for arguments, said in (
        (("elementz", path), "SKILL: unknown skill 'elementz'; did you mean 'elements'?"),
        (("elements", path), "in.jsonl: has no rows"),
        (("elements", tmp_path / "none.jsonl"), "none.jsonl: cannot be read (FileNotFoundError)"),
        (("elements", good, "--out", tmp_path), f"{tmp_path}: is a folder; give a file with --out"),
        (("elements", good, "--out", path / "x"), "in.jsonl: is a file; give a file with --out"),
    ):
        done = command(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert (
            done.stderr.startswith("error: ")
            and said in done.stderr
            and done.stderr.count("\n") == 1
        )


# ---- docs/examples -------------------------------------------------------------------------------


@pytest.fixture
def tiny_changes(tiny):
    return [
        f"model={{name: '{tiny}', dtype: float32, device: cpu}}",
        "skills.shelves.max_new_tokens=12",
    ]


def test_the_examples_run_and_grade_alike(tiny, tiny_changes, tmp_path):
    """The order of docs/examples by the command, and every answer graded again from its own
    evaluation file.
    """
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run_sequence.py"),
            "docs/examples/my_order.yaml",
            "--out",
            str(tmp_path / "out"),
            "--set",
            *tiny_changes,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=170,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    records = [r for r in read_lines(tmp_path / "out/records.jsonl") if r["metric"] == "contains"]
    assert [(r["run"], r["stage"], r["n"]) for r in records] == [
        ("l2_sft-seed0", 0, 4),
        ("l2_sft-seed0", 1, 4),
        ("sft-seed0", 0, 4),
        ("sft-seed0", 1, 4),
    ]
    skill = find_skill(f"{EXAMPLES}/my_order.yaml:shelves")
    for record in records:
        items = read_json(tmp_path / f"out/evaluations/{record['evaluation']}.json")["items"]
        graded = grade(skill, write_rows(tmp_path / "items.jsonl", items))
        assert statistics.fmean(row["score"] for row in graded) == record["value"]
        assert [row["scores"] for row in graded] == [item["scores"] for item in items]


def weights(folder):
    return load_file(folder / "weights" / "model.safetensors")


def test_a_method_in_a_file_of_its_own(tiny, tiny_changes, tmp_path):
    """docs/examples/l2_sft.py, copied elsewhere: with strength 0 it is SFT to the last bit; the
    stronger, the shorter the way.
    """
    for name in ("l2_sft.py", "my_skill.jsonl", "my_skill_test.jsonl"):
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    order = yaml.safe_load((EXAMPLES / "my_order.yaml").read_text())
    order["methods"] = {"sft": {"learning_rate": 1e-2}} | {
        f"l2_{s}": {"file": "l2_sft.py", "learning_rate": 1e-2, "strength": s} for s in (0, 1, 10)
    }
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(order))
    run_order(read_order(tmp_path / "order.yaml", tiny_changes), tmp_path / "out")
    start = load_file(tiny / "model.safetensors")
    found = {
        run: weights(tmp_path / f"out/runs/{run}-seed0/stage-1")
        for run in ("sft", "l2_0", "l2_1", "l2_10")
    }
    assert all(torch.equal(found["sft"][name], found["l2_0"][name]) for name in start)
    way = {
        run: math.sqrt(sum(((w[name] - start[name]) ** 2).sum().item() for name in start))
        for run, w in found.items()
    }
    assert way["l2_0"] > 1.1 * way["l2_1"] > 1.1 * way["l2_10"] > 0
    logged = read_lines(tmp_path / "out/runs/l2_1-seed0/stage-1/training.jsonl")
    assert logged[0]["distance"] == 0 < logged[1]["distance"] and len(logged) == 8


def test_the_example_method_resumes(tiny_changes, tmp_path):
    """Interrupted in the middle of a stage, it comes back with the weights it is pulled to."""
    from harness.learning.trainer import Trainer

    path = EXAMPLES / "my_order.yaml"
    changes = [
        *tiny_changes,
        "checkpoints.minutes=0",
        "methods.l2_sft.learning_rate=1e-2",
        "methods.l2_sft.strength=1",
    ]
    run_order(read_order(path, changes, ["l2_sft"]), tmp_path / "alone")
    update, calls = Trainer.update, []

    def interrupted(trainer):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return update(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(path, changes, ["l2_sft"]), tmp_path / "cut")
    run_order(read_order(path, changes, ["l2_sft"]), tmp_path / "cut")
    alone, cut = (
        weights(tmp_path / f"{name}/runs/l2_sft-seed0/stage-1") for name in ("alone", "cut")
    )
    assert all(torch.equal(alone[name], cut[name]) for name in alone)
