"""What a skill is: examples to learn from, a grader, a reward, and what a self-distillation teacher
is shown.

A skill of the project is one file in ``benchmarks/skills``; a user's own is a JSONL file named in
the order (:class:`FileSkill`). Nothing here knows a skill by name.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property

from harness.base.errors import UserError, did_you_mean
from harness.skills.templates import TEACHER_TEMPLATES


@dataclass(frozen=True)
class Example:
    """One question of a skill.

    prompt: chat messages ``[{"role", "content"}, ...]`` that end in a user turn; demonstration: the
    text of a good response (None where a split has none); reference: what the grader compares with
    (any JSON value); source: the text that the demonstration rests on, where there is one (an
    article).
    """

    id: str
    prompt: list
    demonstration: str | None
    reference: object
    source: str | None = None


class Skill:
    """Base of every skill. A subclass sets the attributes and gives ``load`` and ``metrics``.

    ``load(split)`` returns a list of Example, the same on every machine. ``metrics`` maps a
    metric's name to ``f(completion, reference) -> float in [0, 1]``; the first is the one that
    counts. ``checksums`` pins the data: a split whose SHA-256 differs is refused.
    """

    name = ""
    description = ""  # one line: what is learned, where the data comes from, its licence
    splits = ("train", "validation", "test")  # further ones (as "ood") are evaluated like the test
    max_new_tokens = 256  # at evaluation and in rollouts, unless the order says otherwise
    teacher_template = "paper"
    # a rubric of harness/skills/rubrics.py: its answers are also judged by a model, where the order
    # has one
    judge = None
    checksums: dict = {}
    options: tuple = ()  # keyword arguments that an order may give, as ``path``

    def load(self, split):
        raise TypeError(f"skill {self.name!r} has no load()")

    @property
    def metrics(self):
        raise TypeError(f"skill {self.name!r} has no metrics")

    def reward(self, completion, reference):
        """For reinforcement learning, in [0, 1]; may be graded more finely than the metric that
        counts.
        """
        return self.grade(completion, reference)

    @cached_property
    def _examples(self):
        return {}

    def examples(self, split):
        """All examples of ``split``, in the skill's own order.

        Raises UserError for an unknown split and for data that differ from the pinned checksum.
        """
        if split not in self.splits:
            raise UserError(
                f"skill {self.name}", f"has no split {split!r}", did_you_mean(split, self.splits)
            )
        if split not in self._examples:
            rows = self.load(split)
            found, pinned = examples_fingerprint(rows), self.checksums.get(split)
            if pinned and found != pinned:
                raise UserError(
                    f"skill {self.name}, split {split}",
                    f"the data have SHA-256 {found[:12]}, not {pinned[:12]}",
                    "install the pinned packages: pip install -r requirements.txt",
                )
            self._examples[split] = rows
        return self._examples[split]

    @property
    def metric(self):
        """Name of the metric that counts."""
        return next(iter(self.metrics))

    def grade(self, completion, reference):
        """The metric that counts, in [0, 1]."""
        return self.metrics[self.metric](completion, reference)

    def reference(self, row, place):
        """What a row of completions made elsewhere is graded against: its ``reference``, unless the
        skill knows its own columns.

        Raises UserError naming ``place`` where there is none.
        """
        if "reference" not in row:
            raise UserError(
                f"{place}: reference",
                "is missing",
                f"the answer is compared with it, as in the skill {self.name}",
            )
        return row["reference"]

    def teacher_prompt(self, example, template=None, context=None):
        """Chat messages for the teacher: ``example.prompt`` with the last user turn replaced by the
        template.

        template: the name of one of TEACHER_TEMPLATES or a list of messages with ``{question}``,
        ``{demonstration}`` and ``{source}`` in their contents; the skill's own by default. context:
        one of TEACHER_CONTEXTS, shown in the template's style instead of what it shows itself.
        Raises UserError if the example lacks what is asked for.
        """
        template = template or self.teacher_template
        if context:
            if not isinstance(template, str):
                raise UserError(
                    f"skill {self.name}",
                    "its teacher_template is written out: teacher_context cannot change it",
                    "name one of " + ", ".join(TEACHER_TEMPLATES),
                )
            style = template.removesuffix("_source").removesuffix("_both")
            template = style if context == "demonstration" else f"{style}_{context}"
        turns = TEACHER_TEMPLATES[template] if isinstance(template, str) else template
        values = {
            "question": example.prompt[-1]["content"],
            "demonstration": example.demonstration,
            "source": example.source,
        }

        def fill(match):
            value = values[match[1]]
            if value is None:
                raise UserError(
                    f"skill {self.name}, example {example.id}",
                    f"has no {match[1]}",
                    "choose a teacher_template that does not ask for it",
                )
            return value

        # one pass: braces inside the values stay
        pattern = re.compile(r"\{(question|demonstration|source)\}")
        return list(example.prompt[:-1]) + [
            {"role": turn["role"], "content": pattern.sub(fill, turn["content"])} for turn in turns
        ]


def examples_fingerprint(examples):
    """SHA-256 of a list of examples, over canonical JSON."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(
            json.dumps(asdict(example), sort_keys=True, ensure_ascii=False).encode() + b"\n"
        )
    return digest.hexdigest()
