"""stage.json: FLOPs, gold rows and how far the weights have gone."""

import pytest
import torch

from harness.base.files import read_json
from harness.models.load import load_model
from harness.models.size import change
from harness.runs.engines import load_order_model
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from methods.parts.ewc import EWC
from tests.conftest import read_lines

KEPT = {"keep": "all"}


def stages(folder, run="sft-seed0"):
    return [read_json(folder / f"runs/{run}/stage-{k}/stage.json") for k in (1, 2)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changes_are_those_of_the_model_from_the_starts_of_stage_and_run(
    order_file, tmp_path, dtype
):
    """Of whatever is trained: the weights as they are kept, in the model's dtype."""
    methods = {
        "sft": {"learning_rate": 1e-3},
        "lora": {"method": "sft", "learning_rate": 1e-2, "parameters": {"lora": {"rank": 2}}},
    }
    if dtype == "float32":
        del methods["lora"]
    model = {"name": read_order(order_file()).model.name, "dtype": dtype}
    order = read_order(order_file(model=model, methods=methods, evaluate={}, checkpoints=KEPT))
    run_order(order, tmp_path / "out")
    base, _ = load_order_model(order)
    for run in (f"{label}-seed0" for label in methods):
        first, second = (
            load_model(str(tmp_path / f"out/runs/{run}/stage-{k}/weights"), dtype, "cpu")[0]
            for k in (1, 2)
        )
        ends = [dict(model.named_parameters()) for model in (first, second)]
        one, two = stages(tmp_path / "out", run)
        assert one["change"] == {"run": change(ends[0], base), "stage": change(ends[0], base)}
        assert two["change"] == {"run": change(ends[1], base), "stage": change(ends[1], first)}
        assert 0 < two["change"]["stage"]["norm"] != two["change"]["run"]["norm"]


def test_records_say_what_was_drawn_before_the_work_at_a_stages_end(order_file, tmp_path):
    methods = {
        "ewc": {"method": "sft", "with": {"ewc": {"examples": 3}}},
        "sft": {"learning_rate": 1e-3},
    }
    run_order(read_order(order_file(methods=methods)), tmp_path / "out")
    records = read_lines(tmp_path / "out/records.jsonl")
    ends = {
        (r["method"], r["stage"]): (r["prompts"], r.get("prompts_learned"))
        for r in records
        if r["final"] and r["kind"] == "skill"
    }
    assert ends["ewc", 1] == (15, 12) and ends["ewc", 2] == (27, None)
    assert ends["sft", 1] == (12, None) and ends["sft", 2] == (24, None)
    assert all("prompts_learned" not in r for r in records if not r["final"])


def test_tokens_of_training_passes_cost_three_times_the_others(order_file, tmp_path):
    methods = {"sft": {"learning_rate": 1e-3}, "sdft": {"learning_rate": 1e-3}}
    run_order(read_order(order_file(methods=methods, evaluate={})), tmp_path / "out")
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * 260
    for run in ("sft", "sdft"):
        for stage in stages(tmp_path / "out", f"{run}-seed0"):
            learned, tokens = stage["learned_tokens"], stage["tokens"]
            assert (learned == tokens) == (run == "sft") and 0 < learned <= tokens
            assert stage["flops"] == weights * (6 * learned + 2 * (tokens - learned))


def test_gold_rows_are_those_that_replay_keeps(order_file, tmp_path):
    methods = {
        "gold": {"method": "sft", "with": {"replay": {"rows": 5}}},
        "own": {
            "method": "sft",
            "with": {"replay": {"rows": 4, "content": "own"}, "agem": {"rows": 3}},
        },
        "none": {"method": "sft", "with": {"l2sp": {}}},
    }
    run_order(read_order(order_file(methods=methods, evaluate={})), tmp_path / "out")
    assert [s["gold_rows"] for s in stages(tmp_path / "out", "gold-seed0")] == [5, 5]
    assert [s["gold_rows"] for s in stages(tmp_path / "out", "own-seed0")] == [7, 7]
    assert [s["gold_rows"] for s in stages(tmp_path / "out", "none-seed0")] == [0, 0]


def test_a_stage_that_was_cut_off_has_the_same_sizes(order_file, tmp_path, monkeypatch):
    methods = {"sft": {"learning_rate": 1e-2, "with": {"ewc": {}}}}
    checkpoints = {"minutes": 0}
    file = order_file(methods=methods, evaluate={}, checkpoints=checkpoints)
    run_order(read_order(file), tmp_path / "whole")
    real, cut = SkillStage._after_step, []

    def cutting(self, stage, step):
        real(self, stage, step)
        cut.append(stage.step)
        if len(cut) in (2, 4):  # within the first stage, and after its last step
            raise KeyboardInterrupt

    monkeypatch.setattr(SkillStage, "_after_step", cutting)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(file), tmp_path / "cut")
    run_order(read_order(file), tmp_path / "cut")
    names = ("tokens", "learned_tokens", "flops", "gold_rows", "change")
    whole, after = (
        [{name: stage[name] for name in names} for stage in stages(tmp_path / out)]
        for out in ("whole", "cut")
    )
    assert whole == after


def test_what_a_part_changes_at_the_end_of_a_stage_counts(order_file, tmp_path, monkeypatch):
    def end(self, stage):
        with torch.no_grad():
            for weight in stage.model.parameters():
                weight.zero_()

    monkeypatch.setattr(EWC, "end", end)
    methods = {"sft": {"learning_rate": 1e-2, "with": {"ewc": {}}}}
    order = read_order(order_file(methods=methods, evaluate={}))
    run_order(order, tmp_path / "out")
    base, _ = load_order_model(order)
    norm = sum(p.double().square().sum() for p in base.parameters()).sqrt()
    first, second = stages(tmp_path / "out")
    assert first["change"]["run"]["norm"] == pytest.approx(float(norm), rel=1e-6)
    assert second["change"]["stage"] == {"norm": 0.0, "share": 0.0}
