"""A quadratic penalty on the distance from earlier weights, as EWC and L2-SP have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.base.settings import option
from harness.learning.part import Part, PartConfig

if TYPE_CHECKING:
    from harness.learning.step import Step
    from harness.learning.trainer import Trainer


@dataclass
class PenaltyConfig(PartConfig):
    """Options of a quadratic penalty."""

    strength: float = option(1.0, "lambda of the penalty", min=0, max=1e12)
    coupled: bool = option(
        True, "whether its gradient goes through clipping and AdamW, or acts on weights beside them"
    )


class Penalty(Part):
    """(strength / 2) sum_i F_i (theta_i - theta*_i)^2, of all trained weights.

    coupled: F (theta - theta*) strength is added to the gradient, which is clipped and which AdamW
    divides by its own mean size. Otherwise the weight that AdamW made is pulled by the penalty's
    proximal step with the learning rate eta of the step, stable at any strength:

        theta <- (theta + eta strength F theta*) / (1 + eta strength F)

    theta are weights of the model, whatever they are made of. The step beside AdamW is of weights
    that are trained themselves. With ``adapter: continued`` in bfloat16 theta* are the weights that
    were kept, rounded, and theta those that the numbers make: the penalty begins at the squared
    rounding, some 2^-18 of a squared weight, and not at 0.
    """

    Config = PenaltyConfig
    config: PenaltyConfig

    def origin(self) -> str | None:
        """Of what the start is theta*, ``stage`` or ``run``; None for no penalty in this stage."""
        return "stage"

    def importance(self, name: str, like: torch.Tensor) -> torch.Tensor | float:
        """F of a weight, on the device of ``like``."""
        return 1.0

    def _distance(self, name: str, weight: torch.Tensor, origin: str) -> torch.Tensor:
        return weight - self.stage.start_weight(origin, name).to(weight)

    @torch.no_grad()
    def loss(self, trainer: Trainer, step: Step) -> Mapping[str, float]:
        origin, config = self.origin(), self.config
        if origin is None:
            return {}
        total = torch.zeros((), dtype=torch.float64, device=trainer.place)
        for name, weight in trainer.effective():
            distance = self._distance(name, weight, origin)
            pull = self.importance(name, weight) * distance
            total += (pull * distance).sum(dtype=torch.float64)
            if config.coupled:
                trainer.add_gradient(name, pull, config.strength)
        return {f"{type(self).__name__.lower()}_loss": config.strength / 2 * total.item()}

    def wants_weights(self) -> str:
        if self.config.coupled:
            return ""
        return "coupled: false moves weights beside AdamW; take coupled: true"

    def update(self, name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        origin = self.origin()
        if origin is None or self.config.coupled:
            return after
        pull = self.importance(name, after) * (self.stage.rate * self.config.strength)
        return after - pull / (1 + pull) * self._distance(name, after, origin)
