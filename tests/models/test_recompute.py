"""Layers that are computed again give the same loss and the same gradients, to the bit."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, Qwen2Config

from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from harness.models.recompute import can_recompute, recomputing
from harness.models.segments import can_take_segments, keep_segments
from methods.parameters.lora import LoRA
from tests.learning.test_training import CONFIG, make_stage, some_rows

SMALL = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES = {
    "llama": LlamaConfig(**SMALL, intermediate_size=48, attention_dropout=0.3),
    "qwen": Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2),
    # whose layers have dropout of their own
    "opt": OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, dropout=0.3),
}


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES[name]), dtype=dtype).eval()
    can_take_segments(model)  # is asked before passes are counted
    return model


def learned(model, tokenizer, rows, parameters=None, **options):
    """(loss, gradients by name, times the first layer was computed) of a step on ``rows``."""
    model = copy.deepcopy(model)
    calls = []
    norm = next(m for n, m in model.named_modules() if "norm" in n and "layers.0" in n)
    norm.register_forward_hook(lambda *_: calls.append(1))
    stage = make_stage(model, tokenizer, **({"parameters": parameters} if parameters else {}))
    if parameters:
        parameters.begin(stage)
    config = TrainingConfig(**CONFIG, micro_batch_tokens=80, **options)
    with learning(stage, config) as trainer:
        torch.manual_seed(7)
        loss = trainer.token_mean(rows, cross_entropy)["loss"]
        draw = torch.rand(1)
        grads = trainer.take_gradients()
        assert not [m for m in model.modules() if "forward" in vars(m)]
    return loss, grads, len(calls), draw


@pytest.mark.parametrize("dropout", ["keep", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("packed", [True, False])
def test_the_same_bits_for_less_memory(name, dtype, dropout, packed, tiny_model):
    """Rows in one line by segments, and under a mask where they share prompts."""
    model = model_of(name, dtype)
    if packed and not can_take_segments(model):
        pytest.skip("the model takes no segments")
    keep_segments(model, packed)
    found = {}
    for wanted in (False, True, "auto"):
        found[wanted] = learned(
            model, tiny_model[1], some_rows(), gradient_checkpointing=wanted, dropout=dropout
        )
    once, again = found[False], found[True]
    assert again[0] == once[0] and torch.equal(again[3], once[3])
    assert set(again[1]) == set(once[1]) and len(once[1]) > 10
    assert all(torch.equal(again[1][n], once[1][n]) for n in once[1])
    assert again[2] == 2 * once[2] and found["auto"][2] == once[2]


def test_adapters_learn_the_same(tiny_model):
    model, rows = model_of("qwen"), some_rows()
    one, other = (
        learned(model, tiny_model[1], rows, LoRA(), gradient_checkpointing=wanted)
        for wanted in (False, True)
    )
    assert one[0] == other[0] and other[2] == 2 * one[2]
    assert len(one[1]) == 2 * 2 * 7 and all(torch.equal(other[1][n], one[1][n]) for n in one[1])


def test_a_pass_keeps_the_inputs_of_layers():
    model = model_of("qwen")
    ids, kept = torch.arange(50)[None], {}
    for wanted in (False, True):
        sizes = []

        def count(tensor, sizes=sizes):
            sizes.append(0 if isinstance(tensor, torch.nn.Parameter) else tensor.nbytes)
            return tensor

        with (
            recomputing(model, wanted, dropout=False),
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        ):
            model.model(ids, use_cache=False)
        kept[wanted] = sum(sizes)
    assert kept[True] < kept[False] / 4


def test_nothing_is_computed_again_without_a_gradient():
    model, calls = model_of("llama"), []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), recomputing(model, True, dropout=False):
        assert not model.model(torch.arange(5)[None]).last_hidden_state.requires_grad
    assert calls == [1] and can_recompute(model)


def test_layers_may_be_unknown():
    assert not can_recompute(torch.nn.Sequential(torch.nn.Linear(2, 2)))
