"""Weights that are made of a frozen base and of few numbers: what LoRA and its relatives share.

    W = W_0 + s (B A - B_0 A_0)

W is the weight [outputs, inputs] of a linear map, A [rank, inputs] and B [outputs, rank] learn, and
A_0, B_0 are what these began with. The model in memory has W itself, in its own dtype: the masters
A and B are written into it after each step, as float32 masters of all weights are. So sampler,
packed products, evaluation and records see the weights that are trained, and merging changes none.

The gradients of A and B follow from that of W, one weight at a time, as soon as it is there:

    dA = s B^T dW,    dB = s dW A^T

They are those of adapters beside the layer, as PEFT computes them, without dropout on an adapter's
input, which is no function of weights. In bfloat16 a change of W below its rounding is not seen in
a forward pass, while the masters go on adding it up; PEFT's layers round their sums instead.

Memory: W, W_0 of the linear maps in the model's dtype, and for A and B what all weights have
otherwise: masters, AdamW's moments, gradients, averages. A teacher averages A and B; while it
scores, its weights are in the model.

What goes with it: parts that add a loss, join examples or weigh tokens do, and penalties act on W
through dA and dB. Parts with ``gradient`` or ``update`` take weights themselves and are refused.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.learning.stage import Stage


@dataclass
class LowRankConfig(ParametrisationConfig):
    """Options of a low rank; usual: alpha / rank if alpha is left out."""

    usual: ClassVar[float] = 2.0
    rank: int = option(8, "rank of the change of each weight, at most its smaller side", min=1)
    alpha: float | None = option(
        None, "the change is scaled by alpha / rank; twice the rank if left out", above=0
    )
    rslora: bool = option(False, "whether it is scaled by alpha / sqrt(rank), arXiv 2312.03732")
    targets: list[str] | None = option(
        None, "names of linear maps, as [q_proj, v_proj]; all but the output head if left out"
    )

    def __post_init__(self) -> None:
        if self.targets is not None and not self.targets:
            raise ValueError("targets is an empty list; leave it out for all linear maps")

    @property
    def scaling(self) -> float:
        """s."""
        alpha = self.usual * self.rank if self.alpha is None else self.alpha
        return float(alpha / (self.rank**0.5 if self.rslora else self.rank))


@dataclass
class AdapterConfig(LowRankConfig):
    """A low rank that a run may keep."""

    adapter: str = option(
        "merged",
        "a new adapter in each stage, merged at its end, or one continued through the run",
        choices=("merged", "continued"),
    )


@dataclass
class Made:
    """A weight of the model that is made of numbers.

    base: W_0 in the model's dtype, laid out as ``weight`` is; turned: whether that is [inputs,
    outputs], as GPT-2 has it; names: of its numbers, by what they are ("lora_A").
    """

    weight: torch.nn.Parameter
    base: torch.Tensor
    turned: bool
    names: dict[str, str]

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """[outputs, inputs] of a tensor laid out as the weight, and the other way round."""
        return tensor.T if self.turned else tensor


class LowRank(Parametrisation):
    """A parametrisation W = W_0 + s (B A - B_0 A_0); a subclass says what A and B begin with.

    kinds: what the numbers of a weight are called; shifts: whether B_0 A_0 is not 0; bends: whether
    ``gradients`` depend on the base.
    """

    Config: ClassVar[type[ParametrisationConfig]] = LowRankConfig
    config: LowRankConfig
    makes = True
    kinds: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    shifts: ClassVar[bool] = False
    bends: ClassVar[bool] = False

    def __init__(self, config: ParametrisationConfig | None = None) -> None:
        super().__init__(config)
        self.made: dict[str, Made] = {}  # by the name of the weight
        self.numbers: Tensors = {}  # float32, by their own names
        self.origin: Tensors = {}  # A_0 and B_0, where B_0 A_0 is not 0

    @property
    def continues(self) -> bool:
        """Whether the numbers of a stage go on in the next one."""
        return getattr(self.config, "adapter", "merged") == "continued"

    # ---- of one weight, as [outputs, inputs] ---------------------------------------------------

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        """What the numbers of a float32 weight begin with, on the CPU.

        By default A is uniform in +-1 / sqrt(inputs), as PEFT and a linear layer have it, B is 0.
        """
        rank = self.rank_of(weight)
        down = torch.empty(rank, weight.shape[1])
        bound = weight.shape[1] ** -0.5
        return {
            "lora_A": down.uniform_(-bound, bound, generator=generator),
            "lora_B": torch.zeros(weight.shape[0], rank),
        }

    def weight(self, base: torch.Tensor, numbers: Tensors, origin: Tensors) -> torch.Tensor:
        """The float32 weight that ``numbers`` make of the float32 ``base``."""
        change = numbers["lora_B"] @ numbers["lora_A"]
        if origin:
            change -= origin["lora_B"] @ origin["lora_A"]
        return torch.add(base, change, alpha=self.config.scaling)

    def gradients(
        self, base: torch.Tensor, numbers: Tensors, origin: Tensors, gradient: torch.Tensor
    ) -> Tensors:
        """The gradients of ``numbers``, given that of the float32 weight."""
        s = self.config.scaling
        return {
            "lora_A": s * (numbers["lora_B"].T @ gradient),
            "lora_B": s * (gradient @ numbers["lora_A"].T),
        }

    def rank_of(self, weight: torch.Tensor) -> int:
        """The rank of a weight's change."""
        return min(self.config.rank, *weight.shape)

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
        numbers = weights = 0
        turned = _linear_weights(model)
        for name in self.trained(model):
            weight = model.get_parameter(name)
            weights += weight.numel()
            numbers += self.count(weight.T if turned[name] else weight)
        kept = numbers * (1 + self.shifts) if self.continues else 0
        return Size(numbers, weights, again=weights, kept=kept)

    def count(self, weight: torch.Tensor) -> int:
        """How many numbers a weight [outputs, inputs] is made of."""
        return self.rank_of(weight) * sum(weight.shape)

    # ---- a stage -------------------------------------------------------------------------------

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        turned = _linear_weights(stage.model)
        names = self.trained(stage.model)
        goes_on = self.continues and stage.index > 1
        source = stage.start("run") if goes_on else stage.model
        seed = seed_for(stage.seed, stage.index, "parameters")
        generator = torch.Generator().manual_seed(seed)
        fresh: Tensors = {}
        for name in names:
            base = source.get_parameter(name).detach()
            made = Made(
                stage.model.get_parameter(name),
                base if goes_on else base.clone(),
                turned[name],
                {k: f"{name.removesuffix('.weight')}.{k}.weight" for k in self.kinds},
            )
            self.made[name] = made
            if not goes_on:
                own = self.initial(made.like(base).float(), generator)
                # AdamW pairs numbers with gradients as they lie in memory.
                fresh |= {made.names[kind]: value.contiguous() for kind, value in own.items()}
        if not goes_on:
            self.numbers = fresh
            self.origin = {n: v.clone() for n, v in fresh.items()} if self.shifts else {}
        names_made = [name for made in self.made.values() for name in made.names.values()]
        check_names(self.numbers, names_made, "the adapter of the stage before")

    def end(self, stage: Stage) -> None:
        super().end(stage)
        if self.continues and not self._is_written():
            raise UserError(
                "parameters",
                "something changed weights at the end of the stage, which adapter: continued "
                "would not keep",
                "take adapter: merged, or leave out parts that change weights there",
            )
        self.made = {}
        if not self.continues:
            self.numbers, self.origin = {}, {}
        self.numbers = {n: value.detach().cpu() for n, value in self.numbers.items()}

    @torch.no_grad()
    def _is_written(self) -> bool:
        """Whether the model has the weights that the numbers make."""
        return all(
            torch.equal(made.weight, made.like(weight).to(made.weight.dtype))
            for made, weight in self._weights(self.numbers)
        )

    def checkpoint(self, model: PreTrainedModel) -> dict[str, Any]:
        return {
            "numbers": {name: value.detach() for name, value in self.numbers.items()},
            "origin": self.origin,
        }

    def restore(self, model: PreTrainedModel, state: Mapping[str, Any]) -> None:
        check_names(state["numbers"], self.numbers, "the checkpoint of the adapter")
        self.numbers = dict(state["numbers"])
        self.origin = dict(state["origin"])
        self._write(self.numbers)

    # ---- for a trainer -------------------------------------------------------------------------

    def masters(self, weights: Parameters, place: torch.device) -> Tensors:
        self.numbers = {
            name: value.detach().to(place).requires_grad_() for name, value in self.numbers.items()
        }
        return self.numbers

    def receiver(self, name: str, masters: Mapping[str, torch.Tensor]) -> Receiver:
        return partial(self._receive, self.made[name], masters)

    @torch.no_grad()
    def _receive(
        self, made: Made, masters: Mapping[str, torch.Tensor], gradient: torch.Tensor
    ) -> None:
        """Add what the gradient of a weight is to its numbers to the gradients of these."""
        device = made.weight.device
        numbers, origin = self._of(made, masters, device)
        of_weight = made.like(gradient.to(device, torch.float32))
        base = made.like(made.base).float() if self.bends else of_weight
        for kind, value in self.gradients(base, numbers, origin, of_weight).items():
            add_gradient(masters[made.names[kind]], value.contiguous())

    def decayed(self, names: set[str]) -> set[str]:
        return set(self.numbers)

    def write(self, weights: Parameters, masters: Mapping[str, torch.Tensor]) -> None:
        self._write(masters)

    @torch.no_grad()
    def _write(self, numbers: Mapping[str, torch.Tensor]) -> None:
        for made, weight in self._weights(numbers):
            made.weight.copy_(made.like(weight))

    def effective(self, masters: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        with torch.no_grad():
            weights = self._weights(masters)
            for name in self.made:
                made, weight = next(weights)
                yield name, made.like(weight)

    def _weights(self, numbers: Mapping[str, torch.Tensor]) -> Iterator[tuple[Made, torch.Tensor]]:
        """Each made weight, float32 [outputs, inputs], on the model's device."""
        for made in self.made.values():
            values, origin = self._of(made, numbers, made.weight.device)
            yield made, self.weight(made.like(made.base).float(), values, origin)

    def _of(
        self, made: Made, numbers: Mapping[str, torch.Tensor], device: torch.device
    ) -> tuple[Tensors, Tensors]:
        """(numbers, what they began with) of a weight, by kind."""
        values = {kind: numbers[name].detach().to(device) for kind, name in made.names.items()}
        if not self.origin:
            return values, {}
        return values, {kind: self.origin[name].to(device) for kind, name in made.names.items()}

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

    # ---- between stages ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": dict(self.numbers), "origin": dict(self.origin)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.numbers, self.origin = dict(state["numbers"]), dict(state["origin"])


def _is_called(name: str, target: str) -> bool:
    """Whether the weight ``name`` is of a module whose path ends with ``target``."""
    return f".{name}".endswith(f".{target}.weight")


def _linear_weights(model: PreTrainedModel) -> dict[str, bool]:
    """{name: whether it is [inputs, outputs]} of the linear maps that learn, head left out."""
    from transformers.pytorch_utils import Conv1D

    left_out = set(map(id, embeddings(model)))
    return {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module.weight.requires_grad
        and id(module.weight) not in left_out
    }
