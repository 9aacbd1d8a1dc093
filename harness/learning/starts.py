"""The model as it was at the start of a stage or of the run, and others that an order names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from harness.models.others import STARTS, load_other

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.learning.parametrisation import Parametrisation
    from harness.learning.part import Part


class EarlierWeights:
    """What a stage asks for earlier weights.

    load_start: f("stage" or "run") loads the model as it was there; models: checksums of others.
    """

    model: PreTrainedModel
    parts: list[Part]
    parameters: Parametrisation
    begins_run: bool
    load_start: Callable[[str], PreTrainedModel] | None = None
    models: Mapping[str, str] = {}

    def start(self, of: str) -> PreTrainedModel:
        """The frozen model at the start ``of`` the ``stage`` or the ``run``, or the model ``of``.

        It is loaded when it is first asked for, once for all parts, and stays until learning is
        over. At the start of a run the two are one, and where a part ``restarts`` each stage there.
        """
        if of == "stage" and (self.begins_run or self._restarts):
            of = "run"
        if of not in self._loaded:
            load = self.load_start
            if of not in STARTS:
                load = functools.partial(load_other, like=self.model, checksum=self.models.get(of))
            if load is None:
                raise ValueError("this stage was made without its start")
            with torch.random.fork_rng():  # a resumed stage may load it in another step
                self._loaded[of] = load(of).requires_grad_(False).eval()
        return self._loaded[of]

    def is_kept(self, of: str) -> bool:
        """Whether the live model can have the weights of ``start(of)`` again, and none is loaded.

        So it is where weights are made of numbers, and W_0 is what the stage began with.
        """
        is_here = of == "stage" or (of == "run" and self.begins_run)
        return is_here and self.parameters.keeps_start and not self._restarts

    def start_weight(self, of: str, name: str) -> torch.Tensor:
        """A weight of ``start(of)``, which is loaded only where nothing else keeps the weight."""
        kept = self.parameters.began(name) if self.is_kept(of) else None
        return self.start(of).get_parameter(name) if kept is None else kept

    def forget_starts(self) -> None:
        """Free the models that were loaded."""
        self._loaded.clear()

    @functools.cached_property
    def _loaded(self) -> dict[str, PreTrainedModel]:
        return {}

    @property
    def _restarts(self) -> bool:
        return any(part.restarts for part in self.parts)
