"""Float32 weights in two halves: what a bfloat16 model has, and 16 bits beside it.

A float32 and the bfloat16 next to it share their upper 16 bits, up to rounding. So a weight of a
bfloat16 model and 16 bits beside it are its float32 master, and no copy of the weight is needed:

    low  = the lower 16 bits, read as a number in [-2^15, 2^15)
    high = (bits - low) / 2^16

``high`` is the nearest bfloat16. Ties go away from zero: to an even one, as elsewhere, 2^16 + 1
numbers would round, which 16 bits cannot tell apart. A GPU rounds so wherever masters are
written into a model's weights (``round_into``), so that where masters are changes no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from harness.models.memory import finish

QUIET = 0x00400000  # bit of a float32's NaN that says it is quiet
# Elements of a part of a tensor that is moved or computed at once: of float32, 64 MiB
PIECE = 2**24

Pieces = Sequence[torch.Tensor]


def split(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(bfloat16, int16) halves of float32 numbers, of which ``join`` makes the same bits.

    NaN stays NaN in the upper half. A signalling NaN becomes quiet, as in every operation.
    """
    bits = whole.detach().view(torch.int32)
    is_nan = whole.isnan()
    bits = torch.where(is_nan, bits | QUIET, bits)
    low = bits.to(torch.int16)  # the lower 16 bits, whatever is above
    high = torch.where(is_nan, bits, bits - low) >> 16
    return high.to(torch.int16).view(torch.bfloat16), low


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 numbers of two halves of one shape and device."""
    below = low.to(torch.int32)
    below = torch.where(high.isnan(), below & 0xFFFF, below)
    return ((high.detach().view(torch.int16).to(torch.int32) << 16) + below).view(torch.float32)


def pieces(tensor: torch.Tensor) -> Pieces:
    """The memory of a tensor in flat parts of PIECE elements; itself where it has gaps."""
    data = tensor.detach()
    return data.view(-1).split(PIECE) if data.is_contiguous() else (data,)


def buffers(like: torch.Tensor, dtype: torch.dtype, place: torch.device) -> Pieces:
    """``zeros`` on ``place`` for the pieces of ``like``."""
    return [zeros(piece.shape, dtype, place, like.device) for piece in pieces(like)]


def zeros(
    shape: Sequence[int], dtype: torch.dtype, place: torch.device, reader: torch.device
) -> torch.Tensor:
    """Zeros on ``place``; pinned where the ``reader``, a GPU, reads host memory.

    The host's allocator rounds pinned memory up to a power of two, which PIECE elements are.
    """
    pinned = place.type == "cpu" and reader.type == "cuda"
    return torch.zeros(shape, dtype=dtype, device=place, pin_memory=pinned)


@torch.no_grad()
def round_into(weight: torch.Tensor, whole: torch.Tensor) -> None:
    """Write float32 numbers into a weight of any dtype and device, rounded to nearest."""
    if weight.dtype != torch.bfloat16 or weight.device.type == "cpu":
        weight.copy_(whole)
        return
    whole = whole.detach().to(weight.device).contiguous()
    if not weight.is_contiguous():
        weight.copy_(split(whole)[0])
        return
    for part, numbers in zip(pieces(weight), pieces(whole), strict=True):
        part.copy_(split(numbers)[0])


class Halves:
    """The float32 numbers of a bfloat16 ``weight``: itself, and the lower halves on ``place``.

    device, grad: as those of a tensor; the gradient is float32. low: None as long as all lower
    halves are zeros, as those of a model that was loaded.
    """

    def __init__(self, weight: torch.Tensor, place: torch.device) -> None:
        self.weight = weight
        self.place = place
        self.device = weight.device
        self.low: Pieces | None = None
        self.grad: torch.Tensor | None = None

    @torch.no_grad()
    def whole(self) -> torch.Tensor:
        """The float32 numbers, a new tensor on the weight's device."""
        if self.low is None:
            return self.weight.detach().float()
        numbers = torch.empty_like(self.weight, dtype=torch.float32)
        for part, high, low in zip(pieces(numbers), pieces(self.weight), self.low, strict=True):
            part.copy_(join(high, low.to(self.device, non_blocking=True)))
        return numbers

    @torch.no_grad()
    def change(self, by: Callable[[int, torch.Tensor], None]) -> None:
        """Let ``by(number of the piece, float32 numbers of it)`` change all numbers in place."""
        if self.low is None:
            self.low = buffers(self.weight, torch.int16, self.place)
        for i, (high, low) in enumerate(zip(pieces(self.weight), self.low, strict=True)):
            numbers = join(high, low.to(self.device, non_blocking=True))
            by(i, numbers)
            upper, lower = split(numbers)
            high.copy_(upper)
            low.copy_(lower, non_blocking=True)

    def write(self, whole: torch.Tensor) -> None:
        """Let the numbers be ``whole``, float32 on any device."""
        new = whole.detach().to(self.device)
        parts = pieces(new.contiguous()) if self.weight.is_contiguous() else (new,)

        def put(i: int, numbers: torch.Tensor) -> None:
            numbers.copy_(parts[i])

        self.change(put)


