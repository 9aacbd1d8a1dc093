"""Which numbers a method trains: all weights, some of them, or others that weights are made of.

A parametrisation is one file in ``methods/parameters/``, or a file of the user's. An order names it
under a method's ``parameters``. It sits below the loss: methods, parts, sampler and evaluation see
the model's weights, which it writes after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from harness.base.files import ROOT
from harness.base.registry import class_of_file, plugin_named
from harness.learning.halves import Master, round_into
from harness.learning.weights import float32_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.learning.stage import Stage

Tensors = dict[str, torch.Tensor]
Parameters = Mapping[str, torch.nn.Parameter]


@dataclass
class ParametrisationConfig:
    """Base of a parametrisation's options, each with a default, so that ``{}`` runs."""


@dataclass(frozen=True)
class Size:
    """What a parametrisation trains of a model, for --plan.

    numbers: that AdamW moves; weights: of the model, that these change; made: whether of numbers
    that are others; again: of these weights, kept a second time as they were; beside: float32
    numbers in memory that stay; kept: numbers that later stages read; keeps_start: as of the
    parametrisation.
    """

    numbers: int
    weights: int
    made: bool = False
    again: int = 0
    beside: int = 0
    kept: int = 0
    keeps_start: bool = False


class Parametrisation:
    """All weights that learn. A subclass chooses among them, or makes them of other numbers.

    makes: whether the trained numbers, the masters, are others than weights of the model; passes:
    forward passes that a forward and backward pass costs, in products.

    One instance lives through all the stages of a run. ``begin`` comes before the first step, with
    the model as it is at the start of the stage, ``end`` after the last one and after the parts'.
    """

    Config: ClassVar[type[ParametrisationConfig]] = ParametrisationConfig
    makes: ClassVar[bool] = False
    passes: ClassVar[int] = 3

    @property
    def splits(self) -> bool:
        """Whether masters may be halves, which are written with the weights.

        Not where they are other numbers, nor where a subclass makes or writes them in its own way.
        """
        own = type(self)
        as_here = own.masters is Parametrisation.masters and own.write is Parametrisation.write
        return as_here and not self.makes

    @property
    def continues(self) -> bool:
        """Whether the numbers of a stage go on in the next one, whatever weights it ends with."""
        return False

    @property
    def keeps_start(self) -> bool:
        """Whether ``began`` and ``as_begun`` give the weights at the start of the stage."""
        return False

    def __init__(self, config: ParametrisationConfig | None = None) -> None:
        self.config = config or self.Config()
        self._frozen: list[torch.nn.Parameter] = []

    def trained(self, model: PreTrainedModel) -> list[str]:
        """Names of the model's weights that change; the model may be on the meta device.

        Raises UserError where there are none.
        """
        return [name for name, weight in model.named_parameters() if weight.requires_grad]

    def size(self, model: PreTrainedModel) -> Size:
        """What is trained of a model, which may be on the meta device."""
        count = sum(model.get_parameter(name).numel() for name in self.trained(model))
        return Size(count, count)

    # ---- a stage -------------------------------------------------------------------------------

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage; a resumed stage calls it again, before ``restore``."""
        names = set(self.trained(stage.model))
        for name, weight in stage.model.named_parameters():
            if weight.requires_grad and name not in names:
                self._frozen.append(weight.requires_grad_(False))

    def end(self, stage: Stage) -> None:
        """Leave the model with the weights that it has, for whatever comes next."""
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._frozen = []

    def checkpoint(self, model: PreTrainedModel) -> dict[str, Any]:
        """What ``restore`` needs to make the present model of the one at the stage's start."""
        return model.state_dict()

    def restore(self, model: PreTrainedModel, state: Mapping[str, Any]) -> None:
        """Write the weights of a checkpoint into the model at the stage's start."""
        model.load_state_dict(state)

    # ---- for a trainer -------------------------------------------------------------------------

    def masters(self, weights: Parameters, place: torch.device) -> Tensors:
        """The trained numbers by name: float32 tensors on ``place``, which learn.

        weights: the model's weights that learn.
        """
        masters = float32_weights(weights, place)
        return {name: master.requires_grad_() for name, master in masters.items()}

    def receiver(self, name: str, masters: Mapping[str, torch.Tensor]) -> Receiver:
        """A function that adds the gradient of a weight of the model to those of the masters."""
        master = masters[name]
        return lambda gradient: add_gradient(master, gradient)

    def computing(self, masters: Mapping[str, torch.Tensor]) -> AbstractContextManager[None]:
        """How the model computes while a loss is differentiated."""
        return nullcontext()

    def decayed(self, names: set[str]) -> set[str]:
        """Names of the masters that weight decay acts on; names: those of weights that it does."""
        return names

    def loss(self, masters: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Add a gradient of the parametrisation's own to the masters'; returns what is logged."""
        return {}

    def settle(self, masters: Mapping[str, torch.Tensor]) -> None:
        """Change the masters in place after a step, before they are written."""

    @torch.no_grad()
    def write(self, weights: Parameters, masters: Mapping[str, torch.Tensor]) -> None:
        """Bring the model's weights to what the masters say."""
        for name, weight in weights.items():
            if masters[name] is not weight:
                round_into(weight, masters[name])

    @torch.no_grad()
    def merge(self, weights: Parameters, merged: Mapping[str, torch.Tensor]) -> None:
        """Let the model's weights be ``merged``, which a part made of ``effective`` ones."""
        for name, weight in weights.items():
            weight.copy_(merged[name])

    def effective(self, masters: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, float32 weight) of each weight of the model that learns, one at a time."""
        for name, master in masters.items():
            yield name, master.detach()

    # ---- for a teacher -------------------------------------------------------------------------

    def copies(self, place: torch.device) -> Tensors:
        """The trained numbers as they are, for a teacher that needs no model of its own."""
        raise TypeError(f"weights of {type(self).__name__} are their own numbers")

    def wearing(self, numbers: Mapping[str, torch.Tensor]) -> AbstractContextManager[None]:
        """The model has the weights that ``numbers`` make, as long as the context lasts."""
        raise TypeError(f"weights of {type(self).__name__} are their own numbers")

    def as_begun(self) -> AbstractContextManager[None]:
        """The model has the weights at the start of the stage, as long as the context lasts."""
        raise TypeError(f"{type(self).__name__} does not keep the start")

    def began(self, name: str) -> torch.Tensor | None:
        """A weight at the start of the stage, laid out as it is; None where it is not kept."""
        return None

    # ---- between stages ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from stage to stage; see Method.state_dict."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


Receiver = Callable[[torch.Tensor], None]


def add_gradient(master: Master, gradient: torch.Tensor) -> None:
    """Add ``gradient`` to the master's, in float32 and on the master's device."""
    gradient = gradient.to(master.device, torch.float32)
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)


def mover(receive: Receiver) -> Callable[[torch.Tensor], None]:
    """A hook that moves a weight's gradient away, so that micro-batches add up elsewhere.

    It must not hold the trainer, which would then live as long as the model.
    """

    def move(weight: torch.Tensor) -> None:
        if weight.grad is None:  # the head's weight, whose gradient goes through ``projected``
            return
        receive(weight.grad)
        weight.grad = None

    return move


def embeddings(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The weights of the input embeddings and of the output head, which may be one."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [weight for module in modules if module for weight in module.parameters()]


def get_parametrisation(name: str, file: str | Path | None, place: str) -> type[Parametrisation]:
    """The class of the project's parametrisation ``name``, or the one that ``file`` defines.

    Raises UserError if there is none.
    """
    kind = "parametrisation"
    if file is None:
        folder = ROOT / "methods" / "parameters"
        return plugin_named(folder, "methods.parameters", name, Parametrisation, kind, place)
    return class_of_file(file, Parametrisation, kind, place)
