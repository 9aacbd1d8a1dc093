"""Weights of linear maps that are made of other numbers: the frame of LoRA and its relatives.

The model in memory has the weights W themselves, in its own dtype: the float32 numbers are written
into it after each step, as float32 masters of all weights are. So sampler, packed products,
evaluation and records see the weights that are trained, and merging changes none.

The gradients of the numbers follow from that of W, one weight at a time, as soon as it is there. A
bfloat16 W is rounded with the offsets of dither.py, so that changes below its rounding are seen in
a forward pass, on average as large as they are.

Memory: W, and the W_0 that it is made from, both in the model's dtype; for the numbers what all
weights have otherwise: masters, AdamW's moments, gradients, averages. A teacher averages the
numbers; while it scores, the weights that they make are in the model. Whatever asks for the start
of the stage has W_0, or what the numbers of that start make of it, and loads no model.

What goes with it: parts that add a loss, join examples or weigh tokens do. Penalties act on W
through the numbers, averages on W. Parts with ``gradient``, ``update`` or ``project`` take weights
themselves and are refused, but for A-GEM, which projects whatever is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.dither import Dither, dither_of, of_bfloat16
from harness.learning.parametrisation import (
    Parameters,
    Parametrisation,
    ParametrisationConfig,
    Receiver,
    Size,
    Tensors,
    add_gradient,
    embeddings,
)
from harness.learning.weights import check_names
from harness.models.sharded import own_parts, rows_of_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.learning.stage import Stage


@dataclass
class MadeConfig(ParametrisationConfig):
    """Which weights are made of numbers."""

    targets: list[str] | None = option(
        None, "names of linear maps, as [q_proj, v_proj]; all but the output head if left out"
    )

    def __post_init__(self) -> None:
        if self.targets is not None and not self.targets:
            raise ValueError("targets is an empty list; leave it out for all linear maps")


@dataclass
class Made:
    """A weight of the model that is made of numbers.

    module: that has it; base: W_0 in the model's dtype, laid out as ``weight`` is; turned: whether
    that is [inputs, outputs], as GPT-2 has it; names: of its numbers, by what they are ("lora_A").
    """

    module: torch.nn.Module
    weight: torch.nn.Parameter
    base: torch.Tensor
    turned: bool
    names: dict[str, str]

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """[outputs, inputs] of a tensor laid out as the weight, and the other way round."""
        return tensor.T if self.turned else tensor


class MadeWeights(Parametrisation):
    """A subclass says what the numbers of a weight are, as [outputs, inputs], and W of them.

    kinds: what the numbers of a weight are called; bends: whether ``gradients`` depend on W_0.
    """

    Config: ClassVar[type[ParametrisationConfig]] = MadeConfig
    config: MadeConfig
    makes = True
    kinds: ClassVar[tuple[str, ...]]
    bends: ClassVar[bool] = False

    def __init__(self, config: ParametrisationConfig | None = None) -> None:
        super().__init__(config)
        self.made: dict[str, Made] = {}  # by the name of the weight
        self.numbers: Tensors = {}  # float32, by their own names
        self.begun: Tensors = {}  # those at the start of a stage that is not the first to have them
        self.fixed: dict[str, Tensors] = {}  # what else a weight is made of, by its name
        self.dither = Dither(0)  # of the stage
        self.dithered: dict[str, int] = {}  # see of_bfloat16

    @property
    def continues(self) -> bool:
        """Whether the numbers of a stage go on in the next one, on the W_0 of the run."""
        return getattr(self.config, "adapter", "merged") == "continued"

    @property
    def keeps_start(self) -> bool:
        return self.keeps_base

    @property
    def keeps_base(self) -> bool:
        """Whether W_0 is in memory; otherwise W is made of numbers and of what stays alone."""
        return True

    # ---- of one weight, as [outputs, inputs] ---------------------------------------------------

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        """(numbers, what stays as it is) that a float32 weight begins with, on the CPU, by kind."""
        raise NotImplementedError

    def weight(self, base: torch.Tensor, numbers: Tensors, fixed: Tensors) -> torch.Tensor:
        """The float32 W that ``numbers`` make of the float32 W_0."""
        raise NotImplementedError

    def gradients(
        self, base: torch.Tensor, numbers: Tensors, fixed: Tensors, gradient: torch.Tensor
    ) -> Tensors:
        """The gradients of ``numbers``, given that of W."""
        raise NotImplementedError

    def rows(self, numbers: Tensors, rows: slice) -> Tensors:
        """Of numbers that every rank has whole those that make some rows of W."""
        raise UserError(
            "parameters",
            f"{type(self).__name__.lower()} cannot make a part of a weight",
            "run it in one process",
        )

    def bring_back(self, numbers: Tensors, fixed: Tensors) -> None:
        """Bring ``numbers`` back, in place, to where they may be, after a step."""

    def count(self, weight: torch.Tensor) -> int:
        """How many numbers a weight is made of."""
        raise NotImplementedError

    def beside(self, weight: torch.Tensor) -> int:
        """How many float32 numbers stay as they are, beside W_0."""
        return 0

    # ---- which weights -------------------------------------------------------------------------

    def trained(self, model: PreTrainedModel) -> list[str]:
        linear = _linear_weights(model)
        targets = self.config.targets
        if targets is None:
            chosen = list(linear)
        else:
            for target in targets:
                if not any(_is_called(name, target) for name in linear):
                    known = sorted({name.split(".")[-2] for name in linear})
                    raise UserError(
                        "targets",
                        f"the model has no linear map {target[:40]!r}",
                        f"it has {', '.join(known)[:300]}",
                    )
            chosen = [n for n in linear if any(_is_called(n, target) for target in targets)]
        if not chosen:
            raise UserError("targets", "the model has no linear maps", "take parameters: all")
        return chosen

    def size(self, model: PreTrainedModel) -> Size:
        numbers = weights = beside = 0
        turned = _linear_weights(model)
        for name in self.trained(model):
            weight = model.get_parameter(name)
            weights += weight.numel()
            weight = weight.T if turned[name] else weight
            numbers += self.count(weight)
            beside += self.beside(weight)
        kept = (numbers + beside) * self.continues
        again = weights * self.keeps_base
        begun = numbers * (self.continues and self.keeps_start)
        return Size(numbers, weights, True, again, beside + begun, kept, self.keeps_start)

    # ---- a stage -------------------------------------------------------------------------------

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        self.dither = dither_of(stage, of_run=self.continues)
        self.dithered = dict(of_bfloat16(stage.model))
        turned = _linear_weights(stage.model)
        names = self.trained(stage.model)
        goes_on = self.continues and bool(self.numbers)  # which the stage before has left
        source = stage.start("run") if goes_on and self.keeps_base else stage.model
        seed = seed_for(stage.seed, stage.index, "parameters")
        generator = torch.Generator().manual_seed(seed)
        if not goes_on:
            self.numbers, self.fixed = {}, {}
        for name in names:
            base = source.get_parameter(name).detach()
            made = Made(
                stage.model.get_submodule(name.removesuffix(".weight")),
                stage.model.get_parameter(name),
                self._kept(base, goes_on),
                turned[name],
                {k: f"{name.removesuffix('.weight')}.{k}.weight" for k in self.kinds},
            )
            self.made[name] = made
            if not goes_on:
                numbers, fixed = self.initial(made.like(base).float(), generator)
                self.fixed[name] = fixed
                for kind, value in numbers.items():
                    # AdamW pairs numbers with gradients as they lie in memory.
                    self.numbers[made.names[kind]] = value.contiguous()
        for name, made in self.made.items():
            device = made.weight.device
            self.fixed[name] = {kind: t.to(device) for kind, t in self.fixed[name].items()}
        names_made = [name for made in self.made.values() for name in made.names.values()]
        check_names(self.numbers, names_made, "the adapter of the stage before")
        if goes_on and self.keeps_start:
            self.begun = {
                name: self.numbers[name].detach().to(made.weight.device, copy=True)
                for made in self.made.values()
                for name in made.names.values()
            }
        if not (goes_on or self.keeps_base):
            self._write(self.numbers)  # which are of another W_0 than the model's

    def _kept(self, base: torch.Tensor, goes_on: bool) -> torch.Tensor:
        """W_0, of which a model that learns needs a copy; empty where it is not kept."""
        if not self.keeps_base:
            return base.new_empty(0, 0)
        return base if goes_on else base.clone()

    def end(self, stage: Stage) -> None:
        super().end(stage)
        if self.continues and not self._is_written(stage.model.dtype):
            raise UserError(
                "parameters",
                "something changed weights at the end of the stage, which adapter: continued "
                "would not keep",
                "take adapter: merged, or leave out parts that change weights there",
            )
        self.made, self.begun = {}, {}
        if not self.continues:
            self.numbers, self.fixed = {}, {}
        self.numbers = {n: value.detach().cpu() for n, value in self.numbers.items()}

    @torch.no_grad()
    def _is_written(self, dtype: torch.dtype) -> bool:
        """Whether the model, of this dtype, has the weights that the numbers make."""
        return all(
            torch.equal(own_parts(self.made[name].weight).to(dtype), weight.to(dtype))
            for name, weight in self._offset(self.numbers)
        )

    def checkpoint(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"numbers": {name: value.detach() for name, value in self.numbers.items()}}

    def restore(self, model: PreTrainedModel, state: Mapping[str, Any]) -> None:
        check_names(state["numbers"], self.numbers, "the checkpoint of the adapter")
        self.numbers = dict(state["numbers"])
        self._write(self.numbers)

    # ---- for a trainer -------------------------------------------------------------------------

    def masters(self, weights: Parameters, place: torch.device) -> Tensors:
        self.numbers = {
            name: value.detach().to(place).requires_grad_() for name, value in self.numbers.items()
        }
        return self.numbers

    def receiver(self, name: str, masters: Mapping[str, torch.Tensor]) -> Receiver:
        return partial(self._receive, name, masters)

    @torch.no_grad()
    def _receive(
        self, name: str, masters: Mapping[str, torch.Tensor], gradient: torch.Tensor
    ) -> None:
        """Add what the gradient of a weight is to its numbers to the gradients of these."""
        made = self.made[name]
        numbers, fixed = self._of(name, masters)
        of_weight = made.like(gradient.to(made.weight.device, torch.float32))
        base = made.like(made.base).float() if self.bends else of_weight
        for kind, value in self.gradients(base, numbers, fixed, of_weight).items():
            add_gradient(masters[made.names[kind]], value.contiguous())

    def decayed(self, names: set[str]) -> set[str]:
        return set(self.numbers)

    @torch.no_grad()
    def settle(self, masters: Mapping[str, torch.Tensor]) -> None:
        for name, made in self.made.items():
            own = {kind: masters[number].detach() for kind, number in made.names.items()}
            self.bring_back(own, self.fixed[name])

    def write(self, weights: Parameters, masters: Mapping[str, torch.Tensor]) -> None:
        self._write(masters)

    @torch.no_grad()
    def _write(self, numbers: Mapping[str, torch.Tensor]) -> None:
        for name, weight in self._offset(numbers):
            own_parts(self.made[name].weight).copy_(weight)

    def _offset(self, numbers: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """``effective``, with the offsets with which a bfloat16 weight is rounded."""
        for name, weight in self.effective(numbers):
            yield name, self._with_offset(name, weight)

    def _with_offset(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if name in self.dithered:
            self.dither.add(name, weight, self.dithered[name])
        return weight

    @torch.no_grad()
    def effective(self, masters: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.made:
            yield name, self._weight(name, masters)

    def _weight(self, name: str, masters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The float32 weight that numbers make, laid out as the model's; a part on each rank."""
        made = self.made[name]
        numbers, fixed = self._of(name, masters)
        base = own_parts(made.base)
        if base is not made.base:
            rows = rows_of_part(made.base)
            numbers, fixed = self.rows(numbers, rows), self.rows(fixed, rows)
        return made.like(self.weight(made.like(base).float(), numbers, fixed))

    def _of(self, name: str, numbers: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
        """(numbers, what stays as it is) of a weight, by kind, on the model's device."""
        made = self.made[name]
        device = made.weight.device
        own = {kind: numbers[number].detach().to(device) for kind, number in made.names.items()}
        return own, self.fixed[name]

    # ---- for a teacher -------------------------------------------------------------------------

    def copies(self, place: torch.device) -> Tensors:
        return {name: v.detach().to(place, copy=True) for name, v in self.numbers.items()}

    @contextmanager
    def wearing(self, numbers: Mapping[str, torch.Tensor]) -> Iterator[None]:
        self._write(numbers)
        try:
            yield
        finally:
            self._write(self.numbers)

    @contextmanager
    @torch.no_grad()
    def as_begun(self) -> Iterator[None]:
        if self.begun:
            self._write(self.begun)
        else:
            for made in self.made.values():
                made.weight.copy_(made.base)
        try:
            yield
        finally:
            self._write(self.numbers)

    @torch.no_grad()
    def began(self, name: str) -> torch.Tensor | None:
        if name not in self.made:
            return None
        made = self.made[name]
        if not self.begun:
            return made.base
        if own_parts(made.base) is not made.base:  # of several ranks, each of which makes a part
            return None
        return self._with_offset(name, self._weight(name, self.begun)).to(made.weight.dtype)

    # ---- between stages ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": dict(self.numbers), "fixed": dict(self.fixed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.numbers, self.fixed = dict(state["numbers"]), dict(state["fixed"])


def _is_called(name: str, target: str) -> bool:
    """Whether the weight ``name`` is of a module whose path ends with ``target``."""
    return f".{name}".endswith(f".{target}.weight")


def _linear_weights(model: PreTrainedModel) -> dict[str, bool]:
    """{name: whether it is [inputs, outputs]} of the linear maps that learn, head left out."""
    from transformers.pytorch_utils import Conv1D

    left_out = set(map(id, embeddings(model)))
    weights: dict[str, bool] = {}
    for name, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear | Conv1D)
        if is_linear and module.weight.requires_grad and id(module.weight) not in left_out:
            weights[f"{name}.weight"] = isinstance(module, Conv1D)
            left_out.add(id(module.weight))  # Layers may share their weights.
    return weights
