"""Loads a model and its tokenizer by a hub id, a local folder or a word of ``EMBEDDED_MODELS``."""

import os
import re
from pathlib import Path

import torch
import transformers

from harness.base.errors import UserError
from harness.models.chat import chat_tokens
from harness.models.embedded import EMBEDDED, EMBEDDED_MODELS, embedded_checkpoint
from harness.models.forward import hidden_states, output_head
from harness.models.memory import keep_freed_memory

transformers.utils.logging.disable_progress_bar()


def resolve_dtype(dtype, device):
    """``auto`` is bfloat16 where matrix units compute it (a GPU that has it, AMX on a CPU), float32
    elsewhere.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return (
                torch.bfloat16
                if torch.cuda.is_bf16_supported(including_emulation=False)
                else torch.float32
            )
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def check_device(device, place):
    """Raises UserError if this machine has no ``device``."""
    if device not in ("auto", "cpu"):
        if not re.fullmatch(r"cuda(:\d{1,3})?", device):
            raise UserError(
                place, f"unknown device {device!r}", "known: auto, cpu, cuda, cuda:0, cuda:1, ..."
            )
        count = torch.cuda.device_count()  # starts nothing on a GPU
        if int(device[5:] or 0) >= count:
            has = f"{count} GPU{'s' * (count > 1)} that" if count else "no GPU that"
            raise UserError(
                place,
                f"there is no {device}: this machine has {has} PyTorch sees",
                "use auto or cpu",
            )


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
            raise UserError(
                place,
                f"{name} is not a model folder" if folder.is_dir() else f"{name} is not a folder",
                "a folder that save_pretrained wrote holds config.json and the weights",
            )


def cannot_load(name, error, place):
    first = str(error).strip().split("\n")[0][:200]
    return UserError(
        place,
        f"{name} cannot be loaded ({first or type(error).__name__})",
        f"give a hub id that can be reached, a model folder, or {EMBEDDED!r}",
    )


def load_tokenizer(name, revision=None, place="model"):
    """(tokenizer, what transformers loads the model from). Raises UserError where it cannot be had
    or lacks a chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    check_name(name, place)
    source = (
        str(embedded_checkpoint(name))
        if name in EMBEDDED_MODELS
        else os.path.expanduser(name)
        if is_local(name)
        else name
    )
    try:
        # its own words on a wrong one are better than those of the tokenizer
        AutoConfig.from_pretrained(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # whatever transformers makes of a user's files
        raise cannot_load(name, error, place) from None
    if tokenizer.chat_template is None:
        raise UserError(
            place,
            f"the tokenizer of {name} has no chat template",
            "use an instruction-tuned model, or put a chat_template.jinja into its folder",
        )
    chat_tokens(tokenizer, [{"role": "user", "content": "x"}], place)
    return tokenizer, source


def load_model(name, dtype="auto", device="auto", revision=None, place="model"):
    """Model (in eval mode) and tokenizer. Raises UserError where they cannot be had or do not fit
    together.
    """
    from transformers import AutoModelForCausalLM

    tokenizer, source = load_tokenizer(name, revision, place)
    device = resolve_device(device)
    if device == "cpu":
        keep_freed_memory()
    else:  # cuDNN's attention makes a plan for every new shape, here nearly every call, and with a mask can give NaN gradients
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=resolve_dtype(dtype, device),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # told in our own words below
    except Exception as error:  # of files that are no weights, or want a package that is not there
        raise cannot_load(name, error, place) from None
    unfit = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if unfit:  # transformers would go on with random weights in their place
        raise UserError(
            place,
            f"the weights of {name} do not fit its config.json ({unfit[0]} and {len(unfit) - 1} more)",
            "give a folder whose config.json and weights belong together",
        )
    model.to(device).eval()
    # our own head must be the model's: some models bend their logits in ways of their own
    with torch.inference_mode():
        ids = torch.tensor([[1, 2, 3, 4]], device=device)
        if not torch.equal(output_head(model)(hidden_states(model, ids)), model(ids).logits):
            raise UserError(
                place,
                f"{name} ({type(model).__name__}) computes its logits in an unknown way",
                "use another model; harness.models.forward.output_head would have to learn this one",
            )
    return model, tokenizer
