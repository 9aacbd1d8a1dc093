"""The order in which examples are drawn, and the seeds of what a method draws itself."""

import random

import numpy
import torch

from harness.base.seeds import seed_for


def draws(count: int, total: int, seed: int) -> list[int]:
    """Indices of ``total`` examples drawn from ``count``.

    Epochs without replacement, each in a random order of its own; the last one is cut off.
    """
    indices: list[int] = []
    epoch = 0
    while len(indices) < total:
        permutation = list(range(count))
        random.Random(seed_for(seed, "epoch", epoch)).shuffle(permutation)
        indices += permutation
        epoch += 1
    return indices[:total]


def seed_all(seed: int) -> None:
    """Seed what a method may draw from: the generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
