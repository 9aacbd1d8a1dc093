"""Numbers of a GPU that repeat to the bit, so that a resumed run ends in those of a whole one.

On a GPU some kernels add in the order in which their threads happen to finish: the backward passes
of fused attention, and the cumulative sum of a single row. On a CPU nothing here changes anything.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from harness.base.errors import UserError

# How PyTorch goes on, behind an operator's name, where its strict mode refuses one.
REFUSAL = " does not have a deterministic implementation"


def allow_repeatable_products() -> None:
    """Choose cuBLAS's repeatable workspace, which it reads once, before its first product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def same_draws() -> Iterator[None]:
    """The generators of Python, NumPy and PyTorch are afterwards as they were before."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


@contextmanager
def repeatable(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Run the body with deterministic kernels alone, on a device that is not the CPU.

    wanted: False lets the fastest kernels run. Raises UserError where the body calls an operator
    that has no deterministic kernel.
    """
    if not wanted or device.type == "cpu":
        yield
        return
    with _strict(True):
        try:
            yield
        except RuntimeError as error:
            operator, refused, _ = str(error).partition(REFUSAL)
            if not refused:
                raise
            raise UserError(
                "model.deterministic",
                f"{operator.split()[-1][:80]} has no kernel here whose numbers repeat",
                "set model.deterministic: false; a resumed run may then differ in the last digits",
            ) from error


def row_cumsum(rows: torch.Tensor) -> torch.Tensor:
    """Cumulative sums along the rows of [rows, columns], repeatable to the bit on a GPU.

    The kernel for several rows is repeatable, the one for a single row is not. PyTorch's strict
    mode knows no difference and would refuse both.
    """
    if rows.device.type == "cpu":
        return rows.cumsum(-1)
    with _strict(False):
        if len(rows) == 1:
            return torch.cat([rows, rows]).cumsum(-1)[:1]
        return rows.cumsum(-1)


@contextmanager
def _strict(mode: bool) -> Iterator[None]:
    """PyTorch's deterministic mode on or off for the length of the body, for the whole process."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    # The mode would fill all new memory with NaN first, which takes time and proves nothing here.
    memory.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(mode)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
