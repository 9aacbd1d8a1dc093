"""What a skill is: examples to learn from, a grader, a reward, and what a self-distillation teacher is shown.

A skill of the project is one file in ``benchmarks/skills``; a user's own is a JSONL file named in the order
(:class:`FileSkill`). Nothing here knows a skill by name.
"""

import hashlib
import importlib
import importlib.util
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from harness.errors import UserError, did_you_mean

_SOURCE = "This is a text that the answer to the question rests on:\n{source}\n\n"
_EXAMPLE = "This is an example for a response to the question:\n{demonstration}\n\n"
_OWN = "Now answer with a response of your own, including the thinking process:"

# What stands in place of the last user turn for the teacher. Data, so that an order file can hold its own. A name says the
# style; what the teacher is shown is the demonstration, the source (`_source`) or both (`_both`), as in the paper's figure 7.
TEACHER_TEMPLATES = {
    # The paper's (arXiv 2601.19897, section 3); it does not print the one with a text, which is ours in its words.
    "paper": [{"role": "user", "content": "{question}\n\n" + _EXAMPLE + _OWN}],
    "paper_source": [{"role": "user", "content": "{question}\n\n" + _SOURCE + _OWN}],
    "paper_both": [{"role": "user", "content": "{question}\n\n" + _SOURCE + _EXAMPLE + _OWN}],
    # That of the authors' released code: its white space and its full stop.
    "released": [{"role": "user", "content": "\n{question}\n\n" + _EXAMPLE + _OWN[:-1] + ".\n"}],
    "released_source": [{"role": "user", "content": "\n{question}\n\n" + _SOURCE + _OWN[:-1] + ".\n"}],
    "released_both": [{"role": "user", "content": "\n{question}\n\n" + _SOURCE + _EXAMPLE + _OWN[:-1] + ".\n"}],
    # Small models do not follow the sentences above, but they do imitate an earlier turn of their own.
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

# Oracle retrieval (the paper's table 1): the text that holds the answer, found for the model and put before the question.
ORACLE_TEMPLATE = [{"role": "user", "content": "{source}\n\n{question}"}]


@dataclass(frozen=True)
class Example:
    """One question of a skill.

    prompt: chat messages ``[{"role", "content"}, ...]`` that end in a user turn; demonstration: the text of a good
    response (None where a split has none); reference: what the grader compares with (any JSON value); source: the
    text that the demonstration rests on, where there is one (an article).
    """

    id: str
    prompt: list
    demonstration: str | None
    reference: object
    source: str | None = None


class Skill:
    """Base of every skill. A subclass sets the attributes and gives ``load`` and ``metrics``.

    ``load(split)`` returns a list of Example, the same on every machine. ``metrics`` maps a metric's name to
    ``f(completion, reference) -> float in [0, 1]``; the first is the one that counts. ``checksums`` pins the data: a split
    whose SHA-256 differs is refused.
    """

    name = ""
    description = ""  # one line: what is learned, where the data comes from, its licence
    splits = ("train", "validation", "test")  # further ones (as "ood") are evaluated like the test
    max_new_tokens = 256  # at evaluation and in rollouts, unless the order says otherwise
    teacher_template = "paper"
    judge = None  # a rubric of benchmarks/judges.py: its answers are also judged by a model, where the order has one
    checksums: dict = {}
    options: tuple = ()  # keyword arguments that an order may give, as ``path``

    def load(self, split):
        raise TypeError(f"skill {self.name!r} has no load()")

    @property
    def metrics(self):
        raise TypeError(f"skill {self.name!r} has no metrics")

    def reward(self, completion, reference):
        """For reinforcement learning, in [0, 1]; may be graded more finely than the metric that counts."""
        return self.grade(completion, reference)

    @cached_property
    def _examples(self):
        return {}

    def examples(self, split):
        """All examples of ``split``, in the skill's own order.

        Raises UserError for an unknown split and for data that differ from the pinned checksum.
        """
        if split not in self.splits:
            raise UserError(f"skill {self.name}", f"has no split {split!r}", did_you_mean(split, self.splits))
        if split not in self._examples:
            rows = self.load(split)
            found, pinned = fingerprint(rows), self.checksums.get(split)
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
        """What a row of completions made elsewhere is graded against: its ``reference``, unless the skill knows its own columns.

        Raises UserError naming ``place`` where there is none.
        """
        if "reference" not in row:
            raise UserError(f"{place}: reference", "is missing", f"the answer is compared with it, as in the skill {self.name}")
        return row["reference"]

    def teacher_prompt(self, example, template=None, context=None):
        """Chat messages for the teacher: ``example.prompt`` with the last user turn replaced by the template.

        template: the name of one of TEACHER_TEMPLATES or a list of messages with ``{question}``, ``{demonstration}`` and
        ``{source}`` in their contents; the skill's own by default. context: one of TEACHER_CONTEXTS, shown in the template's
        style instead of what it shows itself. Raises UserError if the example lacks what is asked for.
        """
        template = template or self.teacher_template
        if context:
            if not isinstance(template, str):
                raise UserError(f"skill {self.name}", "its teacher_template is written out: teacher_context cannot change it",
                                "name one of " + ", ".join(TEACHER_TEMPLATES))
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
                raise UserError(f"skill {self.name}, example {example.id}", f"has no {match[1]}",
                                "choose a teacher_template that does not ask for it")
            return value

        pattern = re.compile(r"\{(question|demonstration|source)\}")  # one pass: braces inside the values stay
        return list(example.prompt[:-1]) + [
            {"role": turn["role"], "content": pattern.sub(fill, turn["content"])} for turn in turns
        ]


def fingerprint(examples):
    """SHA-256 of a list of examples, over canonical JSON."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


class FileSkill(Skill):
    """A user's own skill: one JSONL file a split, the name of a grader, no code.

    Each row holds ``prompt`` (a text or chat messages), ``demonstration`` (text; may be absent outside train),
    ``reference`` (any JSON value) and optionally ``id`` and ``source``.
    """

    def __init__(self, name, files, grader, place="order"):
        from benchmarks.graders import GRADERS

        if grader not in GRADERS:
            raise UserError(place, f"unknown grader {grader!r}", did_you_mean(grader, GRADERS))
        self.name, self.files, self.splits = name, {k: Path(v) for k, v in files.items()}, tuple(files)
        self.description = f"{name}, from " + ", ".join(p.name for p in self.files.values())
        self._metrics = {grader: GRADERS[grader]}
        for path in self.files.values():
            if not path.is_file():
                raise UserError(place, f"{path} is not a file", "give the path of a JSONL file")

    metrics = property(lambda self: self._metrics)

    def reference(self, row, place):
        reference = super().reference(row, place)
        if reference == []:
            raise UserError(place, "`reference` is an empty list", "name at least one right answer")
        return reference

    def load(self, split):
        path, rows = self.files[split], []
        for number, row in read_jsonl(path):
            place = f"{path}, row {number}"
            prompt = chat_prompt(row, place)
            if "reference" not in row:
                raise UserError(place, "has no `reference`", "the grader compares the answer with it")
            demonstration = row.get("demonstration")
            if not (isinstance(demonstration, str) or (demonstration is None and split != "train")):
                raise UserError(place, "`demonstration` must be a text", "a train row shows a good response")
            if not isinstance(row.get("source"), str | None):
                raise UserError(place, "`source` must be a text")
            rows.append(Example(str(row.get("id", number)), prompt, demonstration, self.reference(row, place), row.get("source")))
        if not rows:
            raise UserError(path, "has no rows")
        return rows


def chat_prompt(row, place):
    """The ``prompt`` of a JSONL row as chat messages. Raises UserError at ``place`` if it is neither a text nor messages."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    good = isinstance(prompt, list) and prompt and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt)
    if not good or prompt[-1]["role"] != "user":
        raise UserError(place, "`prompt` must be a text or chat messages that end in a user turn")
    return prompt


def read_jsonl(path):
    """Yields (row number from 1, object) of a JSONL file. Raises UserError for a row that is not a JSON object."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({error.__class__.__name__})", "give a JSONL file in UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                if "\\ud" in line.lower():  # in a UTF-8 file only an escape can be half a character
                    json.dumps(row, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, row {number}", f"is not JSON ({error.msg} at column {error.colno})") from None
            except UnicodeEncodeError as error:
                raise UserError(f"{path}, row {number}", f"holds half a character ({error.object[error.start]!r})",
                                "write both halves, or the character itself") from None
            except (ValueError, RecursionError) as error:  # thousands of digits, or of lists in lists
                raise UserError(f"{path}, row {number}", f"cannot be read ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {number}", "is not a JSON object")
            yield number, row


def named(folder, package, name, base, kind, place):
    """The subclass of ``base`` in ``folder/name.py``: found by file name, imported only when asked for."""
    names = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    if name not in names:
        raise UserError(place, f"unknown {kind} {name!r}", did_you_mean(name, names))
    return only_subclass(importlib.import_module(f"{package}.{name}"), base, kind, place)


def only_subclass(module, base, kind, place):
    """The one class that ``module`` itself defines on top of ``base``. Raises UserError where there is not exactly one."""
    found = [c for c in vars(module).values()
             if isinstance(c, type) and issubclass(c, base) and c is not base and c.__module__ == module.__name__]
    if len(found) != 1:
        raise UserError(place, f"{module.__file__} defines {len(found)} {kind}s", f"one class on top of {base.__name__} is wanted")
    return found[0]


def get_skill(name, place="order", **options):
    """The project's skill ``name``, an instance. Raises UserError for an unknown one and for options that it does not take."""
    root = Path(__file__).resolve().parent.parent / "benchmarks" / "skills"
    cls = named(root, "benchmarks.skills", name, Skill, "skill", place)
    for option in options:
        if option not in cls.options:
            takes = "it takes " + ", ".join(cls.options) if cls.options else "leave it out"
            raise UserError(place, f"{name} takes no `{option}`", takes)
    return cls(**options)
