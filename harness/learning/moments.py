"""AdamW's moments between two steps: in float32, or in 8 bits.

In 8 bits a moment is a code of one byte for each number and a float32 scale for each block of BLOCK
numbers, as in arXiv 2110.02861. The codes here need no table: in a block whose largest number is s,

    number = s (k / L)^p,    k a whole number up to L

with p = 4, L = 127 and a sign for the mean of the gradients; p = 8 and L = 255 for the mean of
their squares, which so reaches as far down, 4 powers of a gradient. The largest number of a block
stays what it is. Others are off by less than the gap between two levels, which is about p / k of
the number, and at most p / L of s.

A number between two levels takes the upper one where its place between them is above a threshold,
which walks through [0, 1) from step to step: over the steps the mean is exact. The nearest level
would stand still instead, since a mean of squares moves by a thousandth a step. Nothing is drawn:
the thresholds are a sequence of equal distribution, known by the step, so that a resumed stage has
the same bits. A mean of squares that is not 0 does not become 0, over which a step would be
boundless.

Tensors of fewer than SMALLEST numbers, as norms and biases, keep float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from harness.learning.halves import Pieces, buffers, pieces, zeros

FLOAT32, EIGHT_BITS = "float32", "8bit"
MOMENTS = (FLOAT32, EIGHT_BITS)
BLOCK = 256
SMALLEST = 4096
# Bytes of a number's two moments, the scales included
MOMENT_BYTES = {FLOAT32: 8.0, EIGHT_BITS: 2 * (1 + 4 / BLOCK)}
# By whether numbers have signs: L, and how many square roots lead from a number to its level
LEVELS = {True: 127, False: 255}
ROOTS = {True: 2, False: 3}
# Steps of the thresholds along a block and in time: 1/g and 1/g^2 of g^3 = g + 1, whose multiples
# fill the unit square evenly.
ALONG, IN_TIME = 0.7548776662466927, 0.5698402909980532


class Floats:
    """A moment in float32, beside the numbers ``like`` it: 0 at first."""

    def __init__(self, like: torch.Tensor, place: torch.device) -> None:
        """place: where it is kept."""
        self.parts: Pieces = buffers(like, torch.float32, place)

    def read(self, i: int, device: torch.device) -> torch.Tensor:
        """The numbers of piece i on ``device``, which may be changed."""
        return self.parts[i].to(device, non_blocking=True)

    def write(self, i: int, numbers: torch.Tensor, thresholds: torch.Tensor | None) -> None:
        """Keep the numbers of piece i."""
        self.parts[i].copy_(numbers, non_blocking=True)


class Blocks:
    """A moment in 8 bits, as ``Floats``; parts: the codes of all pieces, and then their scales."""

    def __init__(self, like: torch.Tensor, place: torch.device, signed: bool) -> None:
        self.signed = signed
        self.shapes = [piece.shape for piece in pieces(like)]
        kind = torch.int8 if signed else torch.uint8
        rows = [-(-shape.numel() // BLOCK) for shape in self.shapes]
        codes = [zeros((count, BLOCK), kind, place, like.device) for count in rows]
        scales = [zeros((count,), torch.float32, place, like.device) for count in rows]
        self.parts: Pieces = [*codes, *scales]

    def _of(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parts[i], self.parts[len(self.shapes) + i]

    def read(self, i: int, device: torch.device) -> torch.Tensor:
        codes, scales = (part.to(device, non_blocking=True) for part in self._of(i))
        shape = self.shapes[i]
        return decoded(codes, scales, self.signed)[: shape.numel()].view(shape)

    def write(self, i: int, numbers: torch.Tensor, thresholds: torch.Tensor | None) -> None:
        assert thresholds is not None
        for part, new in zip(self._of(i), encoded(numbers, self.signed, thresholds), strict=True):
            part.copy_(new, non_blocking=True)


Moment = Floats | Blocks


def moments_of(like: torch.Tensor, place: torch.device, kind: str) -> tuple[Moment, Moment]:
    """Means and mean squares of the gradients of the numbers ``like``, both 0; kind: of MOMENTS."""
    if kind == FLOAT32 or like.numel() < SMALLEST:
        return Floats(like, place), Floats(like, place)
    return Blocks(like, place, signed=True), Blocks(like, place, signed=False)


def restore(moment: Moment, kept: Sequence[torch.Tensor]) -> None:
    """Take the ``parts`` of that time, or all of them as the one tensor that they are pieces of."""
    if len(kept) == 1 and kept[0].shape != moment.parts[0].shape:
        kept = pieces(kept[0])
    for part, values in zip(moment.parts, kept, strict=True):
        part.copy_(values)


def thresholds_at(step: int, device: torch.device) -> torch.Tensor:
    """Float32 thresholds [BLOCK] of an optimizer step, in [0, 1)."""
    along = torch.arange(BLOCK, dtype=torch.float64, device=device)
    walked = (along * ALONG + (0.5 + step * IN_TIME)) % 1
    return walked.float().clamp_(max=1 - 2**-20)  # the largest of a block is never below


def encoded(
    numbers: torch.Tensor, signed: bool, thresholds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes [blocks, BLOCK] of one byte, float32 scales [blocks]) of float32 numbers."""
    flat = numbers.reshape(-1)
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    sizes = blocks.abs() if signed else blocks
    scales = sizes.amax(1)
    sizes = sizes / torch.where(scales > 0, scales, 1.0)[:, None]
    most, below = LEVELS[signed], sizes
    for _ in range(ROOTS[signed]):
        below = below.sqrt()
    below = (below * most).floor_().clamp_(max=most - 1)
    start = _level(below, signed)
    gap = _level(below + 1, signed).sub_(start)
    codes = below.add_((sizes - start) > thresholds * gap)
    if signed:
        return torch.copysign(codes, blocks).to(torch.int8), scales
    return torch.maximum(codes, (sizes > 0).float()).to(torch.uint8), scales


def decoded(codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> torch.Tensor:
    """Float32 numbers [blocks x BLOCK] of what ``encoded`` gave."""
    levels = codes.float()
    numbers = _level(levels, signed)
    if signed:
        numbers = torch.copysign(numbers, levels)
    return numbers.mul_(scales[:, None]).view(-1)


def _level(codes: torch.Tensor, signed: bool) -> torch.Tensor:
    """(codes / L)^p, the same number wherever it is computed."""
    level = codes / LEVELS[signed]
    for _ in range(ROOTS[signed]):
        level.square_()
    return level
