"""Memory of the process and of the device."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def keep_freed_memory():
    """Let the C library hand memory from one tensor to the next. glibc gives a large block back to
    the kernel as soon as it is freed and gets it again page by page, each page cleared: on two
    cores a tenth of the time of a step.
    """
    # the constants are those of malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: no block has a mapping of its own
        mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD


def return_freed_memory():
    """Give back to the kernel what ``keep_freed_memory`` has kept: between two stages, whose
    tensors have other shapes.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(ctypes.c_size_t(0))


def reset_peak_memory(device):
    if device.type == "cuda":
        gc.collect()  # what an earlier stage left in cycles is none of this one's
        torch.cuda.reset_peak_memory_stats(device)
    else:
        return_freed_memory()
        with suppress(OSError):  # Linux alone has it
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device):
    """GiB since the reset: on a GPU of what was allocated there; on a CPU the largest resident set
    of the process, with what the allocator still holds of earlier stages (where the reset is
    missing, the largest since the process began).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**30 if sys.platform == "darwin" else 2**20
    )
