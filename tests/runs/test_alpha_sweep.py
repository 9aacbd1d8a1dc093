"""Mixtures of finished runs with the base model: measured, kept, selected by validation."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import harness.evaluation.evaluator
from harness.models.checkpoint import model_fingerprint
from harness.models.load import load_model
from harness.report.build import write_report
from harness.runs.alpha_sweep import _sequences, mixtures, selected, table
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.wise_ft import main
from tests.conftest import read_lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_is_made_in_float32(tiny_model, dtype):
    base = copy.deepcopy(tiny_model[0]).to(dtype)
    end = copy.deepcopy(base)
    with torch.no_grad():
        for number, weight in enumerate(end.parameters()):
            generator = torch.Generator().manual_seed(number)
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator).to(dtype))
    live, seen = copy.deepcopy(end), {}
    for alpha, weights in mixtures(live, base, [0.3, 1, 0]):
        assert weights == model_fingerprint(live)
        seen[alpha] = weights
        for name, weight in live.named_parameters():
            first, last = (m.get_parameter(name).double() for m in (base, end))
            wanted = ((1 - alpha) * first + alpha * last).to(dtype)
            close = torch.isclose(weight, wanted, rtol=1e-6, atol=1e-8)
            assert close.float().mean() > 0.999
    assert seen[0] == model_fingerprint(base) and seen[1] == model_fingerprint(end)


def test_validation_over_all_seeds_selects():
    rows = [
        {"method": method, "seed": seed, "alpha": alpha, "validation": score}
        for method, seed, alpha, score in [
            ("a", 0, 0.0, 0.1), ("a", 0, 0.5, 0.9), ("a", 0, 1.0, 0.6),
            ("a", 1, 0.0, 0.1), ("a", 1, 0.5, 0.2), ("a", 1, 1.0, 0.6),
            ("b", 0, 0.0, 0.3), ("b", 0, 0.5, 0.3), ("b", 0, 1.0, 0.2),
        ]
    ]  # fmt: skip
    assert selected(rows) == {"a": 1.0, "b": 0.0}  # of equal ones the first


def test_finished_runs_are_swept(order_file, tmp_path, capsys, monkeypatch):
    path = order_file(methods={"sft": {"learning_rate": 1e-2}}, evaluate={"examples": 2})
    out = tmp_path / "out"
    command = [str(path), "--out", str(out), "--alpha", "0", "0.5", "1"]

    def refused(words, *problems):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert all(problem in said for problem in problems), said

    refused(command, "is no results folder")
    run_order(read_order(path), out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    refused([*command, "--alpha", "1.5"], "--alpha 1.5: must be from 0 to 1")
    refused([*command, "--seed", "7"], "sft-seed7/stage-2/weights: is not there")
    measured, evaluate = [], harness.evaluation.evaluator.evaluate_skill

    def counted(subject, *arguments, **settings):
        measured.append(subject.fingerprint)
        return evaluate(subject, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(harness.evaluation.evaluator, "evaluate_skill", counted)
        main(command)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["method", "alpha", "validation", "test", "retention"]
    assert len(printed) == 4 and sum(line.endswith("*") for line in printed) == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    swept = json.loads((out / "wise_ft/wise_ft.json").read_text())
    rows = {row["alpha"]: row for row in swept["rows"]}
    assert list(rows) == [0, 0.5, 1]
    # The ends are the base model and the run as it was measured; their tests are not made again.
    of_alpha = [measured.count(rows[alpha]["weights"]) for alpha in (0, 0.5, 1)]
    assert of_alpha == [2, 4, 2]  # two skills, by validation and test
    records = read_lines(out / "records.jsonl")
    for alpha, stage in ((0, 0), (1, 2)):
        for skill in ("vowels", "digits"):
            (record,) = [
                r for r in records
                if (r["stage"], r["final"], r["name"], r["metric"], r["split"])
                == (stage, True, skill, "token_f1", "test")
            ]  # fmt: skip
            assert rows[alpha]["skills"][skill]["test"]["token_f1"][0] == record["value"]
            assert record["evaluation"].startswith(rows[alpha]["weights"][:16])
    # The middle one
    base, _ = load_model(read_order(path).model.name, "float32", "cpu")
    end, _ = load_model(str(out / "runs/sft-seed0/stage-2/weights"), "float32", "cpu")
    ((_, weights),) = mixtures(end, base, [0.5])
    assert rows[0.5]["weights"] == weights
    assert (swept["selected"]["sft"] in rows) and swept["rule"].startswith("highest mean valid")

    def again(*arguments, **settings):
        raise AssertionError("measured again")

    monkeypatch.setattr(harness.evaluation.evaluator, "evaluate_skill", again)
    main(command)
    assert json.loads((out / "wise_ft/wise_ft.json").read_text()) == swept
    run_order(read_order(path), out)  # nothing is left to do, and the folder is as it was
    assert all(path.read_bytes() == content for path, content in before.items())
    write_report([out], tmp_path / "report")
    shutil.rmtree(out / "runs/sft-seed0/stage-2/weights")
    refused(command, "stage-2/weights: is not there: the run is not over, or keeps no weights")


def test_the_mean_of_retention_is_over_accuracies_and_references_are_left_out(order_file):
    order = read_order(order_file(methods={"sft": {}}, references=["sft"], relearning=["sft"]))
    assert [run.name for run in _sequences(order)] == ["sft-seed0"]
    assert len(order.runs()) == 4
    names = {"choices": "acc,none", "prose": "bits_per_byte,none", "words": "word_perplexity,none"}
    order.suite = SimpleNamespace(
        tasks=[SimpleNamespace(task=t, metric=m, higher_is_better=True) for t, m in names.items()]
    )

    def row(alpha, accuracy, bits):
        kept = dict(zip(names.values(), (accuracy, bits, 20 * bits), strict=True))
        return {
            "method": "sft",
            "alpha": alpha,
            "validation": 0.5,
            "skills": {s.name: {"test": {s.metric: [0.25, None]}} for s in order.skills},
            "retention": {task: {m: [kept[m], None]} for task, m in names.items()},
        }

    rows = [row(0.0, 0.4, 0.95), row(1.0, 0.35, 1.15)]
    lines = table(order, {"rows": rows, "selected": {"sft": 0.0}}).splitlines()
    assert [line.split()[4] for line in lines[1:]] == ["0.400", "0.350"]
