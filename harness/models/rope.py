"""Rotary positions that depend on the longest row of a batch: longrope and dynamic NTK.

Up to a border, in tokens, such a model has one set of frequencies, beyond it another. A row must
not get those of the rows beside it, so rows of both sides are never computed together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# (tokens of the longest row on the short side, whether the long side is one as well). With dynamic
# NTK it is not: every length beyond has frequencies of its own, and keeps those of longer rows.
Border = tuple[int, bool]


def border_of(config: PretrainedConfig) -> Border | None:
    """Where a model's frequencies change; None where its positions do not depend on other rows."""
    text = config.get_text_config()
    settings = getattr(text, "rope_parameters", None) or {}
    # Models with several kinds of layers have settings for each kind.
    kinds = [settings, *(each for each in settings.values() if isinstance(each, dict))]
    borders = []
    for kind in kinds:
        name = kind.get("rope_type")
        if name == "longrope":
            borders.append((int(kind["original_max_position_embeddings"]), True))
        elif isinstance(name, str) and "dynamic" in name:
            borders.append((int(text.max_position_embeddings), False))
    return min(borders, default=None)


def side_of(border: Border | None, tokens: int, place: str = "model") -> int:
    """On which side of ``border`` a row of so many tokens is: 0 up to it, 1 beyond.

    Raises UserError at ``place`` beyond the border where rows of another length would matter.
    """
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


def answer_side(border: Border | None, prompt: int, answer: int, place: str = "model") -> int:
    """``side_of`` a prompt of so many tokens and its answer of at most so many.

    Raises UserError if they may not be on one side.
    """
    longest = prompt + answer - 1  # The last token is not read.
    side = side_of(border, prompt, place)
    if side != side_of(border, longest, place):
        raise UserError(
            place,
            f"a prompt of {prompt} tokens with {answer} new ones crosses the length "
            "at which the model's rotary positions change",
            "lower max_new_tokens, or leave out such prompts (rollout.max_prompt_tokens)",
        )
    return side
