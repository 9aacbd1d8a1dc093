"""The estimate of --plan: what a method's ``work`` may ask, and what it returns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

from harness.learning.lessons import TeacherTemplate
from harness.models.chat import ChatInputs, chat_tokens
from harness.models.demonstration import Demonstrations
from harness.models.others import STARTS, weights_in
from harness.sampling.sampler import common_prefix
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Work:
    """What a method does for each prompt drawn, in tokens and completions, means over a skill.

    ``held``, ``kept``, ``gold_rows`` and ``further`` are of the whole stage.
    """

    learned: float = 0  # tokens through a forward and a backward pass
    scored: float = 0  # tokens through a forward pass alone
    read: float = 0  # prompt tokens read before sampling
    answers: float = 0  # completions sampled at the prompt's own step
    beforehand: float = 0  # completions sampled before the first step
    sampled: float = 0  # tokens of one completion
    copies: int = 0  # copies of the model that stay in memory, beside the one that learns
    averaged: bool = False  # whether one of the copies is a moving average
    # Models loaded beside it, by what Stage.start takes: their weights, 1 for as many as it has
    starts: Mapping[str, float] = field(default_factory=dict)
    held: float = 0  # bytes of float32 tensors that parts have in memory beside the masters
    shown: float = 0  # prompt tokens before each question that is evaluated
    kept: float = 0  # bytes of the method's state_dict() after the stage, on disk for later ones
    gold_rows: float = 0  # training examples with gold answers kept for later stages
    further: float = 0  # prompts drawn in a stage beside its budget: replayed, or outside its steps

    def __post_init__(self) -> None:
        """Raises ValueError for a number that is not finite."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "starts" and not math.isfinite(value):
                raise ValueError(f"{each.name} is {value!r}, not a finite number")

    def with_start(self, of: str, outlook: Outlook) -> Work:
        """This work with what ``Stage.start(of)`` loads; in the first stage both starts are one."""
        of = "stage" if of == "run" and not outlook.earlier else of
        return replace(self, starts={**self.starts, of: outlook.size_of(of)})

    def loaded(self, keeps_start: bool) -> float:
        """Weights of ``starts``; keeps_start: whether what is trained keeps that of the stage."""
        return sum(size for of, size in self.starts.items() if of != "stage" or not keeps_start)


class Lengths:
    """Lengths, in tokens, of what a method may make of one training example.

    limit: of a rollout.
    """

    def __init__(
        self,
        rows: Demonstrations,
        skill: Skill,
        example: Example,
        template: TeacherTemplate | None,
        limit: int,
        teacher_chat: ChatInputs,
    ) -> None:
        self._rows = rows
        self._skill = skill
        self._example = example
        self._template = template
        self._teacher_chat = teacher_chat
        self.limit = limit

    @cached_property
    def prompt(self) -> int:
        """Of the student's prompt."""
        rows = self._rows
        return len(chat_tokens(rows.tokenizer, self._example.prompt, inputs=rows.inputs))

    @cached_property
    def demonstration(self) -> int:
        """Of the demonstration as a turn, with the token that closes it; 0 where there is none."""
        text = self._example.demonstration
        return 0 if text is None else len(self._rows.tokens(self._example.prompt, text))

    @cached_property
    def source(self) -> int:
        """Of the text that the demonstration rests on; 0 where there is none."""
        tokenizer = self._rows.tokenizer
        return len(tokenizer(self._example.source or "", add_special_tokens=False)["input_ids"])

    def teacher_prompt(self, context: str | None = None) -> int:
        """Of the teacher's prompt; context: as in Skill.teacher_prompt."""
        messages = self._skill.teacher_prompt(self._example, self._template, context)
        return len(chat_tokens(self._rows.tokenizer, messages, inputs=self._teacher_chat))


class Outlook:
    """What is known of a skill before it is learned.

    tokenizer; skill; template: shows the teacher what it sees; limit: tokens of a rollout at most;
    prompts: the budget; earlier: what is known of the skills learned before; later: skills still to
    come; parameters: weights of the model. Means over the first 32 training examples, in tokens:
    prompt; demonstration, 0 where there is none. In bytes: prompt_bytes of the prompt's texts;
    example_bytes of a kept example. shared: tokens that all of these prompts begin with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skill: Skill,
        template: TeacherTemplate | None,
        limit: int,
        prompts: int,
        parameters: int = 0,
    ) -> None:
        self.parameters = parameters
        self.earlier: Sequence[Outlook] = ()
        self.later = 1
        self.tokenizer = tokenizer
        self.skill = skill
        self.template = template
        self.limit = limit
        self.prompts = prompts
        self.examples = skill.examples("train")[:32]
        prompt_ids = [chat_tokens(tokenizer, example.prompt) for example in self.examples]
        self.prompt = statistics.fmean(map(len, prompt_ids))
        self.shared = common_prefix(prompt_ids)
        demonstration_lengths = [
            len(tokenizer(example.demonstration)["input_ids"])
            for example in self.examples
            if example.demonstration is not None
        ]
        self.demonstration = (
            statistics.fmean(demonstration_lengths) if demonstration_lengths else 0.0
        )
        self.prompt_bytes = statistics.fmean(map(prompt_bytes, self.examples))
        self.example_bytes = statistics.fmean(
            len(str(asdict(example)).encode()) for example in self.examples
        )

    def size_of(self, start: str) -> float:
        """Weights of what ``Stage.start`` loads, in those of the model that learns."""
        is_other = start not in STARTS and self.parameters
        return weights_in(start) / self.parameters if is_other else 1.0

    def reading(self, rows: int, batch: int) -> float:
        """Tokens to read of ``rows`` prompts, ``batch`` at a time.

        A batch reads once what all of its prompts begin with.
        """
        batches = -(-rows // batch)
        return rows * (self.prompt - self.shared) + batches * self.shared

    @property
    def answer(self) -> float:
        """Tokens of a sampled answer: as many as a demonstration has, up to the limit."""
        return min(self.limit, self.demonstration or self.limit)

    @property
    def answer_bytes(self) -> float:
        """Bytes of a sampled answer, whose tokens are as long as the prompt's."""
        return self.answer * self.prompt_bytes / self.prompt

    def teacher_prompt(
        self,
        context: str | None = None,
        template: TeacherTemplate | None = None,
        split: str | None = None,
    ) -> float:
        """Mean tokens of the teacher's prompt.

        context, template: as in Skill.teacher_prompt; split: the training examples if left out.
        """
        examples = self.skill.examples(split)[:32] if split else self.examples
        prompts = [
            self.skill.teacher_prompt(example, template or self.template, context)
            for example in examples
        ]
        return statistics.fmean(len(chat_tokens(self.tokenizer, prompt)) for prompt in prompts)


def prompt_bytes(example: Example) -> int:
    """Bytes of the texts of an example's prompt."""
    return sum(len(message["content"].encode()) for message in example.prompt)
