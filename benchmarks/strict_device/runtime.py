"""What PyTorch and programs ask a device's module for: this file becomes ``torch.strict``.

Its names and meanings are those of ``torch.cuda``. There is one device, on which nothing is ever
left to wait for.
"""

import ctypes
import functools
from typing import Any

import torch

from benchmarks.strict_device.build import library

Device = torch.device | str | int | None
CARD = 2**34


@functools.cache
def loaded() -> ctypes.CDLL:
    """The device's library. Raises UserError where it cannot be built."""
    lib = ctypes.CDLL(str(library()))
    lib.strict_counter_name.restype = ctypes.c_char_p
    for name in ("counter_value", "memory_allocated", "memory_peak", "read_random_state"):
        getattr(lib, f"strict_{name}").restype = ctypes.c_int64
    return lib


# ---- what crossed the border -----------------------------------------------------------------


def counts() -> dict[str, int]:
    """What has happened since the last ``reset_counts``.

    kernels: operators that computed something; views and mere allocations are none.
    host_to_device, device_to_host: copies, and beside them their ``_bytes``.
    scalar_reads: numbers that Python read, as by ``item()``.
    waits: how often a GPU would have made Python wait: scalar reads, copies in either direction
    that are not ``non_blocking``, and operators whose result has a size that depends on the data.
    """
    found: dict[str, int] = {}
    while name := loaded().strict_counter_name(ctypes.c_size_t(len(found))):
        found[name.decode()] = loaded().strict_counter_value(ctypes.c_size_t(len(found)))
    return found


def reset_counts() -> None:
    """Set all of ``counts`` to 0."""
    loaded().strict_reset_counters()


# ---- device and streams ----------------------------------------------------------------------


class device:
    """Make a device the present one for the body of a ``with`` statement: there is one alone."""

    def __init__(self, device: Device) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(device: Device) -> None:
    pass


def get_device_name(device: Device = None) -> str:
    return "strict device in host memory"


def synchronize(device: Device = None) -> None:
    pass


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def _is_in_bad_fork() -> bool:
    return False


# ---- memory, in bytes ------------------------------------------------------------------------


def memory_allocated(device: Device = None) -> int:
    return loaded().strict_memory_allocated()


def max_memory_allocated(device: Device = None) -> int:
    return loaded().strict_memory_peak()


def reset_peak_memory_stats(device: Device = None) -> None:
    loaded().strict_reset_peak()


# Nothing is kept of what is freed.
memory_reserved = memory_allocated
max_memory_reserved = max_memory_allocated


def empty_cache() -> None:
    pass


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """(free, total) of a card of CARD bytes, whatever the host has: two runs find the same."""
    return CARD - memory_allocated(), CARD


# ---- random numbers --------------------------------------------------------------------------


def manual_seed(seed: int) -> None:
    loaded().strict_seed(ctypes.c_uint64(seed % 2**64))


manual_seed_all = manual_seed


def get_rng_state(device: Device = None) -> torch.Tensor:
    state = torch.empty(loaded().strict_read_random_state(None), dtype=torch.uint8)
    loaded().strict_read_random_state(ctypes.c_void_p(state.data_ptr()))
    return state


def set_rng_state(state: torch.Tensor, device: Device = None) -> None:
    state = state.contiguous()
    loaded().strict_write_random_state(ctypes.c_void_p(state.data_ptr()))


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state()]


def set_rng_state_all(states: list[torch.Tensor]) -> None:
    set_rng_state(states[0])


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'torch.strict' has no attribute {name!r}")
