"""Saving a model, and the fingerprint of its weights."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch


def save_checkpoint(model, tokenizer, folder):
    """Write a checkpoint that transformers loads, by one atomic rename: it is whole or not there."""
    folder = Path(folder)
    partial, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if folder.exists():  # moved away first: a removal that is cut short would leave half of it
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def model_fingerprint(model):
    """BLAKE2b over names, dtypes and bytes of all parameters and buffers, 32 hexadecimal digits:
    the same weights, the same key.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(
        json.dumps(
            model.config.to_dict().get("rope_parameters"), sort_keys=True, default=str
        ).encode()
    )
    return digest.hexdigest()
