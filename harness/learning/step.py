"""One optimizer step of a stage."""

import math
from typing import Any

import torch

from harness.base.errors import UserError


class Step:
    """One optimizer step of a stage.

    index: number of the step in the stage, from 0; examples: what was drawn for it, training
    examples unless ``Stage.steps`` got others; seed: for the method's own draws; logged: the
    diagnostics so far.
    """

    def __init__(self, index: int, examples: list[Any], seed: int) -> None:
        self.index = index
        self.examples = examples
        self.seed = seed
        self.logged: dict[str, float] = {}

    def log(self, **values: float | torch.Tensor) -> None:
        """Add numbers to the step's line in training.jsonl."""
        self.logged.update({name: float(value) for name, value in values.items()})

    def check_finite(self, skill: str) -> None:
        """Raises UserError if a loss or a reward that was logged is not finite."""
        for name, value in self.logged.items():
            if name.endswith(("loss", "reward")) and not math.isfinite(value):
                raise UserError(
                    f"skill {skill}, step {self.index + 1}",
                    f"the {name} is {value}",
                    "take a smaller learning_rate, or look at the data and at the method; the last "
                    "checkpoint is whole",
                )
