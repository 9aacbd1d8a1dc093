"""Saves a model as a checkpoint, and computes the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]
) -> None:
    """Write a checkpoint that transformers loads.

    An atomic rename puts it in place: ``folder`` holds a whole checkpoint or does not exist.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    # The old checkpoint is moved away first: a removal that is cut short would leave half of it.
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def model_fingerprint(model: PreTrainedModel) -> str:
    """BLAKE2b of a model's weights, 32 hexadecimal digits: equal weights have equal fingerprints.

    It covers names, dtypes, shapes and bytes of all parameters and buffers, and the settings of the
    rotary positions, which no weight holds.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    rope = model.config.to_dict().get("rope_parameters")
    digest.update(json.dumps(rope, sort_keys=True, default=str).encode())
    return digest.hexdigest()
