"""Templates of prompts: what a teacher sees in place of the last user turn.

They are data, so that an order file can hold its own. A name is a style: ``paper``, ``released``
or ``three_turn``. Its ending says what the teacher sees: the demonstration (no ending), the source
text (``_source``) or both (``_both``), as in figure 7 of arXiv 2601.19897.
"""

from typing import Any

Message = dict[str, str]  # {"role": ..., "content": ...}


def is_chat(messages: Any) -> bool:
    """Whether ``messages`` is a list of chat messages with text contents."""
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )


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

# Oracle retrieval (table 1 of arXiv 2601.19897): the text with the answer precedes the question.
ORACLE_TEMPLATE: list[Message] = [{"role": "user", "content": "{source}\n\n{question}"}]
