"""A benchmark harness for continual learning.

    from harness import Order, run

    run(Order("my_order.yaml", changes={"budget.prompts": 80}), out="results/mine")

What must be known before PyTorch loads is said here: the package is imported before it. ``Order``
and ``run`` import it once they are asked for.
"""

import importlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

LAZY = {"Order": "harness.runs.order", "run": "harness.runs.script"}

# Turns of a thread of GNU's OpenMP that waits for the others, before it sleeps: some microseconds.
# They bridge the time between two products. More of them take the core from another program, for
# which each of the thousands of products a second then waits.
SPIN = "3000"

# Made products that PyTorch and oneDNN keep, for each kind of them; 1,024 by default. Nearly every
# step has other lengths, so most are never met again, and in what they hold tensors find no room.
KEPT_PRODUCTS = "32"
CACHES = "LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def waiting(looks: Iterable[str]) -> dict[str, str]:
    """The variables of OpenMP that say how threads wait, given ``looks`` at /proc/loadavg.

    Where another program has a processor in all of them, threads sleep at once.
    """
    try:
        running = [int(look.split()[3].partition("/")[0]) for look in looks]
    except (IndexError, OSError, ValueError):
        running = []
    if running and min(running) > 1:
        return {"OMP_WAIT_POLICY": "passive"}
    return {"GOMP_SPINCOUNT": SPIN}


def _looks() -> Iterator[str]:
    for _ in range(3):
        with open("/proc/loadavg", encoding="ascii") as file:
            yield file.read()
        time.sleep(0.005)


if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ |= waiting(_looks())
for cache in CACHES:
    os.environ.setdefault(cache, KEPT_PRODUCTS)

# Wherever PEFT is imported it imports bitsandbytes, which warns of a kernel that is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
