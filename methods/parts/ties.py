"""TIES: stages' task vectors, trimmed, with elected signs, and averaged (arXiv 2306.01708).

    theta = theta_B + scale tau,    tau_i = mean of the trimmed tau_ki whose sign is s_i

1. Trim: of each tau_k the ``density`` largest entries stay, by size over the whole model, and what
   is equal to the last of them.
2. Elect: s_i is the sign of sum_k tau_ki, that of the larger total size; a tie counts as +.
3. Merge: the mean is over the stages whose trimmed entry has that sign.

theta_B, tau_k and ``begin`` are as in task arithmetic. The authors' code trims over the whole model
as well; PEFT's trims each tensor by itself. The result does not depend on how many stages are
merged at once: sums and counts of both signs are enough.

The paper's setting: density 0.2, scale 1.

State: sum and count of positive and of negative entries, 12 bytes for each weight. Cost: as task
arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.base.settings import option
from harness.learning.task_vectors import TaskVectorConfig, TaskVectors

LOW = 16  # bits that the second pass of a selection looks at


@dataclass
class TIESConfig(TaskVectorConfig):
    scale: float = option(1.0, "lambda, the factor of the merged vector", min=0, max=1000)
    density: float = option(0.2, "share of a task vector's entries that stay", above=0, max=1)


class TIES(TaskVectors):
    Config = TIESConfig
    config: TIESConfig
    bytes_kept: ClassVar[int] = 12

    def read(self, vectors: Mapping[str, torch.Tensor]) -> None:
        count = sum(vector.numel() for vector in vectors.values())
        self.least = largest(vectors, max(1, int(self.config.density * count)))

    def add(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        vector *= vector.abs() >= self.least
        above = self.total("above", name, vector.clamp(min=0))
        below = self.total("below", name, vector.clamp(max=0))
        count_above = self.total("count above", name, (vector > 0).to(torch.int16))
        count_below = self.total("count below", name, (vector < 0).to(torch.int16))
        is_above = above + below >= 0
        counts = torch.where(is_above, count_above, count_below).clamp(min=1)
        return torch.where(is_above, above, below) / counts


def largest(tensors: Mapping[str, torch.Tensor], count: int) -> float:
    """The size of the ``count``-th largest entry by size of float32 tensors together.

    No copy of all of them is made. The bits of floats that are not negative are in the floats'
    order: one pass counts the upper half of the bits, one the lower half of those that tie.
    """
    upper, lower = torch.zeros(1 << LOW, dtype=torch.int64), torch.zeros(1 << LOW).long()
    for tensor in tensors.values():
        high = _bits(tensor) >> LOW
        upper += torch.bincount(high, minlength=len(upper)).cpu()
    top, left = _reach(upper, count)
    for tensor in tensors.values():
        bits = _bits(tensor)
        low = bits[bits >> LOW == top] & (1 << LOW) - 1
        lower += torch.bincount(low, minlength=len(lower)).cpu()
    least = top << LOW | _reach(lower, left)[0]
    return torch.tensor(least, dtype=torch.int32).view(torch.float32).item()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().contiguous().view(torch.int32).flatten()


def _reach(histogram: torch.Tensor, count: int) -> tuple[int, int]:
    """The bin of the ``count``-th from above, and its number from above in that bin."""
    above = histogram.flip(0).cumsum(0)
    place = int((above < count).sum())
    before = int(above[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - before
