"""Starts of run_sequence.py that can be killed anywhere, and a comparison of what they leave.

Every start is a process of its own, forked from a server that has the imports behind it. The child
may be told to end itself (SIGKILL: nothing is caught, nothing cleaned up) before, within or after
the n-th call of a function.
"""

import hashlib
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def _function(spot):
    """(owner, name) of the function that a spot stands for."""
    from harness.learning.trainer import Trainer
    from harness.results.writer import ResultsWriter
    from harness.runs import stage_run
    from harness.sampling.transformers import TransformersSampler

    return {
        "update": (Trainer, "update"),
        "sample": (TransformersSampler, "sample"),
        "evaluation": (ResultsWriter, "save_evaluation"),
        "commit": (ResultsWriter, "commit"),
        "rebuild": (ResultsWriter, "rebuild"),
        "weights": (stage_run, "save_checkpoint"),
        "replace": (os, "replace"),
        "rmtree": (shutil, "rmtree"),
        "unlink": (os, "unlink"),
        "checkpoint": (torch, "save"),
        "text": (Path, "write_text"),
    }[spot]


def _arm(spot, when, count, number):
    """Send signal ``number`` to this process before, within or after the ``count``-th call of
    ``spot``.
    """
    owner, name = _function(spot)
    real, calls = getattr(owner, name), 0

    def strike():
        os.kill(os.getpid(), number)
        if number == signal.SIGKILL:
            time.sleep(60)

    def half(*args, **kwargs):
        if spot == "checkpoint":
            args[1].write(b"PK half of a checkpoint")
            args[1].flush()
        elif spot == "text":
            real(args[0], args[1][: len(args[1]) // 2], **kwargs)
        else:
            raise ValueError(spot)

    def armed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls != count:
            return real(*args, **kwargs)
        if when == "within":
            half(*args, **kwargs)
        if when != "after":
            strike()
        out = real(*args, **kwargs)
        if when == "after":
            strike()
        return out

    setattr(owner, name, armed)


def _child(arguments, log, arm, file_limit):
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # a shell's background job starts with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arm:
        _arm(*arm)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["run_sequence.py", *arguments]
    runpy.run_path(str(ROOT / "run_sequence.py"), run_name="__main__")


class Runner:
    """Starts of run_sequence.py on one order and one results folder."""

    def __init__(self, context, order, out, *arguments):
        self.context, self.out, self.log = context, out, out.with_name(out.name + ".log")
        self.arguments = [str(order), "--out", str(out), *arguments]

    def start(self, spot=None, when="before", count=1, number=signal.SIGKILL, file_limit=None):
        self.log.unlink(missing_ok=True)
        arm = (spot, when, count, number) if spot else None
        process = self.context.Process(
            target=_child, args=(self.arguments, str(self.log), arm, file_limit)
        )
        process.start()
        return process

    def run(self, *args, **kwargs):
        """Exit code; -9 for killed."""
        process = self.start(*args, **kwargs)
        process.join(150)
        return process.exitcode

    def text(self):
        return self.log.read_text() if self.log.exists() else ""


CIRCUMSTANCES = ("seconds", "peak_memory_gib", "started", "git", "first_stage", "earlier")


def contents(folder):
    """{file: what it holds, but for when and where}, of all files but the report's."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith("report/"):
            continue
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            out[name] = [{k: v for k, v in row.items() if k not in CIRCUMSTANCES} for row in rows]
        elif path.suffix == ".json" and "weights" not in path.parts:
            out[name] = {
                k: v for k, v in json.loads(path.read_text()).items() if k not in CIRCUMSTANCES
            }
        else:
            out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return out


def assert_same(found, wanted):
    assert set(found) == set(wanted), set(found) ^ set(wanted)  # nothing missing, nothing left over
    assert [name for name in wanted if found[name] != wanted[name]] == []
