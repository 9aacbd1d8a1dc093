"""The memory that --plan foretells: counted activations against a real pass, and the bytes of every weight by hand."""

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from harness import models
from harness.plan import Memory, Work, activations
from harness.training import TrainingConfig

SHAPES = {
    "llama": LlamaConfig(vocab_size=300, hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=6,
                         num_key_value_heads=2),
    "qwen2": Qwen2Config(vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_a_real_pass_saves(name, dtype):
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype)
    real = AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype).train()
    saved, tokens = {}, 512

    def count(tensor):
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            saved[base.untyped_storage().data_ptr()] = base
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        models.hidden(real, torch.ones(4, tokens // 4, dtype=torch.long))
    assert activations(shape) * tokens == pytest.approx(sum(t.nbytes for t in saved.values()), rel=0.1)


def test_bytes_of_every_weight():
    """bfloat16 with a moving average: 2 + 2 for the two models; 8 AdamW, 4 masters, 4 gradients, 4 average, here or in host memory."""
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(SHAPES["llama"], dtype=torch.bfloat16)
    weights = sum(p.numel() for p in shape.parameters())
    memory, sdft = Memory(shape, torch.bfloat16, "cpu"), Work(copies=1, averaged=True)

    def of(work, rows=1, length=0, **config):
        return [round(part * 2**30) for part in memory.of(TrainingConfig(**config), work, rows, length)]

    passing = 1024 * memory.token + memory.logits
    assert of(sdft) == [round(weights * (4 + 20) + passing), 0]
    assert of(sdft, masters="host") == [round(weights * 4 + passing), weights * 20]
    assert of(Work(), micro_batch_tokens=2048) == [round(weights * (2 + 16) + 2048 * memory.token + memory.logits), 0]
    assert of(Work(), rows=10**6, length=100)[0] == round(weights * 18 + 10**8 * 2 * 3 * 2 * 16 * 2)  # the rollouts are the larger
    full = Memory(shape, torch.float32, "cpu")  # no masters apart from the weights
    assert full.of(TrainingConfig(), sdft, 1, 0)[0] * 2**30 == pytest.approx(weights * (8 + 8 + 4) + passing)
