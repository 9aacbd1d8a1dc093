"""A 7B's body: how much memory a token keeps, and how fast forward and backward passes are.

Random bfloat16 weights of Qwen2.5-7B's shape. The gradient of each weight is dropped as soon as it
is there, as the trainer does which moves it to its master.
"""

from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_check.bench import Bench, Skip, free_memory, seconds_of
from benchmarks.gpu_check.material import large_config, make_model
from benchmarks.gpu_check.result import PartResult
from harness.models.forward import hidden_states
from harness.models.memory import finish
from harness.models.repeatable import repeatable
from harness.runs.cost import activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIB, GIB = 2**20, 2**30


def run(bench: Bench) -> None:
    """Passes of growing length, with and without gradient checkpointing."""
    config = large_config(bench.tiny)
    if not bench.tiny and free_memory(bench.device) < 18:
        raise Skip("a 7B's weights want 15 GiB on the device, and a pass some more")
    shape = make_model(config, torch.bfloat16, torch.device("meta"))
    planned = activations(shape)
    model = make_model(config, torch.bfloat16, bench.device)
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(_drop)
    body = sum(p.numel() for p in getattr(model, model.base_model_prefix).parameters())
    body -= model.get_input_embeddings().weight.numel()
    bench.note("weights of the body", body / 1e9, "billions")
    peak_rate = _rate_of_products(bench)
    model.train()
    for tokens in (32, 64) if bench.tiny else (2048, 4096, 8192):
        need = 1.1 * planned * tokens / GIB
        if need > free_memory(bench.device):
            bench.note(f"{tokens} tokens", f"not tried: they want {need:.0f} GiB")
            continue
        kept, seconds = _pass(bench, model, tokens)
        _beside_plan(bench, f"{tokens} tokens", kept / tokens, planned)
        rate = 6 * body * tokens / seconds / 1e12
        bench.note(f"{tokens} tokens, forward and backward", seconds, "s")
        _judge_rate(bench, f"{tokens} tokens", rate, peak_rate)
        with repeatable(bench.device):
            _, slower = _pass(bench, model, tokens)
        bench.note(f"{tokens} tokens, price of deterministic", 100 * (slower / seconds - 1), "%")
    model.gradient_checkpointing_enable()
    tokens = 64 if bench.tiny else 8192
    kept, seconds = _pass(bench, model, tokens)
    if kept:
        bench.note(f"checkpointing, {tokens} tokens", kept / tokens / MIB, "MiB a token")
    bench.note(f"checkpointing, {tokens} tokens, forward and backward", seconds, "s")


def _beside_plan(bench: Bench, name: str, kept: float, planned: float) -> None:
    """Bytes that a token keeps, against those that --plan counts; nothing counts them on a CPU."""
    if kept:
        off = 100 * (kept / planned - 1)
        figure = f"{name}, {kept / MIB:.3g} MiB each beside --plan's {planned / MIB:.3g}"
        bench.speed(figure, off, "%", "within 10", abs(off) <= 10)


def _drop(weight: torch.Tensor) -> None:
    weight.grad = None


def _rate_of_products(bench: Bench) -> float | None:
    """TFLOP/s of the bfloat16 product in the part ``env``; None where that did not run."""
    env = PartResult.read(bench.out / "env.json")
    if env and env.about == bench.result.about:
        for check in env.checks:
            if check.name.startswith("product") and check.name.endswith("bfloat16"):
                return float(check.value)
    return None


def _judge_rate(bench: Bench, name: str, rate: float, peak: float | None) -> None:
    if peak is None:
        bench.note(f"{name}, rate (the part env gives the mark)", rate, "TFLOP/s")
        return
    share = 100 * rate / peak
    figure = f"{name}, {rate:.4g} TFLOP/s, share of the product's"
    bench.speed(figure, share, "%", "at least 40", share >= 40)


def _pass(bench: Bench, model: "PreTrainedModel", tokens: int) -> tuple[float, float]:
    """(bytes that a forward pass keeps for its backward pass, seconds of both)."""
    vocabulary = model.config.vocab_size
    ids = torch.randint(300, vocabulary, (1, tokens), device=bench.device)
    kept = 0.0

    def work() -> None:
        nonlocal kept
        before = _allocated(bench.device)
        states = hidden_states(model, ids)
        finish(bench.device)
        kept = _allocated(bench.device) - before
        states.backward(torch.ones_like(states))

    seconds = seconds_of(work, bench.device, 3)
    return kept, seconds


def _allocated(device: torch.device) -> float:
    """Bytes of tensors on the device; nothing counts them on a CPU."""
    if device.type == "cpu":
        return 0.0
    return float(torch.get_device_module(device).memory_allocated())
