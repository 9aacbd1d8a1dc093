"""What stands behind an option until a GPU has run it: fused losses, FlexAttention, AdamW's moments
in 8 bits.

Each beside the usual one on the same device, and the moments beside the CPU's as well. What passes
here may become a default.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_check.bench import Bench, seconds_of
from benchmarks.gpu_check.exact import LossAndNorm, objectives, one_step
from benchmarks.gpu_check.material import make_model, make_rows, make_tokenizer, small_config
from harness.learning.distillation import divergence
from harness.learning.fused import fused_cross_entropy, fused_kl
from harness.learning.moments import EIGHT_BITS, FLOAT32
from harness.learning.optimizer import Streamed
from harness.learning.trainer import Trainer, cross_entropy
from harness.models.flex import attend_by_flex, keep_flex
from harness.models.memory import peak_memory, reset_peak_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[torch.Tensor], torch.Tensor]  # of logits, a scalar
Backward = Callable[[Trainer], float]  # of a step, whose loss it returns
FUSED = ("SFT", "SDFT full")  # objectives that fuse
CPU = torch.device("cpu")


def run(bench: Bench) -> None:
    """Fused losses and FlexAttention where there are kernels for this device, then moments."""
    if bench.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        bench.note("fused losses, FlexAttention", "not tried: Triton is not installed")
    else:
        steps(bench)
        chunks(bench)
        if bench.device.type in ("cpu", "cuda"):  # others have no FlexAttention
            attention(bench)
    moments(bench)


def steps(bench: Bench) -> None:
    """Loss and gradient norm of a whole step, with the losses fused and not."""
    config = small_config(bench.tiny)
    tokenizer = make_tokenizer(config.vocab_size)
    rows = make_rows(config.vocab_size, [9, 40, 17], 12 if bench.tiny else 48, each=2)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        model: PreTrainedModel = make_model(config, dtype, bench.device)
        name = str(dtype).removeprefix("torch.")
        for objective in FUSED:
            backward = objectives(rows)[objective]
            usual = one_step(model, tokenizer, backward)
            fused = one_step(model, tokenizer, backward, fused_losses=True)
            loss = abs(fused[0] - usual[0]) / max(0.1, abs(usual[0]))
            bench.at_most(f"fused {objective}, {name}, loss", loss, limit)
            norm = abs(fused[1] / usual[1] - 1)
            bench.at_most(f"fused {objective}, {name}, gradient norm", norm, 10 * limit)


def chunks(bench: Bench) -> None:
    """A chunk of Qwen2.5's vocabulary: gradients number by number, seconds and memory."""
    rows, vocabulary = (6, 1031) if bench.tiny else (880, 152_064)
    generator = torch.Generator(bench.device).manual_seed(0)
    student, teacher = (
        3 * torch.randn(rows, vocabulary, generator=generator, device=bench.device)
        for _ in range(2)
    )
    tokens = torch.arange(rows, device=bench.device)
    losses: dict[str, tuple[Loss, Loss]] = {
        "cross-entropy": (
            lambda logits: cross_entropy(logits.float(), tokens),
            lambda logits: fused_cross_entropy(logits, tokens),
        ),
        "forward KL": (
            lambda logits: divergence(logits.float(), other.float(), "forward").sum(),
            lambda logits: fused_kl(logits, other).sum(),
        ),
    }
    # Rounded once from nearly equal float32 numbers, some bfloat16 are the next one.
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        other, name = teacher.to(dtype), str(dtype).removeprefix("torch.")
        for what, both in losses.items():
            found = []
            for kind, loss in zip(("usual", "fused"), both, strict=True):
                reset_peak_memory(bench.device)
                gradient = _gradient(student.to(dtype), loss)
                if bench.device.type != "cpu":
                    bench.note(f"{what}, {name}, {kind}, peak", peak_memory(bench.device), "GiB")
                found.append(gradient.float())
                seconds = seconds_of(lambda: _gradient(student.to(dtype), loss), bench.device, 3)
                bench.note(f"{what}, {name}, {kind}", 1e3 * seconds, "ms")
            usual, fused = found
            far = ((fused - usual).norm() / usual.norm()).item()
            bench.at_most(f"{what}, {name}, distance of the gradients", far, limit)


