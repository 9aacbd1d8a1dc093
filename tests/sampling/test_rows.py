"""How many answers are sampled at once: 64 on a CPU, and on a GPU what an eighth of it holds."""

import types

import pytest
import torch

from harness.models.size import cache_bytes
from harness.runs.reading import read_order
from harness.sampling import rows
from harness.sampling.transformers import TransformersSampler


@pytest.fixture
def gpu(monkeypatch):
    """A card of so many GiB, of which one is free."""
    memory = [80]
    module = types.SimpleNamespace(mem_get_info=lambda device: (2**30, memory[0] * 2**30))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return memory


@pytest.mark.parametrize(
    "gib, tokens, token_bytes, vocabulary, wanted",
    [
        # Qwen2.5-7B, 56 KiB a token: 2,800 of them and 7 MiB for the drawing, of 10 or 17.6 GiB
        (80, 2800, 57_344, 152_064, 63),
        (141, 2800, 57_344, 152_064, 112),
        (24, 2800, 57_344, 152_064, 19),
        (80, 600, 23_040, 49_152, 512),  # SmolLM2-135M: more would not be faster
        (1, 10**6, 57_344, 152_064, 1),
    ],
)
def test_a_gpu_takes_what_a_part_of_it_holds(gpu, gib, tokens, token_bytes, vocabulary, wanted):
    gpu[0] = gib
    assert rows.rows_at_once("cuda", tokens, token_bytes, vocabulary) == wanted
    assert rows.usual_rows("cuda:1") is None
    assert rows.rows_at_once("cpu", tokens, token_bytes, vocabulary) == rows.usual_rows("cpu") == 64


def test_bytes_of_a_token(tiny_model):
    config = tiny_model[0].config
    width = config.hidden_size // config.num_attention_heads
    heads = config.num_key_value_heads
    assert cache_bytes(config, 4) == 2 * config.num_hidden_layers * heads * width * 4
    recurrent = types.SimpleNamespace(num_hidden_layers=3, hidden_size=8)
    assert cache_bytes(recurrent, 2) == 0


def batches(sampler, count, n):
    prompts = [[1 + i % 7] * 4 for i in range(count)]
    way = types.SimpleNamespace(pads=True)
    return [len(batch) * len(turn) for batch, turn in sampler._batches(prompts, n, way, 6)]


def test_a_sampler_takes_them_unless_it_is_told(tiny_model, monkeypatch):
    model, tokenizer = tiny_model
    assert max(batches(TransformersSampler(model, tokenizer), 130, 1)) == 44  # three even ones
    seen = []
    monkeypatch.setattr(
        "harness.sampling.transformers.rows_of", lambda model, tokens: seen.append(tokens) or 10
    )
    assert batches(TransformersSampler(model, tokenizer), 30, 1) == [10, 10, 10]
    assert batches(TransformersSampler(model, tokenizer), 1, 25) == [10, 10, 5]
    assert seen == [10, 10]  # tokens of a prompt and its answer
    assert batches(TransformersSampler(model, tokenizer, 15), 30, 1) == [15, 15]


def test_an_order_has_on_record_what_it_had(order_file):
    """Folders from before the sizes went by the device say 64."""
    assert read_order(order_file()).about()["rollout"]["batch_size"] == 64
    said = read_order(order_file(rollout={"batch_size": 7}))
    assert said.about()["rollout"]["batch_size"] == 7
