"""Chat messages to tokens, the tokens that end a turn, and the tags of thoughts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError, did_you_mean, shortened
from harness.base.thoughts import Thoughts, tags_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = Mapping[str, str]

PROBE = "8q7z8"  # text that no chat template holds
# Prompt and answer as they are, behind the token with which the model's texts begin.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
REMEDY = "mend chat_template.jinja in the model's folder, or use another model"
DATE = "2024-07-26"  # what Llama's templates write where they know no date
CLOCK, DATE_STRING = "strftime_now", "date_string"  # how templates ask for the date
RANDOM = {"random", "lipsum"}  # of Jinja
OWN = ("messages", "add_generation_prompt", CLOCK, DATE_STRING)  # no arguments of a user


@dataclass(frozen=True)
class ChatInputs:
    """What a chat template is given beside the messages.

    date: the day that it takes for today, as 2024-07-26. A prompt that held the real one would be
    another prompt tomorrow. arguments: further variables by name, such as ``enable_thinking``.
    """

    date: str = DATE
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def variables(self, template: str) -> dict[str, Any]:
        """The variables that ``template`` gets: the arguments, and the date where it reads it."""
        names = template_variables(template)
        day = datetime.datetime.fromisoformat(self.date)
        given = dict(self.arguments)
        if CLOCK in names:
            given[CLOCK] = day.strftime
        elif DATE_STRING in names:
            given[DATE_STRING] = day.strftime("%d %b %Y")
        return given

    def protocol(self, template: str) -> dict[str, Any]:
        """What of it changes the prompts that ``template`` writes, as part of a protocol."""
        dated = not template_variables(template).isdisjoint((CLOCK, DATE_STRING))
        return {
            **({"date": self.date} if dated else {}),
            **({"template_arguments": dict(self.arguments)} if self.arguments else {}),
        }

    def check(self, template: str, place: str) -> None:
        """Raises UserError at ``place`` for an argument that ``template`` does not read."""
        known = template_variables(template) - {*OWN}
        for name in self.arguments:
            if name not in known:
                raise UserError(
                    f"{place}.{name}",
                    "the model's chat template reads no such argument",
                    did_you_mean(name, known) if known else "it reads none",
                )


@lru_cache(maxsize=16)
def template_variables(template: str) -> frozenset[str]:
    """Names that a chat template reads and does not set itself, ``strftime_now`` among them.

    Raises ValueError for a template that draws at random: its prompts would be others at each call.
    """
    from jinja2 import meta, nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tree = _compile_jinja_template(template).environment.parse(template)
    used = {node.name for node in tree.find_all((nodes.Name, nodes.Filter))}
    if drawn := used & RANDOM:
        raise ValueError(f"it draws at random by `{min(drawn)}`")
    names = used & {CLOCK}
    return frozenset(names | meta.find_undeclared_variables(tree))


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    place: str = "prompt",
    inputs: ChatInputs | None = None,
    *,
    answered: bool = False,
) -> str:
    """The text of ``messages`` in the model's chat template, up to the assistant's answer.

    answered: whether the last message is that answer. Raises UserError at ``place`` where the
    template refuses the messages: it may know no system role, or be no valid template.
    """
    # A template is a program of the model's maker, and may raise anything.
    try:
        variables = (inputs or ChatInputs()).variables(tokenizer.get_chat_template())
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answered, **variables
        )
    except Exception as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            place,
            f"the model's chat template fails on messages of {roles} "
            f"({type(error).__name__}: {str(error)[:120]})",
            "use messages that it takes, or mend chat_template.jinja in the model's folder",
        ) from error
    return str(text)


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    place: str = "prompt",
    inputs: ChatInputs | None = None,
) -> list[int]:
    """Token ids of ``messages`` in the model's chat template, up to the assistant's answer.

    inputs: what the template is given beside the messages. Raises UserError as ``render`` does.
    """
    return encode(tokenizer, render(tokenizer, messages, place, inputs))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a chat template wrote, whose special tokens are in the text."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def around_answer(
    tokenizer: PreTrainedTokenizerBase,
    inputs: ChatInputs | None = None,
    place: str = "model",
) -> tuple[str, str | None, str]:
    """(prompt, header, tail): what the template writes before and after an answer, as texts.

    header: between the generation prompt and the answer, such as an empty thought; None where a
    finished turn does not begin with the generation prompt. tail: behind the answer, to the end.
    Raises UserError at ``place`` if the template refuses, drops or changes an answer.
    """
    question = _turn("user", "x")
    prompt = render(tokenizer, [question], place, inputs)
    turn = render(tokenizer, [question, _turn("assistant", PROBE)], place, inputs, answered=True)
    before, found, tail = turn.rpartition(PROBE)
    if not found:
        raise UserError(
            place,
            f"the model's chat template drops or changes an assistant's answer: of {PROBE!r} "
            f"it makes {turn[-40:]!r}",
            REMEDY,
        )
    return prompt, before.removeprefix(prompt) if before.startswith(prompt) else None, tail


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# ---- the end of a turn ----------------------------------------------------------------------


def stop_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str = "model"
) -> tuple[int, set[int]]:
    """(the id that closes the turn of a demonstration, the ids that end a completion).

    A turn closes with the token that the chat template writes after an answer, whatever the
    generation config says; with the tokenizer's end token where the template writes nothing. A
    completion ends with that token, with each end token of the generation config and with the
    tokenizer's. Raises UserError at ``place`` where no token closes a turn.
    """
    stops = declared_ends(model, tokenizer)
    end = _closing(tokenizer, stops, place)
    return end, stops | {end}


def declared_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The end tokens of the model's generation config, and the tokenizer's.

    Raises UserError where the config has something else than ids.
    """
    ids = model.generation_config.eos_token_id if model.generation_config else None
    declared = [*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id]
    found = [token for token in declared if token is not None]
    if not all(type(token) is int for token in found):
        raise UserError(
            "generation_config.json: eos_token_id",
            f"is {shortened(repr(ids), 80)}",
            "it is the number of a token, or a list of numbers",
        )
    return set(found)


