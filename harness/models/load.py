"""Loads a model and its tokenizer, and checks what an order says about them.

A model is named by a hub id, a local folder or a word of ``EMBEDDED_MODELS``. Each function that
takes a ``place`` (a file and a key) names it in the UserError that it raises.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
import transformers

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.models.chat import PLAIN_TEMPLATE, around_answer, stop_tokens
from harness.models.checkpoint import generation_config, mend_sampling, no_bars
from harness.models.embedded import EMBEDDED, EMBEDDED_MODELS, embedded_checkpoint
from harness.models.forward import hidden_states, output_head, sees_later_tokens
from harness.models.memory import keep_freed_memory, let_segments_grow
from harness.models.products import bfloat16_pays
from harness.models.repeatable import allow_repeatable_products

# Kinds of devices that an order may name. Whoever makes another one known to PyTorch adds it.
DEVICE_TYPES = {"cpu", "cuda"}
NUMBER = re.compile(r"\d+")


def resolve_dtype(dtype: str, device: str | torch.device) -> torch.dtype:
    """The dtype of that name on ``device``.

    ``auto`` is bfloat16 on a GPU that has it, and on a CPU where its products are measured to be
    faster (products.py); float32 elsewhere.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = bfloat16_pays()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def check_device(device: str, place: str) -> None:
    """Raises UserError if this machine has no ``device``."""
    if device in ("auto", "cpu"):
        return
    kind, _, number = device.partition(":")
    if kind not in DEVICE_TYPES - {"cpu"} or not re.fullmatch(rf"{kind}(:\d{{1,3}})?", device):
        raise UserError(place, f"unknown device {device!r}", f"known: {_known_devices()}")
    count = torch.get_device_module(kind).device_count()  # does not initialise CUDA
    if int(number or 0) >= count:
        gpus = f"{count} GPU{'s' * (count > 1)} that" if count else "no GPU that"
        raise UserError(
            place,
            f"there is no {device}: this machine has {gpus} PyTorch sees",
            "use auto or cpu",
        )


def _known_devices() -> str:
    more = sorted(DEVICE_TYPES - {"cpu", "cuda"})
    return ", ".join(["auto", "cpu", "cuda", "cuda:0", "cuda:1", "...", *more])


def resolve_device(device: str) -> str:
    """``auto`` is a GPU where there is one, the CPU elsewhere."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare_device(device: str | torch.device) -> None:
    """Settings of the process for a model on ``device``, made before its first product."""
    if torch.device(device).type == "cpu":
        keep_freed_memory()
        return
    let_segments_grow()
    allow_repeatable_products()
    # cuDNN's attention makes a plan for every new shape, here at nearly every call, and with a mask
    # it can give NaN gradients.
    torch.backends.cuda.enable_cudnn_sdp(False)


def is_local(name: str) -> bool:
    """Whether ``name`` means a folder rather than a hub id."""
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def check_name(name: str, place: str, revision: str | None = None) -> None:
    """Raises UserError if ``name`` means a local folder that holds no model, or has a revision."""
    if name not in EMBEDDED_MODELS and not is_local(name):
        return
    if revision:
        problem = f"is of a repository of the hub, and {name} is none"
        raise UserError(f"{place}: revision", problem, "leave it out")
    if name in EMBEDDED_MODELS:
        return
    folder = Path(os.path.expanduser(name))
    if not (folder / "config.json").is_file():
        raise UserError(
            place,
            f"{name} is not a model folder" if folder.is_dir() else f"{name} is not a folder",
            "a folder that save_pretrained wrote holds config.json and the weights",
        )


def cannot_load(name: str, error: Exception, place: str) -> UserError:
    """The UserError for a model on which transformers raised ``error``."""
    if "trust_remote_code" in str(error):
        return UserError(
            place,
            f"{name} needs code that comes with the model, and no such code is run",
            "use a model that transformers knows itself",
        )
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    if "Unrecognized configuration class" in reason:  # and then the names of all others
        reason = "transformers has no causal language model of its kind"
    return UserError(
        place,
        f"{name} cannot be loaded ({reason})",
        f"give a hub id that can be reached, a model folder, or {EMBEDDED!r}",
    )


def load_tokenizer(
    name: str, revision: str | None = None, place: str = "model", template: str = "chat"
) -> tuple[transformers.PreTrainedTokenizerBase, str]:
    """(the tokenizer, the folder or hub id from which transformers loads the model).

    template: ``chat``, the model's own, or ``plain``, texts as they are. Raises UserError where it
    cannot be loaded or has no usable chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    check_name(name, place)
    source = source_of(name)
    generation = Path(source) / "generation_config.json"
    if generation.exists():  # transformers takes a torn one for none, and end tokens are lost
        read_json(generation, remedy="put back a whole copy, or remove it")
    # A user's files can make transformers raise any exception.
    try:
        # A wrong configuration has a clearer error here than in the loading of the tokenizer.
        AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except Exception as error:
        raise cannot_load(name, error, place) from None
    if template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.chat_template is None:
        raise UserError(
            place,
            f"the tokenizer of {name} has no chat template",
            "use an instruction-tuned model, put a chat_template.jinja into its folder, or write "
            "model: {template: plain}",
        )
    if str(tokenizer.chat_template).startswith("\ufeff"):
        raise UserError(
            place,
            "its chat template begins with a byte order mark, which every prompt would hold",
            "save chat_template.jinja in UTF-8 without it",
        )
    around_answer(tokenizer, place=place)
    return tokenizer, source


def source_of(name: str) -> str:
    """The folder or hub id from which transformers loads the model."""
    if name in EMBEDDED_MODELS:
        return str(embedded_checkpoint(name))
    return os.path.expanduser(name) if is_local(name) else name


