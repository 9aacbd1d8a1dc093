"""What a step of SFT loses beside other programs, and whether one thread a run is as fast in sum.

    python -m benchmarks.speed.sharing

Each line is a process of its own that takes some steps; the median counts, without the first. The
loss is to the step alone. A loop that computes takes half of the machine where it has two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.speed.steps import choose, our_steps
from benchmarks.speed.timing import Settings
from harness.base.errors import Parser, reported

STEPS = 5  # of which the first does not count
LOOP = "while True: pass"
MOVER = "import numpy as np\na, b = np.ones((2, 2**25))\nwhile True: np.copyto(b, a)"


def seconds_of_steps() -> list[float]:
    """Of STEPS steps in this process."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        settings = Settings(Path(work), prompts=8)
        examples, _ = choose(settings, settings.prompts)

        def pause(logged: dict[str, float]) -> None:
            seconds.append(logged["seconds"])
            print(json.dumps(seconds), flush=True)

        our_steps(settings, "sft", examples, STEPS, settings.our_dtype, True)(pause)
    return seconds


@contextmanager
def beside(code: str) -> Iterator[None]:
    """Another program runs, as long as the context lasts."""
    program = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def start(threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.speed.sharing", "--steps"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> float:
    """The median of the steps that count."""
    assert process.stdout is not None
    seconds = json.loads(process.stdout.read().splitlines()[-1])
    return median(seconds[1:])


def lines(threads: int) -> Iterator[str]:
    """The table in Markdown."""
    yield "| an SFT step of 8 examples | seconds | beside alone |"
    yield "|---|---:|---:|"
    alone = finished(start(threads))
    found = {f"alone, {threads} threads": alone}
    for name, code in (("a loop", LOOP), ("a program that moves memory", MOVER)):
        with beside(code):
            found[f"beside {name}"] = finished(start(threads))
    late = start(threads)
    assert late.stdout is not None
    late.stdout.readline()  # the first step is over
    with beside(LOOP):
        found["beside a loop that starts later"] = finished(late)
    for name, seconds in found.items():
        yield f"| {name} | {seconds:.2f} | {seconds / alone:.2f} |"
    both = [start(1) for _ in range(threads)]
    single = median(map(finished, both))
    yield f"| {threads} runs at once, a thread each | {single:.2f} | {single / alone:.2f} |"
    each = single / threads
    yield f"| the same, a step of any of them | {each:.2f} | {each / alone:.2f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--steps", action="store_true", help="take the steps in this process")
    parser.add_argument("--threads", type=int, default=2, help="of a run alone (default: 2)")
    args = parser.parse_args(arguments)
    with reported(None):
        if args.steps:
            seconds_of_steps()
            return
        for line in lines(args.threads):
            print(line, flush=True)


if __name__ == "__main__":
    main()
