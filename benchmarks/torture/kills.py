"""SIGKILL at random moments: what is killed goes on, and ends in the undisturbed run's files."""

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.torture.material import METHODS, order_of, write_order
from benchmarks.torture.starts import Starts, contents, differences, fork_server

LONGEST = 300.0  # seconds of one start


@dataclass
class Kills:
    """What a campaign found: kills by method, runs that came to their end, what was wrong there."""

    kills: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        by_method = ", ".join(f"{method} {count}" for method, count in self.kills.items())
        return [
            f"kills: {sum(self.kills.values())} ({by_method}); {self.ended} runs came to their "
            f"end, {len(self.faults)} of them not as undisturbed",
            *self.faults,
        ]


def kill_at_random(
    folder: Path,
    kills: int,
    seed: int = 0,
    methods: Sequence[str] = tuple(METHODS),
    say: Callable[[str], object] = print,
) -> Kills:
    """About ``kills`` SIGKILLs, shared by ``methods``, on the material in ``folder``.

    A run is started and killed, at a moment between its first import and the time that the
    undisturbed run takes, until it comes to its end; then all of its files are compared: records,
    evaluations, diagnostics, weights, memories, but for seconds and dates.
    """
    generator = random.Random(seed)
    context = fork_server()
    found = Kills()
    for number, method in enumerate(methods):
        share = kills // len(methods) + (number < kills % len(methods))
        order = write_order(folder, method, order_of(folder, [method]))
        alone = Starts(context, order, folder / f"{method}-alone")
        start = time.monotonic()
        process = alone.process()
        process.join(LONGEST)
        seconds = time.monotonic() - start
        if process.exitcode != 0:
            found.faults.append(f"{method}, undisturbed: {_end(alone, process.exitcode)}")
            continue
        wanted = contents(alone.out)
        found.kills[method] = 0
        attempt = 0
        while found.kills[method] < share:
            runs = Starts(context, order, folder / f"{method}-{attempt}")
            start = time.monotonic()
            killed = _kill_until_the_end(
                runs, share - found.kills[method], seconds, generator, found
            )
            if not killed:  # The machine may have been slower before.
                seconds = min(seconds, time.monotonic() - start)
            found.kills[method] += killed
            if changed := differences(contents(runs.out), wanted):
                found.faults.append(f"{runs.out.name}: {', '.join(changed[:5])}")
            attempt += 1
        say(f"{method}: {found.kills[method]} kills, {attempt} runs, {len(found.faults)} faults")
    return found


def _kill_until_the_end(
    runs: Starts, most: int, seconds: float, generator: random.Random, found: Kills
) -> int:
    """Kill starts of one run until one comes to its end; the number of kills, at most ``most``."""
    kills = 0
    while True:
        process = runs.process()
        process.join(generator.uniform(0, seconds) if kills < most else LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        if process.exitcode != -signal.SIGKILL:
            found.ended += 1
            if process.exitcode != 0:
                found.faults.append(f"{runs.out.name}: {_end(runs, process.exitcode)}")
            return kills


def kill_jobs(
    folder: Path,
    kills: int,
    seed: int = 0,
    jobs: int = 2,
    seeds: int = 4,
    say: Callable[[str], object] = print,
) -> Kills:
    """``kills`` SIGKILLs of jobs that share the runs of an order by --shard, each started again.

    seeds: of two methods, so that there are twice as many runs.

    At the end all files of the folder are those of one process that nothing disturbed.
    """
    generator, context = random.Random(seed), fork_server()
    changes = {"seeds": list(range(seeds)), "checkpoints": {"minutes": 0, "keep": "last"}}
    order = write_order(folder, "jobs", order_of(folder, ["sft", "sdft"], **changes))
    alone = Starts(context, order, folder / "jobs-alone")
    start = time.monotonic()
    process = alone.process()
    process.join(LONGEST)
    seconds = time.monotonic() - start
    found = Kills({"jobs": 0})
    if process.exitcode != 0:
        found.faults.append(f"undisturbed: {_end(alone, process.exitcode)}")
        return found
    wanted, attempt = contents(alone.out), 0
    while found.kills["jobs"] < kills:
        starts = [
            Starts(context, order, folder / f"jobs-{attempt}", "--shard", f"{i}/{jobs}")
            for i in range(1, jobs + 1)
        ]
        for number, each in enumerate(starts):
            each.log = folder / f"jobs-{attempt}-{number}.log"
        running = [each.process() for each in starts]
        while any(process.exitcode is None for process in running):
            number = generator.randrange(jobs)
            running[number].join(generator.uniform(0, seconds / 4))
            if running[number].exitcode is None and found.kills["jobs"] < kills:
                running[number].kill()
                running[number].join()
                found.kills["jobs"] += 1
                running[number] = starts[number].process()
        for each, process in zip(starts, running, strict=True):
            if process.exitcode != 0:
                found.faults.append(f"{each.log.name}: {_end(each, process.exitcode)}")
        found.ended += 2 * seeds
        if changed := differences(contents(starts[0].out), wanted):
            found.faults.append(f"jobs-{attempt}: {', '.join(changed[:5])}")
        attempt += 1
    say(f"{jobs} jobs: {found.kills['jobs']} kills, {attempt} folders, {len(found.faults)} faults")
    return found


def _end(runs: Starts, code: int | None) -> str:
    lines = runs.text().strip().splitlines() or [""]
    return f"exit {code}, {lines[-1][:200]}"
