"""Checkpoints inside a stage, and the disk that checkpoints and old weights take."""

import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.base.errors import UserError
from harness.base.files import write_file
from harness.base.sums import check_sum, write_summed
from harness.models.memory import free_memory
from harness.results.writer import BEFORE, ResultsWriter
from harness.runs.order import Order
from harness.runs.references import Run

if TYPE_CHECKING:
    from harness.learning.stage import Stage
    from harness.runs.one_run import OneRun

# Edition of the harness that wrote a checkpoint. The first one wrote none, and its state is not
# read: what it holds has moved since.
EDITION = 2
REMEDY = "remove it: the stage starts over"

# What a file may hold that no code is run for. Subclasses, as NumPy's numbers, are others.
VALUES = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)
TENSORS = (torch.Tensor, torch.nn.Parameter)
DEEPEST = 100  # of lists in lists

TIMES_COST = 50  # time between checkpoints, in times of what one makes the run stand still
# The steps since the last checkpoint are kept before a stage is measured, which may take long, if
# they took at least so many seconds, and so many times as long as a checkpoint.
WORTH_KEEPING, TIMES_WRITING = 5.0, 10.0
ROOM = 0.5  # share of the free host memory that a copy of a checkpoint may take
CPU = torch.device("cpu")


def check_plain(value: Any, place: str, name: str, depth: int = 0) -> None:
    """Raises UserError at ``place`` unless ``value`` holds tensors and JSON's values alone.

    So nothing in a results folder is code, as a pickled object of a class would be. name: of the
    value, for the message.
    """
    kind = type(value)
    if kind in VALUES or kind in TENSORS:
        return
    if kind in (list, tuple, dict, OrderedDict) and depth < DEEPEST:
        keyed = value.items() if kind in (dict, OrderedDict) else enumerate(value)
        for key, entry in keyed:
            if type(key) in VALUES:
                check_plain(entry, place, f"{name}[{repr(key)[:30]}]", depth + 1)
            else:
                check_plain(key, place, f"a key of {name}", DEEPEST)
        return
    raise UserError(
        place,
        f"{name[:200]} is of class {kind.__name__}, which no file of a results folder holds",
        "keep tensors, numbers, texts, lists and dicts: dataclasses.asdict(example) and "
        "Example(**fields), array.tolist(), dict(counter)",
    )


def check_kept(kept: Mapping[str, Any], place: str) -> None:
    """Raises UserError unless the states of what ``stage.keep`` got are plain."""
    for name, part in kept.items():
        check_plain(part, place, f"the state_dict() of what stage.keep got as {name}")


def save_state(folder: Path, state: dict[str, Any], place: str) -> None:
    """Write a checkpoint of a stage by an atomic rename.

    Raises UserError at ``place``, the method, if what it keeps is not plain.
    """
    check_kept(state["stage"]["kept"], place)
    write_summed(
        folder / "state.pt", lambda file: torch.save({"edition": EDITION, **state}, file), sync=True
    )


