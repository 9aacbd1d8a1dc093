"""Checkpoints inside a stage, and the disk that checkpoints and old weights take."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from harness.base.errors import UserError
from harness.results.writer import ResultsWriter
from harness.runs.order import Order, Run

# Edition of the harness that wrote a checkpoint. The first one wrote none, and its state is not
# read: classes that it pickles, and what they hold, have moved since.
EDITION = 2
REMEDY = "remove it: the stage starts anew"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of a stage by an atomic rename."""
    folder.mkdir(exist_ok=True)
    partial = folder / "state.partial"
    with open(partial, "wb") as file:
        torch.save({"edition": EDITION, **state}, file)
        file.flush()
        # Without this a power cut could leave the new name with nothing behind it.
        os.fsync(file.fileno())
    os.replace(partial, folder / "state.pt")


def load_state(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of a stage, None if there is none, on the CPU.

    Raises UserError for a file that is damaged or of another edition.
    """
    path = folder / "state.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)
    except Exception:  # whatever PyTorch makes of half a file
        raise UserError(path, "is no whole checkpoint", REMEDY) from None
    if not isinstance(state, dict) or state.get("edition") != EDITION:
        raise UserError(path, "is a checkpoint of another edition of the harness", REMEDY)
    return state


def tidy(order: Order, results: ResultsWriter, run: Run) -> None:
    """Remove the checkpoints and weights of a run that nothing reads any more."""
    committed = [k for k in range(len(order.skills) + 1) if results.committed(run.name, k)]
    for stage in committed:
        folder = results.stage(run.name, stage)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        if not _is_read_again(order, stage, is_last=stage == committed[-1]):
            shutil.rmtree(folder / "weights", ignore_errors=True)
            (folder / "method.pt").unlink(missing_ok=True)


def _is_read_again(order: Order, stage: int, is_last: bool) -> bool:
    """Whether a user, or the next stage, wants the weights of a committed stage.

    is_last: whether it is the last one that the run has committed.
    """
    keep = order.checkpoints.keep
    if keep == "all":
        return True
    is_end = stage == len(order.skills)
    return is_last and not (keep == "none" and is_end)
