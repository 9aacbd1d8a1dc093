"""What every row of the benchmark shares: settings, alternating repeats, the machine."""

import gc
import importlib.metadata
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch.utils.benchmark import Timer

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.models.embedded import EMBEDDED, embedded_checkpoint
from harness.models.load import load_model, resolve_dtype
from harness.models.products import keep_products, measured_products

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def product_seconds(size: int, dtype: torch.dtype) -> float:
    """Median time of a matrix product [size, size] x [size, size]."""
    a = torch.randn(size, size).to(dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange().median


@dataclass
class Settings:
    """What is measured; the defaults are those of docs/explanation/speed.md.

    Sizes are counts, lengths are tokens.
    """

    work: Path  # a folder for checkpoints, results and scripts; the caller removes it
    model: str = EMBEDDED
    dtype: str = "auto"  # of our side; the peers take the faster of `dtypes`
    skill: str = "bfcl_tools"  # of single steps
    skills: tuple[str, ...] = ("bfcl_tools", "elements", "bulletins")
    prompts: int = 16
    prompt_tokens: int = 130  # the prompts nearest to this length are chosen
    tokens: int = 64
    groups: int = 4
    group_size: int = 4
    repeats: int = 5
    long_repeats: int = 1  # of evaluations and stages, which take minutes
    examples: int = 16  # of each skill in an evaluation
    documents: int | None = None  # of each retention task; None is all
    stage_prompts: int = 64
    order_prompts: int = 8
    order_examples: int = 8
    order_documents: int = 16
    batch: int = 4  # prompts of a step of the order
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def folder(self) -> str:
        """The model as a checkpoint that every side loads."""
        return str(embedded_checkpoint()) if self.model == EMBEDDED else self.model

    @cached_property
    def our_dtype(self) -> str:
        return str(resolve_dtype(self.dtype, "cpu")).removeprefix("torch.")

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """What the peers may compute in.

        bfloat16 is left out where its matrix products take more than twice as long as float32's (no
        instructions for it): a step in it would take minutes and never be the faster one.
        """
        slower = product_seconds(1024, torch.bfloat16) / product_seconds(1024, torch.float32)
        self.say(f"matrix products in bfloat16 take {slower:.2g} times as long as in float32")
        return ("float32", "bfloat16") if slower <= 2 else ("float32",)

    def load(self, dtype: str | None = None) -> tuple[Any, Any]:
        """(our model, its tokenizer), with the products that an order would measure and keep.

        dtype: that of our side if left out.
        """
        model, tokenizer = load_model(self.folder, dtype or self.our_dtype, "cpu")
        keep_products(model, measured_products(model, False).sampling)
        return model, tokenizer

    def say(self, text: str) -> None:
        self.progress.say(text)


@dataclass
class Result:
    """One line of the table.

    ours, theirs: medians in ``unit``; ratio: of the two, as ``wanted`` means it; met: whether it is
    as wanted, None where nothing is asked; n: repeats; notes: how it was measured; details: every
    single number.
    """

    work: str
    ours: float
    theirs: float
    ratio: float
    wanted: str
    met: bool | None
    n: int
    unit: str = "s"
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def faster(
    work: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    wanted: float,
    notes: Iterable[str] = (),
    **details: Any,
) -> Result:
    """A Result from seconds: ours is to be ``wanted`` times as fast as theirs, by the medians."""
    our_median, their_median = statistics.median(ours), statistics.median(theirs)
    ratio = their_median / our_median
    return Result(
        work,
        our_median,
        their_median,
        ratio,
        f"{wanted:g}x faster",
        ratio >= wanted,
        len(ours),
        notes=list(notes),
        details={"ours": list(ours), "theirs": list(theirs), **details},
    )


class _Closed(BaseException):
    """The loop is not wanted any more."""


class Loop:
    """A training loop in a thread of its own that waits after each step for the next call.

    body: ``f(pause)``, which calls ``pause(value)`` after each step. So two loops that know nothing
    of each other, one of ours and one of a library's, take turns with all their state alive. Only
    one of them computes at a time.
    """

    def __init__(self, body: Callable[[Callable[[Any], None]], None]) -> None:
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()

    def _run(self, body: Callable[[Callable[[Any], None]], None]) -> None:
        try:
            if self._go.get():
                body(self._pause)
            self._done.put(RuntimeError("the loop ended before the step that was asked for"))
        except _Closed:
            pass
        except BaseException as error:
            self._done.put(error)

    def _pause(self, value: Any) -> None:
        self._done.put(value)
        if not self._go.get():
            raise _Closed

    def step(self) -> Any:
        """One more step; returns what the loop gave to ``pause``. Raises what the loop raised."""
        self._go.put(True)
        value = self._done.get()
        if isinstance(value, BaseException):
            raise value
        return value

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *_: object) -> None:
        self._go.put(False)
        self._thread.join()
        gc.collect()


