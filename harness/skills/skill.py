"""What a skill is: examples to learn from, a grader, a reward and the prompt of a teacher.

A skill of the project is one file in ``benchmarks/skills``. A user's own skill is a set of JSONL
files that the order names (:class:`harness.skills.files.FileSkill`). Nothing here knows a skill by
name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

from harness.base.errors import UserError, did_you_mean, one_line, plug_in, shortened
from harness.skills.graders import check_reference
from harness.skills.templates import (
    PLACEHOLDER,
    PROMPT_ENDS,
    TEACHER_TEMPLATES,
    Message,
    is_prompt,
    last_user_turn,
)

Metric = Callable[[str, Any], float]  # (completion, reference) -> score in [0, 1]


@dataclass(frozen=True)
class Example:
    """One question of a skill.

    Attributes:
        id: unique within its split.
        prompt: chat messages ``[{"role", "content"}, ...]`` that end in a user turn, or in the
            answer of a tool behind one.
        demonstration: text of a good response; None where a split has none.
        reference: any JSON value; the grader compares the completion with it.
        source: text that the demonstration rests on (an article), where there is one.
        skill: name of the skill that it belongs to; ``Skill.examples`` fills it in.
    """

    id: str
    prompt: list[Message]
    demonstration: str | None
    reference: Any
    source: str | None = None
    skill: str = field(default="", compare=False)


class AnswerTexts(Protocol):
    """What is graded of a completion: ``text``, and ``whole`` with the model's thoughts."""

    @property
    def text(self) -> str: ...

    @property
    def whole(self) -> str: ...


