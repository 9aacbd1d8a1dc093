"""DoRA: size and direction of each row are learned apart (Liu et al. 2024, arXiv 2402.09353).

    W = m V / |V|,    V = W_0 + s B A

m [outputs] begins as the norms |W_0| of the rows, one of each output, as PEFT has it; the paper's
equation 5 writes norms of columns. A, B and s are those of LoRA.
The gradient takes |V| for a constant, as section 4.3 of the paper and PEFT have it:

    dV = (m / |V|) dW,    dm = sum over inputs of dW V / |V|

Options, settings and what they mean are those of `lora`.

State: as `lora`, with m. Cost: the memory of `lora` and 16 bytes for each number of m; the time of
all weights.
"""

from dataclasses import dataclass

import torch

from harness.learning.low_rank import AdapterConfig, LowRank
from harness.learning.parametrisation import Tensors

SIZE = "lora_magnitude_vector"


@dataclass
class DoRAConfig(AdapterConfig):
    pass


class DoRA(LowRank):
    Config = DoRAConfig
    kinds = ("lora_A", "lora_B", SIZE)
    bends = True
    passes = 3

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        numbers, fixed = super().initial(weight, generator)
        return {**numbers, SIZE: weight.norm(dim=1).cpu()}, fixed

    def count(self, weight: torch.Tensor) -> int:
        return super().count(weight) + len(weight)

    def weight(self, base: torch.Tensor, numbers: Tensors, fixed: Tensors) -> torch.Tensor:
        direction = super().weight(base, numbers, fixed)
        return direction * (numbers[SIZE] / _norms(direction))[:, None]

    def gradients(
        self, base: torch.Tensor, numbers: Tensors, fixed: Tensors, gradient: torch.Tensor
    ) -> Tensors:
        direction = super().weight(base, numbers, fixed)
        norm = _norms(direction)
        of_direction = gradient * (numbers[SIZE] / norm)[:, None]
        own = super().gradients(base, numbers, fixed, of_direction)
        return {**own, SIZE: (gradient * direction).sum(1) / norm}


def _norms(direction: torch.Tensor) -> torch.Tensor:
    """Of the rows; tiny instead of 0, so that rows of zeros stay what they are."""
    return direction.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