def alternate(
    ours: Callable[[], T], theirs: Callable[[], T], repeats: int, say: Callable[[str], object]
) -> tuple[list[T], list[T]]:
    """What ``ours()`` and ``theirs()`` return, called in turn; the first pair does not count."""
    mine: list[T] = []
    others: list[T] = []
    for number in range(repeats + 1):
        one, other = ours(), theirs()
        if number > 0:
            mine.append(one)
            others.append(other)
        name = f"{number}/{repeats}" if number > 0 else "warm-up"
        say(f"{name}: ours {_seconds(one):.3g} s, theirs {_seconds(other):.3g} s")
    return mine, others


def _seconds(value: Any) -> float:
    return value["seconds"] if isinstance(value, dict) else value


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(seconds, what ``work()`` returned)."""
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


Candidate = TypeVar("Candidate", bound=tuple)


def probe(
    candidates: Iterable[Candidate],
    seconds: Callable[[Candidate], float],
    say: Callable[[str], object],
) -> dict[Candidate, float]:
    """{candidate: ``seconds(candidate)``} of settings for a peer; the smallest suits it best."""
    tried = {candidate: seconds(candidate) for candidate in candidates}
    say("probe: " + stated(tried))
    return tried


def stated(tried: Mapping[Candidate, float]) -> str:
    """What ``probe`` returned, as text."""
    return ", ".join(f"{' '.join(map(str, c))}: {s:.3g} s" for c, s in tried.items())


def command(arguments: Sequence[Any], **changes: str) -> tuple[float, str]:
    """(seconds, standard output) of a user's command, run with our threads and allocator.

    changes: of the environment. Raises UserError with the last line that the command wrote where it
    fails.
    """
    env = (
        os.environ
        | {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DISABLE_MULTIPROC": "1",
            # as harness.models
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        }
        | changes
    )
    seconds, done = timed(
        lambda: subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True)
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise UserError(
            " ".join(map(str, arguments[1:4])), f"failed with code {done.returncode}: {lines[-1]}"
        )
    return seconds, done.stdout


def python(*arguments: Any, **changes: str) -> tuple[float, str]:
    """(seconds, standard output) of ``python ARGUMENTS`` run from the checkout."""
    return command([sys.executable, *map(str, arguments)], **changes)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from harness.runs.provenance import device_name, git_revision

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "memory_gib": round(total / 2**30, 1),
        "bf16_matrix_units": bool(torch.cpu._is_amx_tile_supported()),
        "preloaded": os.environ.get("LD_PRELOAD") or None,
        "load_at_start": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {
            p: importlib.metadata.version(p)
            for p in ("torch", "transformers", "trl", "accelerate", "lm_eval")
        },
        "git": git_revision(),
    }


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB.

    From /proc where there is one: getrusage's figure of a new process begins at the size of the one
    that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"VmHWM:\s+(\d+)", status.read_text())
        if peak:
            return int(peak[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
