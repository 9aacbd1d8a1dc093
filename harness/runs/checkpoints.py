"""Checkpoints inside a stage, and the disk that checkpoints and old weights take."""

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.base.errors import UserError
from harness.base.files import write_file
from harness.base.sums import check_sum, write_summed
from harness.results.writer import BEFORE, ResultsWriter
from harness.runs.order import Order
from harness.runs.references import Run

# Edition of the harness that wrote a checkpoint. The first one wrote none, and its state is not
# read: what it holds has moved since.
EDITION = 2
REMEDY = "remove it: the stage starts anew"

# What a file may hold that no code is run for. Subclasses, as NumPy's numbers, are others.
VALUES = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)
TENSORS = (torch.Tensor, torch.nn.Parameter)
DEEPEST = 100  # of lists in lists


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


def load_state(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of a stage, None if there is none, on the CPU.

    Raises UserError for a file that is damaged or of another edition.
    """
    path = folder / "state.pt"
    if not path.exists():
        return None
    check_sum(path, REMEDY)
    state = _load(path, "is no whole checkpoint", REMEDY)
    if not isinstance(state, dict) or state.get("edition") != EDITION:
        raise UserError(path, "is a checkpoint of another edition of the harness", REMEDY)
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