class Skill:
    """Base class of a skill. A subclass sets the attributes and defines ``load`` and ``metrics``.

    ``load(split)`` returns a list of Example, the same on every machine. ``metrics`` maps the name
    of a metric to ``f(completion, reference) -> float in [0, 1]``; the first metric is the one that
    counts. ``checksums`` pins the data: a split with another SHA-256 is refused. Metrics named in
    ``see_thoughts`` grade a completion with the model's thoughts, as scripts of others do; all
    others, and ``reward``, see the answer alone.
    """

    name: str = ""
    description: str = ""  # one line: what is learned, where the data comes from, its licence
    splits: tuple[str, ...] = ("train", "validation", "test")  # others ("ood") count as test data
    max_new_tokens: int = 256  # in evaluations and rollouts, unless the order sets a limit
    teacher_template: str = "paper"
    overlap_note: str = ""  # why questions of train stand in a test, where that is meant
    judge: str | None = None  # a rubric of harness/skills/rubrics.py, for orders with a judge
    see_thoughts: tuple[str, ...] = ()
    chance: float = 0.0  # the metric that counts, for guessing: 1/k where k choices are shown
    checksums: ClassVar[Mapping[str, str]] = {}
    options: tuple[str, ...] = ()  # keyword arguments that an order may pass, such as ``path``
    tasks: ClassVar[tuple[str, ...]] = ()  # of a suite, whose constructor takes one of them first
    suite: ClassVar[str] = ""  # by which `data` of an order names a release that the user has

    def load(self, split: str) -> list[Example]:
        """The examples of ``split``, in the skill's own order."""
        raise TypeError(f"skill {self.name!r} has no load()")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics by name; the first one counts."""
        raise TypeError(f"skill {self.name!r} has no metrics")

    def reward(self, completion: str, reference: Any) -> float:
        """The reward for reinforcement learning, in [0, 1].

        It may be finer than the metric that counts, which is the default.
        """
        return self.grade(completion, reference)

    def feedback(self, completion: str, reference: Any) -> str | None:
        """What is said of an answer, for methods that show it to a teacher; None for nothing.

        A judge's words or the error of a program, not the reference itself.
        """
        return None

    def notes(self) -> list[str]:
        """What a reader of its numbers should know of the data, in lines, told before a run."""
        return []

    @cached_property
    def _examples(self) -> dict[str, list[Example]]:
        return {}

    def examples(self, split: str) -> list[Example]:
        """All examples of ``split``, in the skill's own order.

        Raises UserError for an unknown split, for what is no list of whole examples, and for data
        that differ from the pinned checksum.
        """
        if split not in self.splits:
            raise UserError(
                f"skill {self.name}", f"has no split {split!r}", did_you_mean(split, self.splits)
            )
        if split not in self._examples:
            with plug_in(f"skill {self.name}", f"load({split!r})"):
                examples = self.load(split)
            self._check_examples(examples, split)
            checksum = examples_fingerprint(examples)
            pinned = self.checksums.get(split)
            if pinned and checksum != pinned:
                raise UserError(
                    f"skill {self.name}, split {split}",
                    f"the data have SHA-256 {checksum[:12]}, not {pinned[:12]}",
                    "install the pinned packages: pip install -r requirements.txt",
                )
            self._examples[split] = [replace(example, skill=self.name) for example in examples]
        return self._examples[split]

    def keep(self, split: str, examples: list[Example]) -> None:
        """Let ``examples`` be all examples of ``split`` from now on."""
        self._examples[split] = examples

    def _check_examples(self, examples: object, split: str) -> None:
        """Raises UserError if they are no list, if one is not whole, or if two have one id."""
        place = f"skill {self.name}, split {split}"
        if not isinstance(examples, list):
            found = shortened(repr(examples), 80)
            raise UserError(place, f"load() returns {found}", "it is a list of Example")
        places: dict[str, int] = {}
        for i, example in enumerate(examples, 1):
            if fault := _fault(example):
                raise UserError(f"{place}, row {i}", fault)
            first = places.setdefault(example.id, i)
            if first != i:
                raise UserError(
                    place,
                    f"examples {first} and {i} have the id {example.id!r}",
                    "give each an `id` of its own, or leave `id` out of all rows",
                )

    def check_grading(self, place: str) -> None:
        """Raises UserError at ``place`` without metrics, or with a limit that is no number."""
        with plug_in(place, f"`metrics` of {self.name}"):
            metrics = dict(self.metrics)
        if not metrics or not all(map(callable, metrics.values())):
            raise UserError(
                place,
                f"`metrics` of {self.name} is {shortened(repr(metrics), 80)}",
                "it is one function or more by name",
            )
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise UserError(
                place,
                f"`max_new_tokens` of {self.name} is {shortened(repr(self.max_new_tokens), 80)}",
                "it is a whole number of at least 1",
            )

    @property
    def metric(self) -> str:
        """Name of the metric that counts."""
        return next(iter(self.metrics))

    def grade(self, completion: str, reference: Any) -> float:
        """The score of ``completion`` by the metric that counts, in [0, 1]."""
        return self.metrics[self.metric](completion, reference)

    def score(self, metric: str, answer: AnswerTexts, reference: Any) -> float:
        """The score of an answer by ``metric``, in [0, 1]. Raises UserError for any other."""
        text = answer.whole if metric in self.see_thoughts else answer.text
        with plug_in(f"skill {self.name}", f"metric {metric}"):
            score = float(self.metrics[metric](text, reference))
        if not 0 <= score <= 1:
            raise UserError(
                f"skill {self.name}", f"metric {metric} gives {score}", "a score is from 0 to 1"
            )
        return score

    def reference(self, row: Mapping[str, Any], place: str) -> Any:
        """The reference in a row of completions that were made elsewhere.

        A skill whose data have columns of their own overrides this. Raises UserError at ``place``
        where the row has no reference, or one of nothing.
        """
        if "reference" not in row:
            raise UserError(
                f"{place}: reference",
                "is missing",
                f"the answer is compared with it, as in the skill {self.name}",
            )
        if not isinstance(row["reference"], dict):
            check_reference(row["reference"], "exact_match", place)
        return row["reference"]

    def teacher_prompt(
        self,
        example: Example,
        template: str | Sequence[Message] | None = None,
        context: str | None = None,
    ) -> list[Message]:
        """Chat messages for the teacher: the prompt with the template as its last user turn.

        What tools answer behind that turn stays behind it.

        Args:
            example: its last user turn is the ``{question}`` of the template.
            template: a name in TEACHER_TEMPLATES, or messages with ``{question}``,
                ``{demonstration}`` and ``{source}`` in their contents. Default: the skill's own.
            context: one of TEACHER_CONTEXTS: what the teacher sees, in the style of the template.
                Default: what the template itself shows.

        Raises UserError if the example lacks what the template shows.
        """
        turns = self._template_turns(template or self.teacher_template, context)
        asked = last_user_turn(example.prompt)
        values = {
            "question": example.prompt[asked]["content"],
            "demonstration": example.demonstration,
            "source": example.source,
        }

        def fill(match: re.Match[str]) -> str:
            value = values[match[1]]
            if value is None:
                raise UserError(
                    f"skill {self.name}, example {example.id}",
                    f"has no {match[1]}",
                    "choose a teacher_template that does not ask for it",
                )
            return value

        # One pass over the template, so that braces inside the values stay.
        filled = [
            {"role": turn["role"], "content": PLACEHOLDER.sub(fill, turn["content"])}
            for turn in turns
        ]
        return [*example.prompt[:asked], *filled, *example.prompt[asked + 1 :]]

    def _template_turns(
        self, template: str | Sequence[Message], context: str | None
    ) -> Sequence[Message]:
        """The messages of ``template``; with ``context``, those of its style that show it."""
        if context:
            if not isinstance(template, str):
                raise UserError(
                    f"skill {self.name}",
                    "its teacher_template is written out: teacher_context cannot change it",
                    "name one of " + ", ".join(TEACHER_TEMPLATES),
                )
            style = template.removesuffix("_source").removesuffix("_both")
            template = style if context == "demonstration" else f"{style}_{context}"
        return TEACHER_TEMPLATES[template] if isinstance(template, str) else template


def _fault(example: object) -> str:
    """What is wrong with an example; empty for one that can be read, asked and recorded."""
    if not isinstance(example, Example):
        return f"{shortened(repr(example), 80)} is no Example"
    if not is_prompt(example.prompt):
        return f"its prompt must be chat messages that {PROMPT_ENDS}"
    for name in ("demonstration", "source"):
        if not isinstance(getattr(example, name), str | None):
            return f"its {name} must be a text"
    try:
        json.dumps(asdict(example), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        return f"it has half a character ({error.object[error.start]!a}), which no file can hold"
    except (TypeError, ValueError, RecursionError) as error:
        return f"its reference or id is no JSON value ({one_line(str(error))})"
    return ""


def examples_fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of examples, as 64 hexadecimal digits, over canonical JSON."""
    digest = hashlib.sha256()
    for example in examples:
        values = asdict(example)
        del values["skill"]  # which is where it stands, not what it asks
        line = json.dumps(values, sort_keys=True, ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
