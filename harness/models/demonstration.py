"""What a demonstration is as tokens: the turn that the model would have to write.

It is what the chat template writes behind the generation prompt when the demonstration is the last
turn of the conversation, up to the token that closes the turn. What follows that token carries no
loss. Some templates write a finished turn otherwise than a model writes a live one: they drop its
thoughts, or the generation prompt opens a thought that no finished turn has. Then the row is the
live turn: the template's header, the demonstration as it stands, the token that closes the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from harness.base.errors import UserError
from harness.models.chat import ChatInputs, Message, around_answer, encode, render, thoughts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", ".", "x")


class Demonstrations:
    """Turns demonstrations into rows.

    end: the id that closes a turn; inputs: what the chat template is given.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, end: int, inputs: ChatInputs | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.end = end
        self.inputs = inputs
        self.closing = tokenizer.decode([end])
        self.thoughts = thoughts_of(tokenizer)
        _, self.header, self.tail = around_answer(tokenizer, inputs)

    @cached_property
    def before_closing(self) -> str:
        """What the template writes between an answer and the token that closes the turn."""
        text, found, _ = self.tail.partition(self.closing)
        return text if found else ""

    def tokens(self, messages: Sequence[Message], demonstration: str) -> list[int]:
        """Token ids that follow those of ``messages``, the last one closes the turn.

        They are the end of the whole conversation's ids, wherever these begin with the prompt's. In
        some tokenizers the last token of the prompt would join the first one of the answer: then it
        is the answer's own tokens, in which no blank is invented. Raises UserError where no tokens
        give the text.
        """
        prompt = render(self.tokenizer, messages, inputs=self.inputs)
        answer, _ = self.text(messages, demonstration)
        read = encode(self.tokenizer, prompt)
        whole = encode(self.tokenizer, prompt + answer + self.closing)
        if whole[-1] != self.end:  # the closing token is plain text and has joined the answer
            whole = [*encode(self.tokenizer, prompt + answer), self.end]
        if whole[: len(read)] == read:
            return whole[len(read) :]
        text = self.tokenizer.decode(whole)
        for anchor in ("", *ANCHORS):
            before = encode(self.tokenizer, anchor) if anchor else []
            tokens = encode(self.tokenizer, anchor + answer)
            behind = [*tokens[len(before) :], self.end]
            if tokens[: len(before)] == before and self.tokenizer.decode(read + behind) == text:
                return behind
        raise UserError(
            "model",
            f"its tokenizer cannot write {answer[:40]!r} behind a prompt",
            "use another model, or another chat template",
        )

    def text(self, messages: Sequence[Message], demonstration: str) -> tuple[str, bool]:
        """(the turn behind the generation prompt without the closing token, whether it is live).

        live: whether the template's own form of a finished turn could not be taken.
        """
        prompt = render(self.tokenizer, messages, inputs=self.inputs)
        turn = {"role": "assistant", "content": demonstration}
        try:
            whole = render(self.tokenizer, [*messages, turn], inputs=self.inputs, answered=True)
        except UserError:  # gpt-oss wants thoughts outside the content
            whole = ""
        if whole.startswith(prompt) and whole.endswith(self.tail):
            text = whole[len(prompt) : len(whole) - len(self.tail)]
            if all(part in text for part in self._parts(demonstration)):
                return text + self.before_closing, False
        return self._live(prompt, demonstration) + self.before_closing, True

    def _parts(self, demonstration: str) -> list[str]:
        """The thought and the answer of a demonstration, which a template may put apart."""
        parts = [demonstration]
        if self.thoughts:
            parts = demonstration.replace(self.thoughts.open, self.thoughts.close).split(
                self.thoughts.close
            )
        return [part.strip() for part in parts]

    def _live(self, prompt: str, demonstration: str) -> str:
        """The turn as a model would write it."""
        header = self.header or ""
        tags = self.thoughts
        if tags is None:
            return header + demonstration
        before = prompt.rstrip()
        if tags.close not in demonstration:
            if before.endswith(tags.open) and tags.close not in header:
                # Otherwise it would be taught as a thought that never ends.
                return f"\n{tags.close}\n\n{demonstration}"
            return header + demonstration
        if before.endswith(tags.close):  # the prompt is without thoughts, and so is the answer
            return tags.answer(demonstration)
        if before.endswith(tags.open):
            first, opened, rest = demonstration.partition(tags.open)
            if opened and not first.strip():  # the prompt has opened the thought
                space = prompt[len(before) :]
                return rest.removeprefix(space)
        return demonstration
