"""What an example's skill says of it, and the example as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.learning.packing import Row
from harness.models.chat import ChatInputs, Message, chat_tokens
from harness.models.demonstration import Demonstrations
from harness.sampling.sampler import Completion, Sampler
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TeacherTemplate = str | list[dict[str, str]]


@dataclass(frozen=True)
class Lesson:
    """A skill as an order has it.

    max_new_tokens: of a rollout; teacher_template: shows the teacher what it sees, None for the
    skill's own; short: the training examples whose prompts are not too long, None for all.
    """

    skill: Skill
    max_new_tokens: int
    teacher_template: TeacherTemplate | None = None
    short: list[Example] | None = None

    @property
    def examples(self) -> list[Example]:
        """The training examples that a stage of the skill draws from."""
        return self.skill.examples("train") if self.short is None else self.short


class Lessons:
    """The lessons of a stage, and its examples as token ids.

    own: the stage's own lesson; earlier: those of the skills that were learned before, in their
    order.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        lesson: Lesson,
        earlier: Sequence[Lesson],
        chat: ChatInputs | None,
        teacher_chat: ChatInputs | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.teacher_chat = teacher_chat
        self.earlier = list(earlier)
        self.own = lesson
        self.sampler = sampler
        self._lessons = {each.skill.name: each for each in [*earlier, lesson]}
        self._own = {lesson.skill.name}

    # ---- what an example's skill says ----------------------------------------------------------

    def add_lesson(self, lesson: Lesson, own: bool = False) -> None:
        """Let examples of a further skill be learned, one that the order does not teach.

        own: of a skill that the stage itself teaches, where it teaches several at once.
        """
        self._lessons[lesson.skill.name] = lesson
        if own:
            self._own.add(lesson.skill.name)

    def is_own(self, example: Example) -> bool:
        """Whether an example is of what the stage teaches, and not replayed."""
        return self.lesson(example).skill.name in self._own

    def lesson(self, example: Example) -> Lesson:
        """The lesson of the skill that an example belongs to."""
        return self._lessons[example.skill or self.own.skill.name]

    def reward(self, example: Example, completion: Completion) -> float:
        """The reward of a completion of the example's prompt, by its skill."""
        return float(self.lesson(example).skill.reward(completion.text, example.reference))

    def limits(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of a rollout of each example at most."""
        return [self.lesson(example).max_new_tokens for example in examples]

    def rows(
        self,
        examples: Sequence[Example],
        prompts: Sequence[list[int]],
        groups: Sequence[Sequence[Completion]],
    ) -> list[Row]:
        """A row for each completion of ``groups``, behind its example's prompt of ``prompts``."""
        return [
            Row(prompt, completion.token_ids, limit)
            for prompt, limit, group in zip(prompts, self.limits(examples), groups, strict=True)
            for completion in group
        ]

    # ---- tokens --------------------------------------------------------------------------------

    def prompt_tokens(self, example: Example) -> list[int]:
        """Token ids of the example's prompt, up to where the answer begins."""
        return self.message_tokens(example.prompt)

    def message_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of chat messages as the student reads them, up to where an answer begins."""
        return chat_tokens(self.tokenizer, messages, inputs=self.chat)

    def teacher_tokens(self, example: Example, context: str | None = None) -> list[int]:
        """Token ids of the teacher's prompt. Raises UserError if the example lacks what it shows.

        context: one of TEACHER_CONTEXTS, instead of what the template shows.
        """
        lesson = self.lesson(example)
        messages = lesson.skill.teacher_prompt(example, lesson.teacher_template, context)
        return chat_tokens(self.tokenizer, messages, inputs=self.teacher_chat)

    def demonstration_rows(self, examples: Iterable[Example]) -> list[Row]:
        """Rows of supervised learning: each example's prompt and its demonstration."""
        return [
            Row(self.prompt_tokens(example), self.demonstration_tokens(example))
            for example in examples
        ]

    def demonstration_tokens(self, example: Example) -> list[int]:
        """Token ids of the turn that the demonstration is, to the token that closes it.

        They follow those of the prompt, as the chat template writes them: see
        harness/models/demonstration.py.
        """
        if example.demonstration is None:
            raise ValueError(f"example {example.id} has no demonstration")
        return self._demonstrations.tokens(example.prompt, example.demonstration)

    @cached_property
    def _demonstrations(self) -> Demonstrations:
        return Demonstrations(self.tokenizer, self.sampler.end, self.chat)
