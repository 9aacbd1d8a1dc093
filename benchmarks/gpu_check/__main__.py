"""Prove the path on this machine's GPU, part by part; docs/how-to/gpus.md explains each.

Results are kept: a second start does what is missing or failed. Without a GPU every part runs at
tiny size, and marks on speed are printed, not judged.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu_check.result import FAIL, PASS, SKIPPED, Check, PartResult, table
from harness.base.console import Progress, clock
from harness.base.errors import Parser, UserError, did_you_mean, reported
from harness.base.files import ROOT, write_text
from harness.base.places import check_folder

SLOW = 3  # times longer may a part take without a GPU


@dataclass(frozen=True)
class Chapter:
    """A part: its module, the group that it belongs to, and the seconds that it may take."""

    module: str
    group: str
    limit: int


PARTS = {
    "env": Chapter("env", "small", 60),
    "load": Chapter("load", "small", 60),
    "exact": Chapter("exact", "small", 120),
    "repeat": Chapter("repeat", "small", 60),
    "options": Chapter("options", "small", 60),
    "order": Chapter("order", "small", 240),
    "7b-body": Chapter("body", "large", 90),
    "7b-decode": Chapter("decode", "large", 90),
    "7b-step": Chapter("step", "large", 180),
    "syncs": Chapter("syncs", "large", 60),
    "vllm": Chapter("engine", "vllm", 300),
}
USUAL = ("small", "large")  # groups of a start without --part


def arguments() -> argparse.Namespace:
    """The command's options."""
    parser = Parser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument(
        "--part",
        nargs="+",
        default=list(USUAL),
        metavar="NAME",
        help=f"small, large, vllm, or some of {', '.join(PARTS)} (default: small large)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "gpu_check",
        metavar="DIR",
        help="where results are kept (default: results/gpu_check)",
    )
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="for all parts; what does not fit is skipped"
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="a real checkpoint for the small parts, not random weights",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cuda, cuda:1, cpu, or strict: the CPU as a second device (default: auto)",
    )
    parser.add_argument("--inside", metavar="PART", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(names: Sequence[str]) -> list[str]:
    """The parts that ``--part`` names, in their order."""
    groups = {part.group for part in PARTS.values()}
    wanted = set()
    for name in names:
        word = name.lower().replace(" ", "-").replace("_", "-")
        members = {
            key for key, part in PARTS.items() if word in (key, part.group, key.removeprefix("7b-"))
        }
        if not members:
            raise UserError(
                "--part", f"unknown part {name!r}", did_you_mean(word, groups | {*PARTS})
            )
        wanted |= members
    return [name for name in PARTS if name in wanted]


def main() -> None:
    """The command; with ``--inside`` one part, in a process of its own."""
    args = arguments()
    with reported(args.out, goes_on=True):
        check_folder(args.out)
        if args.limit is not None and not args.limit > 0:
            raise UserError("--limit", f"{args.limit:g} is no time", "give seconds, as 540")
        if args.model:
            from harness.models.load import check_name

            check_name(args.model if os.sep in args.model else f"./{args.model}", "--model")
        use_device(args.device)
        # A part has a session of its own, which would outlive this process.
        if not args.inside:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        names = [] if args.inside else chosen(args.part)
        if names:
            args.out.mkdir(parents=True, exist_ok=True)
        code = run_parts(names, args) if names else run_inside(args)
    sys.exit(code)


def use_device(device: str) -> None:
    """Make the strict device where it is asked for, and refuse one that is not there."""
    from harness.models.load import check_device

    if device == "strict":
        from benchmarks import strict_device

        if reason := strict_device.available():
            raise UserError("--device", f"the strict device cannot be built: {reason}")
        strict_device.register()
    check_device(device, "--device")


# ---- one part, in its own process ------------------------------------------------------------


def run_inside(args: argparse.Namespace) -> int:
    """Run one part, or write what this machine is. Returns the exit code."""
    from benchmarks.gpu_check.bench import Bench, Skip

    bench = Bench(args.inside, args.device, args.model, args.out)
    if args.inside == "about":
        print(json.dumps(bench.result.about))
        return 0
    bench.write(FAIL, "ended before its end")
    part = importlib.import_module(f"benchmarks.gpu_check.{PARTS[args.inside].module}")
    try:
        part.run(bench)
    except Skip as skip:
        bench.write(FAIL if bench.result.missed else SKIPPED, str(skip))
    except Exception as error:
        traceback.print_exc()
        bench.write(FAIL, f"{type(error).__name__}: {error}".strip().splitlines()[0][:200])
    else:
        bench.write(FAIL if bench.result.missed else PASS)
    return 0


# ---- all parts -------------------------------------------------------------------------------


def run_parts(names: Sequence[str], args: argparse.Namespace) -> int:
    """Run the parts that have no kept PASS; print each as it ends, then the table.

    Returns the exit code: 1 if a part failed.
    """
    progress = Progress(every=10)
    start = time.monotonic()
    results = []
    here = machine(args) if any((args.out / f"{name}.json").exists() for name in names) else None
    for name in names:
        kept = PartResult.read(args.out / f"{name}.json")
        if kept and kept.verdict == PASS and kept.about == here:
            result = replace(kept, reason="kept from an earlier start")
        else:
            result = run_part(name, args, start, progress)
        results.append(result)
        progress.say(f"{result.verdict} {name}" + (f": {result.reason}" if result.reason else ""))
        progress.close()  # what is printed is no line below the screen's bars
        print(result.json(), flush=True)
        for check in result.checks:
            print(f"  {check.line()}", flush=True)
        if result.verdict == FAIL and (args.out / f"{name}.log").exists():
            print(f"  what it printed: {args.out / f'{name}.log'}")
    text = table(results)
    write_text(args.out / "table.txt", text + "\n")
    print(f"\n{text}\n")
    counts = {word: sum(r.verdict == word for r in results) for word in (PASS, FAIL, SKIPPED)}
    print(
        f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[SKIPPED]} skipped "
        f"in {clock(time.monotonic() - start)}; results: {args.out}"
    )
    return int(counts[FAIL] > 0)


