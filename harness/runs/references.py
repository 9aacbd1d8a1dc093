"""The runs of an order: each method x seed x sequence, and the references beside them.

A reference is what a sequence is compared with, made by the same method with the same settings:
``joint`` learns all skills of the order at once, ``single`` one skill alone from the base model,
``relearn`` one again from the model after the last stage.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from harness.base.errors import UserError, did_you_mean, plug_in, shortened
from harness.base.files import spelling
from harness.base.seeds import seed_for
from harness.learning.draws import draws
from harness.learning.lessons import Lesson
from harness.models.chat import chat_tokens
from harness.results.formats import JOINT, OF_SEQUENCE, RELEARN, SINGLE
from harness.runs.methods import MethodSpec
from harness.runs.sections import names_folder
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from harness.runs.order import Order


@dataclass(frozen=True)
class Run:
    """One method x seed x sequence: through all skills, or as a reference.

    stages: for each stage the numbers of the skills that it teaches, from 1; reference: ``joint``,
    ``single`` or ``relearn``, empty for a sequence; sequence: its name in ``orders``, empty where
    the order has one, and of joint and single runs, which none makes different.
    """

    label: str
    seed: int
    stages: tuple[tuple[int, ...], ...]
    reference: str = ""
    sequence: str = ""

    @property
    def method(self) -> str:
        """What its records have as their method: that of a reference is a name of its own."""
        if not self.reference:
            return self.label
        ((first, *_),) = self.stages
        number = "" if self.reference == JOINT else f"-{first}"
        return f"{self.label}.{self.reference}{number}"

    @property
    def suffix(self) -> str:
        """What its name has behind the label: reference and sequence, ``.relearn-1@forward``."""
        sequence = f"{OF_SEQUENCE}{self.sequence}" if self.sequence else ""
        return self.method.removeprefix(self.label) + sequence

    @property
    def stem(self) -> str:
        """Its name without the seed."""
        return f"{self.label}{self.suffix}"

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.stem}-seed{self.seed}"

    @property
    def whole(self) -> str:
        """Name of the folder of the run through the sequence that it stands beside."""
        return replace(self, reference="").name

    @property
    def mark(self) -> dict[str, Any]:
        """What its records have beside method and seed."""
        named = {"reference": self.reference, "sequence": self.sequence}
        return {key: value for key, value in named.items() if value}


def runs(order: "Order") -> list[Run]:
    """Every run of an order, in the order in which they run: the references come last.

    References belong to the first sequence of the file: so several processes, one a sequence, do
    not meet in them.
    """
    sequences, every = order.sequences, order.all_sequences
    found = [
        Run(label, seed, tuple((number,) for number in numbers), sequence=name)
        for seed in order.seeds
        for name, numbers in sequences.items()
        for label in order.methods
    ]
    if next(iter(every)) in sequences:
        labels = [label for label in order.references if label in order.methods]
        for seed in order.seeds:
            for label in labels:
                found += reference_runs(label, seed, every.values())
    labels = [label for label in order.relearning if label in order.methods]
    for seed in order.seeds:
        for name, numbers in sequences.items():
            for label in labels:
                found += relearning_runs(label, seed, name, numbers)
    return found


def without_runs(order: "Order") -> list[str]:
    """A line for each of ``references`` and ``relearning`` that asks for no run: of one skill."""
    asked = {"references": order.references, "relearning": order.relearning}
    return [
        f"{key}: nothing runs for {', '.join(labels)}: an order of one skill has none"
        for key, labels in asked.items()
        if labels and len(order.skills) == 1
    ]


def relearning_runs(label: str, seed: int, sequence: str, numbers: Sequence[int]) -> list[Run]:
    """Each skill but the last one, learned again from the model after the last stage."""
    return [Run(label, seed, ((number,),), RELEARN, sequence) for number in numbers[:-1]]


def reference_runs(label: str, seed: int, sequences: Collection[tuple[int, ...]]) -> list[Run]:
    """The references of a method with one seed.

    A skill that begins a sequence is learned alone in its stage 1, and is not learned twice; nor is
    an order of one skill.
    """
    everything = tuple(sorted(next(iter(sequences))))
    if len(everything) < 2:
        return []
    begun = {numbers[0] for numbers in sequences}
    alone = [Run(label, seed, ((n,),), SINGLE) for n in everything if n not in begun]
    return [Run(label, seed, (everything,), JOINT), *alone]


def check_references(
    labels: Iterable[object],
    methods: Mapping[str, MethodSpec],
    grids: Mapping[str, Any],
    sequences: Mapping[str, tuple[int, ...]],
    place: str,
    key: str,
) -> list[str]:
    """The labels of ``key``, references or relearning. Raises UserError for one without runs."""
    checked: list[str] = []
    skills = len(next(iter(sequences.values())))
    for i, label in enumerate(map(str, labels)):
        own = f"{place}: {key}[{i}]"
        if label in grids:
            point = next(name for name, spec in methods.items() if spec.grid_of == label)
            raise UserError(
                own,
                f"{label!r} is a grid",
                f"name points of it, as {point}; a later start may add the selected one",
            )
        if label not in methods:
            raise UserError(own, f"there is no method {label!r}", did_you_mean(label, methods))
        if label in checked:
            raise UserError(own, f"{label!r} stands twice")
        made = reference_runs(label, 0, sequences.values())
        for name, numbers in sequences.items():
            made += relearning_runs(label, 0, name, numbers)
        for run in made:
            if spelling(run.method) in map(spelling, methods):
                raise UserError(
                    own, f"a method is called {run.method!r}, as a reference is", "rename it"
                )
            if not names_folder(run.method):
                raise UserError(own, f"{run.method!r} is too long for a label", "shorten it")
        if key == "relearning":
            _check_relearned(label, methods[label], own)
        elif skills > 1:
            _check_same_reference(label, methods[label], checked, own)
        checked.append(label)
    return checked


def _check_relearned(label: str, spec: MethodSpec, place: str) -> None:
    """Raises UserError for a method that forgets nothing: no weights change."""
    if not spec.cls.trains:
        raise UserError(
            place,
            f"{label[:80]!r} trains no weights, so it has nothing to learn again",
            "leave it out",
        )


def _check_same_reference(label: str, spec: MethodSpec, before: Sequence[str], place: str) -> None:
    """Raises UserError where references read others that are not made ``before`` them."""
    for part in spec.parts:
        follows = part.make().follows()
        if follows is not None and follows not in before:
            raise UserError(
                place,
                f"with.{part.name} of {label[:80]!r} reads the same references of {follows[:80]!r}",
                "name that one before it",
            )


def phases_of(
    order: "Order", spec: MethodSpec, skill: Skill, earlier: Sequence[Skill]
) -> list[int]:
    """Prompts of each phase of a stage, with those that parts add; earlier: skills before."""
    drawn = [
        min(spec.phases(order.prompts(e, spec.config))[0], len(e.examples("train")))
        for e in earlier
    ]
    return spec.with_parts(spec.phases(order.prompts(skill, spec.config)), drawn)


def _steps(order: "Order", spec: MethodSpec, sequence: str) -> list[int]:
    """Optimizer steps of a method in each stage of a sequence."""
    size, skills = order.batch_size(spec.config), order.in_sequence(sequence)
    return [
        sum(-(-phase // size) for phase in phases_of(order, spec, skill, skills[:number]))
        for number, skill in enumerate(skills)
    ]


def check_followed(order: "Order") -> None:
    """Raises UserError where a run that a part reads (``Part.follows``) is not made before its own.

    Or where it makes another number of steps, or is one that the part could not join itself.
    """
    methods, grids = order.methods, set(order.grid)
    for number, (label, spec) in enumerate(methods.items()):
        for part in spec.parts:
            own = f"{spec.place}: with.{part.name}"
            with plug_in(own, "follows()"):
                other = part.make().follows()
            if other is None:
                continue
            if other in grids:
                points = [name for name, each in methods.items() if each.grid_of == other]
                raise UserError(own, f"{other!r} is a grid", f"name points of it, as {points[0]}")
            if other not in methods:
                problem = f"the order has no method {shortened(repr(other), 80)}"
                raise UserError(own, problem, did_you_mean(other, methods))
            if other == label:
                raise UserError(own, f"{other!r} is the method itself", "name another one")
            if list(methods).index(other) > number:
                remedy = f"write {other} before it; points of a grid come last"
                raise UserError(own, f"{other!r} runs after {label!r}", remedy)
            if not any(each.cls is part.cls for each in methods[other].parts):
                remedy = f"give it `with: {{{part.name}: {{}}}}` as well"
                raise UserError(own, f"{other!r} has no such part", remedy)
            method = methods[other].cls(methods[other].config)
            with plug_in(own, "check()"):
                part.make().check(order, method, f"{own}: {other!r}")
            for sequence in order.sequences:
                there, here = (_steps(order, each, sequence) for each in (methods[other], spec))
                if there != here:
                    problem = f"{other!r} makes {there} steps in its stages, {label!r} {here}"
                    raise UserError(own, problem, "give both the same budget and batch size")


class JointSkill(Skill):
    """Skills that are learned at once: a name, and examples that know the skill they belong to."""

    splits = ("train",)

    def __init__(self, skills: Sequence[Skill], examples: list[Example]) -> None:
        self.name = joint_name(skills)
        self.keep("train", examples)


def lesson_of(order: "Order", skill: Skill, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    """A skill as the order has it, with the examples that are short enough."""
    short = short_enough(order, tokenizer, skill)
    return Lesson(skill, order.limit(skill, rollout=True), order.template(skill), short)


def joint_name(skills: Iterable[Skill]) -> str:
    """What is taught at once, in words."""
    return " + ".join(skill.name for skill in skills)


def short_enough(order: "Order", tokenizer: PreTrainedTokenizerBase, skill: Skill) -> list[Example]:
    """The training examples whose prompt has at most ``rollout.max_prompt_tokens`` tokens.

    The others are left out: a prompt that is cut would be another question. Raises UserError where
    none is left.
    """
    examples, limit = skill.examples("train"), order.rollout.max_prompt_tokens
    if not limit:
        return examples
    chat = order.chat_template.inputs("student")
    short = [e for e in examples if len(chat_tokens(tokenizer, e.prompt, inputs=chat)) <= limit]
    if not short:
        raise no_short_prompt(skill, limit)
    return short


def no_short_prompt(skill: Skill, limit: int) -> UserError:
    """The error of a skill whose prompts are all too long to be learned from."""
    return UserError(
        f"skill {skill.name}",
        f"no training example has a prompt of at most {limit} tokens",
        "raise rollout.max_prompt_tokens",
    )


def union(
    examples: Sequence[Sequence[Example]], prompts: Sequence[int], seed: int
) -> list[Example]:
    """What a joint run learns from: of each skill the examples that its own stage would draw.

    examples, prompts: the training examples and the budget of each skill; seed: of the run. The
    stage shuffles them, so that a joint run has the examples and the budget of the whole sequence.
    An id has its skill in front: those of two skills may be the same.
    """
    drawn: list[Example] = []
    for number, (of_skill, count) in enumerate(zip(examples, prompts, strict=True), 1):
        order = draws(len(of_skill), count, seed_for(seed, number, "data"))
        drawn += [replace(of_skill[i], id=f"{of_skill[i].skill}/{of_skill[i].id}") for i in order]
    return drawn
