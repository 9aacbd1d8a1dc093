"""What a method is: how a model learns one skill.

A method is one file in ``methods/``, or a file of the user's that an order names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.base.registry import class_of_file, plugin_named
from harness.learning.lessons import TeacherTemplate
from harness.learning.options import TeacherOption
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.stage import Stage
from harness.learning.trainer import TrainingConfig
from harness.models.chat import ChatInputs
from harness.sampling.settings import Rollout
from harness.skills.skill import Example, Skill
from harness.skills.templates import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelView(Protocol):
    """Which model an order names."""

    @property
    def name(self) -> str:
        """A hub id, a folder, or a word for an embedded model."""

    @property
    def revision(self) -> str | None:
        """Commit of the hub repository."""


class OrderView(Protocol):
    """What ``Method.check`` may ask of an order."""

    @property
    def model(self) -> ModelView:
        """The model that learns."""

    @property
    def skills(self) -> Sequence[Skill]:
        """The skills, in the order in which they are learned."""

    @property
    def method_options(self) -> Mapping[str, Any]:
        """The options of all methods as the order has them, by label."""

    @property
    def rollout(self) -> Rollout:
        """How completions are sampled while a method learns."""

    def prompts(self, skill: Skill, config: TrainingConfig | None = None) -> int:
        """Prompts drawn for ``skill`` by a method with ``config``."""

    def batch_size(self, config: TrainingConfig) -> int:
        """Prompts of an optimizer step of a method with ``config``."""

    def template(self, skill: Skill) -> TeacherTemplate | None:
        """What shows the teacher of ``skill`` its prompt; None for the skill's own template."""


class Asked(NamedTuple):
    """What the model reads of an example when it is evaluated.

    shown: demonstrations in it; dropped: those that found no place.
    """

    messages: list[Message]
    shown: int = 0
    dropped: int = 0


class Method:
    """Base of every method. A subclass sets ``Config`` and has ``learn``.

    Config: a dataclass on top of TrainingConfig, the hyperparameters in an order; ``self.config``
    is one. needs: fields of Example that every training example must have. joins: hooks of parts
    that only some methods serve: ``examples`` where it learns from ``step.examples``, of whatever
    skill they are, ``weights`` where the loss takes ``TokenWeights``, as ``trainer.token_mean``,
    and ``demonstrations`` where it is of the examples' demonstrations. graded: whether it asks for
    rewards. has_own_loop: whether it trains without a Trainer, so that no part joins. trains:
    whether it changes weights; if not, it is measured by what ``questions`` makes.

    One instance lives through all the stages of a run. What it must remember from earlier skills (a
    buffer, a Fisher matrix) goes through ``state_dict`` and ``load_state_dict``, which are called
    between stages, and is on disk there: tensors, numbers, texts, lists and dicts, no objects of
    classes.
    """

    Config: ClassVar[type[TrainingConfig]] = TrainingConfig
    needs: ClassVar[tuple[str, ...]] = ("demonstration",)
    joins: ClassVar[tuple[str, ...]] = ("examples",)
    graded: ClassVar[bool] = False
    has_own_loop: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def learn(self, stage: Stage) -> None:
        """Teach ``stage.model`` the skill, in place: a loop over ``stage.steps()``.

        The generators of Python, NumPy and PyTorch are seeded before it, before each step and after
        each phase. A resumed stage therefore draws the same numbers.
        """
        raise TypeError(f"{type(self).__name__} has no learn()")

    def check(self, order: OrderView, place: str) -> None:
        """Raises UserError at ``place`` if ``order`` asks for what the method cannot do.

        It is called before anything loads.
        """

    def try_out(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: ChatInputs | None,
        place: str,
    ) -> None:
        """Raises UserError at ``place`` for what shows only where training is set up.

        It is called once before the first run that is new to a folder, and by --plan. model: the
        order's, which may be on the meta device; chat: what the chat template is given.
        """

    def notes(self) -> Sequence[str]:
        """What a user should know of these options before anything is learned, in lines."""
        return ()

    def precision(self, dtype: torch.dtype) -> str:
        """What it learns in, in words, given the model's dtype; empty where the trainer says so."""
        return ""

    def reads_demonstrations(self) -> bool:
        """Whether anything that it learns depends on demonstrations.

        By default where it does not grade answers of its own, and where a teacher that is shown
        something is shown them.
        """
        shown = getattr(self.config, "teacher_context", None)
        return not self.graded and shown != "source"

    def conversations(self, order: OrderView) -> Iterable[list[Message]]:
        """Chat messages that the model reads beside the prompts of the skills.

        The chat template is tried on them before anything starts. By default the prompts of the
        teacher, where the method has one.
        """
        if isinstance(self.config, TeacherOption):
            context = self.config.teacher_context
            for skill in order.skills:
                for example in skill.examples("train"):
                    yield skill.teacher_prompt(example, order.template(skill), context)

    def longest(self, lengths: Lengths) -> int:
        """Tokens of the longest row that the model reads of one training example.

        A row that the model has no positions for is refused before anything loads. By default the
        prompt with the demonstration, where ``needs`` has it, or else with a sampled answer; and
        the teacher's prompt with an answer, where there is a teacher.
        """
        needs_it = "demonstration" in self.needs
        answer = lengths.demonstration if needs_it else lengths.limit
        longest = lengths.prompt + answer - 1
        if isinstance(self.config, TeacherOption):
            context = self.config.teacher_context
            longest = max(longest, lengths.teacher_prompt(context) + lengths.limit - 1)
        return longest

    def questions(
        self,
        skill: Skill,
        examples: Sequence[Example],
        fits: Callable[[list[Message]], bool],
    ) -> list[Asked] | None:
        """What the model reads of each example when ``skill`` is evaluated; None: as it is.

        fits: whether the model has room for messages and an answer. It follows from what
        ``state_dict`` returns, so that a resumed run asks the same.
        """
        return None

    def phases(self, prompts: int) -> list[int]:
        """Prompts drawn in each phase of a stage whose budget is ``prompts``.

        A phase is a training of its own: schedule and optimizer start again.
        """
        return [prompts]

    def work(self, outlook: Outlook) -> Work:
        """What the method does for each prompt of the budget, for the estimate of --plan.

        By default one forward and backward pass over prompt and demonstration.
        """
        return Work(learned=outlook.prompt + outlook.demonstration)

    def gold_rows(self) -> int:
        """Training examples with their gold answers that the method keeps for later stages."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers from stage to stage; called after a stage, and once at first.

        It holds tensors, numbers, texts, None, and lists, tuples and dicts of them. Anything else
        is refused: an Example goes as ``dataclasses.asdict(example)`` and comes back as
        ``Example(**fields)``.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; called once, before the first stage of a start.

        Tensors of ``state`` are on the CPU, on whatever device they were.
        """


def get_method(name: str, file: str | Path | None = None, place: str = "order") -> type[Method]:
    """The class of the project's method ``name``, or the one that ``file`` defines.

    Raises UserError if there is none, and if ``file`` imports names of the first edition.
    """
    if file is None:
        return plugin_named(ROOT / "methods", "methods", name, Method, "method", place)
    found = class_of_file(file, Method, "method", place)
    if found.learn is Method.learn:
        raise UserError(place, f"{Path(file).name}: {found.__name__} has no learn()", "write it")
    return found
