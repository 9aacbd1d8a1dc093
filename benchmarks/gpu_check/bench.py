"""What a part gets: the device, its size, and a place for what it finds."""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.result import FAIL, Check, PartResult
from harness.base.files import write_json
from harness.models import memory
from harness.models.load import prepare_device, resolve_device
from harness.models.memory import finish
from harness.runs.provenance import device_name, package_version

CPU = torch.device("cpu")


class Skip(Exception):
    """A part, or the rest of it, cannot run here; the text says why."""


class Bench:
    """One part at work.

    device: where it runs; tiny: small sizes, whose speeds are not judged (everywhere but on CUDA);
    model: folder of a real checkpoint, None for random weights; out: folder of the results. What is
    found is written at once, so that a part that is killed keeps it.
    """

    def __init__(self, part: str, device: str, model: str | None, out: Path) -> None:
        self.device = torch.device(resolve_device(device))
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.device.index or 0)
        prepare_device(self.device)  # before PyTorch starts CUDA, and reads its settings
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.tiny = self.device.type != "cuda"
        self.model = model
        self.out = out
        about = {
            "device": device_name(self.device),
            "torch": torch.__version__,
            "transformers": package_version("transformers"),
            "model": model or "random weights",
        }
        self.result = PartResult(part, FAIL, "ended before its end", about=about)
        self.start = time.perf_counter()

    def note(self, name: str, value: Any, unit: str = "") -> None:
        """Note a figure that has no mark."""
        self._add(Check(name, value, unit))

    def judge(self, name: str, value: Any, unit: str, mark: str, ok: bool) -> None:
        """Note a figure with its mark, and whether it reaches it."""
        self._add(Check(name, value, unit, mark, bool(ok)))

    def at_most(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """The figure must not be above ``limit``; NaN is."""
        self.judge(name, value, unit, f"at most {limit:g}", value <= limit)

    def equal(self, name: str, value: Any, wanted: Any) -> None:
        """The figure must be ``wanted``."""
        self.judge(name, value, "", str(wanted), value == wanted)

    def speed(self, name: str, value: float, unit: str, mark: str, ok: bool) -> None:
        """Note a figure of speed or memory, which says nothing at tiny size: judged on CUDA."""
        self._add(Check(name, value, unit, mark, None if self.tiny else bool(ok)))

    def _add(self, check: Check) -> None:
        self.result.checks.append(check)
        self.write(FAIL, "ended before its end")

    def write(self, verdict: str, reason: str = "") -> None:
        """Write the result as it is now."""
        self.result.verdict = verdict
        self.result.reason = reason
        self.result.seconds = round(time.perf_counter() - self.start, 2)
        write_json(self.out / f"{self.result.part}.json", asdict(self.result))


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """The shortest time of ``work()`` in ``repeats`` tries."""
    times = []
    for _ in range(repeats):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        times.append(time.perf_counter() - start)
    return min(times)


def free_memory(device: torch.device) -> float:
    """GiB that the device, or the machine if it is the CPU, can still give."""
    if device.type != "cuda":
        return host_memory()
    gc.collect()  # trainer, stage and teacher refer to each other
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] / 2**30


def host_memory() -> float:
    """GiB of host memory that are available, within the limit of a container."""
    return memory.free_memory(CPU) / 2**30
