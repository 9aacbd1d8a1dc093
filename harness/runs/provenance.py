"""Where and with what a run was made: run.json, processor, revision, packages."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from harness.base.files import ROOT, read_json, write_sealed
from harness.models import ranks
from harness.models.memory import allocator_settings, segments_grow
from harness.runs.about import about_method
from harness.runs.one_run import OneRun
from harness.sampling.settings import version
from harness.sampling.vllm_setup import is_invariant

PACKAGES = ("torch", "transformers", "accelerate", "trl", "peft", "lm_eval", "datasets")


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and its cores."""
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    try:
        name = next(
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def git_revision() -> str | None:
    """Commit of the checkout, with a mark if it is changed; None outside git."""
    command = ["git", "-C", str(ROOT), "describe"]
    command += ["--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def package_version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_provenance(live: OneRun, first: int) -> None:
    """Write run.json: how and where the stages from ``first`` on are made.

    What earlier starts of the run had otherwise stays on record under ``earlier``.
    """
    path = live.results.run(live.run.name) / "run.json"
    before = read_json(path, remedy="remove it: this start writes it") if path.exists() else {}
    now = _provenance(live, first)
    earlier = before.pop("earlier", [])
    if before:
        earlier.append({key: value for key, value in before.items() if value != now.get(key)})
    write_sealed(path, {**now, **({"earlier": earlier} if earlier else {})})


def _provenance(live: OneRun, first: int) -> dict[str, Any]:
    order, spec = live.order, live.spec
    learns_in = spec.cls(spec.config).precision(live.model.dtype)
    return {
        "run": live.run.name,
        "label": live.run.method,
        "seed": live.run.seed,
        **({"sequence": live.run.sequence} if live.run.sequence else {}),
        **about_method(spec),
        "batch_size": order.batch_size(spec.config),
        "model": asdict(order.model),
        "chat_template": asdict(order.chat_template),
        "device": device_name(live.model.device),
        **_allocator(live.model.device),
        **({"ranks": ranks.count()} if ranks.active() else {}),
        "dtype": str(live.model.dtype),
        **({"learns_in": learns_in} if learns_in else {}),
        "threads": torch.get_num_threads(),
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "engine": _engines(live),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "first_stage": first,
    }


def _allocator(device: torch.device) -> dict[str, Any]:
    """Of a GPU: the settings of PyTorch's allocator, and whether its segments do grow."""
    if device.type == "cpu":
        return {}
    return {"allocator": allocator_settings(), "segments_grow": segments_grow(device)}


def _engines(live: OneRun) -> dict[str, Any]:
    order = live.order
    engines: dict[str, Any] = {
        "rollout": order.rollout.engine,
        "evaluate": order.evaluate.engine,
    }
    if live.engine:
        engines["vllm"] = {**asdict(order.vllm), "version": version()}
        if is_invariant(live.model.device, order.model.deterministic):
            engines["vllm"]["batch_invariant"] = True
    return engines