def load_model(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    place: str = "model",
    template: str = "chat",
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """(the model in eval mode, its tokenizer).

    Raises UserError where they cannot be loaded, do not fit together, where no token ends a turn,
    or where the model computes its logits in a way that ``output_head`` does not know.
    """
    tokenizer, _ = load_tokenizer(name, revision, place, template)
    model = read_model(name, dtype, device, revision, place)
    check_finite(name, model, place)
    check_passes(name, model, place)
    check_tokens(name, model, tokenizer, place)
    stop_tokens(model, tokenizer, place)
    return model, tokenizer


def read_model(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    place: str = "model",
) -> transformers.PreTrainedModel:
    """The model of ``load_model`` without its tokenizer and without a look at what it can do.

    For one that was looked at before. Raises UserError where it cannot be loaded.
    """
    device = resolve_device(device)
    prepare_device(device)
    model = _read_weights(name, source_of(name), revision, dtype, device, place)
    model.to(device).eval()
    mend_sampling(model.generation_config)
    # PyTorch unties weights that it moves to a device which it does not know by itself.
    model.tie_weights(recompute_mapping=False)
    return model


def _read_weights(
    name: str, source: str, revision: str | None, dtype: str, device: str, place: str
) -> transformers.PreTrainedModel:
    """The model from ``source``, on the CPU.

    Raises UserError where it cannot be loaded or its weights do not fit its configuration.
    """
    from transformers import AutoModelForCausalLM

    # Files that are no weights, or a missing package, make transformers raise any exception.
    try:
        with no_bars():
            model, loading = AutoModelForCausalLM.from_pretrained(
                source,
                revision=revision,
                trust_remote_code=False,
                dtype=resolve_dtype(dtype, device),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # An error below reports them in one line.
            )
    except Exception as error:
        raise cannot_load(name, error, place) from None
    # Missing and mismatched weights now hold random numbers. Unexpected ones may be of a part that
    # sees or hears, but not of a layer like the others.
    known = {NUMBER.sub("#", key) for key in model.state_dict()}
    unfit = sorted(loading["missing_keys"])
    unfit += sorted(key for key in loading["unexpected_keys"] if NUMBER.sub("#", key) in known)
    unfit += sorted(key for key, *_ in loading["mismatched_keys"])
    if unfit:
        raise UserError(
            place,
            f"the weights of {name} do not fit its config.json "
            f"({unfit[0]} and {len(unfit) - 1} more)",
            "give a folder whose config.json and weights belong together",
        )
    return model


def empty_model(
    name: str,
    source: str,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    place: str = "model",
) -> transformers.PreTrainedModel:
    """The model on the meta device: sizes without weights. Raises UserError as ``load_model``."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with init_empty_weights():
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            shape = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        generation = generation_config(source, revision)
    except Exception as error:  # whatever transformers makes of a user's files
        raise cannot_load(name, error, place) from None
    shape.tie_weights()
    if generation:
        shape.generation_config = generation
    return shape


def check_finite(name: str, model: transformers.PreTrainedModel, place: str) -> None:
    """Raises UserError if a weight is not finite: every answer would be noise, every loss NaN."""
    for weight, values in model.named_parameters():
        # Types of one byte are scales' business: PyTorch does not look into all of them.
        if values.element_size() > 1 and not torch.isfinite(values).all():
            raise UserError(
                place,
                f"the weights of {name} hold NaN or infinity ({weight})",
                "take the model from its source again, or an earlier checkpoint",
            )


def check_tokens(
    name: str,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    place: str,
) -> None:
    """Raises UserError if the tokenizer has tokens that the model has no embedding for.

    Allowed are those that the tokenizer names for an image or a sound: Gemma 3 has one, also in the
    sizes that see nothing.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    usual = transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    media = {str(t) for key, t in tokenizer.special_tokens_map.items() if key not in usual}
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    beyond = {i: token for i, token in beyond.items() if token not in media}
    if beyond:
        raise UserError(
            place,
            f"the tokenizer of {name} has tokens up to id {max(beyond)} "
            f"({beyond[max(beyond)][:40]!r}), the model has {rows} embeddings",
            "take the model's own tokenizer, or resize the embeddings and save the model",
        )


def check_passes(name: str, model: transformers.PreTrainedModel, place: str) -> None:
    """Raises UserError if the passes that training is made of do not fit the model.

    ``output_head`` has to compute its own logits. A GPU may take other kernels for the two passes:
    they need to agree to two units only.
    """
    title = f"{name} ({type(model).__name__})"
    # Families differ in what they lack, so they may raise anything.
    try:
        difference = head_difference(model)
        looks_ahead = sees_later_tokens(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:80]
        raise UserError(
            place,
            f"{title} cannot be trained here ({type(error).__name__}: {reason})",
            "use another causal language model, or another model.dtype",
        ) from None
    if not difference <= 2:
        raise UserError(
            place,
            f"{title} computes its logits in an unknown way",
            "use another model; harness.models.forward.output_head would have to learn this one",
        )
    if looks_ahead:
        raise UserError(
            place,
            f"{title} sees the tokens behind the one that it predicts from",
            "use a causal language model (is_decoder in config.json makes some encoders causal)",
        )


@torch.inference_mode()
def head_difference(model: transformers.PreTrainedModel) -> float:
    """Largest distance of ``output_head``'s logits from the model's own, on a few tokens.

    The unit is the dtype's epsilon times the largest logit.
    """
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    # Without a cache the keys of both passes have one layout in memory.
    own = model(ids, use_cache=False).logits
    ours = output_head(model)(hidden_states(model, ids))
    if own.shape != ours.shape:
        return float("inf")
    distance = (own - ours).abs().max().item()
    unit = torch.finfo(own.dtype).eps * own.abs().max().item()
    return distance / unit if distance else 0.0
