"""Memory of the process and of the device: what the allocator keeps, and the peak of a stage."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import torch

# Parameters of glibc's mallopt, as malloc.h numbers them.
M_MMAP_MAX = -4
M_TRIM_THRESHOLD = -1
MUCH = 3 * 2**29  # bytes, 1.5 GiB


def keep_freed_memory() -> None:
    """Let the C library hand memory from one tensor to the next.

    glibc gives a large block back to the kernel as soon as it is freed, and gets it again page by
    page, each page cleared. On two cores that takes a tenth of the time of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(ctypes.c_int(M_MMAP_MAX), ctypes.c_int(0))  # No block has a mapping of its own.
        mallopt(ctypes.c_int(M_TRIM_THRESHOLD), ctypes.c_int(2**31 - 1))


def return_freed_memory() -> None:
    """Give back to the kernel what ``keep_freed_memory`` has kept.

    It is called between two stages, whose tensors have other shapes.
    """
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim:
        malloc_trim(ctypes.c_size_t(0))


class _Heap(ctypes.Structure):
    """What glibc's mallinfo2 returns, in bytes. ``fordblks`` are free, but not given back."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def return_much_freed_memory() -> None:
    """Give back to the kernel what ``keep_freed_memory`` has kept, once it is more than MUCH.

    Sampling and learning, and steps of other lengths, have tensors that do not fit into each
    other's holes: what is kept grows from step to step. To get a GiB again takes about a second.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo:
        mallinfo.restype = _Heap
        if mallinfo().fordblks > MUCH:
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of ``peak_memory``."""
    if device.type != "cpu":
        gc.collect()  # Reference cycles of an earlier stage do not count for this one.
        torch.get_device_module(device).reset_peak_memory_stats(device)
    else:
        return_freed_memory()
        with suppress(OSError):  # Only Linux has this file.
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use since the reset, GiB.

    On a GPU: of what was allocated there. On a CPU: the largest resident set of the process, with
    what the allocator still holds of earlier stages. Where a CPU's measurement cannot be reset, it
    is the largest since the process began.
    """
    if device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated(device) / 2**30
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**30 if sys.platform == "darwin" else 2**20)
