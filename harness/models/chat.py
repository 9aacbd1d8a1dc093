"""Chat messages to tokens, and the tokens that end a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jinja2

from harness.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = "8q7z8"  # text that no chat template holds


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    place: str = "prompt",
) -> list[int]:
    """Token ids of ``messages`` in the model's chat template, up to the assistant's answer.

    Raises UserError at ``place`` where the template refuses the messages: it may know no system
    role, or be no valid template.
    """
    # ValueError: the tokenizer has several templates and none of them is the default.
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            place,
            f"the model's chat template fails on messages of {roles} "
            f"({type(error).__name__}: {error})",
            "use messages that it takes, or mend chat_template.jinja in the model's folder",
        ) from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def end_of_reasoning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that closes the reasoning (``<think>``) which the chat template opens.

    It is "" where the template opens no reasoning for an answer.
    """
    prompt = tokenizer.decode(chat_tokens(tokenizer, [{"role": "user", "content": "x"}]))
    return "\n</think>\n\n" if prompt.rstrip().endswith("<think>") else ""


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, set[int]]:
    """(the id that closes the turn of a demonstration, the ids that end a completion).

    A completion ends with each end token of the model's generation config and with the tokenizer's.
    A demonstration closes with the first of them that the chat template writes after an answer, or
    with the tokenizer's where the template writes none.
    """
    stops = _end_tokens(model)
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}], tokenize=False
    )
    after_answer = turn[turn.rindex(PROBE) + len(PROBE) :]
    closing = tokenizer(after_answer, add_special_tokens=False)["input_ids"]
    end = next((token for token in closing if token in stops), tokenizer.eos_token_id)
    return end, stops


def _end_tokens(model: PreTrainedModel) -> set[int]:
    """The end tokens of the model's generation config, which holds none, one or a list."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    if ids is None:
        return set()
    return set(ids) if isinstance(ids, list) else {ids}
