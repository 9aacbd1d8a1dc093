"""How many answers are sampled at once, where nobody says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.models.size import cache_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_ROWS = 64
# On a GPU a step of decoding takes as long for many rows as for few. Keys, values and the drawing
# get a part of its whole memory, not of what is free: a resumed run computes the same rows
# together, which their last digits depend on.
GPU_MOST, SHARE = 512, 1 / 8
DRAWING = 48  # bytes a row and token of the vocabulary: logits, probabilities, sorts in float64


def usual_rows(device: torch.device | str) -> int | None:
    """Answers sampled at once whatever their length; None where memory and length say it."""
    return CPU_ROWS if torch.device(device).type == "cpu" else None


def rows_at_once(
    device: torch.device | str, tokens: float, token_bytes: int, vocabulary: int
) -> int:
    """Answers sampled at once, each of so many ``tokens`` with its prompt.

    token_bytes: of a token's keys and values.
    """
    if usual := usual_rows(device):
        return usual
    device = torch.device(device)
    _, memory = torch.get_device_module(device).mem_get_info(device)
    row = tokens * token_bytes + DRAWING * vocabulary
    return max(1, min(GPU_MOST, int(SHARE * memory / row)))


def rows_of(model: PreTrainedModel, tokens: int) -> int:
    """``rows_at_once`` of a model on its device."""
    if usual := usual_rows(model.device):
        return usual
    config = model.config.get_text_config()
    token_bytes = cache_bytes(config, model.dtype.itemsize)
    return rows_at_once(model.device, tokens, token_bytes, config.vocab_size)
