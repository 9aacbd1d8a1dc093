"""How often the program waits for the device: in a step of SDFT, and in a step of decoding.

On CUDA PyTorch says it; the strict device counts copies to the host; on a CPU, which waits for
nothing, the calls are counted that would wait on a GPU.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.material import (
    make_model,
    make_rows,
    make_stage,
    make_tokenizer,
    small_config,
)
from harness.learning.distillation import distil
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer
from harness.sampling.transformers import TransformersSampler
from methods.sdft import SDFTConfig

STEPS = 20  # of decoding
WAITS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
)


def run(bench: Bench) -> None:
    """A step of learning on rows that are there, then the steps of decoding alone."""
    config = small_config(bench.tiny)
    model = make_model(config, torch.bfloat16, bench.device)
    tokenizer = make_tokenizer(config.vocab_size)
    stage = make_stage(model, tokenizer)
    lengths = [20, 31] * 4 if bench.tiny else [100, 131] * 16
    rows = make_rows(config.vocab_size, lengths, 8 if bench.tiny else 64)
    teacher_rows = [Row([300] * 20 + row.prompt, row.completion) for row in rows]
    settings = SDFTConfig(warmup_steps=0)
    trainer = Trainer(stage, settings)
    teacher = Teacher(stage, settings.ema_alpha, trainer.limit)

    def learn() -> None:
        distil(trainer, teacher, rows, teacher_rows, settings)
        trainer.update()
        teacher.follow(trainer.masters)

    learn()  # makes what is kept between steps
    waits = count(bench, learn)
    bench.at_most("a step of SDFT", waits, 60, "waits")

    sampler = TransformersSampler(model, tokenizer)
    sampler.stops = {-1}
    prompts = [row.prompt for row in rows]
    sampler.sample(prompts, max_new_tokens=1)  # asks the model once how it is sampled
    few, many = (
        count(bench, lambda: sampler.sample(prompts, max_new_tokens=n)) for n in (2, 2 + STEPS)
    )
    bench.at_most("a step of decoding", (many - few) / STEPS, 2, "waits a token")


def count(bench: Bench, work: Callable[[], object]) -> int:
    """How often ``work`` waits for the device."""
    if bench.device.type == "cuda":
        return _warned(work)
    if bench.device.type == "strict":
        from benchmarks import strict_device

        strict_device.reset_counts()
        work()
        return strict_device.counts()["waits"]
    with _Calls() as calls:
        work()
    return calls.count


def _warned(work: Callable[[], object]) -> int:
    """By PyTorch's own warnings."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


class _Calls(TorchFunctionMode):
    """Counts the methods of tensors that wait for their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += getattr(function, "__name__", "") in WAITS
        return function(*args, **(kwargs or {}))
