"""Starts of run_sequence.py in processes of their own, and a comparison of what they leave.

Every start is forked from a server that has the imports behind it.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from harness.base.files import ROOT
from harness.base.sums import SUMS
from harness.watch.log import LOG

PRELOADED = [
    "harness.runs.sequence",
    "harness.runs.reading",
    "harness.report.build",
    "methods.sft",
    "methods.sdft",
    "methods.grpo",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.tokenization_utils_tokenizers",
]
# What two runs of one order differ in: when and where they ran, and the hashes of files with that.
CIRCUMSTANCES = (
    "seconds",
    "peak_memory_gib",
    "kept_bytes",  # of files that hold seconds
    "started",
    "git",
    "first_stage",
    "earlier",
    "file_sha256",
)
Contents = dict[str, Any]


def fork_server() -> ForkServerContext:
    """The context whose children start with all imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # for the server, which starts with the first child
    first = context.Process(target=os.getpid)
    first.start()
    first.join()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    return context


def run_here(arguments: list[str], log: str) -> None:
    """run_sequence.py in this process, with its output in ``log``."""
    gc.freeze()  # to look through what the server imported, as every stage does, would copy it
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = ["run_sequence.py", *arguments]
    runpy.run_path(str(ROOT / "run_sequence.py"), run_name="__main__")


class Starts:
    """Starts of run_sequence.py on one order and one results folder; ``log`` is of the last one."""

    def __init__(self, context: ForkServerContext, order: Path, out: Path, *arguments: str) -> None:
        self.context = context
        self.out = out
        self.log = out.with_name(out.name + ".log")
        self.arguments = [str(order), "--out", str(out), *arguments]

    def process(self, target: Callable[..., None] = run_here, *more: object) -> BaseProcess:
        """A start, under way."""
        self.log.unlink(missing_ok=True)
        process = self.context.Process(target=target, args=(self.arguments, str(self.log), *more))
        process.start()
        return process

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def contents(folder: Path) -> Contents:
    """{file: what it holds, but for when and where}, of all files but report and log."""
    out: Contents = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith(("report/", "leases/")) or path.name in (SUMS, LOG):
            continue
        if path.suffix == ".jsonl":
            out[name] = lasting_rows(path)
        elif path.suffix == ".json" and "weights" not in path.parts:
            out[name] = _lasting(json.loads(path.read_text()))
        elif path.suffix == ".pt":  # one text in two places is written once, or twice
            out[name] = _state(torch.load(path, map_location="cpu", weights_only=True))
        else:
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return out


def _state(value: Any) -> Any:
    """A state without its tensors: their bytes by a hash."""
    if isinstance(value, torch.Tensor):
        data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return {key: _state(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_state(item) for item in value]
    return value


def lasting_rows(path: Path) -> list[Contents]:
    """The rows of a JSONL file, but for when and where."""
    return [_lasting(json.loads(line)) for line in path.read_text().splitlines()]


def _lasting(row: Contents) -> Contents:
    return {key: value for key, value in row.items() if key not in CIRCUMSTANCES}


def differences(found: Contents, wanted: Contents) -> list[str]:
    """Files that only one has, or that hold something else."""
    names = sorted(found.keys() | wanted.keys())
    return [
        name
        for name in names
        if name not in found or name not in wanted or found[name] != wanted[name]
    ]
