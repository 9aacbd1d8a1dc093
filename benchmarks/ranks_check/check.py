"""Starts of run_sequence.py in one process and on ranks, and what their training logs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.material import LETTERS
from benchmarks.torture.material import make_material, order_of, write_order
from harness.base.files import ROOT, write_jsonl

TOLERANCE, ROUNDED = 1e-5, 2e-2  # in float32 and in bfloat16
LONGEST = 300.0  # seconds of a start
CASES: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "sft_replay": {"method": "sft", "with": {"replay": {}}},
    "sft_lora": {"method": "sft", "parameters": {"lora": {"rank": 2}}},
    "sdft": {"method": "sdft", "ema_alpha": 0.2},
    "sdft_lora": {"method": "sdft", "ema_alpha": 0.2, "parameters": {"lora": {"rank": 2}}},
    "sdft_trust": {"method": "sdft", "teacher": "trust_region", "estimator": "top_k"},
    "grpo": {"method": "grpo", "group_size": 4},
    "dft": {"method": "dft"},
    "psft": {"method": "psft", "inner_batches": 2},
    "self_sft": {"method": "self_sft", "answers": 2},
    "offline_distillation": {"method": "offline_distillation", "generations": 9},
    "sft_from_teacher": {"method": "sft_from_teacher", "generations": 9},
    "sft_host_moments": {"method": "sft", "masters": "host_moments"},
    "sdft_host_moments": {"method": "sdft", "ema_alpha": 0.2, "masters": "host_moments"},
    "sft_talr": {"method": "sft", "with": {"talr": {}}},
    "sft_eaft": {"method": "sft", "with": {"eaft": {}}},
    "sft_flow": {"method": "sft", "with": {"flow": {}}},
    "lora_flow": {  # the start that the adapter keeps, in parts
        "method": "sft",
        "parameters": {"lora": {"rank": 2}},
        "with": {"flow": {}},
    },
    "psft_flow": {"method": "psft", "inner_batches": 2, "with": {"flow": {}}},
    "grpo_kl": {"method": "grpo", "group_size": 4, "kl_beta": 0.1, "inner_batches": 2},
}


def order_for(folder: Path, labels: Sequence[str], dtype: str = "float32", **changes: Any) -> Path:
    """The order of these cases, on material that is made in ``folder`` the first time."""
    if not (folder / "model").exists():
        make_material(folder)
        for path in folder.glob("*.jsonl"):
            _vary(path)
    order = order_of(folder, [], **changes)
    order["model"]["dtype"] = dtype
    order["methods"] = {label: {"learning_rate": 1e-3, **CASES[label]} for label in labels}
    return write_order(folder, "order", order)


def _vary(path: Path) -> None:
    """Demonstrations of several lengths, and references that some answers of noise hold."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for i, row in enumerate(rows):
        row["demonstration"] *= 1 + i % 5
        row["reference"] = LETTERS[i % len(LETTERS)]
    write_jsonl(path, rows)


def command(order: Path, out: Path, ranks: int = 0) -> list[str]:
    """The command line of a start; ranks 0: in one process."""
    start = [str(ROOT / "run_sequence.py"), str(order), "--out", str(out)]
    if not ranks:
        return [sys.executable, *start]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [sys.executable, *launcher, *start]


