"""How far the weights of a stage have gone from where the stage and the run began."""

import time
from typing import Any

import torch

from harness.learning.method import Method
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part
from harness.learning.stage import Stage
from harness.models.sharded import weights_of
from harness.models.size import Change, change, operations, product_weights
from harness.results.formats import RELEARN
from harness.runs.one_run import OneRun


class Changes:
    """The changes of one stage: {"stage", "run": Change}, of the model that is evaluated.

    So all methods are compared alike, whatever they train and parts do behind the last step: in the
    model's own dtype, as checkpoints are. The time it takes counts as evaluation.
    """

    def __init__(self, live: OneRun, number: int) -> None:
        self.live = live
        self.number = number
        self.found: dict[str, Change] = {}

    def measure(self) -> None:
        """Compare the model, as the stage leaves it, with the starts of stage and run."""
        start = time.monotonic()
        weights = weights_of(self.live.model)
        is_first = self.number == 1 and self.live.run.reference != RELEARN
        for of in ("run",) if is_first else ("run", "stage"):
            with torch.random.fork_rng():
                before = self.live.load_start(self.number, of)
            self.found[of] = change(weights, before)
        if is_first:
            self.found["stage"] = self.found["run"]
        self.live.evaluator.seconds["evaluation"] += time.monotonic() - start

    def sizes(self, stage: Stage) -> dict[str, Any]:
        """What stage.json holds of them, with FLOPs and the gold rows that are kept."""
        live = self.live
        weights = product_weights(live.model)
        passes, adapters = stage.parameters.passes, 0
        if passes < Parametrisation.passes:
            adapters = stage.parameters.size(live.model).numbers
        keeping: list[Method | Part] = [live.method, *live.parts.values()]
        return {
            "learned_tokens": stage.learned,
            "flops": operations(
                weights, stage.tokens + stage.beside, stage.learned, passes, adapters
            ),
            "gold_rows": sum(each.gold_rows() for each in keeping),
            "change": self.found,
        }