def machine(args: argparse.Namespace) -> dict[str, object]:
    """What results of this machine are for, from a process of its own: a GPU's context costs."""
    done = subprocess.run(command("about", args), cwd=ROOT, capture_output=True, text=True)
    try:
        about: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise UserError("--device", f"cannot be used ({done.stderr.strip()[-200:]})") from None
    return about


def command(name: str, args: argparse.Namespace) -> list[str]:
    """The command of one part."""
    words = [sys.executable, "-m", "benchmarks.gpu_check", "--inside", name]
    words += ["--out", str(args.out.resolve()), "--device", args.device]
    if args.model:
        words += ["--model", str(Path(args.model).resolve())]
    return words


def run_part(name: str, args: argparse.Namespace, start: float, progress: Progress) -> PartResult:
    """Run one part in a process of its own, which ends with its time."""
    limit = PARTS[name].limit * (1 if has_gpu(args.device) else SLOW)
    path = args.out / f"{name}.json"
    path.unlink(missing_ok=True)
    left = limit if args.limit is None else args.limit - (time.monotonic() - start)
    if left <= 0:
        return PartResult(name, SKIPPED, "no time was left", 0.0, {})
    begun = time.monotonic()
    with open(args.out / f"{name}.log", "w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command(name, args),
            cwd=ROOT,
            env=environment(args.device),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            in_time, memory = watch(child, begun + min(left, limit), name, progress)
        finally:  # also after Ctrl-C
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    seconds = round(time.monotonic() - begun, 2)
    result = PartResult.read(path)
    if result is None:
        result = PartResult(name, FAIL, f"its process ended with {child.returncode}", seconds, {})
    if not in_time:
        # With less than its own time the part is not to blame.
        verdict = FAIL if left >= limit or result.missed else SKIPPED
        result = replace(result, verdict=verdict, reason=f"stopped after {seconds:.0f} s")
    elif child.returncode:
        result = replace(result, verdict=FAIL, reason=f"its process ended with {child.returncode}")
    result = replace(result, seconds=seconds)
    if memory:
        result.checks.append(Check("used on the card, by nvidia-smi", memory, "MiB"))
    write_text(path, result.json() + "\n")
    return result


def environment(device: str) -> dict[str, str]:
    """Of a part: no hub, and as many threads as the part may use.

    Without a GPU that is one: tiny products gain nothing by two.
    """
    added = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    threads = cores() if has_gpu(device) else 1
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **added}


def cores() -> int:
    """Processors that this process may use; PyTorch would take all that a container sees."""
    count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no container, or one without a limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def watch(
    child: subprocess.Popen[bytes], end: float, name: str, progress: Progress
) -> tuple[bool, int]:
    """(whether the child ended by itself, MiB on the card at the most) at time ``end`` at last."""
    memory = 0
    begun = time.monotonic()
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=min(2.0, max(0.01, end - time.monotonic())))
            return True, memory
        memory = max(memory, used_on_card())
        progress.show(f"{name}: {time.monotonic() - begun:.0f} s of at most {end - begun:.0f}")
    return False, memory


def used_on_card() -> int:
    """MiB in use on all GPUs, also outside PyTorch; 0 where there is no nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
        return sum(int(line) for line in done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def has_gpu(device: str) -> bool:
    """Whether the parts run on CUDA."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


if __name__ == "__main__":
    main()
