"""What a model's chat template makes of the prompts of an order, before any weights load."""

from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from harness.base.errors import UserError
from harness.models.chat import ChatInputs, Message, chat_tokens
from harness.models.demonstration import Demonstrations
from harness.skills.skill import Skill

CALLS = "tool_calls"  # key of a message


def try_template(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Sequence[Message]],
    place: str,
    chat: ChatInputs,
) -> None:
    """Raises UserError at ``place`` if the chat template refuses a prompt.

    One of each sequence of roles is tried. A template that drops the calls of tools is refused too:
    the model would read answers to nothing.
    """
    by_roles = {tuple(map(_role, prompt)): prompt for prompt in prompts}
    for roles, prompt in by_roles.items():
        if any(calls for _, calls in roles) and CALLS not in tokenizer.get_chat_template():
            raise UserError(
                place,
                f"the model's chat template drops the calls of tools (`{CALLS}`)",
                "write each call into the `content` of its turn, or use another model",
            )
        chat_tokens(tokenizer, prompt, place, chat)


def _role(message: Message) -> tuple[str, bool]:
    """The role of a message, and whether it calls tools."""
    return message["role"], bool(message.get(CALLS))


def live_turns(tokenizer: PreTrainedTokenizerBase, skill: Skill, chat: ChatInputs) -> Iterator[str]:
    """A line where demonstrations are no turns as the chat template writes finished ones."""
    rows = Demonstrations(tokenizer, tokenizer.eos_token_id or 0, chat)
    demonstrations = [
        (example.prompt, example.demonstration)
        for example in skill.examples("train")
        if example.demonstration is not None
    ]
    live = sum(rows.text(prompt, text)[1] for prompt, text in demonstrations)
    if live:
        yield (
            f"skill {skill.name}: {live} of {len(demonstrations)} demonstrations are learned as "
            "live turns; the chat template writes them otherwise in a finished conversation "
            "(docs/how-to/my-model.md)"
        )
