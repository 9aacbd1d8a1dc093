"""What a start of vLLM needs of this process, and what it must leave there as it was."""

from __future__ import annotations

import copy
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy
import torch

from harness.base.errors import UserError
from harness.sampling.settings import REMEDY, version

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Set before vLLM is imported: the engine runs in this process, where the weights are.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


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

    if current_platform.device_type != device.type or (device.index or 0) != 0:
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
def undisturbed() -> Iterator[None]:
    """Keep the random states of Python, NumPy and torch as they are."""
    python_state = random.getstate()
    numpy_state = numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


def innermost_reason(error: BaseException) -> str:
    """The first line of the innermost error."""
    inner = error.__cause__ or error.__context__
    while inner:
        error = inner
        inner = error.__cause__ or error.__context__
    return str(error).strip().split("\n")[0][:200]
