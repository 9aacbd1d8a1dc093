"""Rows that do not fit the model's positions: refused before any weights load, or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from harness.base.errors import UserError
from harness.evaluation.skills import sample_of
from harness.learning.options import TeacherOption, TeacherSamplesOptions
from harness.learning.outlook import Lengths
from harness.models.chat import ChatInputs, Message, chat_tokens
from harness.models.context import positions
from harness.models.demonstration import Demonstrations
from harness.models.load import source_of
from harness.models.rope import Border, answer_side, border_of
from harness.runs.methods import MethodSpec
from harness.runs.order import Order
from harness.skills.skill import Example, Skill
from harness.skills.templates import ORACLE_TEMPLATE, TEACHER_TEMPLATES, turn_text

MARGIN = 512  # tokens that a chat template may add to turns, beside what it adds to an empty one
REMEDY = (
    "lower max_new_tokens, leave longer training prompts out with rollout.max_prompt_tokens, or "
    "set too_long: leave_out"
)


@dataclass(frozen=True)
class Use:
    """What the model reads at once of each example of a split.

    what: in words; examples: those that are read; prompt: f(example) -> tokens that are there at
    first; answer: tokens that are sampled behind them, of which the last one is not read.
    """

    split: str
    what: str
    examples: list[Example]
    prompt: Callable[[Example], int]
    answer: int = 1

    def length(self, example: Example) -> int:
        """Tokens that are read in all; 0 for an example that is left out."""
        prompt = self.prompt(example)
        return prompt and prompt + self.answer - 1


def check_context(order: Order, tokenizer: PreTrainedTokenizerBase, source: str) -> list[str]:
    """Check that all that ``order`` lets the model read at once has a position in it.

    source: folder or hub id of the model; another model that reads its rows may have fewer
    positions. Returns a line for each split of which rows are left out
    (``too_long: leave_out``), which then are no examples of the skill any more. Raises UserError
    for rows that do not fit elsewhere, and where none would be left; and for rows that cross, or
    may not reach, the length at which the model's rotary positions change.
    """
    config = AutoConfig.from_pretrained(
        source, revision=order.model.revision, trust_remote_code=False
    )
    context = _Context(order, tokenizer)
    most, border = _positions(order, config), border_of(config)
    notes = [] if most is None else context.check(most)
    if border is not None:
        context.check_sides(border)
    return notes


def _positions(order: Order, config: PretrainedConfig) -> int | None:
    """The fewest positions of the order's model and of those that read the same rows beside it."""
    names = {name for spec in order.all_methods.values() for name in spec.models()}
    others = [AutoConfig.from_pretrained(source_of(n), trust_remote_code=False) for n in names]
    limits = [most for each in (config, *others) if (most := positions(each)) is not None]
    return min(limits, default=None)


