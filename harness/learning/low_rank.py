"""Changes of weights by a low rank: what LoRA and its relatives share.

    W = W_0 + s (B A - B_0 A_0)

W is the weight [outputs, inputs] of a linear map, A [rank, inputs] and B [outputs, rank] learn, and
A_0, B_0 are what these began with.

    dA = s B^T dW,    dB = s dW A^T

These are the gradients of adapters beside the layer, as PEFT computes them, without dropout on an
adapter's input, which is no function of weights. Where a linear map is PyTorch's own they come from
its inputs x and the gradients g of its outputs, and dW, a third of the products, is never computed:

    dA = s (g B)^T x,    dB = s g^T (x A^T)

The FLOPs on record are those of this way, 4 N a token. The linear maps of GPT-2 are of another
class, and EWC's and MAS's gradients are of weights: these compute dW, which is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from harness.base.errors import UserError
from harness.base.settings import option
from harness.learning.made_weights import MadeConfig, MadeWeights
from harness.learning.parametrisation import ParametrisationConfig, Tensors, add_gradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class LowRankConfig(MadeConfig):
    """Options of a low rank; usual: alpha / rank if alpha is left out."""

    usual: ClassVar[float] = 2.0
    rank: int = option(8, "rank of the change of each weight, at most its smaller side", min=1)
    alpha: float | None = option(
        None, "the change is scaled by alpha / rank; twice the rank if left out", above=0, max=1e6
    )
    rslora: bool = option(False, "whether it is scaled by alpha / sqrt(rank), arXiv 2312.03732")

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


class LowRank(MadeWeights):
    """A subclass says what A and B begin with, and what else a weight is made of."""

    Config: ClassVar[type[ParametrisationConfig]] = LowRankConfig
    config: LowRankConfig
    kinds: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    passes = 2

    def trained(self, model: PreTrainedModel) -> list[str]:
        """Raises UserError for a rank that no weight can have: alpha / rank would be of less."""
        names = super().trained(model)
        largest = max(min(model.get_parameter(name).shape) for name in names)
        if self.config.rank > largest:
            raise UserError(
                "rank",
                f"{self.config.rank} is above the {largest} of the largest target",
                "lower it",
            )
        return names

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        """A uniform in +-1 / sqrt(inputs), as PEFT and a linear layer have it, and B of zeros."""
        rank = self.rank_of(weight)
        down = torch.empty(rank, weight.shape[1])
        bound = weight.shape[1] ** -0.5
        down.uniform_(-bound, bound, generator=generator)
        return {"lora_A": down, "lora_B": torch.zeros(weight.shape[0], rank)}, {}

    def weight(self, base: torch.Tensor, numbers: Tensors, fixed: Tensors) -> torch.Tensor:
        change = numbers["lora_B"] @ numbers["lora_A"]
        if fixed:
            change -= fixed["lora_B"] @ fixed["lora_A"]
        return torch.add(base, change, alpha=self.config.scaling)

    def gradients(
        self, base: torch.Tensor, numbers: Tensors, fixed: Tensors, gradient: torch.Tensor
    ) -> Tensors:
        s = self.config.scaling
        return {
            "lora_A": s * (numbers["lora_B"].T @ gradient),
            "lora_B": s * (gradient @ numbers["lora_A"].T),
        }

    def rows(self, numbers: Tensors, rows: slice) -> Tensors:
        return {kind: t[rows] if kind == "lora_B" else t for kind, t in numbers.items()}

    @contextmanager
    def computing(self, masters: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """PyTorch's linear maps give A and B their gradients by themselves."""
        changed = []
        for name, made in {} if self.bends else self.made.items():
            linear = made.module
            if type(linear) is torch.nn.Linear and "forward" not in vars(linear):
                receive = partial(self._receive_product, name, masters)
                linear.forward = partial(_product, linear, receive)  # type: ignore[method-assign]
                changed.append(linear)
        try:
            yield
        finally:
            for linear in changed:
                del linear.forward

    def _receive_product(
        self,
        name: str,
        masters: Mapping[str, torch.Tensor],
        inputs: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        """Add the gradients of A and B, from inputs [tokens, inputs] and the outputs' gradient."""
        numbers, _ = self._of(name, masters)
        x, g, s = inputs.float(), gradient.float(), self.config.scaling
        own = {
            "lora_A": s * ((g @ numbers["lora_B"]).T @ x),
            "lora_B": s * (g.T @ (x @ numbers["lora_A"].T)),
        }
        for kind, value in own.items():
            add_gradient(masters[self.made[name].names[kind]], value)

    def rank_of(self, weight: torch.Tensor) -> int:
        """The rank of a weight's change."""
        return min(self.config.rank, *weight.shape)

    def count(self, weight: torch.Tensor) -> int:
        return self.rank_of(weight) * sum(weight.shape)


Receive = Callable[[torch.Tensor, torch.Tensor], None]


class _Product(torch.autograd.Function):
    """A linear map that hands on its inputs and its outputs' gradient instead of the weight's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        receive: Receive,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.receive = receive
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.receive(x.flatten(0, -2), gradient.flatten(0, -2))
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


def _product(linear: torch.nn.Linear, receive: Receive, x: torch.Tensor) -> torch.Tensor:
    """The product of ``linear``, whose bias does not learn."""
    product: torch.Tensor = _Product.apply(x, linear.weight, linear.bias, receive)
    return product
