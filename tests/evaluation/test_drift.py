"""KL(base || model) on general prompts: against exact divergences, and where it is on record."""

import copy

import numpy as np
import pytest
import torch

from harness.base.files import ROOT, read_json, read_jsonl
from harness.evaluation.drift import (
    PROMPTS,
    answer_as_base,
    answer_logprobs,
    drift_prompts,
    measure_drift,
)
from harness.evaluation.kl import sequence_kl
from harness.evaluation.settings import Drift
from harness.evaluation.subject import Subject
from harness.learning.packing import Row
from harness.models.chat import ChatInputs
from harness.models.load import load_model
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.report.pictures import source_of
from harness.report.pictures.drift import METRIC, caption, drift_curves
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from harness.sampling.transformers import TransformersSampler
from tests.conftest import read_lines, save_tiny

SETTINGS = Drift(64, 12)


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory):
    """(base, the model near it): Subjects."""
    base, tokenizer = tiny_model
    near, _ = load_model(str(save_tiny(tmp_path_factory.mktemp("near"))), "float32", "cpu")
    other, _ = load_model(
        str(save_tiny(tmp_path_factory.mktemp("other"), seed=1)), "float32", "cpu"
    )
    with torch.no_grad():
        for mine, theirs in zip(near.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, 0.2)
    return tuple(
        Subject(m, tokenizer, TransformersSampler(m, tokenizer, 64), name, ChatInputs())
        for m, name in ((base, "base"), (near, "near"))
    )


@pytest.fixture(scope="module")
def answers(pair):
    return answer_as_base(pair[0], drift_prompts(64), SETTINGS, 0)["items"]


def stop():
    raise KeyboardInterrupt


def rows_of(subject, items):
    prompts = [subject.tokens(example.prompt) for example in drift_prompts(len(items))]
    return [Row(p, item["token_ids"]) for p, item in zip(prompts, items, strict=True)]


def test_it_is_the_plain_sum_of_the_estimator(pair, answers):
    """In float64, a token after the other, without packing."""
    base, near = (copy.deepcopy(subject.model).double() for subject in pair)
    found = measure_drift(pair[1], drift_prompts(64), answers)
    totals, tokens = [], 0
    for row in rows_of(pair[0], answers)[:8]:
        ids, start, total = row.prompt + row.completion, len(row.prompt), 0.0
        for place in range(start, len(ids)):
            with torch.no_grad():
                p, q = (
                    m(torch.tensor([ids[:place]])).logits[0, -1].log_softmax(-1)[ids[place]].item()
                    for m in (base, near)
                )
            total += np.exp(q - p) - 1 + (p - q)
        totals.append(total)
        tokens += len(row.completion)
    items = found["items"][:8]
    assert [item["forward"] for item in items] == pytest.approx(totals, rel=1e-3, abs=1e-6)
    assert sum(item["forward_tokens"] for item in items) == tokens
    sums = [item["forward"] for item in found["items"]]
    lengths = [item["forward_tokens"] for item in found["items"]]
    assert found["metrics"]["kl_forward_token"][0] == pytest.approx(sum(sums) / sum(lengths))
    assert found["metrics"]["kl_forward_sequence"][0] == pytest.approx(np.mean(sums))


def test_its_mean_is_the_divergence(pair, answers):
    """Of the two next-token distributions along the same answers, within three standard errors; its
    error is smaller than that of the log-ratio."""
    rows = rows_of(pair[0], answers)
    exact = sequence_kl(pair[0].model, rows, pair[1].model, rows)
    found = [i["forward"] for i in measure_drift(pair[1], drift_prompts(64), answers)["items"]]
    difference = np.array(found) - exact
    error = difference.std(ddof=1) / len(rows) ** 0.5
    assert sum(exact) > 1 and abs(difference.mean()) < 3 * error
    ratios = [
        sum(item["logprobs"]) - sum(of_model)
        for item, of_model in zip(answers, answer_logprobs(pair[1].model, rows), strict=True)
    ]
    assert error < (np.array(ratios) - exact).std(ddof=1) / len(rows) ** 0.5
    assert min(found) >= 0


