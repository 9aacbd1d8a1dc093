"""Rows that share a prompt, or its beginning, are computed in one sequence: the same loss and
gradients as one row each.
"""

import pytest
import torch

from harness.learning import packing
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer, TrainingConfig
from harness.models.forward import can_share_prompts, hidden_states
from harness.models.load import load_model
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import Skill


class Nothing(Skill):
    name = "nothing"

    def load(self, split):
        return []


def stage_of(model, tokenizer):
    return Stage(
        model=model,
        tokenizer=tokenizer,
        sampler=TransformersSampler(model, tokenizer),
        skill=Nothing(),
        seed=0,
        index=1,
        prompts=4,
        batch_size=4,
        max_new_tokens=4,
    )


ROWS = [
    Row([1, 2, 3, 4, 5], [6, 7, 8]),
    Row([1, 2, 3, 4, 5], [9]),
    Row([11, 12], [3, 4, 5, 6]),
    Row([1, 2, 3, 4, 5], [7, 7]),
]

# One prompt is the beginning of another; completions of one prompt do not stand side by side; a
# completion of one token.
ALIKE = [
    Row([1, 2, 3, 4, 5], [6, 7, 8]),
    Row([1, 2, 3, 9], [9]),
    Row([1, 2, 3, 4, 5], [3, 4, 5, 6]),
    Row([1, 2, 3], [7, 7]),
    Row([1, 2, 3, 8, 8, 8, 8], [5, 5]),
    Row([1, 2, 3], [4]),
]


def gradient(folder, share, monkeypatch, limit=64, rows=ROWS):
    model, tokenizer = load_model(str(folder), "float32", "cpu")
    monkeypatch.setattr(packing, "can_share_prompts", lambda model: share)
    stage = stage_of(model, tokenizer)
    trainer = Trainer(stage, TrainingConfig(micro_batch_tokens=limit))

    def loss(logits, at):
        weight = (1.0 + at.rows) * (2.0 + at.offsets)  # tells rows and places apart
        return (
            weight * torch.nn.functional.cross_entropy(logits, at.tokens, reduction="none")
        ).sum()

    value = trainer.backward(rows, loss)
    return value, torch.cat([p.grad.flatten() for p in trainer.params.values()]), stage.tokens


def test_the_tiny_model_shares(tiny_model):
    assert can_share_prompts(tiny_model[0])


@pytest.mark.parametrize("limit", [64, 9])
def test_loss_and_gradients_are_those_of_single_rows(tiny, monkeypatch, limit):
    value, grad, tokens = gradient(tiny, True, monkeypatch, limit)
    wanted, reference, more = gradient(tiny, False, monkeypatch, limit)
    assert value == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())
    assert more - tokens == 2 * 5  # the prompt of three rows was read once


@pytest.mark.parametrize("limit", [64, 20, 9])
def test_prompts_that_begin_alike(tiny, monkeypatch, limit):
    value, grad, tokens = gradient(tiny, True, monkeypatch, limit, ALIKE)
    wanted, reference, more = gradient(tiny, False, monkeypatch, limit, ALIKE)
    assert value == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())
    if limit == 64:
        # beginning, rests of the prompts, completions
        assert tokens == 3 + (2 + 1 + 4) + sum(len(r.completion) for r in ALIKE)
        assert more == sum(len(r.prompt) + len(r.completion) for r in ALIKE)


@pytest.mark.parametrize("rows", [ROWS, ALIKE])
def test_teacher_states_come_back_in_the_order_of_the_rows(tiny, rows):
    model, tokenizer = load_model(str(tiny), "float32", "cpu")
    shared = Teacher(stage_of(model, tokenizer), 0, 64).states(rows)
    for row, states in zip(rows, shared, strict=True):
        alone = hidden_states(model, torch.tensor([row.prompt + row.completion]))[
            0, len(row.prompt) - 1 : -1
        ]
        torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-5)


def test_a_sliding_window_is_not_shared(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=4,
        )
    )
    assert not can_share_prompts(model)
