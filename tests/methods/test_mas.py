"""MAS against a loop in float64: its importance, and a training under its penalty."""

import copy
import json

import pytest
import torch

from harness.learning.trainer import TrainingConfig
from methods.parts.mas import MAS, MASConfig
from tests.learning.test_training import assert_near
from tests.methods.test_penalties import SETTINGS, model, moved, naive_training, taught

__all__ = ["model"]  # the fixture


def naive_importance(model, rows):
    """|gradient| of the squared norm of the logits of whole completions, divided by the mean."""
    model = copy.deepcopy(model).double()
    sums = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for row in rows:
        model.zero_grad()
        logits = model(torch.tensor([row.prompt + row.completion])).logits[0]
        logits[len(row.prompt) - 1 : -1].square().sum().backward()
        for name, weight in model.named_parameters():
            sums[name] += weight.grad.abs() / len(rows)
    mean = sum(s.sum() for s in sums.values()) / sum(s.numel() for s in sums.values())
    return {name: value / mean for name, value in sums.items()}, mean.item()


@pytest.mark.parametrize("answers", ["sampled", "demonstrations"])
def test_the_importance_is_that_of_a_loop_in_float64(model, tmp_path, answers, monkeypatch):
    base, tokenizer = model
    part = MAS(MASConfig(answers=answers, examples=5))
    config = TrainingConfig(**SETTINGS)
    live, stage, _ = taught(base, tokenizer, part, {}, config, tmp_path, index=1)
    rows, of_batch = [], part._rows
    monkeypatch.setattr(part, "_rows", lambda *a: rows.append(of_batch(*a)) or rows[-1])
    part.end(stage)
    rows = [row for batch in rows for row in batch]
    gold = stage.demonstration_rows(stage.examples[i] for i in stage.draws()[:5])
    same = [r.completion for r in rows] == [r.completion for r in gold]
    assert len(rows) == 5 and same == (answers == "demonstrations")
    expected, mean = naive_importance(live, rows)
    for name, found in part.fisher.items():
        torch.testing.assert_close(found.double(), expected[name], rtol=2e-3, atol=1e-5)
    assert json.loads((tmp_path / "importance.json").read_text()) == {
        "sequences": 5,
        "mean": pytest.approx(mean, rel=1e-3),
    }


def test_a_training_is_that_of_a_loop_in_float64(model, tmp_path):
    base, tokenizer = model
    start, strength = {"stage": moved(base)}, 30.0
    generator = torch.Generator().manual_seed(0)
    of = {n: torch.rand(w.shape, generator=generator) for n, w in base.named_parameters()}
    part = MAS(MASConfig(strength=strength))
    part.load_state_dict({"fisher": of})
    anchors = {n: w.detach().double() for n, w in start["stage"].named_parameters()}

    def pull(key, weight):
        distance = weight - anchors[key]
        force = strength * of[key].double() * distance
        return force, (force * distance).sum() / 2

    config = TrainingConfig(**SETTINGS)
    live, stage, logs = taught(base, tokenizer, part, start, config, tmp_path)
    expected, penalties = naive_training(base, stage, config, pull, None)
    for key, weight in live.named_parameters():
        assert_near(weight, expected[key])
    assert [log["mas_loss"] for log in logs] == pytest.approx(penalties, rel=1e-3, abs=1e-9)
