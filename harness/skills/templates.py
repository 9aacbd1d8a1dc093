"""Templates of prompts: what a teacher sees in place of the last user turn.

They are data, so that an order file can hold its own. A name is a style: ``paper``, ``released``
or ``three_turn``. Its ending says what the teacher sees: the demonstration (no ending), the source
text (``_source``) or both (``_both``), as in figure 7 of arXiv 2601.19897.
"""

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

# {"role": ..., "content": a text}; a turn that calls tools has `tool_calls` beside them, as chat
# templates read it: [{"type": "function", "function": {"name": ..., "arguments": ...}}].
Message = dict[str, Any]

ROLES = frozenset(["system", "user", "assistant"])
PROMPT_ENDS = "end in a user turn, or in the answer of a tool behind one"


def is_chat(messages: Any) -> bool:
    """Whether ``messages`` is a list of chat messages with text contents."""
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )


def is_prompt(messages: Any) -> TypeGuard[list[Message]]:
    """Whether ``messages`` are a conversation in which the assistant has the next turn."""
    if not is_chat(messages) or not messages:
        return False
    roles = [message["role"] for message in messages]
    return "user" in roles and roles[-1] in ("user", "tool")


def last_user_turn(prompt: Sequence[Message]) -> int:
    """The place of a prompt's last user turn: the question. Tools may have answered behind it."""
    return max(i for i, turn in enumerate(prompt) if turn["role"] == "user")


def turn_text(turn: Message) -> str:
    """The text of a turn, with the calls of tools that it makes."""
    calls = turn.get("tool_calls")
    if not calls:
        return turn["content"]
    return turn["content"] + json.dumps(calls, ensure_ascii=False)


_SOURCE = "This is a text that the answer to the question rests on:\n{source}\n\n"
_EXAMPLE = "This is an example for a response to the question:\n{demonstration}\n\n"
_OWN = "Now answer with a response of your own, including the thinking process:"

TEACHER_TEMPLATES: dict[str, list[Message]] = {
    # The paper's own (arXiv 2601.19897, section 3). It prints no template with a source text: those
    # are this project's, in the paper's words.
    "paper": [{"role": "user", "content": "{question}\n\n" + _EXAMPLE + _OWN}],
    "paper_source": [{"role": "user", "content": "{question}\n\n" + _SOURCE + _OWN}],
    "paper_both": [{"role": "user", "content": "{question}\n\n" + _SOURCE + _EXAMPLE + _OWN}],
    # The template of the authors' released code, with its white space and its full stop.
    "released": [{"role": "user", "content": "\n{question}\n\n" + _EXAMPLE + _OWN[:-1] + ".\n"}],
    "released_source": [
        {"role": "user", "content": "\n{question}\n\n" + _SOURCE + _OWN[:-1] + ".\n"}
    ],
    "released_both": [
        {"role": "user", "content": "\n{question}\n\n" + _SOURCE + _EXAMPLE + _OWN[:-1] + ".\n"}
    ],
    # Small models do not follow the sentences above, but they imitate an earlier turn.
    "three_turn": [
        {"role": "user", "content": "{question}"},
        {"role": "assistant", "content": "{demonstration}"},
        {"role": "user", "content": "{question}"},
    ],
    "three_turn_source": [{"role": "user", "content": "{source}\n\n{question}"}],
    "three_turn_both": [
        {"role": "user", "content": "{source}\n\n{question}"},
        {"role": "assistant", "content": "{demonstration}"},
        {"role": "user", "content": "{question}"},
    ],
}
TEACHER_CONTEXTS = ("demonstration", "source", "both")
SHOWN = ("question", "demonstration", "source")  # what a template can show, in braces
PLACEHOLDER = re.compile(rf"\{{({'|'.join(SHOWN)})\}}")


def template_fault(turns: list[Any]) -> str:
    """What is wrong with a teacher's template that somebody has written; empty if nothing is."""
    keys = {"role", "content"}
    if not is_prompt(turns) or any(set(turn) != keys for turn in turns):
        return "must be messages with `role` and `content`, the last one of the user"
    if turns[-1]["role"] != "user" or {turn["role"] for turn in turns} - ROLES:
        return "must be messages of system, user and assistant, the last one of the user"
    text = "\n".join(turn["content"] for turn in turns)
    for word in re.finditer(r"\{\s*(\w+)\s*\}", PLACEHOLDER.sub("", text)):
        near = difflib.get_close_matches(word[1].lower(), SHOWN, 1, cutoff=0.7)
        if near:
            return f"shows {word[0]}, which stands for nothing; did you mean {{{near[0]}}}?"
    shown = set(PLACEHOLDER.findall(text))
    if "question" not in shown:
        return "shows no {question}, so the teacher is not asked it"
    if shown == {"question"}:
        return "shows neither {demonstration} nor {source}, so the teacher knows no more"
    return ""


# Oracle retrieval (table 1 of arXiv 2601.19897): the text with the answer precedes the question.
ORACLE_TEMPLATE: list[Message] = [{"role": "user", "content": "{source}\n\n{question}"}]
