"""Relearning: each earlier skill again from the last model, until validation is as it was."""

import json

import numpy as np
import pytest
import torch
import yaml

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.models.load import load_model
from harness.report.continual import continual_rows
from harness.report.data import ReportData
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.references import Run
from harness.runs.sequence import check_sequence, run_order
from harness.runs.stage_run import SkillStage
from tests.conftest import read_lines

SFT = {"sft": {"learning_rate": 1e-2}}
NAME = "sft.relearn-1-seed0"
ASKED = {"methods": SFT, "relearning": ["sft"], "evaluate": {"every_steps": 1}}


def value_of(records, prompts):
    (found,) = [r["value"] for r in records if r["prompts"] == prompts]
    return found


def test_it_begins_with_the_last_model_and_measures_validation_on_a_fixed_schedule(
    order_file, tmp_path, monkeypatch
):
    starts, batches = [], []
    real, after = SkillStage._new_stage, SkillStage._after_step

    def new_stage(self, restored):
        stage = real(self, restored)
        if self.live.run.reference:
            weights = {n: p.detach().clone() for n, p in stage.model.named_parameters()}
            starts.append((weights, stage.start("stage"), stage.start("run"), stage.begins_run))
            stage.forget_starts()
        return stage

    def after_step(self, stage, step):
        batches.append((self.live.run.name, self.number, [e.id for e in step.examples]))
        after(self, stage, step)

    monkeypatch.setattr(SkillStage, "_new_stage", new_stage)
    monkeypatch.setattr(SkillStage, "_after_step", after_step)
    order = read_order(order_file(**ASKED, budget={"prompts": 24, "batch_size": 4}))
    assert [run.name for run in order.runs()] == ["sft-seed0", NAME]
    run_order(order, tmp_path / "out")
    ((weights, stage_start, run_start, begins_run),) = starts
    last = tmp_path / "out/runs/sft-seed0/stage-2/weights"
    kept, _ = load_model(str(last), "float32", "cpu")
    base, _ = load_model(order.model.name, "float32", "cpu")
    for name, weight in kept.named_parameters():
        assert torch.equal(weights[name], weight)
        assert torch.equal(dict(stage_start.named_parameters())[name], weight)
    pairs = zip(run_start.parameters(), base.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and not begins_run
    again = [r for r in read_lines(tmp_path / "out/records.jsonl") if r.get("reference")]
    assert {r["reference"] for r in again} == {"relearn"}
    assert {(r["kind"], r["name"], r["split"]) for r in again} == {
        ("skill", "vowels", "validation")
    }
    scores = [r for r in again if r["metric"] == "token_f1"]
    assert [(r["stage"], r["step"], r["final"]) for r in scores] == [
        *((0, 0, True), (1, 1, False), (1, 2, False), (1, 4, False), (1, 6, True))
    ]
    of_last = [
        r
        for r in read_lines(tmp_path / "out/runs/sft-seed0/stage-2/records.jsonl")
        if (r["name"], r["split"], r["final"]) == ("vowels", "validation", True)
    ]
    assert value_of(scores, 0) == value_of([r for r in of_last if r["metric"] == "token_f1"], 48)
    draws = {(run, number): [] for run, number, _ in batches}
    for run, number, ids in batches:
        draws[run, number] += ids
    assert draws[NAME, 1] == draws["sft-seed0", 1]  # the same prompts in the same order
    change = read_json(tmp_path / f"out/runs/{NAME}/stage-1/stage.json")["change"]
    assert change["stage"]["norm"] != change["run"]["norm"]
    assert read_json(tmp_path / "out/results.json")["relearning"] == ["sft"]


def test_the_report_says_after_how_many_prompts_a_skill_is_regained(order_file, tmp_path):
    asked = ASKED | {"evaluate": {}, "budget": {"prompts": 16, "batch_size": 4}}
    run_order(read_order(order_file(**asked)), tmp_path / "out")
    measured = read_lines(tmp_path / "out/records.jsonl")
    of_seed_1 = ({"seed": 1, "run": r["run"].replace("seed0", "seed1")} for r in list(measured))
    measured += [record | other for record, other in zip(measured, of_seed_1, strict=True)]

    def reported(of_seeds, own, stderr):
        """With such validation scores after 0, 4, 8 and 16 prompts."""
        lines = []
        for record in map(dict, measured):
            is_f1 = record["metric"] == "token_f1" and record["split"] == "validation"
            if is_f1 and record.get("reference"):
                place = [0, 4, 8, 16].index(record["prompts"])
                record["value"] = of_seeds[record["seed"]][place]
            elif is_f1 and record["name"] == "vowels" and record["stage"] == 1 and record["final"]:
                record |= {"value": own, "stderr": stderr}
            lines.append(json.dumps(record) + "\n")
        changed = tmp_path / "changed"
        changed.mkdir(exist_ok=True)
        (changed / "records.jsonl").write_text("".join(lines))
        for name in ("results.json", "protocols.json"):
            (changed / name).write_bytes((tmp_path / "out" / name).read_bytes())
        rows = continual_rows(ReportData([changed]))
        found = [cells for _, cells in rows if cells["metric"].startswith("prompts to relearn")]
        assert [name for name, c in rows if c in found] == ["vowels"]
        return found[0]["sft"]

    curves = [[0.0, 0.3, 0.55, 0.9], [0.1, 0.52, 0.2, 0.9]]
    found = reported(curves, own=0.6, stderr=0.1)
    assert found.value == pytest.approx(np.mean([8, 4])) and found.by == "runs"
    assert reported(curves, own=0.6, stderr=0.5).value == pytest.approx((4 + 0) / 2)
    assert reported([[0.9] * 4] * 2, own=0.6, stderr=0.0).value == 0
    assert reported([curves[0], [0.1] * 4], own=0.6, stderr=0.1) == "not in 1 of 2"


def test_what_it_needs_is_told(order_file, tmp_path):
    for changes, said in (
        ({"checkpoints": {"keep": "none"}}, "relearning: goes on from the last weights"),
        ({"relearning": ["sfd"]}, "relearning[0]: there is no method 'sfd'; did you mean 'sft'?"),
    ):
        with pytest.raises(UserError) as error:
            read_order(order_file(**{**ASKED, **changes}))
        assert said in str(error.value)
    skills = yaml.safe_load(order_file().read_text())["skills"]
    del skills[0]["validation"]
    with pytest.raises(UserError, match="validation"):
        read_order(order_file(**ASKED, skills=skills))


def test_a_sequence_without_its_last_weights_is_told(tmp_path):
    run = Run("sft", 3, ((1,),), "relearn")
    with pytest.raises(UserError) as error:
        check_sequence(run, tmp_path / "stage-2")
    assert str(error.value) == "relearning of sft: sft-seed3 is not finished; run it first"
    (tmp_path / "stage-2").mkdir()
    with pytest.raises(UserError, match="sft-seed3 has not kept its last weights; run it first"):
        check_sequence(run, tmp_path / "stage-2")


def test_plan_counts_relearning(order_file, tmp_path):
    text = plan(read_order(order_file(**ASKED)), tmp_path / "out")
    row = next(line.split() for line in text.splitlines() if line.startswith("sft relearn"))
    assert row[:7] == ["sft", "relearn", "vowels", "12", "4", "3", "3"]  # after 1, 2 and 3 steps
