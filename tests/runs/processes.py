"""Starts of run_sequence.py that can be killed anywhere, and a comparison of what they leave.

Every start is a process of its own, forked from a server that has the imports behind it. The child
may be told to end itself (SIGKILL: nothing is caught, nothing cleaned up) before, within or after
the n-th call of a function.
"""

import io
import os
import resource
import shutil
import signal
import time

import torch

from benchmarks.torture.starts import Starts, contents, differences, run_here
from harness.runs import checkpoints

__all__ = ["Runner", "assert_same", "contents"]


def _function(spot):
    """(owner, name) of the function that a spot stands for."""
    from harness.base import files
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
        "text": (files, "write_file"),
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
            whole = io.BytesIO()
            args[1](whole)
            args = (
                args[0],
                lambda file: (
                    file.write(whole.getvalue()[: whole.tell() // 2]),
                    file.flush(),
                    strike(),
                ),
            )
            real(*args)
        else:
            raise ValueError(spot)

    def armed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls != count:
            return real(*args, **kwargs)
        if when == "full":  # the kernel's own "no space left"
            os.dup2(os.open("/dev/full", os.O_WRONLY), args[1].fileno())
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


def _child(arguments, log, arm, file_limit, threaded):
    # a shell's background job starts with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arm:
        _arm(*arm)
    if threaded:  # checkpoints are written as on a GPU, and as often as they can be
        checkpoints.in_background = lambda device: True
        checkpoints.TIMES_COST = 0
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    run_here(arguments, log)


class Runner(Starts):
    """Starts of run_sequence.py on one order and one results folder."""

    def start(
        self,
        spot=None,
        when="before",
        count=1,
        number=signal.SIGKILL,
        file_limit=None,
        threaded=False,
    ):
        arm = (spot, when, count, number) if spot else None
        return self.process(_child, arm, file_limit, threaded)

    def run(self, *args, **kwargs):
        """Exit code; -9 for killed."""
        process = self.start(*args, **kwargs)
        process.join(150)
        return process.exitcode


def assert_same(found, wanted):
    assert differences(found, wanted) == []
