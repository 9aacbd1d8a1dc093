"""Workers, nodes and drivers of a Ray cluster are killed at random; the same command goes on.

The cluster is Ray's own for tests: two raylets of one core on this machine.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.torture.kills import Kills
from benchmarks.torture.material import order_of, write_order
from benchmarks.torture.starts import contents, differences
from harness.base.errors import UserError
from harness.base.files import ROOT

KINDS = ("worker", "node", "driver")
LONGEST = 3000.0  # seconds of one folder with its kills
PROMPTS = 240  # of a stage: runs long enough to be killed several times
BETWEEN = 6.0  # seconds at most from the moment that a worker is at a run to the next kill
STORE = 100 * 2**20  # bytes of shared memory of a raylet
NODE = {"num_cpus": 1, "object_store_memory": STORE}


def kill_cluster(
    folder: Path, kills: int, seed: int = 0, seeds: int = 4, say: Callable[[str], object] = print
) -> Kills:
    """``kills`` SIGKILLs, as many of each kind, each while a worker is at a run of --workers.

    An order has two methods x ``seeds`` runs. As many folders come to their end as the kills take.
    The files of each are compared with those of one process that nothing disturbed.
    """
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        remedy = "pip install -r requirements-cluster.txt"
        raise UserError("--cluster", "Ray is not installed", remedy) from None
    changes = {
        "seeds": list(range(seeds)),
        "checkpoints": {"minutes": 0, "keep": "last"},
        "budget": {"prompts": PROMPTS, "batch_size": 4},
        "evaluate": {"every_steps": 20},
    }
    order = write_order(folder, "cluster", order_of(folder, ["sft", "sdft"], **changes))
    alone = _start(order, folder / "cluster-alone")
    alone.wait()
    wanted, found, attempt = contents(folder / "cluster-alone"), Kills(dict.fromkeys(KINDS, 0)), 0
    draw, left = random.Random(seed), [KINDS[i % len(KINDS)] for i in range(kills)]
    draw.shuffle(left)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]

    def kill(kind: str, driver: Any, workers: list[int]) -> None:
        if kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "node":
            cluster.remove_node(nodes.pop(draw.randrange(2)), allow_graceful=False)
            nodes.append(cluster.add_node(**NODE))
        else:
            os.kill(draw.choice(workers), signal.SIGKILL)
        found.kills[kind] += 1
        say(f"{kind} killed, {sum(found.kills.values())} of {kills}")

    try:
        while left and not found.faults:
            out = folder / f"cluster-{attempt}"
            words = ("--workers", cluster.address)
            driver, end = _start(order, out, *words), time.monotonic() + LONGEST
            while driver.poll() is None:
                if time.monotonic() > end:
                    found.faults.append(f"{out.name}: not done after {LONGEST:.0f} s")
                    driver.kill()
                    driver.wait()
                elif left and _workers(out):
                    time.sleep(draw.uniform(0, BETWEEN))
                    if (workers := _workers(out)) and driver.poll() is None:
                        kind = left.pop()
                        kill(kind, driver, workers)
                        driver = _start(order, out, *words) if kind == "driver" else driver
                time.sleep(0.2)
            if driver.returncode:
                found.faults.append(f"{out.name}: the driver ended with {driver.returncode}")
            if changed := differences(contents(out), wanted):
                found.faults.append(f"{out.name}: {', '.join(changed[:5])}")
            found.ended += 2 * seeds
            attempt += 1
    finally:
        cluster.shutdown()
    return found


def _start(order: Path, out: Path, *more: str) -> Any:
    words = [sys.executable, "run_sequence.py", str(order), "--out", str(out), *more]
    with open(out.with_name(out.name + ".log"), "a") as log:
        return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)


def _workers(out: Path) -> list[int]:
    """The living processes that hold a lease on a run."""
    found = []
    for lease in (out / "leases" / "runs").glob("*.[0-9]*"):
        try:
            pid = json.loads(lease.read_text())["pid"]
            os.kill(pid, 0)
        except (OSError, ValueError, KeyError):  # it has ended, or ends meanwhile
            continue
        found.append(pid)
    return found