Master = torch.Tensor | Halves  # of one weight: float32, with the gradient in ``.grad``


def halves_of(weights: Mapping[str, torch.Tensor], place: torch.device) -> dict[str, Master]:
    """Masters by name: halves, or the weight itself where that is no bfloat16."""
    return {
        name: Halves(weight, place) if weight.dtype == torch.bfloat16 else weight
        for name, weight in weights.items()
    }


def numbers_of(master: Master) -> torch.Tensor:
    """The float32 numbers of a master, of halves a new tensor."""
    return master.whole() if isinstance(master, Halves) else master.detach()


@torch.no_grad()
def write_numbers(master: Master, numbers: torch.Tensor) -> None:
    """Let the numbers of a master be ``numbers``, float32 on any device."""
    if isinstance(master, Halves):
        master.write(numbers)
    else:
        master.copy_(numbers)


def gradient_of(holder: Master) -> torch.Tensor:
    """The gradient of a master so far, which a change in place changes."""
    if holder.grad is None:
        like = holder.weight if isinstance(holder, Halves) else holder
        holder.grad = torch.zeros_like(like, dtype=torch.float32)
    return holder.grad


def kept_of(masters: Mapping[str, Master]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """What ``restore`` wants: float32 numbers, or lower halves as they lie in memory.

    The upper halves are the model's weights, which a checkpoint holds anyway.
    """
    for device in {m.device for m in masters.values() if isinstance(m, Halves)}:
        finish(device)
    return {
        name: list(master.low or ()) if isinstance(master, Halves) else master.detach()
        for name, master in masters.items()
    }


@torch.no_grad()
def restore(masters: Mapping[str, Master], kept: Mapping[str, Any]) -> None:
    """Take what ``kept_of`` gave, beside the weights of that time."""
    for name, master in masters.items():
        if not isinstance(master, Halves):
            master.copy_(kept[name])
            continue
        master.low = buffers(master.weight, torch.int16, master.place) if kept[name] else None
        for low, values in zip(master.low or (), kept[name], strict=True):
            low.copy_(values)


class Masters(Mapping[str, torch.Tensor]):
    """Float32 masters by name, to read, where some are made of two halves when they are asked for.

    Such a tensor is as it was then. Changing it, or a backward pass through it, raises
    RuntimeError: PyTorch's inference mode made it.
    """

    def __init__(self, holders: Mapping[str, Master]) -> None:
        self.holders = holders

    def __getitem__(self, name: str) -> torch.Tensor:
        holder = self.holders[name]
        if not isinstance(holder, Halves):
            return holder
        with torch.inference_mode():
            return holder.whole()

    def __contains__(self, name: object) -> bool:
        return name in self.holders

    def __iter__(self) -> Iterator[str]:
        return iter(self.holders)

    def __len__(self) -> int:
        return len(self.holders)
