"""Many runs at once, by Ray: one task a run, each in a process of its own, on one or many machines.

    run_sequence.py ORDER --workers auto | N | HOST:PORT

The driver places runs, the longest first, and writes what all of them share; a worker writes its
run's folder and evaluations. A worker that dies is started again, anywhere, and goes on from its
last checkpoint. Nothing is in Ray but the queue: whoever dies, the same command goes on.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import ROOT, read_json, write_text
from harness.base.leases import Leases
from harness.results.status import LEASES, status_of
from harness.results.writer import ResultsWriter
from harness.runs import worker
from harness.runs.order import Order
from harness.runs.placing import gives_way, longest
from harness.runs.references import Run
from harness.runs.shards import needs
from harness.runs.worker import Start, WorkerAnswer

INSTALL = "pip install -r requirements-cluster.txt"
DEATHS = 5  # of a run's processes in a row without anything kept in between, until it has failed
BUSY, LONGEST_BUSY = 5.0, 120.0  # seconds until a run that is held is tried again, and for how long
SILENCE = 1800.0  # seconds without progress after which a process is ended and started again
STORE = 100 * 2**20  # bytes of shared memory on this machine: tasks hand over words alone
LOOK = 1.0  # seconds for which the driver waits for a worker at a time
TOLD = 20.0  # seconds between two lines of the driver
LEAVE = 30.0  # seconds that workers have for a checkpoint when the driver stops


class Workers(NamedTuple):
    """``--workers``: the address of a running cluster, or how many processes here (0: auto)."""

    address: str
    processes: int

    @classmethod
    def read(cls, text: str) -> "Workers":
        """Raises UserError for what is none of auto, N and HOST:PORT."""
        host, colon, port = text.rpartition(":")
        if text == "auto" or (text.isdecimal() and int(text) > 0):
            return cls("", 0 if text == "auto" else int(text))
        if colon and host and port.isdecimal():
            return cls(text, 0)
        raise UserError(f"--workers {text}", "is none of auto, N and HOST:PORT")


@dataclass
class _Task:
    """A run that a worker has; kept: when it had kept something last, before that."""

    run: Run
    kept: float


class Driver:
    """Places the runs of an order on workers until each is over or has failed."""

    def __init__(
        self,
        ray: Any,
        order: Order,
        start: Start,
        share: float | None,
        progress: Progress,
        on_failure: Callable[[str, str], None],
    ) -> None:
        """share: of a GPU, that each run takes; None where runs take a core."""
        self.ray, self.order, self.start = ray, order, start
        self.progress, self.on_failure = progress, on_failure
        self.results = ResultsWriter(start.out)
        self.kind, self.share = ("GPU", share) if share else ("CPU", 1.0)
        needs = {"num_gpus": share, "num_cpus": 0} if share else {"num_cpus": 1}
        self.remote = ray.remote(max_retries=0, max_calls=1, **needs)
        self.running: dict[Any, _Task] = {}
        self.left: list[Run] = []
        self.seconds: dict[str, float] = {}  # that each run still takes
        self.deaths: dict[str, int] = {}
        self.held: dict[str, tuple[float, float]] = {}  # {run: (first refused, try again)}
        self.told = time.monotonic()
        self.owners = Leases(start.out / LEASES / "runs")

    def prepare(self) -> None:
        """Let a worker begin the folder, and learn there how long each run takes."""
        self.progress.say("a worker begins the folder")
        answer = self._prepared()
        if answer.error:
            raise UserError(*answer.error)
        for line in answer.lines:
            self.progress.say(line)
        about = read_json(self.start.out / "results.json")
        self.progress.opened(self.start.out, about)
        self.seconds = answer.seconds
        self.left = self.order.runs()
        self._look()

    def _prepared(self) -> WorkerAnswer:
        """What a worker says that has begun the folder; another one does where it dies."""
        for attempt in range(1, DEATHS + 1):
            try:
                answer: WorkerAnswer = self.ray.get(self.remote(worker.prepare).remote(self.start))
            except Exception as error:  # the worker's process or its machine is gone
                self.progress.say(f"the process that begins the folder died ({_name(error)})")
                if attempt == DEATHS:
                    raise
            else:
                return answer
        raise AssertionError("the last attempt returns or raises")

    def work(self) -> None:
        """Until no run is left. A mistake that concerns all runs raises UserError."""
        while self.left or self.running:
            while len(self.running) < self._capacity() and (ready := self._ready()):
                name = longest(ready)
                run = next(run for run in self.left if run.name == name)
                self.left.remove(run)
                self._submit(run)
            if self.running:
                done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=LOOK)
                for task in done:
                    self._take(task)
            else:
                time.sleep(LOOK)
            self._tell()

    def stop(self) -> None:
        """Let the workers keep a checkpoint, and end."""
        for task in self.running:
            with suppress(Exception):
                self.ray.cancel(task)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=LEAVE)

    def _capacity(self) -> int:
        """Runs that the cluster has room for; those that wait keep their order here, not there."""
        return max(1, int(self.ray.cluster_resources().get(self.kind, 0) / self.share))

    def _ready(self) -> dict[str, float]:
        """{run that can start now: seconds that it still takes}."""
        now, open_runs = time.monotonic(), {run.name for run in self.left}
        open_runs |= {task.run.name for task in self.running.values()}
        return {
            run.name: self.seconds.get(run.name, 0.0)
            for run in self.left
            if not needs(self.order, run) & open_runs
            and self.held.get(run.name, (0.0, 0.0))[1] <= now
        }

    def _submit(self, run: Run) -> None:
        task = self.remote(worker.work).options(name=run.name).remote(self.start, run.name)
        self.running[task] = _Task(run, self._kept(run))

    def _take(self, task: Any) -> None:
        """What became of a task."""
        placed = self.running.pop(task)
        name = placed.run.name
        try:
            answer: WorkerAnswer = self.ray.get(task)
        except self.ray.exceptions.TaskCancelledError:
            self.left.append(placed.run)
            return
        except Exception as error:  # the worker's process or its machine is gone
            self._died(placed, _name(error))
            return
        if answer.error:
            raise UserError(*answer.error)
        if answer.again:
            self.progress.say(f"{name}: {answer.again}")
            self.left.append(placed.run)
        elif answer.holder:
            self._was_held(placed.run, answer.holder)
        elif answer.failed:
            self._fail(name, answer.failed)
        else:
            self.results.refresh()
            self.progress.say(f"{name} is done; {self._look()}")

    def _died(self, placed: _Task, how: str) -> None:
        name = placed.run.name
        got_on = self._kept(placed.run) > placed.kept
        self.deaths[name] = 1 if got_on else self.deaths.get(name, 0) + 1
        if self.deaths[name] >= DEATHS:
            self._fail(name, f"its process died {DEATHS} times in a row ({how})")
            return
        self.progress.say(f"{name}: its process died ({how}); another goes on")
        self.left.append(placed.run)

    def _was_held(self, run: Run, holder: str) -> None:
        """A worker of an earlier driver may still be ending; another command may be at work."""
        now = time.monotonic()
        first, _ = self.held.get(run.name, (now, now))
        if now - first > LONGEST_BUSY:
            self.progress.say(f"{run.name}: {holder} works on it")
            return
        self.held[run.name] = first, now + BUSY
        self.left.append(run)

    def _fail(self, name: str, reason: str) -> None:
        self.progress.say(f"{name} failed: {reason}")
        self.on_failure(name, reason)

    def _kept(self, run: Run) -> float:
        """When the run last kept something: a stage or a checkpoint."""
        folder = self.results.run(run.name)
        kept = [*folder.glob("stage-*/stage.json"), *folder.glob("stage-*/checkpoint/state.pt")]
        return max((path.stat().st_mtime for path in kept if path.exists()), default=0.0)

    def _look(self) -> str:
        """Learn how long each run still takes; returns the state of all in one line."""
        status = status_of(self.start.out, self.owners)
        for run in status.runs:
            if run.left is not None:
                self.seconds[run.name] = run.left
        return status.summary()

    def _tell(self) -> None:
        """Now and then: a line, and an end for what gives no sign or has to make room."""
        if time.monotonic() - self.told < TOLD:
            return
        self.told = time.monotonic()
        self.progress.show(self._look())
        for task, placed in self.running.items():
            holder = self.owners.holder(placed.run.name)
            if holder and holder.quiet > SILENCE:
                self.progress.say(f"{placed.run.name}: no progress on {holder.text}, it is ended")
                self.ray.cancel(task, force=True)
        if len(self.running) < self._capacity():
            return
        tasks = {placed.run.name: task for task, placed in self.running.items()}
        running = {name: self.seconds.get(name, 0.0) for name in tasks}
        waiting = self._ready()
        while name := gives_way(waiting, running, len(tasks)):
            self.progress.say(f"{name} makes room for {longest(waiting)}, and goes on later")
            self.ray.cancel(tasks[name])
            del running[name], waiting[longest(waiting)]


def run_on_workers(
    order: Order,
    start: Start,
    workers: Workers,
    share: float,
    progress: Progress,
    on_failure: Callable[[str, str], None],
) -> None:
    """``run_order`` by Ray's workers. Raises UserError without Ray, or without a shared folder.

    share: of a GPU, that each run takes.
    """
    from harness.runs.sequence import finish

    with _cluster(workers, len(order.runs()), progress) as ray:
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        driver = Driver(ray, order, start, share if has_gpus else None, progress, on_failure)
        _check_shared(ray, start)
        try:
            driver.prepare()
            if address := getattr(ray, "dashboard_url", ""):
                driver.results.plan({}, f"http://{address}")
            driver.work()
        except KeyboardInterrupt:
            driver.stop()
            raise
        finish(driver.results, progress)


@contextmanager
def _cluster(workers: Workers, most: int, progress: Progress) -> Iterator[Any]:
    """Ray, with its workers in the environment of this process; most: that have something to do."""
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--workers", "Ray is not installed", INSTALL) from None
    count = min(workers.processes or _processes(), most)
    # Sums are split by threads: as many as a process alone would have beside the others.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    environment = {name: os.environ[name] for name in worker.PASSED if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    about: dict[str, Any] = {"address": workers.address}
    if not workers.address:
        about = {"num_cpus": count, "num_gpus": min(count, _gpus()), "object_store_memory": STORE}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        context = ray.init(
            **about,
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level="error",
        )
    except Exception as error:
        problem = f"no cluster of Ray answers ({error})"
        raise UserError(f"--workers {workers.address}", problem) from None
    ray.dashboard_url = context.dashboard_url
    try:
        yield ray
    finally:
        ray.shutdown()


def _name(error: BaseException) -> str:
    return type(error).__name__


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _processes() -> int:
    """Workers of ``auto``: one a GPU, without one two cores each."""
    return _gpus() or max(1, (os.cpu_count() or 1) // 2)


def _check_shared(ray: Any, start: Start) -> None:
    """Raises UserError unless every machine of the cluster sees the results folder."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = start.out / LEASES / f".probe-{os.getpid()}"
    write_text(probe, start.token)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(worker.sees)
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                seen = ray.get(look.options(scheduling_strategy=here).remote(probe))
            except Exception:  # the machine has gone meanwhile
                continue
            if seen != start.token:
                raise UserError(
                    start.out,
                    f"is not shared with {node['NodeManagerHostname']}",
                    "give a folder with --out that all machines of the cluster mount",
                )
    finally:
        probe.unlink(missing_ok=True)
