"""The machine: card, driver, versions, and the rates that all other speeds are held against."""

import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.gpu_check.bench import Bench, seconds_of
from harness.models.load import resolve_dtype
from harness.runs.provenance import package_version
from harness.sampling.settings import version

PACKAGES = ("accelerate", "trl", "lm_eval", "datasets", "gguf", "molmass", "bfcl_eval", "pandas")


def run(bench: Bench) -> None:
    """Versions, then products and copies."""
    device = bench.device
    bench.note("device", bench.result.about["device"])
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        bench.note("memory", properties.total_memory / 2**30, "GiB")
        bench.note("compute capability", f"{properties.major}.{properties.minor}")
        bench.note("driver", _driver())
        bench.note("CUDA of PyTorch", torch.version.cuda)
    hidden = bench.device.type != "cuda" and Path("/dev/nvidia0").exists()
    bench.equal("a GPU that PyTorch does not see", hidden, False)
    bench.note("threads", torch.get_num_threads())
    python, pytorch = sys.version_info[:2], _release(torch.__version__)
    bench.judge("Python", platform.python_version(), "", "at least 3.11", python >= (3, 11))
    bench.judge("PyTorch", torch.__version__, "", "at least 2.11", pytorch >= (2, 11))
    bench.note("transformers", package_version("transformers"))
    for package in PACKAGES:
        bench.note(package, package_version(package))
    bench.note("vllm", version())
    bench.note("dtype: auto", str(resolve_dtype("auto", device)).removeprefix("torch."))
    _products(bench)
    _copies(bench)


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("+")[0].split(".")[:2])


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        return done.stdout.split("\n")[0].strip()
    with suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().split("\n")[0]
    return "unknown"


def _products(bench: Bench) -> None:
    """A product in both dtypes, and float32's against float64: TF32 would be off by 1e-3."""
    size = 256 if bench.tiny else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=bench.device, dtype=dtype)
        rate = 2 * size**3 / seconds_of(lambda: a @ a, bench.device, 5)
        name = str(dtype).removeprefix("torch.")
        bench.note(f"product of {size} x {size}, {name}", rate / 1e12, "TFLOP/s")
    a = torch.randn(256, 256, device=bench.device)
    exact = a.cpu().double() @ a.cpu().double()
    error = ((a @ a).cpu().double() - exact).abs().max() / exact.abs().max()
    bench.at_most("float32 product against float64", error.item(), 1e-5)


def _copies(bench: Bench) -> None:
    """Copies on the device, and to host memory and back, pinned and pageable."""
    count = 2**22 if bench.tiny else 2**32
    block = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    rate = 2 * count / seconds_of(block.clone, bench.device, 3)
    bench.note("copy on the device, read and written", rate / 1e12, "TB/s")
    if bench.device.type == "cpu":
        return
    block = block[: count // 4]
    kinds = {"pageable": torch.zeros(count // 4, dtype=torch.uint8)}
    if bench.device.type == "cuda":
        kinds["pinned"] = kinds["pageable"].pin_memory()
    for kind, host in kinds.items():
        to_host = seconds_of(lambda: host.copy_(block), bench.device, 3)
        to_device = seconds_of(lambda: block.copy_(host), bench.device, 3)
        bench.note(f"to {kind} host memory", count / 4 / to_host / 1e9, "GB/s")
        bench.note(f"from {kind} host memory", count / 4 / to_device / 1e9, "GB/s")
