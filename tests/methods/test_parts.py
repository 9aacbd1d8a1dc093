"""Parts: what joins every method, resumes to the bit and is on record."""

import json

import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.learning.trainer import Trainer
from harness.models.load import load_model
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from methods.parts.replay import Replay
from tests.conftest import read_lines

METHODS = {
    "sft": {"learning_rate": 1e-3},
    "sdft": {"learning_rate": 1e-3},
    "grpo": {"learning_rate": 1e-3, "group_size": 2},
    "dft": {"learning_rate": 1e-3},
}


def joined(parts):
    return {f"{name}_part": {"method": name, **c, "with": parts} for name, c in METHODS.items()}


def weights(out, label, stage=2):
    folder = out / f"runs/{label}-seed0/stage-{stage}/weights"
    return load_model(str(folder), "float32", "cpu")[0].state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cut_off_stage_with_a_part_is_the_same_run(order_file, tmp_path, monkeypatch):
    path = order_file(
        methods=joined({"replay": {"rows": 4, "share": 0.5}}),
        evaluate={},
        checkpoints={"minutes": 0, "keep": "all"},
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_order(read_order(path), whole)
    real, seen = Trainer.update, [0]

    def struck(trainer):
        seen[0] += 1
        if seen[0] % 3 == 2:
            raise KeyboardInterrupt
        return real(trainer)

    monkeypatch.setattr(Trainer, "update", struck)
    while True:
        try:
            run_order(read_order(path), cut)
            break
        except KeyboardInterrupt:
            continue
    for label in joined({}):
        assert same(weights(whole, label), weights(cut, label))
        rows = [
            [
                {k: v for k, v in row.items() if k != "seconds"}
                for row in read_lines(out / f"runs/{label}-seed0/stage-2/training.jsonl")
            ]
            for out in (whole, cut)
        ]
        assert rows[0] == rows[1]


def test_replay_is_sft_on_both(order_file, tmp_path):
    """With half the budget's rows replayed, a stage counts them, and learns from both skills."""
    path = order_file(
        methods={
            "sft": METHODS["sft"],
            "replay": {
                "method": "sft",
                **METHODS["sft"],
                "with": {"replay": {"ratio": 0.5, "share": 0.5}},
            },
        },
        evaluate={},
    )
    order, out = read_order(path), tmp_path / "out"
    drawn = []
    real = Replay.examples

    def watched(part, stage, step):
        examples = real(part, stage, step)
        drawn.append((stage.index, [e.skill for e in examples], [e.id for e in examples]))
        return examples

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "examples", watched)
        run_order(order, out)
    assert [skills for stage, skills, _ in drawn if stage == 1] == [[], [], []]
    second = [entry for entry in drawn if entry[0] == 2]
    assert [skills for _, skills, _ in second] == [["vowels"] * 2] * 3
    ids = [each for _, _, of_step in second for each in of_step]
    assert len(set(ids)) == 6  # ratio 0.5 of 12: one pass without repetition
    stage = read_json(out / "runs/replay-seed0/stage-2/stage.json")
    plain = read_json(out / "runs/sft-seed0/stage-2/stage.json")
    assert (stage["prompts"], plain["prompts"]) == (18, 12)
    assert stage["tokens"] > plain["tokens"]
    assert same(weights(out, "sft", 2), weights(out, "sft", 2))
    head = read_json(out / "results.json")
    assert head["methods"]["replay"]["with"] == {
        "replay": {"ratio": 0.5, "rows": None, "selection": "random", "share": 0.5}
    }
    assert "replay" in plan(order, tmp_path / "other")


def test_a_replayed_example_is_taught_by_its_own_skill(order_file, tmp_path, monkeypatch):
    """Reward, teacher template and limit are those of the example's skill."""
    path = order_file(
        methods={"g": {"method": "grpo", **METHODS["grpo"], "with": {"replay": {"rows": 2}}}},
        evaluate={},
    )
    text = path.read_text().replace("max_new_tokens: 6", "max_new_tokens: 3", 1)
    path.write_text(text)
    order = read_order(path)
    asked = []
    for skill in order.skills:
        monkeypatch.setattr(
            skill,
            "reward",
            lambda text, reference, name=skill.name: asked.append((name, reference)) or 0.5,
        )
    run_order(order, tmp_path / "out")
    digits = [reference for name, reference in asked if name == "digits"]
    assert all(reference.startswith("d") for reference in digits)
    assert all(r.startswith("v") for name, r in asked if name == "vowels")
    assert len(asked) == (12 + 12 + 3) * 2


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"replays": {}}, "with: unknown part 'replays'"),
        ({"replay": {"ratios": 1}}, "with.replay: ratios: unknown key"),
        ({"replay": {"ratio": 0.1, "rows": 3}}, "give ratio or rows"),
        (["replay"], "with: must be a mapping"),
        ({"replay": 3}, "with.replay: must be a mapping"),
    ],
)
def test_what_is_wrong_is_said(order_file, parts, problem):
    path = order_file(methods={"sft": {"with": parts}})
    with pytest.raises(UserError) as error:
        read_order(path)
    assert problem in str(error.value) and json.dumps(str(error.value)).count("\\n") == 0
