"""Changes of weights by a low rank: what LoRA and its relatives share.

    W = W_0 + s (B A - B_0 A_0)

W is the weight [outputs, inputs] of a linear map, A [rank, inputs] and B [outputs, rank] learn, and
A_0, B_0 are what these began with.

    dA = s B^T dW,    dB = s dW A^T

These are the gradients of adapters beside the layer, as PEFT computes them, without dropout on an
adapter's input, which is no function of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.base.settings import option
from harness.learning.made_weights import MadeConfig, MadeWeights
from harness.learning.parametrisation import ParametrisationConfig, Tensors


@dataclass
class LowRankConfig(MadeConfig):
    """Options of a low rank; usual: alpha / rank if alpha is left out."""

    usual: ClassVar[float] = 2.0
    rank: int = option(8, "rank of the change of each weight, at most its smaller side", min=1)
    alpha: float | None = option(
        None, "the change is scaled by alpha / rank; twice the rank if left out", above=0
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

    def rank_of(self, weight: torch.Tensor) -> int:
        """The rank of a weight's change."""
        return min(self.config.rank, *weight.shape)

    def count(self, weight: torch.Tensor) -> int:
        return self.rank_of(weight) * sum(weight.shape)
