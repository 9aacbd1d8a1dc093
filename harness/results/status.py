"""What the runs of a results folder do at the moment, from its files alone: no run is asked.

``leases/plan.json`` names the runs that were asked for, the leases who works on them; the rest is
on record.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.console import clock, padded
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.leases import Holder, Leases
from harness.results.formats import FAILED, Shape, check_shape, read_object

LEASES, PLAN = "leases", "plan.json"  # folder of who works on what; in it, the runs asked for
WAITING, RUNNING, DONE, FAILS = "waiting", "running", "done", "failed"
QUIET = 600.0  # seconds without progress that are told
SPENT: Shape = {"seconds?": {"*?": float}}
PLANNED: Shape = {"runs": {"*?": int}}  # of a run its stages
REMOVE = "remove it: the next start writes it again"


@dataclass(frozen=True)
class RunStatus:
    """What a run does.

    state: waiting, running, done or failed; stage, stages: done, and in all, without the base
    model; text: what a running one does, or why it failed; told: what its process tells; left:
    seconds, None where nobody knows.
    """

    name: str
    state: str
    stage: int
    stages: int
    text: str
    holder: Holder | None
    left: float | None

    def cells(self) -> tuple[str, ...]:
        """Run, state, stages, step, rate, time left, where, peak memory, what it does."""
        told = self.holder.told if self.holder else {}
        is_known = "step" in told
        each = float(told.get("each") or 0.0)
        rate = f"{each:.1f} s/step" if each >= 1 else f"{1 / each:.1f} steps/s" if each else ""
        where = " ".join(filter(None, [self.holder.text if self.holder else "", told.get("gpu")]))
        return (
            self.name,
            self.state,
            f"{self.stage}/{self.stages}",
            f"{told['step']}/{told['steps']}" if is_known else "",
            rate,
            "" if self.left is None or self.state in (DONE, FAILS) else clock(self.left),
            where,
            f"{told['peak_gib']:.1f} GiB" if "peak_gib" in told else "",
            self.text,
        )


HEADS = ("run", "state", "stages", "step", "rate", "left", "where", "peak", "")


@dataclass(frozen=True)
class FolderStatus:
    """Of all runs of a folder; dashboard: the address of Ray's, where it runs."""

    folder: Path
    runs: list[RunStatus]
    dashboard: str = ""

    def count(self, state: str) -> int:
        """Runs in a state."""
        return sum(run.state == state for run in self.runs)

    @property
    def is_over(self) -> bool:
        """Whether no run waits or goes on."""
        return not self.count(WAITING) and not self.count(RUNNING)

    @property
    def left(self) -> float | None:
        """Seconds until all are done with as many at work as now; None where nobody knows."""
        open_runs = [run for run in self.runs if run.state in (WAITING, RUNNING)]
        each = [run.left for run in open_runs if run.left is not None]
        if len(each) < len(open_runs):
            return None
        return max([sum(each) / max(1, self.count(RUNNING)), *each], default=0.0)

    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{self.count(s)} {s}" for s in (DONE, RUNNING, WAITING, FAILS))
        if self.is_over:
            return f"{len(self.runs)} runs: {counts}"
        left = "time left unknown until a run like each is done"
        if self.left is not None:
            at_work = max(1, self.count(RUNNING))
            left = f"about {clock(self.left)} left with {at_work} at work"
        return f"{len(self.runs)} runs: {counts}; {left}"

    def lines(self) -> Iterator[str]:
        """A table for a terminal."""
        rows = [HEADS, *(run.cells() for run in self.runs)]
        shown = [i for i in range(len(HEADS)) if any(row[i] for row in rows[1:])]
        yield from padded([[row[i] for i in shown] for row in rows], left=range(len(HEADS)))


def status_of(folder: Path, leases: Leases | None = None) -> FolderStatus:
    """What the runs of ``folder`` do. Raises UserError where none was asked for yet.

    leases: those of the folder's runs, kept from one call to the next: they notice a machine that
    gives no sign any more.
    """
    path = folder / LEASES / PLAN
    if not path.exists():
        raise UserError(folder, "has no run that was asked for", "start one with run_sequence.py")
    plan = read_json(path, "runs", remedy=REMOVE)
    check_shape(path, plan, PLANNED, "", REMOVE)
    leases = leases or Leases(folder / LEASES / "runs")
    known = {name: _seconds(folder / "runs" / name) for name in plan["runs"]}
    runs = [_run(folder, name, stages, leases, known) for name, stages in plan["runs"].items()]
    return FolderStatus(folder, runs, str(plan.get("dashboard") or ""))


def read_failure(run: Path) -> str:
    """Why a run failed, in one line; "" for a run that did not fail when it was started last."""
    path = run / FAILED
    if not path.is_file():
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline(1000).strip() or "for an unknown reason"


def _run(
    folder: Path, name: str, stages: int, leases: Leases, known: dict[str, dict[int, float]]
) -> RunStatus:
    done = len(known[name])
    holder = None if done > stages else leases.holder(name)
    reason = read_failure(folder / "runs" / name)
    if done > stages:
        state, text = DONE, ""
    elif holder:
        state, text = RUNNING, str(holder.told.get("doing") or "begins")
        if holder.quiet > QUIET:
            text += f" (no progress for {clock(holder.quiet)})"
    elif reason:
        state, text = FAILS, reason
    else:
        state, text = WAITING, f"goes on after stage {done - 1}" if done else ""
    left = _left(name, stages, done, holder, known)
    return RunStatus(name, state, max(0, done - 1), stages, text, holder, left)


def _left(
    name: str, stages: int, done: int, holder: Holder | None, known: dict[str, dict[int, float]]
) -> float | None:
    """Seconds of the stages that a run still has, as runs of its method took, else as all did."""
    told: Any = holder.told if holder else {}
    seconds = 0.0
    for stage in range(done, stages + 1):
        if stage == done and "step" in told:
            seconds += float(told["each"] or 0.0) * (told["steps"] - told["step"])
            continue
        like = [of[stage] for other, of in known.items() if stage in of and _alike(other, name)]
        like = like or [of[k] for of in known.values() for k in of if bool(k) == bool(stage)]
        if stage and not like:
            return None
        if stage:  # The base model is measured once.
            seconds += statistics.mean(like)
    return seconds


def _alike(one: str, other: str) -> bool:
    """Whether two runs differ in their seed alone."""
    return one.rpartition("-seed")[0] == other.rpartition("-seed")[0]


def _seconds(run: Path) -> dict[int, float]:
    """{committed stage: the seconds it took}."""
    found: dict[int, float] = {}
    while (path := run / f"stage-{len(found)}" / "stage.json").exists():
        seconds = read_object(path, SPENT).get("seconds") or {}
        found[len(found)] = sum(float(value or 0.0) for value in seconds.values())
    return found
