"""Chat messages to tokens, and the tokens that end a turn."""

import jinja2

from harness.base.errors import UserError


def chat_tokens(tokenizer, messages, place="prompt"):
    """Token ids of ``messages`` in the model's chat template, up to where the assistant's answer
    begins.

    Raises UserError at ``place`` where the template refuses them: it may know no system role, or be
    no template.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
    ) as error:  # the last: several templates, none of them the default
        roles = ", ".join(dict.fromkeys(m["role"] for m in messages))
        raise UserError(
            place,
            f"the model's chat template fails on messages of {roles} ({type(error).__name__}: {error})",
            "use messages that it takes, or mend chat_template.jinja in the model's folder",
        ) from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def closed_thought(tokenizer):
    """What closes the reasoning that the chat template opens for an answer (``<think>``), as a
    text; "" where it opens none.
    """
    opening = tokenizer.decode(chat_tokens(tokenizer, [{"role": "user", "content": "x"}])).rstrip()
    return "\n</think>\n\n" if opening.endswith("<think>") else ""


def stop_tokens(model, tokenizer):
    """(end-of-turn id that a demonstration closes with, set of all ids that end a completion)."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    probe = "8q7z8"  # text that no template holds
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}], tokenize=False
    )
    closing = tokenizer(turn[turn.rindex(probe) + len(probe) :], add_special_tokens=False)[
        "input_ids"
    ]
    end = next((i for i in closing if i in ids), tokenizer.eos_token_id)
    return end, ids
