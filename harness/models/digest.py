"""A digest of tensors from whole numbers alone, which every device computes alike.

To hash a model of 15 GB by BLAKE2b a GPU sends it to the host, where one core is busy for a quarter
of a minute. Here each 8 bytes are mixed with their place, by multiplications and shifts modulo
2^64, and summed: in whatever order a device adds, the sum is the same. It tells weights apart that
training or a mistake made; it is no guard against someone who looks for two of one digest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

WORDS = 2**22  # of 8 bytes, hashed at once: 32 MiB
BITS = 64


def _signed(number: int) -> int:
    """An unsigned number of 64 bits as PyTorch's int64 of the same bits."""
    return number - 2**BITS if number >= 2 ** (BITS - 1) else number


# Odd multipliers with bits of both kinds all over: of splitmix64 and of MurmurHash3's finaliser.
PLACE = _signed(0x9E3779B97F4A7C15)
LANES = (  # (what is added to a place, first multiplier, second multiplier) of each half
    (_signed(0x243F6A8885A308D3), _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)),
    (_signed(0x13198A2E03707344), _signed(0xFF51AFD7ED558CCD), _signed(0xC4CEB9FE1A85EC53)),
)


@torch.no_grad()
def digests(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """16 bytes for each tensor, of its bytes in the order of its entries.

    dtype and shape are not in it, nor zero bytes at the end of the last 8.
    """
    if not tensors:
        return []
    halves = torch.stack([_halves(tensor.detach()) for tensor in tensors]).cpu()
    return [
        b"".join((half % 2**BITS).to_bytes(8, "little") for half in pair)
        for pair in halves.tolist()
    ]


def _halves(tensor: torch.Tensor) -> torch.Tensor:
    """The two sums of a tensor, int64 [2], on its device."""
    content = tensor.contiguous().view(-1).view(torch.uint8)
    sums = torch.zeros(len(LANES), dtype=torch.int64, device=tensor.device)
    for first in range(0, len(content), 8 * WORDS):
        part = content[first : first + 8 * WORDS]
        # A copy, padded with zeros to whole words.
        words = torch.zeros(-(-len(part) // 8) * 8, dtype=torch.uint8, device=tensor.device)
        words[: len(part)] = part
        sums += _sums(words.view(torch.int64), first // 8)
    return sums


def _sums(words: torch.Tensor, first: int) -> torch.Tensor:
    """What some words add to both sums; first: place of the first of them."""
    places = torch.arange(first, first + len(words), device=words.device) * PLACE
    sums = []
    for start, multiplier, second in LANES:
        mixed = words ^ (places + start)
        mixed *= multiplier
        mixed ^= (mixed >> 32) & (2**32 - 1)  # PyTorch's shift brings copies of the sign
        mixed *= second
        mixed ^= (mixed >> 29) & (2**35 - 1)
        sums.append(mixed.sum())
    return torch.stack(sums)
