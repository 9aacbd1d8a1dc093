"""One optimizer step of a stage."""

from typing import Any

import torch


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
