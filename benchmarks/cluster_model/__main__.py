"""Simulates 324 runs on 1 to 256 GPUs that fail now and then, and prints time beside its bound.

The rules by which runs are placed are the driver's own, harness/runs/placing.py. What runs take was
measured: the stages of results/measured/paper_embedded/figure_3, times ``--times``.
"""

import argparse
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.base.console import padded
from harness.base.errors import Parser, UserError, reported
from harness.base.files import ROOT, read_json, read_jsonl
from harness.runs.placing import gives_way, longest

MEASURED = ROOT / "results/measured/paper_embedded/figure_3"
METHODS, RATES, SEEDS, ORDERS = 12, 3, 3, 3
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MONTH = 30 * 24 * 3600.0
CHECKPOINT = 600.0  # seconds between two
# Seconds until a run of the measured model goes on elsewhere: 15 of Python, model and checks, and a
# lease. A larger model takes as many times longer as its runs do.
LOADING = 20.0
REPAIR = 600.0  # seconds until a GPU that failed, or another one, is back
TICK = 20.0  # seconds between two looks of the driver
MOST = 1.05  # times the bound


@dataclass
class Outcome:
    """Of one simulation, in seconds: until all is done; and of all GPUs: for what they were lost.

    moved, failed: how often a run gave way, and a GPU failed.
    """

    time: float = 0.0
    lost: dict[str, float] = field(default_factory=dict)
    moved: int = 0
    failed: int = 0


def measured(folder: Path, times: float) -> tuple[list[float], list[float]]:
    """(seconds of each of the 324 runs, of each piece of the base model's evaluation).

    Methods take turns in being a measured one; learning rates and orders take what their seed took.
    Each loads its model as well.
    """
    seconds: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("runs/*/stage-*/stage.json")):
        stage = read_json(path, "stage", "seconds", remedy="restore it")
        of_run = seconds.setdefault(path.parts[-3], {})
        of_run[stage["stage"]] = times * sum(stage["seconds"].values())
    if not seconds:
        raise UserError(
            folder, "holds no finished stage", "give a folder that run_sequence.py wrote"
        )
    base = _pieces(folder, times)
    whole = {run: sum(s for k, s in of_run.items() if k) for run, of_run in sorted(seconds.items())}
    labels = sorted({run.rpartition("-seed")[0] for run in whole})
    runs = []
    for method in range(METHODS):
        label = labels[method % len(labels)]
        seeds = [run for run in whole if run.rpartition("-seed")[0] == label]
        for seed in range(SEEDS):
            runs += [LOADING * times + whole[seeds[seed % len(seeds)]]] * (RATES * ORDERS)
    return runs, base


def _pieces(folder: Path, times: float) -> list[float]:
    """Seconds of each evaluation of the base model, which GPUs that begin together divide.

    The run that made them knows what all skills and all tasks took; of each kind all count alike.
    """
    stages = folder.glob("runs/*/stage-0/stage.json")
    path = max(stages, key=lambda path: sum(read_json(path)["seconds"].values()))
    seconds = read_json(path)["seconds"]
    rows = [row for _, row in read_jsonl(path.with_name("records.jsonl"))]
    pieces: list[float] = []
    for kind, clock in (("skill", "evaluation"), ("retention", "retention")):
        keys = {row["evaluation"] for row in rows if row["kind"] == kind}
        pieces += [times * seconds[clock] / len(keys)] * len(keys)
    return pieces


def bound(runs: Sequence[float], base: Sequence[float], gpus: int) -> float:
    """Seconds that no schedule is below: the longest run, or all work over all GPUs.

    The base model is measured before any run learns, by at most as many GPUs as it has pieces.
    """
    return max(_divided(base, gpus) + max(runs), (sum(base) + sum(runs)) / gpus)


def _divided(pieces: Sequence[float], gpus: int) -> float:
    """Seconds until all pieces are done, the longest first."""
    ends = [0.0] * gpus
    for piece in sorted(pieces, reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + piece)
    return max(ends)


def simulate(
    runs: Sequence[float], base: Sequence[float], gpus: int, seed: int, loading: float
) -> Outcome:
    """The base model is measured first, then the driver places runs until all are done.

    loading: seconds until a run that moved goes on.
    """
    return _Cluster(runs, base, gpus, seed, loading).work()


