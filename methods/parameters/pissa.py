"""PiSSA: a LoRA that begins with the largest singular values (Meng et al. 2024, arXiv 2404.02948).

    W_0 = U S V^T,    A_0 = sqrt(S_r / s) V_r^T,    B_0 = U_r sqrt(S_r / s)

S_r are the ``rank`` largest singular values. W begins as W_0, since W = W_0 + s (B A - B_0 A_0).
The residual that the paper freezes is W_0 - s B_0 A_0; here it is never rounded to a dtype.

``alpha`` is the rank if left out, as in the paper. A and B are larger than those of `lora`, so its
learning rates may be too high. The other options and what they mean are those of `lora`.

State: A and B where they are continued, with A_0 and B_0, which are in memory as well. Cost: a
singular value decomposition of each weight at the start of a stage.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.base.settings import option
from harness.learning.low_rank import AdapterConfig, LowRank
from harness.learning.parametrisation import Tensors


@dataclass
class PiSSAConfig(AdapterConfig):
    usual: ClassVar[float] = 1.0
    alpha: float | None = option(
        None, "the change is scaled by alpha / rank; the rank if left out", above=0, max=1e6
    )


class PiSSA(LowRank):
    """largest: whether A and B begin with the largest singular values, or the smallest."""

    Config = PiSSAConfig
    largest: ClassVar[bool] = True

    def beside(self, weight: torch.Tensor) -> int:
        return self.count(weight)

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        u, values, v = torch.linalg.svd(weight, full_matrices=False)  # from the largest on
        rank = self.rank_of(weight)
        chosen = slice(rank) if self.largest else slice(len(values) - rank, None)
        roots = (values[chosen] / self.config.scaling).sqrt()
        down, up = (roots[:, None] * v[chosen]).cpu(), (u[:, chosen] * roots).cpu()
        begun = {"lora_A": down.contiguous(), "lora_B": up.contiguous()}
        return begun, {kind: value.clone() for kind, value in begun.items()}
