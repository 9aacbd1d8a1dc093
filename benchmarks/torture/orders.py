"""Orders with mistakes: each is refused in one line, or is an order that is still valid."""

import copy
import io
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import run_sequence
from benchmarks.torture.material import order_of
from benchmarks.torture.tears import MEASURES
from harness.base.console import STAMP
from harness.base.files import write_text

SECONDS = 60  # of one order
VALUES = (
    None, True, 0, -1, 1, 0.5, 3.7, 1e308, float("nan"), float("-inf"), 10**30, "", " ", "x",
    "1e-3", "../../etc", "/dev/null", "~nobody/x", "null", "a\nb", "a\0b", "\ufeff", "ä" * 300,
    "{{ x }}", "<b>", "$HOME", [], [None], [[]], ["x", "x"], {}, {"x": 1}, {"": None},
    {"name": {}}, [{}] * 3,
)  # fmt: skip
CHARACTERS = "\t\0\ufeff:[]{}&*!|>'\"%@`#-?,\n \x1b\ud7ff"


@dataclass
class Mistakes:
    """How many orders were refused, how many still valid, and what went wrong."""

    refused: int = 0
    valid: int = 0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"orders: {self.refused} refused in one line, {self.valid} still valid, "
            f"{len(self.faults)} faults",
            *self.faults,
        ]


def mutate_orders(
    folder: Path, count: int, seed: int = 0, say: Callable[[str], object] = print
) -> Mistakes:
    """``count`` mutations of an order with all sections, each given to ``run_sequence --plan``."""
    methods = ["sft", "sdft", "grpo", "cpt"]
    whole = order_of(
        folder,
        methods,
        seeds=[0, 1],
        grid={"sft": {"learning_rate": [1e-4, 1e-3]}},
        rollout={"temperature": 1.0, "top_p": 1.0},
        evaluate=MEASURES,
    )
    generator = random.Random(seed)
    found = Mistakes()
    for number in range(count):
        text, what = _mutation(whole, generator)
        path = folder / "mutated.yaml"
        write_text(path, text)
        code, said = _plan(path, folder / "nowhere")
        lines = [line for line in said.splitlines() if not STAMP.match(line)]
        if code == 0:
            found.valid += 1
        elif code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
            found.refused += 1
        else:
            found.faults.append(f"{what}: exit {code}, {lines[-1][:200] if lines else ''}")
        if (folder / "nowhere").exists():
            found.faults.append(f"{what}: --plan wrote a results folder")
        if (number + 1) % 50 == 0:
            say(f"{number + 1} orders, {len(found.faults)} faults")
    return found


def _mutation(whole: dict[str, Any], generator: random.Random) -> tuple[str, str]:
    """(text of an order with one mistake, what it is)."""
    kind = generator.choice(("value", "value", "value", "key", "gone", "text"))
    order = copy.deepcopy(whole)
    if kind == "text":
        text = yaml.safe_dump(order, sort_keys=False)
        return _torn_text(text, generator)
    parent, key, place = generator.choice(list(_places(order)))
    if kind == "value":
        value = generator.choice(VALUES)
        parent[key] = value
        what = f"{place} is {str(value)[:40]!r}"
    elif kind == "gone":
        del parent[key]
        what = f"{place} is gone"
    else:
        new = generator.choice([*VALUES[:20], "nme", "sedes"])
        if isinstance(parent, dict) and not isinstance(new, (list, dict)):
            parent[new] = parent.pop(key)
        what = f"{place} is now {str(new)[:40]!r}"
    return yaml.safe_dump(order, sort_keys=False, allow_unicode=True), what


def _torn_text(text: str, generator: random.Random) -> tuple[str, str]:
    at = generator.randrange(len(text))
    lines = text.splitlines(keepends=True)
    number = generator.randrange(len(lines))
    character = generator.choice(CHARACTERS)
    return generator.choice(
        [
            (text[:at], f"cut at {at}"),
            (text[:at] + character + text[at:], f"{character!r} at {at}"),
            (text[:at] + text[at + 1 :], f"a letter less at {at}"),
            ("".join(lines[:number] + lines[number + 1 :]), f"without line {number + 1}"),
            ("".join([*lines, lines[number]]), f"line {number + 1} twice"),
        ]
    )


def _places(value: Any, place: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(container, key, place) of everything in an order."""
    keyed = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(keyed):
        yield value, key, f"{place}.{key}".lstrip(".")
        if isinstance(entry, (dict, list)):
            yield from _places(entry, f"{place}.{key}")


def _plan(path: Path, out: Path) -> tuple[int | str, str]:
    """(exit code, or the name of an error that left the command; what it wrote to stderr)."""
    said = io.StringIO()
    arguments = sys.argv
    sys.argv = ["run_sequence.py", str(path), "--plan", "--out", str(out)]
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()), _at_most(SECONDS):
            run_sequence.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0, said.getvalue()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}", said.getvalue()
    finally:
        sys.argv = arguments
    return 0, said.getvalue()


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the block after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
