"""Damage to every file of a finished results folder, one file at a time.

Whatever is cut or flipped, ``report.py`` and ``run_sequence.py`` either say so in one line, or give
the numbers of the whole folder. The same goes for a run whose last stage is still to be done.
"""

import io
import json
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.torture.material import order_of, write_order
from benchmarks.torture.starts import Contents, lasting_rows
from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import LOCK
from harness.report import build
from harness.runs.order import Order
from harness.runs.reading import read_order
from harness.runs.sequence import run_order

DAMAGES = ("emptied", "cut", "flipped")
MEASURES = {  # one of each kind of evaluation
    "every_steps": 3,
    "pass_at_k": {"samples": 2, "prompts": 2},
    "kl": {"prompts": 2},
    "teacher": True,
    "oracle": True,
}


@dataclass
class Tears:
    """How often damage was refused in one line, made no difference, or was a fault."""

    refused: dict[str, int] = field(default_factory=dict)
    harmless: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, command: str, where: str, verdict: str) -> None:
        if verdict in ("refused", "harmless"):
            counts = self.refused if verdict == "refused" else self.harmless
            counts[command] = counts.get(command, 0) + 1
        else:
            self.faults.append(f"{command}, {where}: {verdict}")

    def lines(self) -> list[str]:
        commands = self.refused.keys() | self.harmless.keys()
        parts = [
            f"{command}: {self.refused.get(command, 0)} refused in one line, "
            f"{self.harmless.get(command, 0)} gave the same numbers"
            for command in sorted(commands)
        ]
        return [f"damaged files: {'; '.join(parts)}; {len(self.faults)} faults", *self.faults]


def finished_folder(folder: Path) -> tuple[Order, Path]:
    """(an order with every kind of file, its finished results folder below ``folder``)."""
    path = write_order(
        folder,
        "tears",
        order_of(
            folder,
            ["sft", "sft_from_teacher"],
            grid={"sft": {"learning_rate": [1e-3, 1e-2]}},
            evaluate=MEASURES,
        ),
    )
    order = read_order(path)
    run_order(order, folder / "whole", _silent())
    return order, folder / "whole"


def tear_every_file(
    folder: Path,
    seed: int = 0,
    most: int | None = None,
    say: Callable[[str], object] = print,
) -> Tears:
    """Damage every file, or ``most`` of them, of a finished folder made in ``folder``.

    Each file is emptied, cut at a random place, and has one random bit flipped. ``report.py`` and
    ``run_sequence.py`` then run on the folder, and ``run_sequence.py`` once more without the last
    stage of the first run, which it makes again.
    """
    order, whole = finished_folder(folder)
    generator = random.Random(seed)
    cases = [
        (name, damage)
        for name in _names(whole)
        for damage in DAMAGES
        if (whole / name).stat().st_size
    ]
    if most:
        cases = generator.sample(cases, most)
    drawn = _draw(whole, folder / "drawn")
    wanted = _tables(folder / "drawn")
    records = lasting_rows(whole / "records.jsonl")
    found = Tears()
    for number, (name, damage) in enumerate(cases, 1):
        where = f"{name} {damage}"
        torn = _torn(whole, folder / "torn", name, damage, generator)
        found.add("report.py", where, _report(torn, folder / "drawn", drawn, wanted))
        found.add("run_sequence.py", where, _run(order, torn, records))
        torn = _torn(whole, folder / "torn", name, damage, generator)
        last = torn / f"runs/{order.runs()[0].name}/stage-{len(order.skills)}"
        if name.startswith(str(last.relative_to(torn))):
            continue
        shutil.rmtree(last)
        found.add("run_sequence.py, going on", where, _run(order, torn, records))
        if number % 20 == 0:
            say(f"{number} of {len(cases)} damaged files, {len(found.faults)} faults")
    return found


def _names(folder: Path) -> list[str]:
    """Paths of all files in a results folder, but for locks and the report."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    names = sorted(str(path.relative_to(folder)) for path in files)
    return [name for name in names if not name.startswith("report/")]


def _torn(whole: Path, place: Path, name: str, damage: str, generator: random.Random) -> Path:
    """A copy of the folder at ``place`` in which one file is damaged."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    path = place / name
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    else:
        del data[0 if damage == "emptied" else generator.randrange(len(data)) :]
    path.write_bytes(data)
    return place


def _tables(report: Path) -> Contents:
    """Every table of a report, byte for byte, but for costs, which are of one run on one day."""
    return {
        path.name: path.read_bytes()
        for path in sorted((report / "tables").iterdir())
        if path.suffix in (".md", ".csv") and path.stem not in ("cost", "records", "curves")
    }


def _verdict(act: Callable[[], Iterable[str]]) -> str:
    """refused, harmless, or what is wrong: names of what changed, or an error that is no UserError.

    act: returns the names of what changed.
    """
    try:
        changed = list(act())
    except UserError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return f"changed without a word: {', '.join(changed[:5])}" if changed else "harmless"


def _silent() -> Progress:
    return Progress(stream=io.StringIO())


def _draw(results: Path, out: Path) -> str:
    """The report's text. Pictures take seconds and hold what their sources hold, which are read."""
    with mock.patch.object(build, "draw_pictures", return_value=[]):
        text, _ = build.write_report([results], out)
    return text


def _report(torn: Path, out: Path, drawn: str, wanted: Contents) -> str:
    def act() -> list[str]:
        shutil.rmtree(out, ignore_errors=True)
        text = _draw(torn, out)
        found = _tables(out)
        said = text.partition("Missing:")[2] != drawn.partition("Missing:")[2]
        return [] if said else [name for name in wanted if found.get(name) != wanted[name]]

    return _verdict(act)


def _run(order: Order, torn: Path, records: list[dict[str, Any]]) -> str:
    def act() -> list[str]:
        run_order(order, torn, _silent())
        found = lasting_rows(torn / "records.jsonl")
        rows = zip(found, records, strict=False)
        changed = [json.dumps(row) for row, wanted in rows if row != wanted]
        return changed + ["number of records"] * (len(found) != len(records))

    return _verdict(act)
