"""The ranks of one run: processes that torchrun has started, one for each GPU.

All ranks run the same program on the same inputs and take the same turns. They divide what takes
the time: the weights (sharded.py), the rows of a training pass, the prompts of a sampler. What each
has found is added up or handed round at once, so that all of them know the same. Where there is one
process only, every function here answers as for a single rank, and imports nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from harness.base.errors import UserError
from harness.models.products import PIN

# A rank waits so long for the others: one may be asking a judge, or writing a large model.
PATIENCE = timedelta(hours=4)
FAILED = "harness/failed"  # counts, in the store that torchrun keeps, the ranks that have failed
Value = TypeVar("Value")


class _Ranks:
    """This process among the ranks; count 0: it was not started by torchrun.

    real, mirror: the results folder, and what this rank writes in its place (mirror.py). ends: what
    is done behind the last word between ranks.
    """

    index, count = 0, 0
    real = mirror = Path()
    ends: ClassVar[list[Callable[[], None]]] = []


_RANKS = _Ranks()


def active() -> bool:
    """Whether this process is one of several ranks, or the single rank that torchrun started."""
    return _RANKS.count > 0


def index() -> int:
    """The number of this rank, from 0; rank 0 alone writes."""
    return _RANKS.index


def count() -> int:
    """How many ranks there are."""
    return max(1, _RANKS.count)


def on_machine() -> int:
    """How many ranks this machine has."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _RANKS.count else 1


def device() -> str:
    """The device of this rank: the GPU of its number on its machine, or the CPU."""
    own = int(os.environ["LOCAL_RANK"])
    return f"cuda:{own}" if own < torch.cuda.device_count() else "cpu"


@contextmanager
def joined() -> Iterator[None]:
    """This process takes its place among the ranks meanwhile.

    The first rank that fails tells why, and ends all of them; the others end without a word.
    """
    import torch.distributed as dist

    place = device()
    if place != "cpu":
        torch.cuda.set_device(place)
    backend = "gloo" if place == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    _RANKS.index, _RANKS.count = dist.get_rank(), dist.get_world_size()
    os.environ.setdefault(PIN, "fixed")  # what each rank would measure differs
    store: Any = dist.distributed_c10d._get_default_store()
    errors, nowhere = sys.stderr, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if _RANKS.index:
        sys.stdout = sys.stderr = nowhere
    try:
        yield
        wait()
    except BaseException as error:
        try:
            is_first = store.add(FAILED, 1) == 1
        except Exception:  # torchrun itself is gone, and the store with it
            is_first = _RANKS.index == 0
        sys.stderr = errors if is_first else nowhere
        if isinstance(error, dist.DistError) or _is_parting(error):
            raise UserError(
                f"rank {_RANKS.index}",
                "another rank has ended without a word (killed, or out of memory)",
                "the same command goes on from the last checkpoint",
            ) from None
        raise
    finally:
        _RANKS.index, _RANKS.count = 0, 0
        for end in _RANKS.ends:
            with suppress(Exception):  # Another rank may be gone; what is to be said was said.
                end()
        if dist.is_initialized():
            dist.destroy_process_group()


def at_end(end: Callable[[], None]) -> None:
    """Call ``end`` once this rank has no more to say to others, before it leaves them."""
    _RANKS.ends.append(end)


def _is_parting(error: BaseException) -> bool:
    """Whether gloo has lost another rank in the middle of a word."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text or "onnection" in text)


# ---- what all ranks know -------------------------------------------------------------------------


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, in its own place."""
    if _RANKS.count > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def agreed(value: Value) -> Value:
    """What rank 0 says."""
    if _RANKS.count > 1:
        import torch.distributed as dist

        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
    return value


def gathered(value: Value) -> list[Value]:
    """What each rank says, in their order."""
    if _RANKS.count > 1:
        import torch.distributed as dist

        values: list[Any] = [None] * _RANKS.count
        dist.all_gather_object(values, value)
        return values
    return [value]


def any_of(number: int | None) -> int | None:
    """The largest of the ranks' numbers; None where no rank has one."""
    return max((each for each in gathered(number) if each is not None), default=None)


def wait() -> None:
    """Until all ranks are here."""
    gathered(None)


@contextmanager
def in_turn() -> Iterator[None]:
    """The ranks of a machine go through the body one after the other, without a word between."""
    own = int(os.environ["LOCAL_RANK"])
    for _ in range(own):
        wait()
    yield
    for _ in range(on_machine() - own):
        wait()


@cache
def mesh(kind: str) -> Any:
    """All ranks, as FSDP2 and DTensor name them; kind: of their devices. All ask at once."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(kind, (count(),))


# ---- the results folder --------------------------------------------------------------------------


def set_mirror(real: Path, mirror: Path) -> None:
    """This rank writes below ``mirror`` what rank 0 writes below ``real``."""
    _RANKS.real, _RANKS.mirror = real, mirror


def real(path: Path) -> Path:
    """Where rank 0 has what this rank knows as ``path``."""
    if _RANKS.index and path.is_relative_to(_RANKS.mirror):
        return _RANKS.real / path.relative_to(_RANKS.mirror)
    return path
