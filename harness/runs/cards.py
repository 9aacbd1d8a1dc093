"""Speeds of a GPU: from its datasheet, or measured where it is.

Nothing here has been compared with a run on a GPU: ``python -m benchmarks.gpu_check`` does that.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.models.forward import hidden_states
from harness.models.memory import finish
from harness.models.size import product_weights
from harness.runs.training_bytes import BUSY
from harness.sampling.buffers import Rows, sampling_mode

# Shares of a datasheet's figures that programs reach: estimates. 0.42: 420 of an H200's 989 TFLOP/s
# in passes of a 7B. 0.8: of the memory's bandwidth, by kernels that only copy. 0.78: 50 GB/s of
# PCIe 5's 64, from pinned memory.
MATRIX, COPY, LINK = 0.42, 0.8, 0.78
# Seconds that Python and PyTorch take to start a kernel, estimates: among transformers' modules (27
# ms for the 1,108 kernels of a 28-layer model's token), and in a loop over tensors.
LAUNCH, PLAIN_LAUNCH = 24e-6, 8e-6
# Kernels of a decoding step: of each layer, and beside them. Counted on the strict device for Qwen2
# without a mask (tests/benchmarks/test_gpu_model.py); under a mask there are a tenth more.
TOKEN_LAYER, TOKEN_REST = 40, 38
# Side of a matrix and bytes of a block that are measured with, by whether they fill a GPU.
MEASURED = {True: (4096, 2**30), False: (512, 2**24)}


@dataclass(frozen=True)
class Speeds:
    """What a GPU reaches: product: FLOP/s of training passes; copy: bytes of its memory a second,
    read or written; link: bytes a second to or from pinned host memory; launch: seconds to start a
    kernel among a model's modules; is_measured: on the GPU at hand, or of a datasheet.
    """

    product: float
    copy: float
    link: float
    launch: float = LAUNCH
    is_measured: bool = False


@dataclass(frozen=True)
class Card:
    """A datasheet: gib: that the driver reports, about; flops: dense bfloat16 products with float32
    sums; bandwidth, link: bytes a second of its memory, and of PCIe in one direction.
    """

    name: str
    gib: float
    flops: float
    bandwidth: float
    link: float
    source: str

    @property
    def speeds(self) -> Speeds:
        """What programs reach of it, by the shares above."""
        return Speeds(MATRIX * self.flops, COPY * self.bandwidth, LINK * self.link)


PCIE4, PCIE5 = 32e9, 64e9
CARDS = {
    card.name: card
    for card in (
        Card("RTX 4090", 23.6, 165.2e12, 1.008e12, PCIE4, "NVIDIA Ada architecture whitepaper"),
        Card("RTX A6000", 47.5, 154.8e12, 0.768e12, PCIE4, "NVIDIA RTX A6000 datasheet"),
        Card("L40S", 44.4, 362.05e12, 0.864e12, PCIE4, "NVIDIA L40S datasheet"),
        Card("A100 80GB", 79.2, 312e12, 2.039e12, PCIE4, "NVIDIA A100 SXM datasheet"),
        Card("H100 80GB", 79.2, 989e12, 3.35e12, PCIE5, "NVIDIA H100 SXM datasheet"),
        Card("H200 141GB", 139.8, 989e12, 4.8e12, PCIE5, "NVIDIA H200 SXM datasheet"),
    )
}


def seconds_of(work: Callable[[], object], device: torch.device, tries: int = 3) -> float:
    """The fewest seconds of some tries, after one that does not count."""
    times = []
    for _ in range(tries + 1):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        times.append(time.perf_counter() - start)
    return max(min(times[1:]), 1e-9)


def measured_speeds(shape: PreTrainedModel, device: torch.device) -> Speeds:
    """Speeds of the device for a model, from a product, copies, two decoding steps and one training
    pass of BUSY tokens by its first layers.

    shape: the model on the meta device. One that cannot be cut to two layers, or has no room, is
    judged by the product alone.
    """
    side, size = MEASURED[device.type == "cuda"]
    speeds = Speeds(
        MATRIX * _product_rate(side, shape.dtype, device),
        *_copy_rates(size, device),
        is_measured=True,
    )
    with suppress(Exception):  # families differ in what they take, and others may have the memory
        model = _beginning(shape, device)
        head = model.get_output_embeddings().weight.numel()
        operations = 6 * (product_weights(model) - head) * BUSY
        layers = model.config.get_text_config().num_hidden_layers
        speeds = replace(
            speeds,
            product=operations / seconds_of(partial(_training_pass, model), device, 1),
            launch=_decoding(model) / kernels_of_token(layers),
        )
    return speeds


def _product_rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of square matrices."""
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / seconds_of(partial(torch.matmul, matrix, matrix), device)


def _copy_rates(size: int, device: torch.device) -> tuple[float, float]:
    """Bytes a second read and written in the device's memory, and of a copy from the host's."""
    block = torch.zeros(size, dtype=torch.uint8, device=device)
    within = 2 * size / seconds_of(block.clone, device)
    host = torch.zeros(size // 4, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return within, len(host) / seconds_of(partial(block[: len(host)].copy_, host), device)


def kernels_of_token(layers: int) -> int:
    """Kernels that a step of decoding starts, of a Qwen2 or Llama with so many layers."""
    return TOKEN_LAYER * layers + TOKEN_REST


def _beginning(shape: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model's first two layers between embeddings and head, of random weights."""
    config = copy.deepcopy(shape.config)
    text = config.get_text_config()
    text.num_hidden_layers = min(2, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=shape.dtype)
    return model.eval()


@torch.inference_mode()
def _decoding(model: PreTrainedModel, rows: int = 32) -> float:
    """Seconds of a decoding step of so many rows, from two of them."""
    with sampling_mode(model):
        live = Rows(model, [list(range(1, 9))] * rows, 8)
        tokens = live.prefill(1).argmax(-1)[:, None]
        return seconds_of(lambda: live.read(tokens), model.device, 2)


def _training_pass(model: PreTrainedModel) -> None:
    ids = torch.ones(1, BUSY, dtype=torch.long, device=model.device)
    states = hidden_states(model, ids)
    states.backward(torch.ones_like(states))
    model.zero_grad()
