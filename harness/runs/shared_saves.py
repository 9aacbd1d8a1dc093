"""Checkpoints that all ranks write together, by torch.distributed.checkpoint.

``state.pt``, which rank 0 writes last, names a folder beside it: there each rank has written its
parts of all tensors that lie in parts. A start on another number of ranks cuts them again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.base.errors import UserError
from harness.learning.stage import Stage
from harness.models import ranks
from harness.models.sharded import Sharded, sharded
from harness.runs.checkpoints import REMEDY, Saves, check_kept, load_state, save_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.runs.one_run import OneRun

IN_PARTS = "tensor in parts"  # key of what stands in state.pt for such a tensor
FOLDER = "parts"  # key of the name of their folder


class SharedSaves(Saves):
    """The checkpoints of a stage whose model lies in parts. Rank 0 says when one is due."""

    def is_due(self) -> bool:
        return ranks.agreed(super().is_due())

    def is_worth(self) -> bool:
        return ranks.agreed(super().is_worth())

    def check(self, stage: Stage) -> None:
        check_kept(taken_apart(stage.state_dict()["kept"])[0], self.place)

    def save(self, state: dict[str, Any], step: int, wait: bool) -> None:
        """Write the checkpoint after ``step``, at once."""
        from torch.distributed import checkpoint

        start = time.monotonic()
        folder = ranks.real(self.folder)
        plain, tensors = taken_apart(state)
        parts = folder / f"{FOLDER}-{step}"
        if not ranks.index():
            shutil.rmtree(parts, ignore_errors=True)  # of a start that was killed
            folder.mkdir(parents=True, exist_ok=True)
        ranks.wait()
        checkpoint.save(tensors, checkpoint_id=parts)
        if not ranks.index():
            save_state(folder, {**plain, FOLDER: parts.name}, self.place)
            for old in folder.glob(f"{FOLDER}-*"):
                if old != parts:
                    shutil.rmtree(old, ignore_errors=True)
        ranks.wait()
        self.saved = step
        self._last = time.monotonic()
        self.seconds = self.cost = self._last - start
        self.lost = 0.0


def saves_of(folder: Path, live: OneRun, step: int) -> Saves:
    """The checkpoints of a stage; step: of the stage so far."""
    return (SharedSaves if sharded(live.model) else Saves)(folder, live, step)


def load_checkpoint(folder: Path, model: PreTrainedModel) -> dict[str, Any] | None:
    """The checkpoint of a stage, as ``load_state``; tensors in parts are cut as those of now.

    Raises UserError for one of a model that was whole, or that was not.
    """
    from torch.distributed import checkpoint

    parts, folder = sharded(model), ranks.real(folder)
    state = load_state(folder, model.device)
    if state is None:
        return None
    if (parts is None) != (FOLDER not in state):
        way = "in one process" if parts else "by torchrun"
        raise UserError(folder / "state.pt", f"was written {way}", f"go on {way}, or {REMEDY}")
    if parts is None:
        return state
    tensors: dict[str, torch.Tensor] = {}
    whole = _put_together(state, tensors, parts)
    checkpoint.load(tensors, checkpoint_id=folder / state[FOLDER])
    return whole


def taken_apart(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(the state with a mark for each tensor in parts, these tensors by the number in the mark).

    A tensor that two places have is there once, as rank 0 sees it: a rank whose part is empty could
    not tell.
    """
    found: list[Any] = []

    def walk(value: Any) -> Any:
        if hasattr(value, "to_local"):
            found.append(value)
            return {
                IN_PARTS: len(found) - 1,
                "shape": list(value.shape),
                "dtype": value.dtype,
                "device": value.device.type,
            }
        if isinstance(value, dict):
            return type(value)((key, walk(entry)) for key, entry in value.items())
        return type(value)(map(walk, value)) if type(value) in (list, tuple) else value

    plain = walk(state)
    views = [(part.untyped_storage()._cdata, part.storage_offset()) for part in map(_part, found)]
    first = ranks.agreed([views.index(view) for view in views])

    def renumber(value: Any) -> Any:
        if isinstance(value, dict):
            if IN_PARTS in value:
                return {**value, IN_PARTS: first[value[IN_PARTS]]}
            return type(value)((key, renumber(entry)) for key, entry in value.items())
        return type(value)(map(renumber, value)) if type(value) in (list, tuple) else value

    return renumber(plain), {str(i): found[i].detach() for i in sorted(set(first))}


def _part(tensor: Any) -> torch.Tensor:
    part: torch.Tensor = tensor.to_local()
    return part


def _put_together(value: Any, tensors: dict[str, torch.Tensor], parts: Sharded) -> Any:
    """``value`` with an empty tensor in parts for each mark, which is then among ``tensors``."""
    if isinstance(value, dict):
        if IN_PARTS in value:
            key = str(value[IN_PARTS])
            if key not in tensors:
                device = value.get("device", parts.mesh.device_type)
                tensors[key] = parts.empty(value["shape"], value["dtype"], device)
            return tensors[key]
        return type(value)((k, _put_together(v, tensors, parts)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(_put_together(v, tensors, parts) for v in value)
    return value
