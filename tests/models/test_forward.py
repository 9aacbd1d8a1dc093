"""What a model may share: found by passes of one shape, so that no kernel's rounding decides."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, Lfm2Config, Qwen2Config

from benchmarks.families.trial import tiny_model
from harness.models import forward
from harness.models.forward import can_share_prompts, keep_sharing, sees_later_tokens
from harness.models.load import head_difference, load_model

SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def qwen(**changes):
    return Qwen2Config(**{**SHAPE, "num_key_value_heads": 2, "intermediate_size": 64, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.005, 0.02, 0.2])
def test_a_deep_model_shares_whatever_its_weights(dtype, spread):
    model = model_of(qwen(num_hidden_layers=28, initializer_range=spread), dtype)
    assert can_share_prompts(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_positions_share_and_a_convolution_does_not(dtype):
    learned = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, eos_token_id=0)
    assert can_share_prompts(model_of(learned, dtype))
    layers = ["conv", "full_attention"] * 2
    hybrid = Lfm2Config(
        **SHAPE, num_key_value_heads=2, intermediate_size=64, layer_types=layers, eos_token_id=0
    )
    assert not can_share_prompts(model_of(hybrid, dtype))


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_does_not_share(ignored, monkeypatch):
    passes = forward.hidden_states

    def deaf(model, input_ids, **inputs):
        inputs.pop(ignored)
        return passes(model, input_ids, **inputs)

    monkeypatch.setattr(forward, "hidden_states", deaf)
    assert not can_share_prompts(model_of(qwen()))


def test_a_leak_of_one_bit_is_seen(monkeypatch):
    passes = forward.hidden_states

    def leaky(model, input_ids, **inputs):
        states = passes(model, input_ids, **inputs)
        return states + 1e-6 * input_ids[:, 4, None, None]  # a token of the other completion

    monkeypatch.setattr(forward, "hidden_states", leaky)
    assert not can_share_prompts(model_of(qwen()))


def test_dropout_does_not_decide_and_training_mode_stays():
    model = model_of(qwen(attention_dropout=0.5)).train()
    assert can_share_prompts(model)
    assert model.training


def test_the_probe_takes_tokens_that_differ():
    model = model_of(qwen())
    with torch.no_grad():  # a vocabulary that begins with special tokens which are all alike
        model.get_input_embeddings().weight[:200] = 0
    assert can_share_prompts(model)


def test_a_vocabulary_without_enough_different_tokens_does_not_share():
    model = model_of(qwen())
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = 0
    assert not can_share_prompts(model)


def test_the_answer_stays_with_the_model_and_its_copies():
    model = model_of(qwen())
    keep_sharing(model, False)
    assert not can_share_prompts(model)
    assert not can_share_prompts(copy.deepcopy(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_is_known_within_two_units(tiny, dtype, monkeypatch):
    model, _ = load_model(str(tiny), dtype, "cpu")
    assert head_difference(model) == 0  # on a CPU both passes take the same kernels
    own = type(model).forward
    units = torch.finfo(model.dtype).eps

    def noisy(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        out.logits = out.logits * (1 + self.bend * units)
        return out

    monkeypatch.setattr(type(model), "forward", noisy)
    model.bend = 1
    assert 0 < head_difference(model) <= 2
    model.bend = 8
    assert head_difference(model) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mixtral", "falcon_h1", "qwen3_5_text", "mpt"])
def test_a_causal_model_sees_nothing_behind_a_token(name, dtype):
    assert not sees_later_tokens(tiny_model(name, dtype))


def test_an_encoder_does():
    config = BertConfig(**SHAPE, intermediate_size=64)
    assert sees_later_tokens(model_of(config))
    config.is_decoder = True
    assert not sees_later_tokens(model_of(config))


@pytest.mark.parametrize("name", ["llama4_text", "gpt_neo", "gemma3", "mamba", "falcon_h1", "rwkv"])
def test_windows_chunks_and_recurrences_do_not_share(name):
    assert not can_share_prompts(tiny_model(name, torch.float32))


def test_states_of_another_dtype_than_the_heads():
    """Mamba keeps its residual in float32, also where the weights are bfloat16."""
    assert head_difference(tiny_model("mamba", torch.bfloat16)) == 0