def _closing(tokenizer: PreTrainedTokenizerBase, stops: set[int], place: str) -> int:
    """The token that closes a turn; see ``stop_tokens``."""
    _, _, tail = around_answer(tokenizer, place=place)
    last = encode(tokenizer, tail)
    try:
        messages = [_turn("user", "x"), _turn("assistant", PROBE), _turn("user", PROBE)]
        middle = encode(tokenizer, render(tokenizer, messages, place).split(PROBE)[1])
    except (UserError, IndexError):  # no second question, or no answer before one
        middle = last
    # Behind the last turn of a conversation a template may write more than closes a turn.
    both = [a for i, a in enumerate(last) if last[: i + 1] == middle[: i + 1]]
    special = special_ids(tokenizer)
    for tokens in (both, last):
        if ends := [token for token in tokens if token in stops]:
            return ends[0]
        if ends := [token for token in tokens if token in special]:
            return ends[-1]
    if not tail.strip():
        # Some templates leave the end of a turn to the header of the next one.
        ends = [token for token in middle if token in stops]
        if ends or tokenizer.eos_token_id is not None:
            return ends[0] if ends else tokenizer.eos_token_id
    wrote = f"{tail.strip()[:40]!r}, which is no special token" if tail.strip() else "nothing"
    raise UserError(
        place,
        f"no token ends a turn: after an answer the chat template writes {wrote}",
        "set eos_token in tokenizer_config.json, and let the template write it after an answer",
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens that a decoded completion leaves out."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


# ---- thoughts -------------------------------------------------------------------------------


def thoughts_of(tokenizer: PreTrainedTokenizerBase) -> Thoughts | None:
    """The tags of the model's thoughts; None where its chat template knows none.

    A header of special tokens and words before an answer, such as gpt-oss's final channel, counts
    as the end of a thought: the answer follows it.
    """
    if tags := tags_in(tokenizer.get_chat_template()):
        return tags
    _, header, _ = around_answer(tokenizer)
    if not header or not header.strip():
        return None
    special = special_ids(tokenizer)
    ids = encode(tokenizer, header)
    first = next((tokenizer.decode([i]) for i in ids if i in special), None)
    if first is None or all(i in special for i in ids):
        return None
    return Thoughts(first, header.strip())


def opens_thought(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], thoughts: Thoughts
) -> bool:
    """Whether a prompt, as token ids, ends in an open thought."""
    return tokenizer.decode(prompt[-32:]).rstrip().endswith(thoughts.open)