def _gradient(logits: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The gradient of a loss at logits, which it may write over."""
    leaf = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf * 1), leaf)  # not of the leaf's own memory
    return gradient


def attention(bench: Bench) -> None:
    """Loss and gradient norm of whole steps by FlexAttention and as usual; seconds and memory of a
    step whose rows share prompts.
    """
    config = small_config(bench.tiny)
    tokenizer = make_tokenizer(config.vocab_size)
    rows = make_rows(config.vocab_size, [9, 40, 17], 12 if bench.tiny else 48, each=2)
    sharing = make_rows(config.vocab_size, [600, 640], 128, each=8)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-3)):
        model: PreTrainedModel = make_model(config, dtype, bench.device)
        attend_by_flex(model, "model: attention")
        name = str(dtype).removeprefix("torch.")

        def step(backward: Backward, by_flex: bool, model: PreTrainedModel = model) -> LossAndNorm:
            keep_flex(model, by_flex)
            return one_step(model, tokenizer, backward)

        # the tests have all of them on a CPU
        for objective in ("SFT",) if bench.tiny else ("SFT", "SDFT full", "GRPO"):
            backward = objectives(rows)[objective]
            usual, found = step(backward, False), step(backward, True)
            loss = abs(found[0] - usual[0]) / max(0.1, abs(usual[0]))
            bench.at_most(f"FlexAttention, {objective}, {name}, loss", loss, limit)
            norm = abs(found[1] / usual[1] - 1)
            bench.at_most(f"FlexAttention, {objective}, {name}, gradient norm", norm, 10 * limit)
        if bench.tiny:  # seconds would say nothing
            continue
        backward = objectives(sharing)["SFT"]
        for kind, by_flex in (("usual attention", False), ("FlexAttention", True)):
            reset_peak_memory(bench.device)
            seconds = seconds_of(partial(step, backward, by_flex), bench.device, 3)
            bench.note(f"{kind}, {name}, a step of shared prompts", 1e3 * seconds, "ms")
            bench.note(f"{kind}, {name}, peak", peak_memory(bench.device), "GiB")


def moments(bench: Bench) -> None:
    """Three updates: beside the CPU's, beside float32 moments, twice; and seconds of one."""
    size = 2**14 if bench.tiny else 2**24
    ours, again = (_updated(bench.device, EIGHT_BITS, size) for _ in range(2))
    bench.equal("8-bit moments, numbers that a second run changes", int((ours != again).sum()), 0)
    apart = (ours - _updated(CPU, EIGHT_BITS, size)).abs()
    # A root that rounds otherwise may choose another code.
    share = (apart > 1e-3).float().mean().item()
    bench.at_most("8-bit moments, share of numbers that are not the CPU's", share, 1e-3)
    whole = _updated(bench.device, FLOAT32, size)
    off = ((ours - whole).norm() / whole.norm()).item()
    bench.at_most("8-bit moments, distance from float32's", off, 0.1)
    for kind in (FLOAT32, EIGHT_BITS):
        weight = torch.zeros(size, device=bench.device)
        optimizer = Streamed({"weight": weight}, {"weight": 0.0}, bench.device, kind)
        update = partial(optimizer.move, "weight", torch.ones_like(weight), 1.0)
        seconds = seconds_of(update, bench.device, 3)
        bench.note(f"an update, {kind}", seconds / size * 1e9, "s a billion weights")


def _updated(device: torch.device, kind: str, size: int) -> torch.Tensor:
    """Where zeros are after three updates of rate 1, on the CPU."""
    weight = torch.zeros(size, device=device)
    optimizer = Streamed({"weight": weight}, {"weight": 0.0}, device, kind)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(size, generator=generator).exp()
    for _ in range(3):
        gradient = sizes * torch.randn(size, generator=generator)
        optimizer.move("weight", gradient.to(device), 1.0)
    return weight.cpu()
