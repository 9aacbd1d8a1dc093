"""Models beside the one that learns, which an order names: found, identified, loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import UserError, did_you_mean
from harness.models.embedded import EMBEDDED_MODELS, sha256
from harness.models.load import (
    cannot_load,
    check_name,
    empty_model,
    is_local,
    load_model,
    load_tokenizer,
    source_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STARTS = ("stage", "run")  # words for the model that learns, as it was at a start
WEIGHTS = (".safetensors", ".bin")


def find_model(name: str, place: str, beside: Callable[[str], Path]) -> str:
    """What ``load_other`` loads: a folder beside the order, or the name as the order's model's is.

    beside: finds a path that an order names. Raises UserError for a folder that holds no model.
    """
    if name in EMBEDDED_MODELS:
        return name
    path = beside(name)
    found = str(path) if path.is_dir() else name
    check_name(found, place)
    words = did_you_mean(name, STARTS)
    if found == name and not is_local(name) and "/" not in name and words.startswith("did you"):
        raise UserError(place, f"there is no model {name[:80]!r}", words)
    return found


def model_checksum(name: str, place: str) -> str:
    """12 hexadecimal digits that tell a model from another one under the same name.

    Of a folder they are a hash of config.json and the files of weights, of a hub id the commit.
    Raises UserError where there is no such model.
    """
    from transformers.utils import cached_file

    source = Path(source_of(name))
    if not source.is_dir():
        try:
            config = cached_file(name, "config.json")
        except Exception as error:  # of the hub, the network or the cache
            raise cannot_load(name, error, place) from None
        return Path(config).parent.name[:12]
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()):
        if path.name == "config.json" or path.suffix in WEIGHTS:
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:12]


def check_vocabulary(name: str, own: str, revision: str | None, place: str) -> None:
    """Raises UserError at ``place`` unless the model ``name`` has the tokens of the model ``own``.

    revision: of ``own``.
    """
    # Tokens alone are compared: a base model has no chat template.
    other, _ = load_tokenizer(name, place=place, template="plain")
    mine, _ = load_tokenizer(own, revision, place, "plain")
    if other.get_vocab() != mine.get_vocab():
        raise UserError(
            place,
            f"{name} has another tokenizer than {own}",
            "its probabilities are compared token by token: name a model of the same family",
        )


@cache
def weights_in(name: str) -> int:
    """How many weights the model ``name`` has. Raises UserError where there is no such model."""
    model = empty_model(name, source_of(name), place=name)
    return sum(weight.numel() for weight in model.parameters())


def load_other(name: str, like: PreTrainedModel, checksum: str | None) -> PreTrainedModel:
    """A model in the dtype and on the device of ``like``.

    checksum: that it had when the run started, None where nothing is known. Raises UserError for
    another one.
    """
    if checksum is not None and model_checksum(name, name) != checksum:
        raise UserError(
            name, "has changed since the run started", "put the old model back, and start again"
        )
    dtype = str(like.dtype).removeprefix("torch.")
    model, _ = load_model(name, dtype, str(like.device), place=name, template="plain")
    return model
