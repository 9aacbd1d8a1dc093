"""How many answers are sampled at once: 64 on a CPU, and on a GPU what a sixth of it holds."""

import types

import pytest
import torch

from harness.models.size import cache_bytes, read_bytes
from harness.runs.reading import read_order
from harness.sampling import rows
from harness.sampling.rows import RowBytes
from harness.sampling.transformers import TransformersSampler


@pytest.fixture
def gpu(monkeypatch):
    """A card of so many GiB, of which one is free."""
    memory = [80]
    module = types.SimpleNamespace(mem_get_info=lambda device: (2**30, memory[0] * 2**30))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return memory


QWEN_7B = types.SimpleNamespace(
    vocab_size=152_064,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    hidden_size=3584,
    intermediate_size=18_944,
)
SMOLLM_135M = types.SimpleNamespace(
    vocab_size=49_152,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    hidden_size=576,
    intermediate_size=1536,
)


def test_bytes_of_a_row():
    """Keys and values of all tokens, and the wider of reading the prompt and drawing."""
    row = RowBytes.of(QWEN_7B, 2)
    assert row.cache == 2 * 28 * 4 * 128 * 2 == 57_344
    assert row.read == 2 * (4 * 3584 + 3 * 18_944)
    assert row.total(750, 2048) == 2798 * 57_344 + 750 * row.read
    assert row.total(5, 10) == 15 * 57_344 + 48 * 152_064


@pytest.mark.parametrize(
    "config, gib, prompt, answer, wanted",
    [
        (QWEN_7B, 80, 750, 2048, 53),
        (QWEN_7B, 141, 750, 2048, 94),
        (QWEN_7B, 24, 750, 2048, 16),
        (SMOLLM_135M, 80, 300, 256, 512),  # more would not be faster
        (QWEN_7B, 1, 750, 10**6, 1),
    ],
)
def test_a_gpu_takes_what_a_part_of_it_holds(gpu, config, gib, prompt, answer, wanted):
    gpu[0] = gib
    row = RowBytes.of(config, 2)
    assert row.rows_at_once("cuda", prompt, answer) == wanted
    if 1 < wanted < 512:
        held = row.total(prompt, answer)
        assert wanted * held <= gib * 2**30 / 6 < (wanted + 1) * held
    assert rows.usual_rows("cuda:1") is None
    assert row.rows_at_once("cpu", prompt, answer) == rows.usual_rows("cpu") == 64


def test_bytes_of_a_token(tiny_model):
    config = tiny_model[0].config
    width = config.hidden_size // config.num_attention_heads
    heads = config.num_key_value_heads
    assert cache_bytes(config, 4) == 2 * config.num_hidden_layers * heads * width * 4
    recurrent = types.SimpleNamespace(num_hidden_layers=3, hidden_size=8)
    assert cache_bytes(recurrent, 2) == 0 and read_bytes(recurrent, 2) == (32 + 96) * 2


def batches(sampler, count, n):
    prompts = [[1 + i % 7] * 4 for i in range(count)]
    way = types.SimpleNamespace(pads=True)
    return [len(batch) * len(turn) for batch, turn in sampler._batches(prompts, n, way, 6)]


def test_a_sampler_takes_them_unless_it_is_told(tiny_model, monkeypatch):
    model, tokenizer = tiny_model
    assert max(batches(TransformersSampler(model, tokenizer), 130, 1)) == 44  # three even ones
    seen = []
    monkeypatch.setattr(
        "harness.sampling.transformers.rows_of", lambda *arguments: seen.append(arguments[1:]) or 10
    )
    assert batches(TransformersSampler(model, tokenizer), 30, 1) == [10, 10, 10]
    assert batches(TransformersSampler(model, tokenizer), 1, 25) == [10, 10, 5]
    assert seen == [(4, 6), (4, 6)]  # tokens of a prompt and of an answer
    assert batches(TransformersSampler(model, tokenizer, 15), 30, 1) == [15, 15]


def test_an_order_has_on_record_what_it_had(order_file):
    """Folders from before the sizes went by the device say 64."""
    assert read_order(order_file()).about()["rollout"]["batch_size"] == 64
    said = read_order(order_file(rollout={"batch_size": 7}))
    assert said.about()["rollout"]["batch_size"] == 7
