"""Steps of SDFT at a 7B's width: seconds of each phase, and memory against ``--plan``.

As many layers as this machine holds, up to 8 with masters on the device and 14 with masters in host
memory. Every phase waits for the device, so that it can be timed.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from benchmarks.gpu_check.bench import Bench, free_memory, host_memory
from benchmarks.gpu_check.material import (
    large_config,
    make_model,
    make_rows,
    make_stage,
    make_tokenizer,
)
from harness.learning import parametrisation
from harness.learning.distillation import distil
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer
from harness.models.memory import finish, peak_memory, reset_peak_memory
from harness.runs.cost import Memory
from methods.sdft import SDFTConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 16
CPU = torch.device("cpu")


def run(bench: Bench) -> None:
    """Two steps with masters on the device, two with masters in host memory."""
    for masters, layers in (("device", 8), ("host", 14)):
        _steps(bench, masters, layers)


def _steps(bench: Bench, masters: str, most: int) -> None:
    lengths = (40, 50, 16, 256) if bench.tiny else (600, 750, 256, 4096)
    prompt, teacher_prompt, answer, limit = lengths
    config = SDFTConfig(masters=masters, micro_batch_tokens=limit, warmup_steps=0)
    layers = _layers_that_fit(bench, config, most)
    if layers == 0:
        bench.note(f"masters {masters}", "not tried: not even two layers fit")
        return
    shape = large_config(bench.tiny, layers)
    model = make_model(shape, torch.bfloat16, bench.device)
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    name = f"masters {masters}, {shape.num_hidden_layers} layers"
    bench.note(f"{name}, weights", billions, "billions")
    rows = make_rows(shape.vocab_size, [prompt] * ROWS, answer)
    extra = [300] * (teacher_prompt - prompt)
    teacher_rows = [Row(extra + row.prompt, row.completion) for row in rows]
    stage = make_stage(model, make_tokenizer(shape.vocab_size))
    reset_peak_memory(bench.device)
    host_before = peak_memory(CPU)
    trainer = Trainer(stage, config)
    teacher = Teacher(stage, config.ema_alpha, trainer.limit, trainer.place)
    for step in ("first", "second"):
        seconds = _step(bench, trainer, teacher, rows, teacher_rows, config)
        for phase, value in seconds.items():
            bench.note(f"{name}, {step} step, {phase}", value, "s")
    each = (seconds["transfer"] + seconds["update"]) / billions
    bench.speed(
        f"{name}, transfer and update", each, "s a billion weights", "at most 1.5", each <= 1.5
    )
    planned = _planned(bench, config, layers)
    _beside_plan(bench, f"{name}, on the device", peak_memory(bench.device), planned[0])
    if masters == "host" and bench.device.type != "cpu":
        _beside_plan(bench, f"{name}, in host memory", peak_memory(CPU) - host_before, planned[1])
    trainer.close()


def _step(
    bench: Bench,
    trainer: Trainer,
    teacher: Teacher,
    rows: list[Row],
    teacher_rows: list[Row],
    config: SDFTConfig,
) -> dict[str, float]:
    """Seconds of one step by phase; ``passes`` are those of student and teacher, and the head."""
    seconds = {"all": 0.0, "passes": 0.0, "transfer": 0.0, "update": 0.0, "average": 0.0}

    def clocked(phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            finish(bench.device)
            start = time.perf_counter()
            result = work(*arguments)
            finish(bench.device)
            seconds[phase] += time.perf_counter() - start
            return result

        return run

    def learn() -> None:
        transfer = clocked("transfer", parametrisation.add_gradient)
        with patch.object(parametrisation, "add_gradient", transfer):
            distil(trainer, teacher, rows, teacher_rows, config)
        clocked("update", trainer.update)()
        clocked("average", teacher.follow)(trainer.masters)

    clocked("all", learn)()
    others = seconds["transfer"] + seconds["update"] + seconds["average"]
    seconds["passes"] = seconds["all"] - others
    return seconds


def _beside_plan(bench: Bench, name: str, peak: float, planned: float) -> None:
    off = 100 * (peak / planned - 1)
    figure = f"{name}, {peak:.3g} GiB beside --plan's {planned:.3g}"
    bench.speed(figure, off, "%", "within 10", abs(off) <= 10)


def _planned(bench: Bench, config: SDFTConfig, layers: int) -> tuple[float, float]:
    """GiB (on the device, in host memory) that --plan would print."""
    shape: PreTrainedModel = make_model(
        large_config(bench.tiny, layers), torch.bfloat16, torch.device("meta")
    )
    memory = Memory(shape, torch.bfloat16, bench.device)
    return memory.of(config, Work(copies=1, averaged=True, scored=1), length=1006, cached_tokens=0)


def _layers_that_fit(bench: Bench, config: SDFTConfig, most: int) -> int:
    """As many layers, up to ``most``, as fit with a tenth to spare; 0 if two do not."""
    if bench.tiny:
        return most
    on_device, in_host = free_memory(bench.device), host_memory()
    for layers in range(most, 1, -2):
        device, host = _planned(bench, config, layers)
        if 1.1 * device < on_device and 1.1 * host < in_host:
            return layers
    return 0
