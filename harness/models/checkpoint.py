"""Saves a model as a checkpoint, and computes what tells it from another one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from harness.base.errors import NO_MORE_WRITES, UserError, one_line
from harness.models import ranks
from harness.models.digest import digests
from harness.models.sharded import sharded

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

_READ: dict[Any, str] = {}  # {files, dtype, device: fingerprint} of what this process has loaded
_HASHES: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()  # (tokens, hash)

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]
) -> None:
    """Write a checkpoint that transformers loads.

    An atomic rename puts it in place: ``folder`` holds a whole checkpoint or does not exist. Of a
    model in parts rank 0 gathers and writes all.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    parts = sharded(model)
    whole = parts.saved() if parts else {}
    if ranks.index():
        folder.mkdir(exist_ok=True)  # which is all that this rank wants to know
        return
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    with no_bars():
        model.save_pretrained(partial, **({"state_dict": whole} if whole else {}))
        tokenizer.save_pretrained(partial)
    # The old checkpoint is moved away first: a removal that is cut short would leave half of it.
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def generation_config(source: str, revision: str | None = None) -> GenerationConfig | None:
    """The generation config of a model's folder or hub id, None where it has none."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(source, revision=revision)
    except OSError:
        return None
    mend_sampling(config)
    return config


# Keys of a generation config that mean nothing where it does not sample.
SAMPLING = (
    *("temperature", "top_p", "top_k", "top_h", "min_p"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff"),
)
# And where it searches with one beam.
BEAMS = ("early_stopping", "length_penalty", "num_return_sequences")


def mend_sampling(config: GenerationConfig | None) -> None:
    """Take keys of sampling and of beams out of a config that does neither.

    transformers loads them and would not save them again. Nothing here reads them.
    """
    if config is None or config.do_sample is True:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        beams = BEAMS if config.num_beams in (None, 1) else ()
        for key in (*SAMPLING, *beams):
            setattr(config, key, None)


def check_saving(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str = "model"
) -> None:
    """Raises UserError where config, generation config or tokenizer cannot be saved and loaded.

    Every stage saves them, and the next one goes on from them: they have to be the same again. The
    model's weights are not looked at, and may be on the meta device. Rank 0 alone saves.
    """
    if ranks.index():
        return
    remedy = "mend config.json, generation_config.json or the tokenizer's files in its folder"
    with tempfile.TemporaryDirectory() as folder, no_bars():
        # transformers and a user's files may raise any exception.
        try:
            model.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
            changed = list(_changes(model, tokenizer, folder))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_MORE_WRITES:
                raise  # The disk is full: no fault of the model's.
            reason = one_line(str(error)) or type(error).__name__
            problem = f"it can be loaded, but not be saved and loaded again ({reason[:200]})"
            raise UserError(place, problem, remedy) from None
    if changed:
        raise UserError(place, f"{changed[0]} changes when it is saved and loaded again", remedy)


def _changes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str
) -> Iterator[str]:
    """What differs between a model and its files in ``folder``."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for key, value in _lasting(config).items():
        if _lasting(model.config).get(key) != value:
            yield f"`{key}` of config.json"
    generation = model.generation_config if model.can_generate() else None
    if generation and _lasting(GenerationConfig.from_pretrained(folder)) != _lasting(generation):
        yield "generation_config.json"
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if again.chat_template != tokenizer.chat_template:
        yield "the chat template"
    if again.get_vocab() != tokenizer.get_vocab():
        yield "the tokenizer's vocabulary"
    if again.all_special_ids != tokenizer.all_special_ids or again(TRIAL) != tokenizer(TRIAL):
        yield "the tokenizer"


TRIAL = "The answer is 12 x 3 = 36.\n\n  Sì, così: <b>{}</b> 猫"  # a text for tokenizers
FLEETING = ("transformers_version", "_name_or_path", "architectures", "dtype", "_from_model_config")


def _lasting(config: PretrainedConfig | GenerationConfig) -> dict[str, Any]:
    """The values of a config that a saved one has as well."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in FLEETING}


@contextmanager
def no_bars() -> Iterator[None]:
    """No progress bar of transformers meanwhile: the harness has its own."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def model_fingerprint(model: PreTrainedModel, by_digests: bool | None = None) -> str:
    """BLAKE2b of a model's weights, 32 hexadecimal digits: equal weights have equal fingerprints.

    It covers names, dtypes, shapes and bytes of all parameters and buffers, and what the
    model's config has other than defaults (positions, scales, caps), which no weight holds.

    by_digests: whether the device hashes its tensors (digest.py), and their digests stand for the
    bytes. If left out it does so where it is no CPU: on a CPU fingerprints are those of all
    records. ``has_fingerprint`` compares a model with one of either kind.
    """
    if by_digests is None:
        by_digests = model.device.type != "cpu"
    digest = hashlib.blake2b(digest_size=16)
    for head, content in _heads_and_contents(model, by_digests):
        digest.update(head)
        digest.update(content)
    digest.update(_canonical(_without_circumstances(model.config.to_diff_dict())))
    return digest.hexdigest()


def file_fingerprint(model: PreTrainedModel) -> str:
    """``model_fingerprint`` of a model that was loaded and not touched since.

    Files that this process has read before are not hashed again, while they are the same ones: by
    the hub's commit, or by each file's place on the disk, size and time of its last change.
    """
    files = _files(model)
    if files is None or sharded(model):
        return model_fingerprint(model)
    key = (files, model.dtype, model.device.type)
    if key not in _READ:
        _READ[key] = model_fingerprint(model)
    return _READ[key]


def _files(model: PreTrainedModel) -> Any:
    """What tells the files of a loaded model from others; None if nothing does."""
    if not os.path.isdir(model.name_or_path):
        commit = getattr(model.config, "_commit_hash", None)
        return commit and (model.name_or_path, commit)
    stats = [(file.name, file.stat()) for file in os.scandir(model.name_or_path)]
    return tuple(sorted((n, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in stats))


def _heads_and_contents(model: PreTrainedModel, by_digests: bool) -> Iterator[tuple[bytes, Any]]:
    """(name, dtype and shape; content or its digest) of all tensors of a model, by name."""
    parts = sharded(model)
    tensors = parts.state() if parts else iter(sorted(model.state_dict().items()))
    for names, group in _grouped(tensors, 1 if parts else None):
        contents: Iterable[Any] = digests(group) if by_digests else map(_bytes, group)
        for name, tensor, content in zip(names, group, contents, strict=True):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), content


def _grouped(
    tensors: Iterator[tuple[str, torch.Tensor]], size: int | None
) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
    """Names and tensors, so many at a time; all at once, for a GPU that is read once, if None."""
    while group := list(islice(tensors, size)):
        yield [name for name, _ in group], [tensor for _, tensor in group]


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def has_fingerprint(model: PreTrainedModel, weights: str, beginning: str) -> bool:
    """Whether ``model`` has a fingerprint of which the first 16 digits are on record.

    weights: the model's own, on its device. A folder may have begun on a device of another kind.
    """
    if weights[:16] == beginning:
        return True
    other = model_fingerprint(model, by_digests=model.device.type == "cpu")
    return other[:16] == beginning


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