def test_the_base_is_no_way_from_itself(pair, answers):
    metrics = measure_drift(pair[0], drift_prompts(64), answers)["metrics"]
    assert metrics == {"kl_forward_token": (0, 0), "kl_forward_sequence": (0, 0)}


def test_prompts_are_no_others_of_the_project():
    prompts = [row["prompt"] for _, row in read_jsonl(PROMPTS)]
    others = {row["prompt"] for _, row in read_jsonl(ROOT / "methods" / "general_prompts.jsonl")}
    assert len(prompts) == len(set(prompts)) == 64 and not others & set(prompts)


def test_on_record_along_training_and_in_the_report(order_file, tmp_path):
    methods = {"sft": {"learning_rate": 1e-3}, "none": {"method": "sft", "learning_rate": 1e-9}}
    evaluate = {"every_steps": 2, "drift": {"prompts": 4, "max_new_tokens": 5}}
    path, out = order_file(methods=methods, evaluate=evaluate), tmp_path / "out"
    order = read_order(path)
    assert "drift from the base on 4 prompts: about 0:00 each time" in plan(order, out)
    run_order(order, out)
    records = [r for r in read_lines(out / "records.jsonl") if r["kind"] == "drift"]
    of_sft = [r for r in records if r["method"] == "sft" and r["metric"] == METRIC]
    assert [(r["stage"], r["step"], r["final"]) for r in of_sft] == [
        (0, 0, True),
        (1, 2, False),
        (1, 3, True),
        (2, 5, False),
        (2, 6, True),
    ]
    assert of_sft[0]["value"] == 0 and all(r["value"] > 0 for r in of_sft[1:])
    assert {(r["name"], r["split"], r["n"]) for r in records} == {("general_prompts", "test", 4)}
    assert read_json(out / "runs" / "sft-seed0" / "stage-1" / "stage.json")["seconds"]["drift"] > 0
    # The base answered once, for all runs.
    kept = [read_json(file) for file in (out / "evaluations").glob("*.json")]
    assert sum("logprobs" in e["items"][0] for e in kept) == 1

    shown = drift_curves(source_of(ReportData([out])))
    assert list(shown.lines) == ["sft", "none"] and shown.prompts == 4
    line = shown.lines["sft"]
    assert list(line["x"]) == [0, 2, 3, 5, 6]
    assert list(line["value"]) == pytest.approx([r["value"] for r in of_sft])
    assert "4 general prompts" in caption(shown)
    _, page = write_report(out)
    assert (page.parent / "figures" / "drift.svg").exists() and "drift.svg" in page.read_text()


def test_goes_on_where_the_base_answers_are_gone(order_file, tmp_path, monkeypatch):
    """The base answers again, from a second copy, and the same."""
    methods = {"sft": {"learning_rate": 1e-3}}
    path = order_file(methods=methods, evaluate={"drift": {"prompts": 4, "max_new_tokens": 5}})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_order(read_order(path), whole)
    with monkeypatch.context() as patch:
        learn = SkillStage.learn
        patch.setattr(
            SkillStage, "learn", lambda stage: stop() if stage.number == 2 else learn(stage)
        )
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(path), cut)
    for file in (cut / "evaluations").glob("*.json"):
        file.unlink()
    run_order(read_order(path), cut)

    def values(out):
        rows = [r for r in read_lines(out / "records.jsonl") if r["kind"] == "drift"]
        return [(r["stage"], r["metric"], r["value"], r["stderr"]) for r in rows]

    assert values(whole) == values(cut) and len(values(cut)) == 6


def test_without_the_section_nothing_changes(order_file, tmp_path):
    order = read_order(order_file())
    assert "drift" not in order.about()["evaluate"] and order.drift is None