class _Context:
    """most: positions of the model, once ``check`` has been called."""

    def __init__(self, order: Order, tokenizer: PreTrainedTokenizerBase) -> None:
        self.order = order
        self.tokenizer = tokenizer
        self.leaves_out = order.too_long == "leave_out"
        # Of all inputs that templates are given, as a tool's description or a long system prompt.
        inputs = [order.chat_template.inputs(use) for use in ("evaluate", "student", "teacher")]
        empty: list[Message] = [{"role": "user", "content": "?"}]
        self.margin = MARGIN + max(self._tokens(empty, each) for each in inputs)

    def check(self, most: int) -> list[str]:
        """The lines of ``check_context`` about rows that are left out."""
        self.most = most
        for label, spec in self.order.methods.items():
            self._check_conversations(label, spec)
        notes = []
        for skill in self.order.skills:
            too_long: dict[str, dict[str, int]] = {}  # {split: {id: tokens}}
            for use in self._uses(skill):
                longer = self._longer(skill, use)
                if longer and not self.leaves_out:
                    self._refuse(skill, use, longer, REMEDY)
                too_long.setdefault(use.split, {}).update(longer)
            notes += [self._leave_out(skill, split, ids) for split, ids in too_long.items() if ids]
        return notes

    def _longer(self, skill: Skill, use: Use) -> dict[str, int]:
        """{id: tokens} of the examples that do not fit."""
        longer = {}
        for example in use.examples:
            if self._surely_fits(skill, example, self.most):
                continue
            length = use.length(example)
            if length > self.most:
                longer[example.id] = length
        return longer

    def check_sides(self, border: Border) -> None:
        """Raises UserError for a row that crosses ``border`` while it is sampled."""
        for skill in self.order.skills:
            for use in [*self._uses(skill), *self._sampled(skill)]:
                for example in use.examples:
                    if self._surely_fits(skill, example, border[0]):
                        continue
                    if prompt := use.prompt(example):
                        place = f"skill {skill.name}, split {use.split} ({use.what})"
                        answer_side(border, prompt, use.answer, place)
        for label, spec in self.order.methods.items():
            for prompt, limit in self._conversations(spec):
                place = f"{self.order.place}: methods.{label}"
                answer_side(border, prompt, limit, place)

    def _surely_fits(self, skill: Skill, example: Example, most: int) -> bool:
        """Whether all texts of an example fit together: a token has at least one byte."""
        template = self.order.template(skill) or skill.teacher_template
        turns = TEACHER_TEMPLATES[template] if isinstance(template, str) else template
        texts = [turn_text(turn) for turn in [*example.prompt, *turns, *ORACLE_TEMPLATE]]
        texts += [example.demonstration or "", example.source or ""]
        limit = max(self.order.limit(skill), self.order.limit(skill, rollout=True))
        roles = len(example.prompt) + len(turns)
        size = sum(len(text.encode()) for text in texts)
        return size + limit + self.margin * (1 + roles // 4) <= most

    def _refuse(self, skill: Skill, use: Use, longer: dict[str, int], remedy: str) -> None:
        raise UserError(
            f"skill {skill.name}, split {use.split}",
            f"{len(longer)} of {len(use.examples)} rows do not fit the model's {self.most} "
            f"positions: {use.what} takes up to {max(longer.values())} tokens "
            f"(row {max(longer, key=longer.__getitem__)})",
            remedy,
        )

    def _leave_out(self, skill: Skill, split: str, longer: dict[str, int]) -> str:
        examples = skill.examples(split)
        rest = [example for example in examples if example.id not in longer]
        text = (
            f"skill {skill.name}, split {split}: {len(longer)} of {len(examples)} rows are left "
            f"out, with up to {max(longer.values())} tokens they do not fit the model's "
            f"{self.most} positions"
        )
        if not rest:
            raise UserError(
                f"skill {skill.name}, split {split}",
                f"no row fits the model's {self.most} positions",
                "lower max_new_tokens, or take a model that reads more",
            )
        skill.keep(split, rest)
        return text

    # ---- what is read --------------------------------------------------------------------------

    def _uses(self, skill: Skill) -> Iterator[Use]:
        order = self.order
        evaluate, teacher = map(order.chat_template.inputs, ("evaluate", "teacher"))
        limit = order.limit(skill)

        def asked(example: Example) -> int:
            return self._tokens(example.prompt, evaluate)

        def taught(example: Example) -> int:
            return self._tokens(skill.teacher_prompt(example, order.template(skill)), teacher)

        def retrieved(example: Example) -> int:
            return self._tokens(skill.teacher_prompt(example, ORACLE_TEMPLATE), evaluate)

        def use(split: str, what: str, prompt: Callable[[Example], int]) -> Use:
            return Use(split, what, self._measured(skill, split), prompt, limit)

        teachers = [order.teacher_split(skill)] if order.evaluate.teacher else []
        for split in dict.fromkeys([*order.splits(skill), *teachers]):
            yield use(split, "a prompt and its answer", asked)
        for split in teachers:
            yield use(split, "the teacher's prompt", taught)
        for split in order.reported(skill) if order.evaluate.oracle else []:
            yield use(split, "a prompt with its source", retrieved)
        yield self._training(skill)

    def _measured(self, skill: Skill, split: str) -> list[Example]:
        """The examples of a split that are measured; all, where others take a place left free."""
        order, examples = self.order, skill.examples(split)
        if self.leaves_out:
            return examples
        counts = [order.evaluate.examples]
        if split == order.evaluate.split:
            asked = (order.pass_at_k, order.kl, order.drift if order.drifts else None)
            counts += [section.prompts for section in asked if section]
        return sample_of(examples, None if None in counts else max(filter(None, counts)))

    def _training(self, skill: Skill) -> Use:
        # The rows that are left out are the same whatever --method says.
        specs = self.order.all_methods if self.leaves_out else self.order.methods

        def longest(lengths: Lengths) -> int:
            return max(spec.ask("longest", lengths) for spec in specs.values())

        return self._of_train(skill, "what a method reads", longest)

    def _sampled(self, skill: Skill) -> Iterator[Use]:
        """What a method may sample answers to while it learns."""
        limit = self.order.limit(skill, rollout=True)
        yield self._of_train(skill, "a prompt and its rollout", lambda it: it.prompt, limit)
        for spec in self.order.methods.values():
            if isinstance(spec.config, TeacherSamplesOptions):
                shown = partial(Lengths.teacher_prompt, context=spec.config.teacher_context)
                yield self._of_train(skill, "the teacher's prompt and its answer", shown, limit)

    def _of_train(
        self, skill: Skill, what: str, prompt: Callable[[Lengths], int], answer: int = 1
    ) -> Use:
        """What is read of the training examples whose own prompt is not too long."""
        order = self.order
        student, teacher = map(order.chat_template.inputs, ("student", "teacher"))
        rows = Demonstrations(self.tokenizer, self.tokenizer.eos_token_id or 0, student)
        longest_prompt = order.rollout.max_prompt_tokens

        def tokens(example: Example) -> int:
            lengths = Lengths(
                rows, skill, example, order.template(skill), order.limit(skill, True), teacher
            )
            if longest_prompt and lengths.prompt > longest_prompt:
                return 0  # left out for its prompt
            return prompt(lengths)

        return Use("train", what, skill.examples("train"), tokens, answer)

    def _conversations(self, spec: MethodSpec) -> list[tuple[int, int]]:
        """(tokens, tokens of an answer) of each prompt that a method has and no skill."""
        order = self.order
        if isinstance(spec.config, TeacherOption):  # its own conversations are training examples
            messages = [m for part in spec.parts for m in part.conversations(spec.place)]
        else:
            messages = spec.conversations(order)
        limit = max(order.limit(skill, rollout=True) for skill in order.skills)
        chat = order.chat_template.inputs("student")
        return [(self._tokens(each, chat), limit) for each in messages]

    def _check_conversations(self, label: str, spec: MethodSpec) -> None:
        """Raises UserError where prompts that no skill has do not fit with their answers."""
        lengths = [prompt + limit - 1 for prompt, limit in self._conversations(spec)]
        longer = [length for length in lengths if length > self.most]
        if longer:
            raise UserError(
                f"{self.order.place}: methods.{label}",
                f"{len(longer)} of {len(lengths)} further prompts do not fit the model's "
                f"{self.most} positions: up to {max(longer)} tokens with an answer",
                "lower max_new_tokens, or give other prompts",
            )

    def _tokens(self, messages: Sequence[Message], chat: ChatInputs) -> int:
        return len(chat_tokens(self.tokenizer, messages, inputs=chat))
