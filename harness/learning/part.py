"""What a part is: something that joins any method, as replay or a penalty does.

A part is one file in ``methods/parts/``. An order names it under a method's ``with:``, and several
join in the order in which they stand there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.base.files import ROOT
from harness.base.registry import plugin_named
from harness.learning.outlook import Outlook, Work
from harness.learning.stage import Stage, Step
from harness.skills.skill import Example

if TYPE_CHECKING:
    from harness.learning.method import Method, OrderView
    from harness.learning.trainer import Trainer


@dataclass
class PartConfig:
    """Base of a part's options, each with a default, so that ``{}`` runs."""


class Part:
    """Base of every part. A subclass sets ``Config`` and some of the hooks below.

    Like a method, one instance lives through all the stages of a run, and what it must remember
    goes through ``state_dict`` and ``load_state_dict`` between them. What changes within a stage
    goes through ``stage.keep``, in ``begin``.
    """

    Config: ClassVar[type[PartConfig]] = PartConfig

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    def check(self, order: OrderView, method: Method, place: str) -> None:
        """Raises UserError at ``place`` where the part cannot join ``method`` in ``order``."""

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage, before its first step; a resumed stage calls it again."""

    def examples(self, stage: Stage, step: Step) -> Sequence[Example]:
        """Examples that the step learns from beside its own.

        They are of this skill or of earlier ones, and count as prompts drawn.
        """
        return ()

    def loss(self, trainer: Trainer) -> Mapping[str, float]:
        """Add a gradient of the part's own to the masters', before they are clipped.

        Returns what the step logs.
        """
        return {}

    def end(self, stage: Stage) -> None:
        """What is done after the last step, before the stage is measured."""

    def work(self, outlook: Outlook, work: Work, stage: int) -> Work:
        """What a method's ``work`` becomes with the part in a stage, from 1, for --plan."""
        return work

    def state_dict(self) -> dict[str, Any]:
        """What the part remembers from stage to stage; see Method.state_dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


def get_part(name: str, place: str) -> type[Part]:
    """The class of the part ``name``. Raises UserError if there is none."""
    return plugin_named(ROOT / "methods" / "parts", "methods.parts", name, Part, "part", place)
