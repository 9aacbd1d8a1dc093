"""Rows that share a prompt, or its beginning, are computed in one sequence: the same loss and
gradients as one row each.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from harness.learning import packing
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer, TrainingConfig
from harness.models.forward import can_share_prompts, hidden_states
from harness.models.load import load_model
from harness.models.segments import keep_segments
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


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_rows_alone_take_the_kernels_without_a_mask(config, monkeypatch):
    """As on a GPU, where no segments are: rows of different prompts stand beside each other, and
    PyTorch is told that attention is causal. Rows of one prompt need a mask.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(config(**sizes, **heads))
    keep_segments(model, False)
    assert can_share_prompts(model)  # which tries passes of its own
    real, seen = F.scaled_dot_product_attention, []

    def spy(*tensors, attn_mask=None, is_causal=False, **settings):
        seen.append((attn_mask is None, is_causal))
        return real(*tensors, attn_mask=attn_mask, is_causal=is_causal, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for rows, unmasked in ((ROWS[1:3], True), (ROWS, False)):
        seen.clear()
        (batch,) = packing.micro_batches(model, rows, 64)
        states, _ = packing.completion_states(model, rows, batch)
        states.sum().backward()
        assert set(seen) == {(unmasked, unmasked)} and len(seen) == 2
