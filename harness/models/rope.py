"""Rotary positions that depend on the longest row of a batch: longrope and dynamic NTK.

Up to a border, in tokens, such a model has one set of frequencies, beyond it another. A row must
not get those of the rows beside it, so rows of both sides are never computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING

from harness.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_BORDER = "_rope_border"  # attribute of a model with what rope_border found


def rope_border(model: PreTrainedModel) -> tuple[int, bool] | None:
    """(tokens of the longest row on the short side, whether the long side is one as well).

    None for a model whose positions do not depend on other rows. With dynamic NTK every length
    beyond the border has frequencies of its own, and keeps those of longer rows before it.
    """
    if not hasattr(model, _BORDER):
        setattr(model, _BORDER, min(_borders(model), default=None))
    border: tuple[int, bool] | None = getattr(model, _BORDER)
    return border


def _borders(model: PreTrainedModel) -> Iterator[tuple[int, bool]]:
    """Of each rotary embedding whose frequencies change."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if kind == "longrope":
                settings = module.config.rope_parameters
                settings = settings if layer is None else settings[layer]
                yield int(settings["original_max_position_embeddings"]), True
            elif isinstance(kind, str) and "dynamic" in kind:
                yield int(module.original_max_seq_len), False


def side_of(model: PreTrainedModel, tokens: int, place: str = "model") -> int:
    """On which side of the model's border a row of so many tokens is: 0 up to it, 1 beyond.

    Raises UserError at ``place`` beyond the border where rows of another length would matter.
    """
    border = rope_border(model)
    if border is None or tokens <= border[0]:
        return 0
    if not border[1]:
        raise UserError(
            place,
            f"a row of {tokens} tokens: beyond {border[0]} the model's dynamic rotary positions "
            "depend on the rows before it",
            "shorten or leave out such rows (rollout.max_prompt_tokens, max_new_tokens), or set "
            "rope_parameters in the model's config.json to another rope_type",
        )
    return 1


def answer_side(
    model: PreTrainedModel, prompt: Sized, max_new_tokens: int, place: str = "model"
) -> int:
    """``side_of`` a prompt and its answer. Raises UserError if they may not be on one side."""
    longest = len(prompt) + max_new_tokens - 1  # The last token is not read.
    side = side_of(model, len(prompt), place)
    if side != side_of(model, longest, place):
        raise UserError(
            place,
            f"a prompt of {len(prompt)} tokens with {max_new_tokens} new ones crosses the length "
            "at which the model's rotary positions change",
            "lower max_new_tokens, or leave out such prompts (rollout.max_prompt_tokens)",
        )
    return side
