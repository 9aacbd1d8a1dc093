"""How far the weights of a stage have gone from where the stage and the run began."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from harness.learning.parametrisation import Parametrisation
from harness.learning.part import having
from harness.learning.stage import Stage
from harness.models.checkpoint import model_fingerprint
from harness.models.size import Change, change, operations, product_weights
from harness.results.formats import RELEARN
from harness.runs.one_run import OneRun


class Changes:
    """The changes of one stage: {"stage", "run": Change}, of float32 masters where there are any.

    Parts may change the weights behind the last step, and a parametrisation trains others than the
    model has: then they are those of the model itself. Its time counts as evaluation.
    """

    def __init__(self, live: OneRun, number: int) -> None:
        self.live = live
        self.number = number
        self.found: dict[str, Change] = {}
        self._weights: str | None = None

    def of_masters(self, masters: Mapping[str, torch.Tensor]) -> None:
        """Compare float32 weights by name with the starts of stage and run."""
        start = time.monotonic()
        self.found = {}
        is_first = self.number == 1 and self.live.run.reference != RELEARN
        for of in ("run",) if is_first else ("run", "stage"):
            with torch.random.fork_rng():
                before = self.live.load_start(self.number, of)
            if (found := change(masters, before)) is not None:
                self.found[of] = found
        if is_first and "run" in self.found:
            self.found["stage"] = self.found["run"]
        self._weights = self._now()
        self.live.evaluator.seconds["evaluation"] += time.monotonic() - start

    def settle(self) -> None:
        """Compare the model itself where its masters were not, or are no longer what it has."""
        if not self.found or self._weights != self._now():
            self.of_masters(dict(self.live.model.named_parameters()))

    def sizes(self, stage: Stage) -> dict[str, Any]:
        """What stage.json holds of them, with FLOPs and the gold rows that parts keep."""
        weights = product_weights(self.live.model)
        passes, adapters = stage.parameters.passes, 0
        if passes < Parametrisation.passes:
            adapters = stage.parameters.size(self.live.model).numbers
        return {
            "learned_tokens": stage.learned,
            "flops": operations(weights, stage.tokens, stage.learned, passes, adapters),
            "gold_rows": sum(part.gold_rows() for part in self.live.parts.values()),
            "change": self.found,
        }

    def _now(self) -> str | None:
        """The fingerprint of the weights, where parts may change them at the end of a stage."""
        parts = self.live.parts.values()
        return model_fingerprint(self.live.model) if having(parts, "end") else None