def start(order: Path, out: Path, ranks: int = 0) -> "subprocess.Popen[str]":
    """A start, under way, one thread a process; its output goes to OUT.log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_PRODUCTS": "fixed"}
    with open(out.with_name(out.name + ".log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command(order, out, ranks), env=environment, stdout=log, stderr=log, text=True, cwd=ROOT
        )


def run(order: Path, out: Path, ranks: int = 0) -> None:
    """A start that has to come to its end. Raises RuntimeError with its last words otherwise."""
    code = start(order, out, ranks).wait(LONGEST)
    if code:
        words = out.with_name(out.name + ".log").read_text(encoding="utf-8")
        raise RuntimeError(f"exit {code}: {words[-3000:]}")


def ended(order: Path, out: Path, ranks: int, step: int, stops: bool = False) -> str:
    """What a start says of which the last rank is killed after a step's checkpoint has begun.

    stops: torchrun is told to stop instead. Raises RuntimeError where the start does not end.
    """
    process = start(order, out, ranks)
    marks = f"runs/*/stage-1.partial/checkpoint/parts-{step}"
    end = time.monotonic() + LONGEST
    while not list(out.glob(marks)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    if stops:
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(_children(process.pid)[-1], signal.SIGKILL)
    code = process.wait(LONGEST)
    words = out.with_name(out.name + ".log").read_text(encoding="utf-8")
    if code == 0:
        raise RuntimeError(f"the start came to its end: {words[-3000:]}")
    return words


def _children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return sorted(map(int, listed.split()))


def logged(out: Path) -> dict[str, list[dict[str, float]]]:
    """What training has logged, by run and stage, without seconds."""
    return {
        str(path.parent.relative_to(out)): [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted(out.glob("runs/*/stage-*/training.jsonl"))
    }


def distance(out: Path, other: Path, label: str) -> float:
    """The largest difference of a number that training logged, relative to it from 1 on.

    Tokens are left out: of a beginning that rows share, ranks compute copies.
    """
    one, two = (
        {stage: rows for stage, rows in logged(each).items() if stage.startswith(f"runs/{label}-")}
        for each in (out, other)
    )
    if not one or one.keys() != two.keys() or any(len(one[s]) != len(two[s]) for s in one):
        return math.inf
    found = 0.0
    for stage, rows in one.items():
        for row, like in zip(rows, two[stage], strict=True):
            if row.keys() != like.keys():
                return math.inf
            for key in row.keys() - {"tokens"}:
                found = max(found, abs(row[key] - like[key]) / max(1.0, abs(row[key])))
    return found


def check(folder: Path, labels: Sequence[str], counts: Sequence[int]) -> int:
    """Prints a line for each comparison; returns how many fail."""
    order = order_for(folder, labels)
    run(order, folder / "alone")
    faults = 0

    def say(what: str, found: float, most: float) -> None:
        nonlocal faults
        fails = not found <= most
        faults += fails
        print(f"{what:<48}{found:>10.1e}{'FAIL' if fails else 'PASS':>7}", flush=True)

    for ranks in counts:
        run(order, folder / f"on-{ranks}", ranks)
        for label in labels:
            found = distance(folder / "alone", folder / f"on-{ranks}", label)
            say(f"{label}: {ranks} ranks and one process", found, TOLERANCE)
    ranks = counts[0]
    for label in labels:
        one = order_for(folder, [label])
        for going_on in dict.fromkeys([ranks, counts[-1]]):
            out = folder / f"killed-{label}-{going_on}"
            ended(one, out, ranks, step=2)
            run(one, out, going_on)
            most = 0.0 if going_on == ranks else TOLERANCE
            found = distance(folder / f"on-{ranks}", out, label)
            say(f"{label}: one of {ranks} ranks killed, {going_on} go on", found, most)
    one = order_for(folder, labels[:1])
    ended(one, folder / "stopped", ranks, step=2, stops=True)
    run(one, folder / "stopped", ranks)
    found = distance(folder / f"on-{ranks}", folder / "stopped", labels[0])
    say(f"{labels[0]}: {ranks} ranks stopped, and they go on", found, 0.0)
    order = order_for(folder, labels[:1], dtype="bfloat16")
    run(order, folder / "alone-bfloat16")
    run(order, folder / "on-bfloat16", ranks)
    found = distance(folder / "alone-bfloat16", folder / "on-bfloat16", labels[0])
    say(f"{labels[0]}, bfloat16: {ranks} ranks and one process", found, ROUNDED)
    return faults
