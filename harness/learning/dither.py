"""Masters of a bfloat16 model begin off bfloat16's own numbers, so that small updates show at once.

A weight that was loaded, or that a stage saved, is a bfloat16. A master that began there would have
to move by half the distance to the next one before the model's weight moves at all: in weights
around 0.03 that is 6e-5, several steps of most rates, and the model would learn more slowly than
the same one in float32. So a master begins at the weight plus an offset of at most half that
distance. It still rounds to the weight, the model is the same, and a change of any size moves its
share of the weights: on average the model changes by what the masters do. This is the dither of
quantizers (Gray and Stockham, IEEE Transactions on Information Theory 39(3), 1993), held fixed for
a stage.

Offsets are the lower 16 bits of a float32, in order of a weight's numbers the multiples of the
golden ratio, which fill the interval evenly. Nothing is drawn and nothing is kept: a stage's seed
and a weight's name say where they begin, each rank has those of its part, and every stage has
others. A weight of 0 begins at 0, near which float32 has numbers enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.base.seeds import seed_for
from harness.learning.halves import Master, numbers_of, pieces, write_numbers
from harness.models.sharded import rows_of_part, sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.learning.stage import Stage

PERIOD = 2**16
STEP = 40503  # PERIOD over the golden ratio, odd: so many numbers in a row have all offsets


@dataclass(frozen=True)
class Dither:
    """The offsets that a seed gives."""

    seed: int

    @torch.no_grad()
    def add(self, name: str, numbers: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Move float32 ``numbers`` in place, each by its share of its own distance; returns them.

        Those that are bfloat16's still round to what they were. first: how many numbers of the
        weight ``name`` come before these.
        """
        place = seed_for(self.seed, name) % PERIOD + STEP * first
        order = torch.arange(PERIOD, device=numbers.device)
        low = (order * STEP + place).to(torch.int16).to(torch.int32)
        low.clamp_(min=1 - 2**15)  # -2^15 is half the distance, which may round away
        for part in pieces(numbers):  # of whole periods, but for the last one
            count = part.numel()
            offsets = low.repeat(-(-count // PERIOD))[:count].view(part.shape)
            moved = offsets.add_(part.view(torch.int32)).view(torch.float32)
            part.copy_(torch.where((part != 0) & part.isfinite(), moved, part))
        return numbers

    def begin(self, model: PreTrainedModel, masters: Mapping[str, Master]) -> None:
        """Move all masters of weights that compute in bfloat16, as they are at a stage's start."""
        for name, first in of_bfloat16(model):
            if name in masters:
                write_numbers(masters[name], self.add(name, numbers_of(masters[name]), first))


def dither_of(stage: Stage, of_run: bool = False) -> Dither:
    """The offsets of a stage; of_run: those that all stages of the run share."""
    return Dither(seed_for(stage.seed, 0 if of_run else stage.index, "dither"))


def of_bfloat16(model: PreTrainedModel) -> list[tuple[str, int]]:
    """(name, how many numbers come before this rank's) of the weights that compute in bfloat16."""
    parts = sharded(model)
    return [
        (name, rows_of_part(weight).start * weight.shape[1:].numel() if parts else 0)
        for name, weight in model.named_parameters()
        if (parts.dtype if parts else weight.dtype) == torch.bfloat16
    ]