class Saves:
    """The checkpoints of a stage: when one is due, and its writing.

    On a GPU a checkpoint is copied into host memory, and a thread writes the copy while the stage
    goes on. Where there is no room for the copy, where the stage waits for the disk, and on a CPU,
    which the thread would take from the steps, it is written at once. There are never two at once.

    saved: step of the last one on the disk; seconds: that one takes until it is there; cost: those
    in which the stage stood still for it; lost: those of the steps since it was made.
    """

    def __init__(self, folder: Path, live: "OneRun", step: int) -> None:
        """step: of the stage so far."""
        self.folder, self.place = folder, f"methods.{live.run.label}"
        self.minutes = live.order.checkpoints.minutes
        self.in_background = self.minutes > 0 and in_background(live.model.device)
        self.saved, self.lost = step, 0.0
        # Until one is written: float32 masters, moments and a copy, at 500 MB a second
        self.seconds = 16 * sum(p.numel() for p in live.model.parameters()) / 5e8
        self.cost = 0.0
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: list[torch.Tensor] = []  # kept from one checkpoint to the next

    def check(self, stage: "Stage") -> None:
        """Raises UserError unless what the method keeps is plain."""
        check_kept(stage.state_dict()["kept"], self.place)

    def is_due(self) -> bool:
        """Raises what the last one's thread met."""
        self._check()
        if self._thread is not None and self._thread.is_alive():
            return False
        pause = max(60 * self.minutes, TIMES_COST * self.cost) if self.minutes else 0.0
        return time.monotonic() - self._last >= pause

    def is_worth(self) -> bool:
        """Whether what would be lost is kept before a stage is measured."""
        return self.lost >= max(WORTH_KEEPING, TIMES_WRITING * self.seconds)

    def save(self, state: dict[str, Any], step: int, wait: bool) -> None:
        """Write the checkpoint after ``step``; wait: until it is on the disk."""
        start = time.monotonic()
        self.wait()
        if self.in_background and not wait and self._has_room(state):
            copy = host_copy(state, self._copies)
            self._thread = threading.Thread(target=self._write, args=(copy, step, start))
            self._thread.start()
        else:
            self._write(state, step, start)
            self._check()
        self._last = time.monotonic()
        self.cost, self.lost = self._last - start, 0.0

    def wait(self) -> None:
        """Until nothing is being written. Raises what the thread met."""
        self.join()
        self._check()

    def join(self) -> None:
        """``wait``, for who has an error of its own to tell."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Any], step: int, start: float) -> None:
        try:
            save_state(self.folder, state, self.place)
            self.saved = step
            self.seconds = time.monotonic() - start
        except BaseException as error:  # told where the stage is, by ``_check``
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _has_room(self, state: dict[str, Any]) -> bool:
        return bool(self._copies) or _bytes(state) <= ROOM * free_memory(CPU)


def in_background(device: torch.device) -> bool:
    """Whether a thread writes the checkpoints of a model on ``device``."""
    return device.type != "cpu"


@torch.no_grad()
def host_copy(state: Any, copies: list[torch.Tensor]) -> Any:
    """A copy of a state in host memory, which what comes after does not change.

    Tensors that are one stay one. copies: of the state before, whose memory is used again; those of
    this one when the call returns.
    """
    known: dict[tuple[Any, ...], torch.Tensor] = {}
    spare: dict[Any, list[torch.Tensor]] = {}
    for tensor in copies:
        spare.setdefault((tensor.shape, tensor.dtype), []).append(tensor)
    copies.clear()

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            view = value.untyped_storage()._cdata, value.storage_offset(), value.dtype
            key = (*view, tuple(value.shape), value.stride())
            if key not in known:
                fitting = spare.get((value.shape, value.dtype))
                new = fitting.pop() if fitting else torch.empty(value.shape, dtype=value.dtype)
                known[key] = new.copy_(value.detach())
                copies.append(new)
            return known[key]
        if isinstance(value, dict):
            return type(value)((key, copied(entry)) for key, entry in value.items())
        if type(value) in (list, tuple):
            return type(value)(map(copied, value))
        return value

    return copied(state)


def _bytes(state: Any) -> int:
    """Of all tensors of a state; of one that is there twice twice."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    return sum(map(_bytes, state)) if isinstance(state, list | tuple) else 0


def load_state(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint of a stage, None if there is none, on the CPU.

    Raises UserError for a file that is damaged, of another edition, or of another kind of device
    than ``device``, where masters and averages are kept in another way.
    """
    path = folder / "state.pt"
    if not path.exists():
        return None
    check_sum(path, REMEDY)
    state = _load(path, "is no whole checkpoint", REMEDY)
    if not isinstance(state, dict) or state.get("edition") != EDITION:
        raise UserError(path, "is a checkpoint of another edition of the harness", REMEDY)
    if (kind := state.get("device", "cpu")) != device.type:
        raise UserError(path, f"is a checkpoint of a {kind}, and this is a {device.type}", REMEDY)
    return state


def save_memory(path: Path, memory: dict[str, Any]) -> None:
    """Write what a method remembers for later stages: what ``check_plain`` has found plain."""
    write_file(path, lambda file: torch.save(memory, file), sync=True)


def load_memory(path: Path) -> dict[str, Any]:
    """What ``save_memory`` wrote, on the CPU. Raises UserError for a damaged file."""
    memory = _load(path, "is no whole memory of a method", BEFORE)
    if not isinstance(memory, dict):
        raise UserError(path, "is no memory of a method", BEFORE)
    return memory


def _load(path: Path, problem: str, remedy: str) -> Any:
    """Tensors and plain values of a file, on the CPU; no code of it is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever PyTorch makes of half a file, or of code in it
        raise UserError(path, problem, remedy) from None


def tidy(order: Order, results: ResultsWriter, run: Run) -> None:
    """Remove the checkpoints and weights of a run that nothing reads any more."""
    committed = [k for k in range(len(run.stages) + 1) if results.committed(run.name, k)]
    for stage in committed:
        folder = results.stage(run.name, stage)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        if not _is_read_again(order, run, stage, is_last=stage == committed[-1]):
            shutil.rmtree(folder / "weights", ignore_errors=True)
            (folder / "method.pt").unlink(missing_ok=True)


def _is_read_again(order: Order, run: Run, stage: int, is_last: bool) -> bool:
    """Whether a user, or the next stage, wants the weights of a committed stage.

    is_last: whether it is the last one that the run has committed. A reference is there to be
    measured, so it leaves weights only where all stages do.
    """
    keep = order.checkpoints.keep
    if keep == "all":
        return True
    is_end = stage == len(run.stages)
    return is_last and not (is_end and (keep == "none" or run.reference))
