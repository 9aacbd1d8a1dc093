"""How many tokens a model has positions for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Rotary scalings whose factor a config's max_position_embeddings may leave out.
SCALED = ("linear", "dynamic", "yarn")


def positions(config: PretrainedConfig) -> int | None:
    """The most tokens that a model reads at once; None where nothing in it sets a limit.

    Recurrent models, ALiBi and models without positions have none. A sliding window is no limit.
    Where a rotary scaling stretches the positions, the stretched number counts.
    """
    text = config.get_text_config()
    attention = getattr(text, "attn_config", None)
    if getattr(text, "alibi", False) or getattr(attention, "alibi", False):
        return None
    if getattr(text, "position_embedding_type", "rope") in ("nope", "alibi", None):
        return None
    # MPT has a name of its own for it.
    most = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if not isinstance(most, int) or most <= 0:
        return None
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return max(most, _stretched(scaling, most))


def _stretched(scaling: dict[str, Any], most: int) -> int:
    """The positions that a rotary scaling reaches, 0 where it is none of SCALED."""
    if scaling.get("rope_type", scaling.get("type")) not in SCALED:
        return 0
    original = scaling.get("original_max_position_embeddings") or most
    return int(original * (scaling.get("factor") or 1))
