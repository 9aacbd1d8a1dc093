"""A fixed sample of the families of ``python -m benchmarks.families``, and those refused."""

import pytest
import torch

from benchmarks.families.__main__ import PAGE, page
from benchmarks.families.shapes import FAMILIES
from benchmarks.families.trial import Trial, tried

# Plain attention with each kind of positions, and every kind of model that needs its own cache.
SAMPLE = {  # family: (way of sampling, whether prompts share a row)
    "qwen3": ("buffers", True),
    "gpt2": ("buffers", True),
    "bloom": ("buffers", False),  # ALiBi counts columns, not positions
    "gemma3": ("buffers", False),  # a model for images too, with windows
    "gpt_oss": ("buffers", False),  # sinks, experts, windows
    "deepseek_v3": ("buffers", True),  # latent attention, experts
    "llama4_text": ("buffers", False),  # chunks of attention
    "phi3 longrope": ("buffers", True),
    "falcon": ("generate", False),  # attention code of its own
    "qwen3_5_text": ("generate", False),
    "granitemoehybrid": ("generate", False),
    "falcon_h1": ("generate", False),
    "lfm2": ("generate", False),
    "mamba": ("generate", False),
    "recurrent_gemma": ("generate, one length", False),  # takes no padding
    "rwkv": ("generate, no cache", False),  # its cache gives other numbers
}


@pytest.mark.parametrize("name", SAMPLE)
def test_log_probabilities_are_the_models_own(name):
    trial = tried(name)
    assert trial.problem == ""
    assert (trial.way, trial.shares) == SAMPLE[name]
    assert trial.sampling <= 1e-4
    assert trial.training <= 1e-4


@pytest.mark.parametrize("name", ["llama", "falcon", "mamba", "qwen3_next"])
def test_the_same_ways_in_bfloat16(name):
    trial = tried(name, torch.bfloat16)
    assert trial.way == ("buffers" if name == "llama" else "generate")
    assert max(trial.sampling, trial.training) <= 0.1


@pytest.mark.parametrize(
    "name, part",
    [
        ("bert", "(BertLMHeadModel) computes its logits in an unknown way; use another model"),
        ("xlm", "(XLMWithLMHeadModel) sees the tokens behind the one that it predicts from; use"),
        ("xlnet", "XLNetLMHeadModel cannot be sampled from: no way gives its own log-prob"),
        ("t5", "transformers has no causal language model of its kind"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(name, part):
    trial = tried(name)
    assert part in trial.problem
    assert "\n" not in trial.problem
    assert "; " in trial.problem  # a remedy


def test_every_family_is_on_the_page():
    text = PAGE.read_text()
    assert all(f"| {name} |" in text for name in FAMILIES)
    made = page([Trial("a", "A", "buffers", True, 1e-6, 1e-6, 0.1), Trial("b", problem="no; x")], 1)
    assert "| a | yes | own | yes | 1e-06 | 1e-06 | 0.1 |" in made
    assert "| b | no |" in made
