"""Which run a process works on next, where several share a results folder.

``run_sequence.py ORDER --shard I/N`` is for the jobs of an array: each begins with every N-th run,
goes past what another works on, and then takes up what the others have left: runs that are open and
free, those of jobs that have died among them.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from harness.base.errors import UserError
from harness.base.files import look_again
from harness.base.leases import LOOK, Lease
from harness.results.formats import FAILED, RELEARN
from harness.results.writer import ResultsWriter
from harness.runs.order import Order
from harness.runs.references import Run


class Shard(NamedTuple):
    """The ``number``-th of so many ``jobs``, from 1."""

    number: int
    jobs: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """What ``I/N`` means. Raises UserError for anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match and 1 <= int(match[1]) <= int(match[2]):
            return cls(int(match[1]), int(match[2]))
        raise UserError(f"--shard {text}", "is no I/N with I from 1 to N", "as --shard 1/8")


def claimed(order: Order, results: ResultsWriter, shard: Shard | None) -> Iterator[Run]:
    """The runs that this process works on, each held until the next one is asked for.

    Without a shard all runs in their order. Raises UserError for one that another process holds.
    """
    if shard is None:
        for run in order.runs():
            with held(results, run, results.owners.claim_if_dead(run.name)):
                yield run
    else:
        yield from _of_shard(order, results, shard)


@contextmanager
def held(results: ResultsWriter, run: Run, lease: Lease | None) -> Iterator[None]:
    """Work on a run with its lease. Raises UserError without one: another process has it."""
    folder = results.run(run.name)
    if lease is None:
        raise UserError(
            folder,
            "another process works on this run",
            "wait for it, or choose another --method, --seed or --sequence; --shard 1/1 goes past",
        )
    results.lease = lease
    try:
        look_again(folder)  # for stages that another machine committed a moment ago
        yield
    finally:
        results.lease = None
        lease.release(done=first_open_stage(results, run) is None)


def _of_shard(order: Order, results: ResultsWriter, shard: Shard) -> Iterator[Run]:
    """The runs of a shard, then those that nobody works on, until others hold all that are left."""
    runs = order.runs()
    own = runs[shard.number - 1 :: shard.jobs]
    for run in own:
        _forget_failure(results, run)
    # Behind its own each shard begins at another place.
    left = list(dict.fromkeys(own + runs[shard.number :] + runs[: shard.number]))
    while left:
        for run in left:
            if run not in own and is_settled(results, run):
                left.remove(run)
                break
            if is_ready(order, results, run) and (lease := results.owners.claim(run.name)):
                left.remove(run)
                with held(results, run, lease):
                    yield run
                break
        else:  # Who holds a run goes on with those that wait for it, unless it is dead.
            ready = [run.name for run in left if is_ready(order, results, run)]
            if all(map(results.owners.is_held_for_sure, ready)):
                return
            time.sleep(LOOK)


def _forget_failure(results: ResultsWriter, run: Run) -> None:
    """A run that failed in an earlier start is not over: runs that need it wait for it."""
    failed = results.run(run.name) / FAILED
    if failed.exists() and (lease := results.owners.claim(run.name)):
        failed.unlink(missing_ok=True)
        lease.release()


def is_settled(results: ResultsWriter, run: Run) -> bool:
    """Whether a run is over, or has failed: the next start tries it again."""
    return first_open_stage(results, run) is None or (results.run(run.name) / FAILED).exists()


def is_ready(order: Order, results: ResultsWriter, run: Run) -> bool:
    """Whether the runs of the order that a run reads are settled."""
    needed = needs(order, run)
    return all(is_settled(results, other) for other in order.runs() if other.name in needed)


def needs(order: Order, run: Run) -> set[str]:
    """Names of the runs that a run reads: the one whose end it learns from, and those of parts."""
    if run.reference == RELEARN:
        return {run.whole}
    followed = [part.make().follows() for part in order.methods[run.label].parts]
    return {replace(run, label=label).name for label in followed if label}


def first_open_stage(results: ResultsWriter, run: Run) -> int | None:
    """The first stage of a run that is not committed, None if all are."""
    for stage in range(len(run.stages) + 1):
        if not results.committed(run.name, stage):
            return stage
    return None
