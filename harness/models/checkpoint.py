"""Saves a model as a checkpoint, and computes what tells it from another one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

# Keys of a config that no number of the model depends on.
CIRCUMSTANCES = (
    "architectures",
    "transformers_version",
    "dtype",  # that of the weights counts
    "torch_dtype",
    "use_cache",
    "id2label",
    "label2id",
)
# Keys of a generation config that change which tokens an answer has; its ends come beside them.
PENALTIES = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "renormalize_logits",
    "remove_invalid_values",
)

_HASHES: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()  # (tokens, hash)

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

    It covers names, dtypes, shapes and bytes of all parameters and buffers, and what the
    model's config has other than defaults (positions, scales, caps), which no weight holds.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(_canonical(_without_circumstances(model.config.to_diff_dict())))
    return digest.hexdigest()


def _without_circumstances(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {
        key: _without_circumstances(value)
        for key, value in config.items()
        if key not in CIRCUMSTANCES and not key.startswith("_")
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def reading_and_ending(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What protocols say of a model beside its weights: JSON values.

    ``tokenizer``: a hash of the tokens and of how a text is cut into them; ``generation``: the end
    tokens of the generation config, and its penalties other than the defaults.
    """
    return {"tokenizer": tokenizer_hash(tokenizer), "generation": _generation(model)}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Twelve hexadecimal digits of what turns texts into token ids and back.

    Padding and truncation, which calls change, and the chat template, which protocols hold by
    itself, are not in it. A large vocabulary takes a third of a second, once.
    """
    tokens, known = _HASHES.get(tokenizer, (None, ""))
    if tokens == len(tokenizer):
        return known
    meaning: dict[str, Any] = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "end": tokenizer.eos_token_id,
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        meaning |= {part: rules.get(part) for part in parts}
        meaning["merges"] = rules.get("model", {}).get("merges")
    found = hashlib.sha256(_canonical(meaning)).hexdigest()[:12]
    _HASHES[tokenizer] = len(tokenizer), found
    return found


def _generation(model: PreTrainedModel) -> dict[str, Any]:
    config = model.generation_config
    if config is None:
        return {}
    ends = config.eos_token_id
    values = {name: getattr(config, name, None) for name in PENALTIES}
    usual = type(config)()
    return {
        "ends": sorted(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        **{
            name: value
            for name, value in values.items()
            if value is not None and value != getattr(usual, name, None)
        },
    }
