"""Memory of the process and of the device: allocators, what is free, the peak of a stage.

Beside them the formulas of what training takes, for the size of micro-batches and for --plan.
"""

import ctypes
import gc
import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

# Parameters of glibc's mallopt, as malloc.h numbers them.
M_MMAP_MAX = -4
M_TRIM_THRESHOLD = -1
CGROUP = Path("/sys/fs/cgroup")  # limits of a container
MUCH = 3 * 2**29  # bytes, 1.5 GiB

# Where PyTorch looks for its CUDA allocator's settings, the first one first.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

MICRO_BATCH_TOKENS = {False: 1024, True: 8192}  # at most, by whether the model is on a GPU


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


# ---- a GPU's allocator, and what is free ---------------------------------------------------------


def let_segments_grow() -> None:
    """Let PyTorch's CUDA allocator grow its segments, unless the user has set it otherwise.

    Micro-batches differ in shape, and segments of fixed sizes would keep holes that fit none of
    them. PyTorch reads the variable when it starts CUDA. vLLM knows its first name alone, and turns
    growing off around the memory that it puts to sleep (device_allocator/cumem.py).
    """
    said = allocator_settings()
    os.environ[ALLOCATOR[0]] = "expandable_segments:True" if said is None else said


def allocator_settings() -> str | None:
    """The settings of the CUDA allocator that the environment holds, None for its own."""
    return next((os.environ[name] for name in ALLOCATOR if name in os.environ), None)


def segments_grow(device: torch.device) -> bool:
    """Whether PyTorch's allocator grows its segments on ``device``, which holds something by now.

    The settings of the environment came too late if they say otherwise.
    """
    segments = torch.cuda.memory_snapshot() if device.type == "cuda" else []
    return any(segment.get("is_expandable") for segment in segments)


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was given: copies into host memory can now be read."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU has free, with those that PyTorch keeps there for itself; of a CPU the
    host's, as Linux counts them, within the limit of a container.
    """
    if device.type != "cpu":
        module = torch.get_device_module(device)
        kept = module.memory_reserved(device) - module.memory_allocated(device)
        return int(module.mem_get_info(device)[0] + kept)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        room = int(line.split()[1]) * 1024
        with suppress(OSError, ValueError):  # no container, or one without a limit
            limit = int((CGROUP / "memory.max").read_text())
            room = min(room, limit - int((CGROUP / "memory.current").read_text()))
        return max(0, room)
    return 0


# ---- what a GPU's training passes are ------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """Tokens of a training pass at most, and whether its backward pass computes layers again."""

    tokens: int
    recomputed: bool = False
