"""Claims and appends by many processes on one results folder, over a file system as NFS is one.

What NFS does is simulated by patches of Python's calls (``OverNFS``). Of processes that are killed
on the way, what they held is taken over. No process loads PyTorch.
"""

import builtins
import errno
import fcntl
import multiprocessing
import os
import random
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base import leases
from harness.base.files import read_json, read_jsonl, write_jsonl, write_sealed
from harness.results.writer import ResultsWriter

REMEMBERED = 0.3  # seconds for which a simulated client believes what it saw of a folder
LOST = 0.2  # share of the answers to a link that the simulated network loses
STAGES = 5  # of each run


@dataclass
class Claims:
    """What a campaign found: claims, of them after a kill; processes that were killed; faults."""

    claims: int = 0
    again: int = 0
    killed: int = 0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"claims: {self.claims} keys and as many appends, {self.killed} processes killed, "
            f"{self.again} claims taken over, {len(self.faults)} faults",
            *self.faults,
        ]


class OverNFS:
    """Patches this process, so that file calls behave as those of a client of NFS.

    A lock is one of bytes: an exclusive one needs a writable handle. A link may be made and yet be
    answered with an error. What a folder holds, and that a file is not there, is remembered until
    this client changes the folder itself, or for a while.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.listed: dict[str, tuple[float, list[str]]] = {}
        self.absent: dict[str, float] = {}
        self.real = {name: getattr(os, name) for name in ("listdir", "stat", "link")}
        self.real_open, self.real_flock = builtins.open, fcntl.flock
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "link"):
            setattr(os, name, self._changing(getattr(self, name, getattr(os, name))))
        os.listdir, os.stat = self.listdir, self.stat  # type: ignore[assignment]
        builtins.open, fcntl.flock = self.open, self.flock  # type: ignore[assignment]

    def flock(self, handle: Any, operation: int) -> None:
        mode = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.real_flock(handle, operation)

    def link(self, source: Any, target: Any) -> None:
        self.real["link"](source, target)
        if self.draw.random() < LOST:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))

    def listdir(self, path: Any = ".") -> list[str]:
        name, now = os.fspath(path), time.monotonic()
        since, names = self.listed.get(name, (-REMEMBERED, []))
        if now - since >= REMEMBERED:
            names = self.real["listdir"](path)
            self.listed[name] = now, names
        return list(names)

    def stat(self, path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        name, now = str(path), time.monotonic()
        if now - self.absent.get(name, -REMEMBERED) < REMEMBERED:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        try:
            return self.real["stat"](path, *args, **kwargs)
        except FileNotFoundError:
            self.absent[name] = now
            raise

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = self.real_open(file, mode, *args, **kwargs)
        if "x" in mode or "w" in mode:
            self._forget(file)
        return opened

    def _changing(self, real: Any) -> Any:
        def change(*paths: Any, **kwargs: Any) -> Any:
            try:
                return real(*paths, **kwargs)
            finally:
                for path in paths[:2]:
                    self._forget(path)

        return change

    def _forget(self, path: Any) -> None:
        if isinstance(path, str | os.PathLike):
            folder = os.path.dirname(os.fspath(path))
            self.listed.pop(folder, None)
            known = dict(self.absent)  # one step: the thread of the heartbeats is here as well
            self.absent = {n: t for n, t in known.items() if os.path.dirname(n) != folder}


def work(folder: Path, keys: list[str], runs: list[str], seed: int) -> None:
    """One process: measures and commits whatever of ``keys`` and ``runs`` is open and free."""
    made, draw = folder.with_name("made"), random.Random(seed)
    OverNFS(seed)
    results = ResultsWriter(folder)
    keys, runs = draw.sample(keys, len(keys)), draw.sample(runs, len(runs))
    with closing(results.unmeasured(keys)) as unmeasured:
        for key in unmeasured:
            (made / f"{key}.{os.getpid()}").touch(exist_ok=False)
            protocol = key.partition("-")[2]
            results.protocol(protocol, {"of": key})
            values: dict[str, Any] = dict.fromkeys(("kind", "name", "split"), "skill")
            items = [{"id": i, "completion": key} for i in range(20)]
            values |= {"protocol": protocol, "n": 20, "metrics": {}, "items": items}
            results.save_evaluation(key, values)
    left = list(runs)
    while left:
        for run in list(left):
            if not results.committed(run, STAGES - 1):
                lease = results.owners.claim(run)
                if lease is None:
                    continue
                results.lease = lease
                _commit_stages(results, run)
                lease.release(done=True)
            left.remove(run)
        time.sleep(0.01)
    results.rebuild()


def _commit_stages(results: ResultsWriter, run: str) -> None:
    results.run(run).mkdir(parents=True, exist_ok=True)
    for stage in range(STAGES):
        if results.committed(run, stage):
            continue
        partial = results.run(run) / f"stage-{stage}.partial"
        partial.mkdir(exist_ok=True)
        write_jsonl(partial / "records.jsonl", [{"run": run, "stage": stage, "seed": 0}])
        write_sealed(partial / "stage.json", {"stage": stage})
        results.commit(partial, run, stage)


def claim_by_many(folder: Path, claims: int, processes: int = 32, seed: int = 0) -> Claims:
    """``claims`` evaluations and as many commits by ``processes``, an eighth of which is killed."""
    folder.mkdir(parents=True)
    (folder.parent / "made").mkdir()
    write_sealed(folder / "results.json", {"version": 2, "methods": {}, "seeds": []})
    draw, found = random.Random(seed), Claims(claims)
    keys = [f"{draw.getrandbits(64):016x}-{number:012x}" for number in range(claims)]
    runs = [f"method{number}-seed0" for number in range(claims // STAGES)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.torture.claims"])

    def start(number: int) -> Any:
        process = context.Process(target=work, args=(folder, keys, runs, seed + number))
        process.start()
        return process

    started = [start(number) for number in range(processes)]
    killed = set()
    for process in draw.sample(started, processes // 8):
        process.join(draw.uniform(0, 0.002 * claims))
        if process.exitcode is None:
            process.kill()
            killed.add(process.pid)
            started.append(start(len(started)))
    for process in started:
        process.join(leases.STALE + 600)
        if process.exitcode != 0 and process.pid not in killed:
            found.faults.append(f"process {process.pid} ended with {process.exitcode}")
    found.killed = len(killed)
    _check(folder, keys, runs, killed, found)
    return found


def _check(
    folder: Path, keys: list[str], runs: list[str], killed: set[int | None], found: Claims
) -> None:
    """Nothing lost, nothing torn, nothing twice but what a killed process had begun."""
    made: dict[str, list[int]] = {key: [] for key in keys}
    for name in os.listdir(folder.with_name("made")):
        key, _, pid = name.partition(".")
        made[key].append(int(pid))
    results = ResultsWriter(folder)
    protocols = read_json(folder / "protocols.json")
    for key, by in made.items():
        found.again += len(by) - 1
        if sum(pid not in killed for pid in by) > 1 or not by:
            found.faults.append(f"{key} was measured by {by or 'nobody'}")
        evaluation = results.evaluation(key)
        if evaluation is None or {item["completion"] for item in evaluation["items"]} != {key}:
            found.faults.append(f"{key} is lost or torn")
        if protocols.get(key.partition("-")[2]) != {"of": key}:
            found.faults.append(f"the protocol of {key} is lost")
    rows = [(row["run"], row["stage"]) for _, row in read_jsonl(folder / "records.jsonl")]
    wanted = [(run, stage) for run in sorted(runs) for stage in range(STAGES)]
    if rows != wanted:
        found.faults.append(f"records.jsonl has {len(rows)} rows, not {len(wanted)}")
    if any(name.endswith(".partial") for name in os.listdir(folder / "evaluations")):
        found.faults.append("evaluations/ holds partial files")
