"""What a part is: something that joins any method, as replay or a penalty does.

A part is one file in ``methods/parts/``, or a file of the user's. An order names it under a
method's ``with:``, and several join in the order in which they stand there. The trainer and the
stage call the hooks that a part has; they hand it weights by name, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.base.registry import class_of_file, plugin_named
from harness.base.settings import Checked
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Positions, Row
from harness.skills.skill import Example
from harness.skills.templates import Message

if TYPE_CHECKING:
    from harness.learning.method import Method, OrderView
    from harness.learning.stage import Stage
    from harness.learning.step import Step
    from harness.learning.trainer import Trainer

# Hooks that not every method serves, and what a method without them lacks.
SERVED = {
    "examples": "learns from no other examples than its own",
    "budget": "learns from no other examples than its own",
    "weights": "does not weigh its tokens",
}


@dataclass
class PartConfig(Checked):
    """Base of a part's options, each with a default, so that ``{}`` runs."""


class Part:
    """Base of every part. A subclass sets ``Config`` and has some of the hooks below.

    stage: the stage that goes on. apart: {name of another part: why the two cannot join one
    method}. wants: {one of a method's ``joins`` beside those of the hooks: what a method without it
    lacks}. restarts: whether each stage begins to learn at the run's start again.

    Like a method, one instance lives through all the stages of a run. What it must remember goes
    through ``state_dict`` and ``load_state_dict`` between them; what changes within a stage goes
    through ``stage.keep``, in ``begin``.
    """

    Config: ClassVar[type[PartConfig]] = PartConfig
    apart: ClassVar[Mapping[str, str]] = {}
    wants: ClassVar[Mapping[str, str]] = {}
    restarts: bool = False
    stage: Stage

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @classmethod
    def has(cls, hook: str) -> bool:
        """Whether the part has a hook of its own."""
        return getattr(cls, hook) is not getattr(Part, hook)

    @classmethod
    def acts(cls) -> bool:
        """Whether a trainer has to call it."""
        hooks = ("weights", "loss", "gradient", "update", "project", "merge")
        return any(map(cls.has, hooks))

    def check(self, order: OrderView, method: Method, place: str) -> None:
        """Raises UserError at ``place`` where the part cannot join ``method`` in ``order``."""

    def refuses(self, method: type[Method]) -> str:
        """Why the part, with its options, cannot join ``method``; empty where it can."""
        return ""

    def wants_weights(self) -> str:
        """Why weights themselves have to be trained, no numbers that they are made of.

        Empty where it is all the same. By default the hooks that change weights one by one.
        """
        hooks = [hook for hook in ("gradient", "update", "project") if self.has(hook)]
        return f"{hooks[0]}() is of weights that are trained themselves" if hooks else ""

    def follows(self) -> str | None:
        """Label of another method of the order, whose run of the same seed it reads; None: of none.

        That method has this part as well. Its run has to come before, or the order is refused. A
        reference run reads the same reference of it.
        """
        return None

    def conversations(self) -> Iterable[list[Message]]:
        """Chat messages that the model reads beside the prompts of the skills."""
        return ()

    # ---- a stage -------------------------------------------------------------------------------

    def budget(self, prompts: int, earlier: Sequence[int]) -> tuple[int, int]:
        """(prompts of the budget that stay the stage's own, examples of steps behind these).

        prompts: of the method's first phase; earlier: examples that each stage before drew at
        most. The steps behind have no examples but those that ``examples`` gives them.
        """
        return prompts, 0

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage, before its first step; a resumed stage calls it again."""

    def end(self, stage: Stage) -> None:
        """What is done after the last step, before the stage is measured.

        It may change the weights of ``stage.model``. ``stage.over`` counts what it reads.
        """

    # ---- a step, in this order -----------------------------------------------------------------

    def examples(self, step: Step) -> Sequence[Example]:
        """What the step learns from: its own examples, and those of other skills.

        Those beyond the step's own count as prompts drawn.
        """
        examples: list[Example] = step.examples
        return examples

    def weigh(self, rows: Sequence[Row]) -> None:
        """Look at all rows of a loss that is a mean over tokens, before ``weights``."""

    def weights(
        self, rows: Sequence[Row], positions: Positions, logits: torch.Tensor
    ) -> torch.Tensor:
        """Weights [tokens] of a chunk's tokens in a loss that is a mean over tokens.

        logits: float32 [tokens, vocabulary], without a gradient; positions: index into ``rows``.
        """
        return torch.ones(len(logits), device=logits.device)

    def loss(self, trainer: Trainer, step: Step) -> Mapping[str, float]:
        """Add a gradient of the part's own to the masters', by ``trainer.backward`` or by hand.

        Returns what the step logs.
        """
        return {}

    def gradient(self, name: str, gradient: torch.Tensor) -> None:
        """Change the float32 gradient of a weight in place, before all are clipped."""

    def update(self, name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The float32 weight after a step, given what it was and what AdamW made of it.

        ``stage.rate`` is the step's learning rate.
        """
        return after

    def project(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
    ) -> None:
        """Change, in place, all float32 weights ``after`` a step, given what they were before.

        The trainer keeps a copy of all of them for it.
        """

    def updated(self, step: Step) -> None:
        """Look at the model after the step."""

    def merge(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Change, in place, the float32 weights with which the stage ends, after its last step.

        It comes before every ``end``. Of two parts that have it only one joins a method.
        """

    # ---- between stages, and before everything -------------------------------------------------

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        """What ``work``, that of the method for each prompt drawn, becomes with the part.

        earlier: the skills that were learned before. For --plan.
        """
        return work

    def gold_rows(self) -> int:
        """Training examples with their gold answers that the part keeps for later stages."""
        return 0

    def kept_bytes(self) -> int:
        """Bytes of earlier stages' data that later ones read again, beside ``state_dict``."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """What the part remembers from stage to stage; see Method.state_dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class TokenWeights:
    """Weights of the completion tokens of ``rows``, of all parts that weigh tokens together."""

    def __init__(self, parts: Iterable[Part], rows: Sequence[Row]) -> None:
        self.parts, self.rows = having(parts, "weights"), rows
        for part in self.parts:
            part.weigh(rows)

    def at(self, positions: Positions, logits: torch.Tensor) -> torch.Tensor | None:
        """The product [tokens] of what the parts give to a chunk's tokens; None without a part."""
        weights = [part.weights(self.rows, positions, logits.detach()) for part in self.parts]
        for part, own in zip(self.parts, weights, strict=True):
            check_shape(part, "weights", own, logits.shape[:1])
        return torch.stack(weights).prod(0) if weights else None


def check_shape(part: Part, hook: str, found: torch.Tensor, wanted: torch.Size) -> None:
    """Raises UserError for a tensor of another shape, which would be spread over the wanted one."""
    if found.shape != wanted:
        place, shapes = f"{type(part).__name__}.{hook}()", (list(found.shape), list(wanted))
        raise UserError(place, "returns shape {}; {} is wanted".format(*shapes))


def updated(
    parts: Iterable[Part], name: str, before: torch.Tensor, after: torch.Tensor
) -> torch.Tensor:
    """``Part.update`` of all ``parts`` in turn."""
    for part in parts:
        after = part.update(name, before, after)
        check_shape(part, "update", after, before.shape)
    return after


def having(parts: Iterable[Part], hook: str) -> list[Part]:
    """The parts that have a hook of their own."""
    return [part for part in parts if part.has(hook)]


def lacking(part: type[Part], method: type[Method]) -> str:
    """What a method lacks for the part to join it, in words; empty where it can."""
    if not method.trains:
        return "trains no weights"
    if method.has_own_loop:
        return "has a training loop of its own, which calls no part"
    needed = {hook: lack for hook, lack in SERVED.items() if part.has(hook)}
    for hook, lack in {**needed, **part.wants}.items():
        served = "examples" if hook == "budget" else hook
        if served not in method.joins:
            return lack
    return ""


def joint_budget(parts: Iterable[Part], prompts: int, earlier: Sequence[int]) -> tuple[int, int]:
    """``Part.budget`` of all ``parts``."""
    behind = 0
    for part in parts:
        prompts, more = part.budget(prompts, earlier)
        behind += more
    return prompts, behind


def get_part(name: str, file: str | Path | None, place: str) -> type[Part]:
    """The class of the project's part ``name``, or the one that ``file`` defines.

    Raises UserError if there is none.
    """
    if file is None:
        return plugin_named(ROOT / "methods" / "parts", "methods.parts", name, Part, "part", place)
    return class_of_file(file, Part, "part", place)
