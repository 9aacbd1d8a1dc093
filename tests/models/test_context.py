"""The positions that a model has, by its config alone."""

import pytest
from transformers import CONFIG_MAPPING

from harness.models.context import positions

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "family, settings, most",
    [
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("gpt2", {"n_positions": 64}, 64),
        ("gptj", {"n_positions": 64}, 64),
        ("opt", {"max_position_embeddings": 64}, 64),
        ("mistral", {"max_position_embeddings": 4096, "sliding_window": 16}, 4096),
        ("gemma3_text", {"max_position_embeddings": 4096, "sliding_window": 16}, 4096),
        # no limit: recurrent, ALiBi, no positions, or a config that names none
        ("mamba", {}, None),
        ("recurrent_gemma", {}, None),
        ("bloom", {}, None),
        ("mpt", {"max_seq_len": 64}, None),
        ("mpt", {"max_seq_len": 64, "attn_config": {"alibi": False}}, 64),
        ("falcon", {"max_position_embeddings": 64, "alibi": True}, None),
        ("falcon", {"max_position_embeddings": 64, "alibi": False}, 64),
        ("granitemoehybrid", {"position_embedding_type": "nope"}, None),
        ("granitemoehybrid", {"position_embedding_type": "rope"}, 2048),
        # stretched rotary positions, which a config may count or not
        ("qwen2", {"max_position_embeddings": 32768, "rope_parameters": YARN}, 131072),
        ("qwen2", {"max_position_embeddings": 131072, "rope_parameters": YARN}, 131072),
        (
            "llama",
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
    ],
)
def test_positions(family, settings, most):
    assert positions(CONFIG_MAPPING[family](**settings)) == most


def test_a_config_without_the_number():
    for value in (0, -1):
        assert positions(CONFIG_MAPPING["llama"](max_position_embeddings=value)) is None
