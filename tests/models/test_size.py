"""Weights that multiply, operations, and how far weights have gone."""

import copy

import pytest
import torch

from harness.models.load import load_model
from harness.models.size import change, operations, product_weights
from tests.conftest import save_tiny


@pytest.mark.parametrize("tied", [True, False])
def test_product_weights_are_those_of_the_layers_and_the_head(tmp_path, tied):
    folder = save_tiny(tmp_path / "tiny", tie_word_embeddings=tied)
    model, tokenizer = load_model(str(folder), "float32", "cpu")
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64  # q, k and v, o, mlp
    assert product_weights(model) == 2 * layer + 32 * len(tokenizer)
    # as torch counts the multiplications of one token, without attention's own products
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.tensor([[1]]))
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for op, n in counts.items() if "mm" in str(op) and "bmm" not in str(op))
    assert counted == 2 * product_weights(model)


def test_positions_that_are_looked_up_multiply_nothing():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16)
    assert product_weights(GPT2LMHeadModel(config)) == 8 * 24 + 8 * 8 + 2 * 8 * 32 + 11 * 8


def test_operations_by_hand():
    assert operations(10, tokens=7, learned=3) == 6 * 10 * 3 + 2 * 10 * 4
    beside = operations(10, tokens=7, learned=3, passes=2, adapters=5)
    assert beside == (4 * 10 + 6 * 5) * 3 + 2 * 10 * 4


def test_change_against_a_loop_in_float64(tiny_model):
    start, _ = tiny_model
    moved = copy.deepcopy(start)
    generator = torch.Generator().manual_seed(0)
    squares = differing = 0
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if "norm" in name:
                continue
            mask = torch.rand(weight.shape, generator=generator) < 0.3
            weight += mask * 1e-3 * torch.randn(weight.shape, generator=generator)
    before, after = (dict(model.named_parameters()) for model in (start, moved))
    for name in before:
        for a, b in zip(
            before[name].flatten().tolist(), after[name].flatten().tolist(), strict=True
        ):
            squares += (b - a) ** 2
            differing += a != b
    total = sum(weight.numel() for weight in before.values())
    found = change(after, start)
    assert found["norm"] == pytest.approx(squares**0.5, rel=1e-6)
    assert found["share"] == differing / total and 0.2 < found["share"] < 0.35
    # what is not named has stayed
    some = {name: weight for name, weight in after.items() if "mlp" in name}
    assert change(some, start)["share"] < found["share"]


def test_of_a_bfloat16_model_its_rounded_weights_count(tiny):
    start, _ = load_model(str(tiny), "bfloat16", "cpu")
    masters = {name: p.detach().float() * (1 + 1e-5) for name, p in start.named_parameters()}
    rounded = {name: weight.bfloat16() for name, weight in masters.items()}
    assert change(rounded, start) == {"norm": 0.0, "share": 0.0}
