"""How many answers are sampled at once, where nobody says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.models.size import cache_bytes, read_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CPU_ROWS = 64
# On a GPU a step of decoding takes as long for many rows as for few. They get a part of its whole
# memory, not of what is free: a resumed run must compute the same rows together, since the last
# digits of each depend on the others.
GPU_MOST, SHARE = 512, 1 / 6
DRAWING = 48  # bytes a token of the vocabulary: logits, probabilities and sorts in float64


@dataclass(frozen=True)
class RowBytes:
    """Bytes of an answer while it is sampled.

    cache: of a token's keys and values; read: of a token while the prompts are read; drawn: while
    a token is drawn.
    """

    cache: int
    read: int
    drawn: int

    @classmethod
    def of(cls, config: PretrainedConfig, size: int) -> RowBytes:
        """Of a text model's configuration, in numbers of ``size`` bytes."""
        drawn = DRAWING * config.vocab_size
        return cls(cache_bytes(config, size), read_bytes(config, size), drawn)

    def total(self, prompt: float, answer: float) -> float:
        """Bytes of an answer of so many tokens to a prompt of so many."""
        return (prompt + answer) * self.cache + max(prompt * self.read, self.drawn)

    def rows_at_once(self, device: torch.device | str, prompt: float, answer: float) -> int:
        """Answers sampled at once, of so many tokens and to prompts of so many."""
        if usual := usual_rows(device):
            return usual
        device = torch.device(device)
        _, memory = torch.get_device_module(device).mem_get_info(device)
        return max(1, min(GPU_MOST, int(SHARE * memory / self.total(prompt, answer))))


def usual_rows(device: torch.device | str) -> int | None:
    """Answers sampled at once whatever their length; None where memory and length say it."""
    return CPU_ROWS if torch.device(device).type == "cpu" else None


def rows_of(model: PreTrainedModel, prompt: int, answer: int) -> int:
    """Answers that ``model`` samples at once, of so many tokens and to prompts of so many."""
    row = RowBytes.of(model.config.get_text_config(), model.dtype.itemsize)
    return row.rows_at_once(model.device, prompt, answer)
