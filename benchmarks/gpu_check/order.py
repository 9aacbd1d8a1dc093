"""Whole orders by the command itself: two skills, three methods; once more with a kill in between.

The run that is killed and goes on must end in the same lines and records as the one that is not.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.material import small_checkpoint, write_skill
from harness.base.files import ROOT, read_json, read_jsonl
from harness.models.load import load_tokenizer
from harness.results.writer import ResultsWriter
from harness.runs.estimate import estimate_order
from harness.runs.order_cost import OrderCost
from harness.runs.plan import model_shape
from harness.runs.provenance import package_version
from harness.runs.reading import read_order

METHODS = ("sdft", "sft", "grpo")  # in this order: the kill comes in the first one
STEPS = 4  # of each stage
KILLED_AFTER = 3  # checkpoints of SDFT's first stage
NEVER = 60  # minutes between two checkpoints: none within a run of this length


def run(bench: Bench) -> None:
    """The order whole, then killed and resumed, then what ``--plan`` says of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order = write_order(bench, folder, small_checkpoint(bench, folder))
        whole, broken = folder / "whole", folder / "broken"
        seconds = finish(bench, order, whole, f"checkpoints.minutes={NEVER}")
        bench.note("the whole order", seconds, "s")
        killed_after = kill(bench, order, broken)
        bench.judge(
            "killed after this many checkpoints", killed_after, "", "at least 3", killed_after >= 3
        )
        rest = finish(bench, order, broken, f"checkpoints.minutes={NEVER}")
        bench.note("the rest of it", rest, "s")
        for method in METHODS:
            equal = same_training(whole, broken, method)
            bench.equal(f"{method}, training.jsonl equal", equal, True)
        records = rows(whole / "records.jsonl")
        equal = rows(broken / "records.jsonl") == records
        bench.equal(f"all {len(records)} records equal", equal, True)
        if bench.device.type == "cuda":
            compare_settings(bench, whole)
        compare_with_plan(bench, order, whole)


def write_order(bench: Bench, folder: Path, model: Path) -> Path:
    """The order file, with two skills; retention where lm-eval is installed."""
    counts = {"train": 32, "validation": 4, "test": 8}
    # Micro-batches that the rows fill: --plan counts whole ones.
    settings = {"learning_rate": 1e-4, "warmup_steps": 0, "micro_batch_tokens": 512}
    order: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "bfloat16", "device": str(bench.device)},
        # Prompts of the first begin alike and share a row under a mask, those of the second do not.
        "skills": [
            write_skill(folder, "letters", counts, 3, "{name} {split} {i}: "),
            write_skill(folder, "signs", counts, 3, "{i} {split} {name}: "),
        ],
        "methods": {
            "sdft": settings,
            "sft": settings,
            "grpo": {**settings, "group_size": 4, "kl_beta": 0.05},
        },
        "budget": {"prompts": 32, "batch_size": 32 // STEPS},
        "evaluate": {"every_steps": 2},
        "checkpoints": {"keep": "none"},
    }
    if package_version("lm_eval") and package_version("datasets"):
        task = {"task": "embedded_facts", "metric": "acc,none", "limit": 8}
        order["retention"] = [task]
    else:
        bench.note("retention", "not measured: lm-eval is not installed")
    path = folder / "order.yaml"
    path.write_text(yaml.safe_dump(order, sort_keys=False), encoding="utf-8")
    return path


def command(bench: Bench, order: Path, out: Path, *settings: str) -> list[str]:
    """``run_sequence.py``, on the strict device in a process that knows it."""
    start = ["-m", "benchmarks.strict_device"] if bench.device.type == "strict" else []
    words = [sys.executable, *start, str(ROOT / "run_sequence.py"), str(order), "--out", str(out)]
    return [*words, "--set", *settings]


def finish(bench: Bench, order: Path, out: Path, *settings: str) -> float:
    """Run the order to its end; returns the seconds."""
    start = time.perf_counter()
    done = subprocess.run(command(bench, order, out, *settings), cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"run_sequence.py ended with {done.returncode}")
    return time.perf_counter() - start


def kill(bench: Bench, order: Path, out: Path) -> int:
    """Kill the run in SDFT's first stage; returns the checkpoints that were seen until then."""
    child = subprocess.Popen(command(bench, order, out, "checkpoints.minutes=0"), cwd=ROOT)
    state = out / "runs/sdft-seed0/stage-1.partial/checkpoint/state.pt"
    seen: set[tuple[int, int]] = set()
    while child.poll() is None and len(seen) < KILLED_AFTER:
        with suppress(FileNotFoundError):
            status = state.stat()
            seen.add((status.st_ino, status.st_mtime_ns))
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return len(seen)


def same_training(whole: Path, broken: Path, method: str) -> bool:
    """Whether all steps of a method log the same, their times apart."""
    paths = [f"runs/{method}-seed0/stage-{k}/training.jsonl" for k in (1, 2)]
    return all(rows(whole / path) == rows(broken / path) for path in paths)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file without their times."""
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for _, row in read_jsonl(path)
    ]


def compare_settings(bench: Bench, whole: Path) -> None:
    """Whether PyTorch took the settings of its allocator, which it reads once."""
    for path in sorted(whole.glob("runs/*/run.json")):
        kept = read_json(path)
        wanted = "expandable_segments:True" in (kept["allocator"] or "")
        bench.equal(f"{path.parent.name}, segments grow", kept["segments_grow"], wanted)


def compare_with_plan(bench: Bench, path: Path, whole: Path) -> None:
    """Memory and time of each method against the estimate that --plan prints."""
    cost = estimate(path, whole.with_name("planned"))
    for method in METHODS:
        stages = [read_json(whole / f"runs/{method}-seed0/stage-{k}/stage.json") for k in (1, 2)]
        peak = max(stage["peak_memory_gib"] for stage in stages)
        share = 100 * (peak / cost.memory[method][0] - 1)
        bench.speed(
            f"{method}, peak {peak:.3g} GiB beside --plan",
            share,
            "%",
            "at most 10",
            share <= 10,
        )
    measured = total(
        read_json(path)["seconds"] for path in whole.glob("runs/*/stage-[12]/stage.json")
    )
    planned = sum(stage.seconds for stage in cost.stages) + 2 * len(METHODS) * cost.retention
    ratio = measured / planned
    bench.speed(
        "seconds beside --plan", ratio, "x", "between 0.67 and 1.5", 1 / 1.5 <= ratio <= 1.5
    )


def total(seconds: Iterable[Mapping[str, float]]) -> float:
    """Sum of stages' seconds, each by what they were for."""
    return sum(sum(stage.values()) for stage in seconds)


def estimate(path: Path, out: Path) -> OrderCost:
    """What --plan computes."""
    order = read_order(path)
    tokenizer, source = load_tokenizer(order.model.name)
    return estimate_order(
        order, tokenizer, model_shape(order, source, str(path)), ResultsWriter(out)
    )