class _Cluster:
    """GPUs at one moment: ``left`` has the seconds of each run, ``running`` {run: (GPU, since)}."""

    def __init__(
        self,
        runs: Sequence[float],
        pieces: Sequence[float],
        gpus: int,
        seed: int,
        loading: float,
    ) -> None:
        base = _divided(pieces, gpus)
        self.left = {f"{number}": seconds for number, seconds in enumerate(runs)}
        self.waiting = dict(self.left)
        self.running: dict[str, tuple[int, float]] = {}
        self.begun: set[str] = set()
        self.gpus, self.base, self.loading = gpus, base, loading
        self.draw = random.Random(seed)
        self.now = base
        self.work_done = sum(pieces)
        lost = {"base": base * gpus - sum(pieces), "loading again": 0.0, "failures": 0.0}
        self.found = Outcome(lost=lost)
        self.free = list(range(gpus))
        self.back: list[tuple[float, int]] = []  # (when, GPU) of those under repair
        self.fails = [(base + self._life(), gpu) for gpu in range(gpus)]
        heapq.heapify(self.fails)
        self.look = base + TICK

    def work(self) -> Outcome:
        while self.left:
            self._place()
            self._next()
        self.found.time = self.now
        at_work = sum(self.found.lost.values()) + self.work_done
        self.found.lost["idle at the end"] = max(0.0, self.now * self.gpus - at_work)
        return self.found

    def _life(self) -> float:
        return self.draw.expovariate(1 / MONTH)

    def _place(self) -> None:
        while self.free and self.waiting:
            name = longest(self.waiting)
            del self.waiting[name]
            again = self.loading if name in self.begun else 0.0
            self.running[name] = self.free.pop(), self.now + again
            self.begun.add(name)
            self.found.lost["loading again"] += again

    def _remaining(self, name: str) -> float:
        return self.left[name] - max(0.0, self.now - self.running[name][1])

    def _next(self) -> None:
        """Go to the next moment at which something happens."""
        ends = {name: since + self.left[name] for name, (_, since) in self.running.items()}
        name = min(ends, key=lambda n: ends[n], default="")
        events = [(ends[name], "end")] if name else []
        events += [(self.fails[0][0], "fail"), (self.look, "look")]
        events += [(self.back[0][0], "back")] if self.back else []
        self.now, what = min(events)
        if what == "end":
            gpu, _ = self.running.pop(name)
            self.work_done += self.left.pop(name)
            self.free.append(gpu)
        elif what == "fail":
            self._fail(heapq.heappop(self.fails)[1])
        elif what == "back":
            self.free.append(heapq.heappop(self.back)[1])
        else:
            self._look()

    def _fail(self, gpu: int) -> None:
        heapq.heappush(self.back, (self.now + REPAIR, gpu))
        heapq.heappush(self.fails, (self.now + REPAIR + self._life(), gpu))
        self.found.failed += 1
        self.found.lost["failures"] += REPAIR
        if gpu in self.free:
            self.free.remove(gpu)
            return
        if gpu in [other for _, other in self.back[:-1]]:
            return
        for name, (other, since) in list(self.running.items()):
            if other == gpu:
                worked = max(0.0, self.now - since)
                kept = worked - worked % CHECKPOINT
                self.found.lost["failures"] += worked - kept
                self._return(name, kept)

    def _look(self) -> None:
        self.look = self.now + TICK
        if self.free:
            return
        running = {name: self._remaining(name) for name in self.running}
        while name := gives_way(self.waiting, running, self.gpus):
            del running[name]
            gpu, since = self.running[name]
            self._return(name, max(0.0, self.now - since))  # with a checkpoint of this moment
            self.free.append(gpu)
            self.found.moved += 1
            self._place()

    def _return(self, name: str, worked: float) -> None:
        del self.running[name]
        self.left[name] -= worked
        self.work_done += worked
        self.waiting[name] = self.left[name]


def table(
    runs: Sequence[float], base: Sequence[float], seed: int, loading: float
) -> tuple[list[list[str]], float]:
    """(a row for each number of GPUs, the largest time over its bound)."""
    rows = [["GPUs", "hours", "bound", "time/bound", "efficiency", "moved", "failed", "lost to"]]
    worst = 0.0
    for gpus in GPUS:
        found, least = simulate(runs, base, gpus, seed, loading), bound(runs, base, gpus)
        worst = max(worst, found.time / least)
        whole = found.time * gpus
        lost = {what: seconds / whole for what, seconds in found.lost.items()}
        shown = [f"{what} {share:.1%}" for what, share in lost.items() if share >= 0.001]
        efficiency = (sum(base) + sum(runs)) / whole
        rows.append(
            [
                f"{gpus}",
                f"{found.time / 3600:.1f}",
                f"{least / 3600:.1f}",
                f"{found.time / least:.3f}",
                f"{efficiency:.1%}",
                f"{found.moved}",
                f"{found.failed}",
                ", ".join(shown),
            ]
        )
    return rows, worst


def arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.cluster_model", description=__doc__)
    parser.add_argument("--folder", type=Path, default=MEASURED, help="measured runs")
    parser.add_argument(
        "--times",
        type=float,
        default=6.0,
        metavar="X",
        help="what runs take, in times of the measured (6: a run of about 3 hours, as of a 7B)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the failures (0)")
    return parser.parse_args()


def main() -> None:
    """Prints the table; exits with 1 where a time is above 1.05 times its bound."""
    args = arguments()
    with reported("the terminal"):
        runs, base = measured(args.folder, args.times)
        print(
            f"{len(runs)} runs of {min(runs) / 3600:.1f} to {max(runs) / 3600:.1f} hours, "
            f"base evaluation {sum(base) / 60:.0f} minutes in {len(base)} pieces; "
            f"a failure a GPU-month, {CHECKPOINT / 60:.0f} minutes between checkpoints"
        )
        rows, worst = table(runs, base, args.seed, LOADING * args.times)
        print("\n".join(padded(rows, left={7})))
    raise SystemExit(int(worst > MOST))


if __name__ == "__main__":
    main()
