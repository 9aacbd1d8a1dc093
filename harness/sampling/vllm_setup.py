"""What a start of vLLM needs of this process, and what it must leave there as it was."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from harness.base.errors import UserError
from harness.models import ranks
from harness.models.repeatable import same_draws
from harness.sampling.settings import REMEDY, version

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Set before vLLM is imported: the engine runs in this process, where the weights are.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
# vLLM's batch-invariant mode: an answer does not depend on what is computed beside it. vLLM 0.31
# has it for NVIDIA GPUs of this compute capability and above (its envs.py).
INVARIANT, CAPABILITY = "VLLM_BATCH_INVARIANT", (9, 0)
# No workspace in which a product could split its sums. vLLM sets the same when its engine starts;
# by then the model has computed, and PyTorch reads each once.
INVARIANT_PRODUCTS = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


def is_invariant(device: torch.device | str, deterministic: bool) -> bool:
    """Whether vLLM on ``device`` is in its batch-invariant mode.

    deterministic: the order's; the environment's VLLM_BATCH_INVARIANT goes before it.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return False
    said = os.environ.get(INVARIANT)
    if said is not None:
        return said.strip() not in ("", "0")
    return deterministic and torch.cuda.get_device_capability(device) >= CAPABILITY


def prepare_invariant(device: torch.device | str, deterministic: bool) -> None:
    """Settings of the process for the batch-invariant mode, before its first product.

    vLLM reads its own once: the first engine of a process decides for all.
    """
    if is_invariant(device, deterministic):
        os.environ[INVARIANT] = "1"
        for key, value in INVARIANT_PRODUCTS.items():
            os.environ.setdefault(key, value)


@contextmanager
def invariant_kernels(wanted: bool = True) -> Iterator[None]:
    """vLLM's batch-invariant kernels for the length of the body, where the mode is ``wanted``.

    vLLM puts them in the place of PyTorch's for the whole process, one of them without a gradient,
    and changes settings of matrix products. The training of this process would compute by them or
    not, by whether an engine has started: a resumed run would end in other numbers.
    """
    if not wanted:
        yield
        return
    from vllm.model_executor.determinism import batch_invariant as mode

    products, blas = torch.backends.cuda.matmul, torch.backends.cuda.preferred_blas_library()
    settings: list[tuple[Any, str, Any]] = [
        (products, "fp32_precision", products.fp32_precision),
        *(
            (products, name, (getattr(products, name), getattr(products, f"{name}_split_k")))
            for name in (
                "allow_fp16_reduced_precision_reduction",
                "allow_bf16_reduced_precision_reduction",
            )
        ),
    ]
    for part in (getattr(torch.backends.cudnn, name) for name in ("conv", "rnn")):
        settings.append((part, "fp32_precision", part.fp32_precision))
    bmm = torch.bmm
    mode.enable_batch_invariant_mode()
    try:
        yield
    finally:
        if mode._batch_invariant_LIB is not None:
            mode._batch_invariant_LIB._destroy()
        mode._batch_invariant_LIB, mode._batch_invariant_MODE = None, False
        torch.bmm = bmm
        for owner, name, value in settings:
            setattr(owner, name, value)
        torch.backends.cuda.preferred_blas_library(blas)


def check_platform(device: torch.device) -> None:
    """Prepare the import of vLLM, and check that it runs on ``device``.

    Raises UserError where vLLM is missing or runs on another device.
    """
    if version() is None:
        raise UserError("engine: vllm", "vLLM is not installed", REMEDY)
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # silences the import as well
    from vllm.platforms import current_platform

    own = torch.device(ranks.device()).index if ranks.active() else 0
    if current_platform.device_type != device.type or (device.index or 0) != (own or 0):
        raise UserError(
            "engine: vllm",
            f"this vLLM runs on {current_platform.device_type} and the model is on {device}",
            REMEDY
            if current_platform.device_type != device.type
            else "choose the GPU by CUDA_VISIBLE_DEVICES",
        )
    if device.type == "cpu":
        # The small helpers of vLLM then need no C++ compiler.
        type(current_platform).simple_compile_backend = "eager"


def save_shape(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    """Write configuration and tokenizer, from which vLLM builds the model."""
    shape = copy.deepcopy(model.config)
    shape.architectures = [type(model).__name__]
    shape.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Suppress warnings, and undo afterwards what a start of vLLM changes in the process."""
    set_num_threads = torch.set_num_threads
    preload = os.environ.get("LD_PRELOAD")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            # The CPU worker of vLLM replaces it by a function that does nothing.
            torch.set_num_threads = set_num_threads
            # It also names libraries for worker processes, which this engine does not have.
            os.environ.pop("LD_PRELOAD", None)
            if preload:
                os.environ["LD_PRELOAD"] = preload


@contextmanager
def undisturbed(invariant: bool = False) -> Iterator[None]:
    """Keep the random states of Python, NumPy and torch as they are.

    invariant: whether vLLM computes in its batch-invariant mode meanwhile.
    """
    with same_draws(), invariant_kernels(invariant):
        yield


def innermost_reason(error: BaseException) -> str:
    """The first line of the innermost error."""
    inner = error.__cause__ or error.__context__
    while inner:
        error = inner
        inner = error.__cause__ or error.__context__
    return str(error).strip().split("\n")[0][:200]
