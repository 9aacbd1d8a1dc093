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
LONGEST = 1500.0  # seconds of one order with its kills
STORE = 100 * 2**20  # bytes of shared memory of a raylet


def kill_cluster(
    folder: Path, kills: int, seed: int = 0, seeds: int = 4, say: Callable[[str], object] = print
) -> Kills:
    """``kills`` SIGKILLs by turns, while the runs of two methods x ``seeds`` go on by --workers.

    Files are compared with those of one process that nothing disturbed.
    """
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        remedy = "pip install -r requirements-cluster.txt"
        raise UserError("--cluster", "Ray is not installed", remedy) from None
    changes = {"seeds": list(range(seeds)), "checkpoints": {"minutes": 0, "keep": "last"}}
    order = write_order(folder, "cluster", order_of(folder, ["sft", "sdft"], **changes))
    found = Kills(dict.fromkeys(KINDS, 0))
    alone = _start(order, folder / "cluster-alone")
    alone.wait()
    wanted = contents(folder / "cluster-alone")
    node = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    nodes = [cluster.add_node(**node) for _ in range(2)]
    draw, out = random.Random(seed), folder / "cluster-killed"
    words = ("--workers", cluster.address)
    driver, end = _start(order, out, *words), time.monotonic() + LONGEST
    try:
        while driver.poll() is None or driver.returncode < 0:
            time.sleep(draw.uniform(2, 10))
            if time.monotonic() > end:
                found.faults.append(f"not done after {LONGEST:.0f} s")
                driver.kill()
                break
            if sum(found.kills.values()) < kills and driver.poll() is None:
                kind = draw.choice(KINDS)
                if kind == "node":
                    cluster.remove_node(nodes.pop(draw.randrange(2)), allow_graceful=False)
                    nodes.append(cluster.add_node(**node))
                elif kind == "driver":
                    driver.kill()
                    driver.wait()
                elif not _kill_worker(out, draw):
                    continue
                found.kills[kind] += 1
                say(f"{kind} killed, {sum(found.kills.values())} of {kills}")
            if driver.poll() is not None and driver.returncode < 0:
                driver = _start(order, out, *words)
    finally:
        cluster.shutdown()
    if driver.returncode != 0:
        found.faults.append(f"the driver ended with {driver.returncode}")
    found.ended = 2 * seeds
    if changed := differences(contents(out), wanted):
        found.faults.append(f"{out.name}: {', '.join(changed[:5])}")
    return found


def _start(order: Path, out: Path, *more: str) -> Any:
    words = [sys.executable, "run_sequence.py", str(order), "--out", str(out), *more]
    with open(out.with_name(out.name + ".log"), "a") as log:
        return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)


def _kill_worker(out: Path, draw: random.Random) -> bool:
    """Kill the process that holds a lease on a run; False where none does."""
    leases = list((out / "leases" / "runs").glob("*.[0-9]*"))
    if not leases:
        return False
    try:
        pid = json.loads(draw.choice(leases).read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError, KeyError):  # it has ended meanwhile
        return False
    return True
