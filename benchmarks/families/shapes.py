"""A tiny configuration of every family that is tried."""

import inspect
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# What a family's configuration takes of these it gets. Windows are shorter than the rows.
COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "tie_word_embeddings": True,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "index_topk": 8,
    # experts
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # recurrences
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
BART = {
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
}
IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
}
# What a family needs beside, or otherwise; a name with a blank is a variant of its first word.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bart": BART,
    "bert causal": {"is_decoder": True},
    "codegen": {"rotary_dim": 8, "n_inner": 64},
    "falcon_h1": {"mamba_d_ssm": 64},
    "falcon alibi": {"alibi": True},
    "falcon new": {"new_decoder_architecture": True},
    "gemma3n_text": {
        **SLIDING,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "intermediate_size": [64, 64],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    **dict.fromkeys(("cohere2", "gemma2", "gemma3", "gemma3_text", "gpt_oss", "olmo3"), SLIDING),
    **dict.fromkeys(("olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), LINEAR),
    "gemma4_text": {
        **SLIDING,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8, "n_inner": 64},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama dynamic": {
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    },
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention"],
        "intermediate_size_mlp": 64,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "chunk_size": 16,
        "n_groups": 1,
        "layers_block_type": ["mamba", "attention"],
    },
    "phi3 longrope": {
        "sliding_window": None,
        "original_max_position_embeddings": 64,
        "rope_parameters": LONG,
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "attention_window_size": 8,
        "lru_width": 32,
    },
    "whisper": BART,
    "xlnet": {"d_head": 8, "d_inner": 64},
    "xlstm": {"num_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
FAMILIES = [
    *("afmoe", "apertus", "arcee", "aria_text", "bamba", "bart", "bert", "bert causal", "biogpt"),
    *("bitnet", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm"),
    *(
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "diffllama",
        "doge",
        "dots1",
        "emu3",
    ),
    *("ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon alibi"),
    *("falcon new", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3"),
    *("gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4", "glm4_moe"),
    *("glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss"),
    *("gptj", "granite", "granitemoe", "granitemoehybrid", "granitemoeshared", "helium"),
    *("hunyuan_v1_dense", "hunyuan_v1_moe", "jais2", "jamba", "jetmoe", "lfm2", "lfm2_moe"),
    *("llama", "llama dynamic", "llama4_text", "mamba", "mamba2", "mimo_v2_flash", "minicpm3"),
    *("minimax", "minimax_m2", "ministral", "mistral", "mixtral", "modernbert-decoder"),
    *("moshi", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3"),
    *("olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3"),
    *("phi3 longrope", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text"),
    *("qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "roberta", "rwkv"),
    *("seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "t5", "vaultgemma"),
    *("whisper", "xglm", "xlm", "xlnet", "xlstm", "youtu", "zaya"),
]


def shape_of(name: str) -> PretrainedConfig:
    """The tiny configuration of a family, or of a variant of one."""
    family = name.split()[0]
    kind = CONFIG_MAPPING[family]
    own = OWN.get(name, {})
    text = (getattr(kind, "sub_configs", None) or {}).get("text_config")
    if text is not None and hasattr(text, "attribute_map"):
        return kind(text_config={**_settings(text), **own}, vision_config=IMAGES)
    return kind(**{**_settings(kind), **own})


def _settings(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Those of COMMON that a configuration knows."""
    known = set(inspect.signature(kind.__init__).parameters) | set(kind.attribute_map)
    settings = {key: value for key, value in COMMON.items() if key in known}
    if "qk_rope_head_dim" in known:  # latent attention has no other heads
        settings.pop("head_dim", None)
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return settings
