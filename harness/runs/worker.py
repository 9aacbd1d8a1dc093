"""What a process of Ray's does for the driver: begin a folder, work on one run.

An error that a user can mend is an answer, never an exception: what a task raises is taken for the
death of its process, and tried again.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.console import Listener, Progress
from harness.base.errors import UserError, lack_of_memory, raised, refused_write
from harness.base.files import read_json, write_sealed
from harness.base.stopping import Stopped, heard
from harness.results.writer import ResultsWriter
from harness.watch.lease import LeaseTeller

if TYPE_CHECKING:  # imports PyTorch
    from harness.runs.order import Order

NO_MEMORY = "out of memory"  # how the reason of such a failure begins

# Variables of the driver's environment that workers have as well: what numbers, caches and access
# depend on.
PASSED = (
    "HARNESS_PRODUCTS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "TOKENIZERS_PARALLELISM",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "MALLOC_ARENA_MAX",
    "LRU_CACHE_CAPACITY",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
)


@dataclass(frozen=True)
class Start:
    """A command: how its order is read, and the results folder, an absolute path."""

    order: str
    out: Path
    folder: str
    changes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    sequences: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class WorkerAnswer:
    """What a worker tells the driver.

    error: place, problem and remedy of what concerns all runs; failed: why the run failed; holder:
    who works on it; again: why it is to be started once more; lines: to be said; seconds: {run: of
    the plan}.
    """

    error: tuple[str, str] | None = None
    failed: str = ""
    holder: str = ""
    again: str = ""
    lines: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


class _Lines(Listener):
    """Keeps the lines that stay, for the driver."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def said(self, text: str) -> None:
        self.kept.append(text)


def sees(probe: Path) -> str:
    """What this machine reads in a file; "" where there is none."""
    try:
        return probe.read_text(encoding="utf-8")
    except OSError:
        return ""


def prepare(start: Start) -> WorkerAnswer:
    """Begin the results folder, and estimate how long each run takes."""
    return _answering(start, lambda order: _prepare(order, start))


def work(start: Start, name: str) -> WorkerAnswer:
    """Work on the run ``name`` until it is over."""
    return _answering(start, lambda order: _work(order, start, name))


def _answering(start: Start, do: Callable[["Order"], WorkerAnswer]) -> WorkerAnswer:
    """``do`` with the order, in the driver's folder; errors become answers."""
    os.chdir(start.folder)
    try:
        with heard():
            from harness.runs.reading import read_order

            kept = start.methods, start.seeds, start.sequences
            return do(read_order(start.order, start.changes, *kept))
    except Stopped as stop:
        return WorkerAnswer(
            again=f"stopped by a signal; {stop.kept or 'what is committed is kept'}"
        )
    except UserError as error:
        return WorkerAnswer(error=(error.place, str(error).removeprefix(f"{error.place}: ")))
    except Exception as error:
        reason = lack_of_memory(error) or refused_write(error, start.out) or raised(error)
        return WorkerAnswer(error=(start.order, reason))


def _prepare(order: "Order", start: Start) -> WorkerAnswer:
    from harness.runs.sequence import prepare as begin

    results, progress, lines = ResultsWriter(start.out), Progress(), _Lines()
    progress.listeners.append(lines)
    begin(order, results, progress)
    return WorkerAnswer(lines=tuple(lines.kept), seconds=_seconds(order, results))


def _seconds(order: "Order", results: ResultsWriter) -> dict[str, float]:
    """{run: seconds, by the plan}; {} where a plug-in's costs cannot be told."""
    from harness.models.load import load_tokenizer
    from harness.runs.estimate import estimate_order
    from harness.runs.plan import model_shape

    place, model = f"{order.path}: model", order.model
    tokenizer, source = load_tokenizer(model.name, model.revision, place, model.template)
    try:
        cost = estimate_order(order, tokenizer, model_shape(order, source, place), results)
    except Exception:  # the order of the runs is no reason to stop them
        return {}
    found: dict[str, float] = {}
    for run in order.runs():
        stages = [
            stage.seconds
            for stage in cost.stages
            if (stage.label, stage.sequence, stage.reference)
            == (run.label, run.sequence, run.reference)
        ]
        found[run.name] = sum(stages) / (len(stages) if run.reference else 1)
    return found


def _work(order: "Order", start: Start, name: str) -> WorkerAnswer:
    from harness.runs.engines import engine_for, take_products
    from harness.runs.failures import RunFailed
    from harness.runs.sequence import open_stage, run_stages
    from harness.runs.shards import held
    from harness.watch.tracking import track

    results, runs = ResultsWriter(start.out), order.runs()
    results.rebuilds = False
    take_products(order, start.out)
    number, run = next(pair for pair in enumerate(runs, 1) if pair[1].name == name)
    lease = results.owners.claim_if_dead(name)
    if lease is None:
        holder = results.owners.holder(name)
        return WorkerAnswer(holder=holder.text if holder else "another process")
    progress, title = Progress(), f"run {number}/{len(runs)} {name}"
    progress.listeners.append(LeaseTeller(results))
    track(order.report_to, progress)
    progress.opened(start.out, read_json(start.out / "results.json"))
    with held(results, run, lease), engine_for(order) as engine, progress:
        try:
            if (first := open_stage(order, results, run, progress)) is not None:
                run_stages(
                    order, results, run, first, None, engine, progress, title, fails_alone=True
                )
        except RunFailed as failure:
            if str(failure).startswith(NO_MEMORY) and halve_passes(results.run(name)):
                return WorkerAnswer(again=f"{NO_MEMORY}; it goes on with half the tokens a pass")
            return WorkerAnswer(failed=str(failure))
    return WorkerAnswer()


def halve_passes(run: Path) -> bool:
    """Let a run whose passes were sized by a GPU's free memory go on with half of them, once."""
    path = run / "passes.json"
    if not path.exists():
        return False
    passes = read_json(path)
    if "halved" in passes:
        return False
    write_sealed(path, {**passes, "tokens": max(1, passes["tokens"] // 2), "halved": True})
    return True
