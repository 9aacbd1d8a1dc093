"""A-GEM against a loop in float64 over whole trainings, and what its memory holds."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from harness.base.errors import UserError
from harness.learning.lessons import Lesson
from harness.learning.trainer import TrainingConfig, learning_rate
from methods.parts.agem import AGEM, AGEMConfig
from methods.sft import SFT
from tests.learning.test_training import Letters, assert_near, make_stage
from tests.methods.test_penalties import SETTINGS, model, row_loss

__all__ = ["model"]  # a fixture
CONFIG = TrainingConfig(**SETTINGS)


class Digits(Letters):
    """The questions of Letters, with other answers: to learn one is to forget the other."""

    name = "digits"

    def load(self, split):
        return [dataclasses.replace(e, demonstration=f"{e.id}0123") for e in super().load(split)]


def mean_loss(model, rows):
    return sum(row_loss(model, row) for row in rows) / sum(len(row.completion) for row in rows)


def naive(model, stage, memory, kind):
    """(Weights, whether each step was projected) of A-GEM with AdamW in float64."""
    model, projected = copy.deepcopy(model).double(), []
    adamw = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    weights, indices = list(model.parameters()), stage.draws()
    for step in range(3):
        rows = stage.demonstration_rows(stage.examples[i] for i in indices[4 * step : 4 * step + 4])
        gradients = torch.autograd.grad(mean_loss(model, rows), weights)
        references = torch.autograd.grad(mean_loss(model, memory[step]), weights)
        g = torch.cat([reference.flatten() for reference in references])
        if kind == "gradient":
            own = torch.cat([gradient.flatten() for gradient in gradients])
            product = own @ g
            projected.append(bool(product < 0))
            gradients = [
                gradient - min(product, 0) / (g @ g) * reference
                for gradient, reference in zip(gradients, references, strict=True)
            ]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(weights, CONFIG.max_grad_norm)
        before = [weight.detach().clone() for weight in weights]
        adamw.param_groups[0]["lr"] = learning_rate(CONFIG, step, 3)
        adamw.step()
        if kind == "update":
            with torch.no_grad():
                u = torch.cat([(w - b).flatten() for w, b in zip(weights, before, strict=True)])
                product = u @ g
                projected.append(bool(product > 0))
                for weight, reference in zip(weights, references, strict=True):
                    weight -= max(product, 0) / (g @ g) * reference
                u = torch.cat([(w - b).flatten() for w, b in zip(weights, before, strict=True)])
                assert u @ g <= 1e-12
    return dict(model.named_parameters()), projected


def taught(base, tokenizer, part, folder, **changes):
    live, logs, rows = copy.deepcopy(base), [], []
    stage = make_stage(
        live,
        tokenizer,
        parts=[part] if part else [],
        folder=folder,
        on_step=lambda stage, step: logs.append(step.logged),
        **{"index": 2, "later": 1, "earlier": [Lesson(Digits(), 5)], **changes},
    )
    of_examples = stage.demonstration_rows

    def spied(examples):
        examples = list(examples)
        found = of_examples(examples)
        if any(example.skill == "digits" for example in examples):
            rows.append(found)
        return found

    stage.demonstration_rows = spied
    SFT(CONFIG).learn(stage)
    return live, stage, logs, rows


@pytest.fixture(scope="module")
def knowing(model, tmp_path_factory):
    """A model that has learned the digits."""
    folder = tmp_path_factory.mktemp("digits")
    changes = {"skill": Digits(), "index": 1, "earlier": [], "phases": [96]}
    return taught(*model, None, folder, **changes)[0], model[1]


@pytest.mark.parametrize("kind", ["update", "gradient"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_training_is_that_of_a_loop_in_float64(knowing, tmp_path, kind, share):
    base, tokenizer = knowing
    part = AGEM(AGEMConfig(project=kind, share=share))
    memory = [dataclasses.asdict(e) | {"skill": "digits"} for e in Digits().examples("train")[:5]]
    part.load_state_dict({"memory": memory})
    live, stage, logs, rows = taught(base, tokenizer, part, tmp_path)
    assert [len(each) for each in rows] == [round(4 * share)] * 3
    expected, projected = naive(base, stage, rows, kind)
    assert [bool(log["projected"]) for log in logs] == projected and any(projected)
    free, other, _, _ = taught(base, tokenizer, None, tmp_path)
    differs = 0.0
    for name, weight in live.named_parameters():
        assert_near(weight, expected[name])
        differs = max(differs, (free.get_parameter(name) - weight).abs().max().item())
    assert differs > 1e-3
    assert stage.tokens > other.tokens and stage.prompts_drawn == other.prompts_drawn
    with torch.no_grad():
        start = mean_loss(base, rows[0]).item()
    assert logs[0]["agem_loss"] == pytest.approx(start, rel=1e-4)


def test_without_a_memory_nothing_changes_and_each_stage_adds_to_it(model, tmp_path):
    base, tokenizer = model
    part = AGEM(AGEMConfig(rows=3))
    changes = {"index": 1, "earlier": []}
    live, stage, logs, _ = taught(base, tokenizer, part, tmp_path, **changes)
    free, _, _, _ = taught(base, tokenizer, None, tmp_path, **changes)
    for name, weight in live.named_parameters():
        assert torch.equal(weight, free.get_parameter(name))
    assert "agem_loss" not in logs[0]
    part.end(stage)
    drawn = {stage.examples[i].id for i in stage.draws()}
    assert len({e.id for e in part.memory} & drawn) == 3
    assert {e.skill for e in part.memory} == {"letters"}
    _, last, _, _ = taught(base, tokenizer, part, tmp_path, later=0)
    part.end(last)
    assert len(part.memory) == 3  # no stage reads it


def test_a_memory_without_demonstrations_is_refused():
    class Bare(Letters):
        def load(self, split):
            return [dataclasses.replace(e, demonstration=None) for e in super().load(split)]

    part = AGEM(AGEMConfig())
    for skills, problem in (
        ([Bare(), Letters()], "its memory wants demonstrations; letters has none"),
        ([Letters()], "an order of one skill has no earlier one"),
    ):
        with pytest.raises(UserError, match=problem):
            part.check(SimpleNamespace(skills=skills), SFT(CONFIG), "methods.sft: with.agem")
    part.check(SimpleNamespace(skills=[Letters(), Bare()]), SFT(CONFIG), "methods.sft: with.agem")
