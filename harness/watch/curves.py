"""Learning curves in a terminal: the loss and the scores of the present run, as they come."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from harness.base.console import Listener

HEIGHT, WIDEST = 8, 60  # of a panel, in rows and columns
SIDE_BY_SIDE = 70  # columns from which two panels stand beside each other
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
BRAILLE = 0x2800  # the sign without dots
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of a sign
Curve = list[tuple[float, float]]  # (optimizer step, value)


class Curves(Listener):
    """Two panels below the bars: the loss (of methods without one, the reward), and the skills'
    scores at their evaluations.
    """

    wants_history = True

    def __init__(self) -> None:
        self.run = ""
        self.name, self.losses = "loss", list[tuple[float, float]]()
        self.scores: dict[str, Curve] = {}
        self.split, self.metrics = "", dict[str, str]()

    def opened(self, folder: Path, about: dict[str, Any]) -> None:
        self.split = about["evaluate"]["split"]
        self.metrics = {skill["name"]: skill["metric"] for skill in about["skills"]}

    def _enter(self, run: str) -> None:
        if run != self.run:
            self.run, self.losses, self.scores = run, [], {}

    def learned(self, run: str, row: dict[str, Any]) -> None:
        self._enter(run)
        name = next((name for name in ("loss", "reward") if name in row), None)
        if name is not None and row[name] is not None:
            self.name = name
            self.losses = self._before(self.losses, row["step"])
            self.losses.append((row["step"], row[name]))

    def measured(self, run: str, records: Sequence[dict[str, Any]]) -> None:
        self._enter(run)
        for record in records:
            name, value = record["name"], record["value"]
            of_test = record["kind"] == "skill" and record["split"] == self.split
            if of_test and record["metric"] == self.metrics.get(name) and value is not None:
                curve = self._before(self.scores.get(name, []), record["step"])
                self.scores[name] = [*curve, (record["step"], value)]

    @staticmethod
    def _before(curve: Curve, step: float) -> Curve:
        """A curve without what a killed start had behind the point where this one goes on."""
        return curve if not curve or curve[-1][0] < step else [p for p in curve if p[0] < step]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        beside = options.max_width >= SIDE_BY_SIDE
        width = min(WIDEST, options.max_width // (2 if beside else 1) - 2)
        panels = [
            panel(self.name, {self.name: self.losses}, width),
            panel("score", self.scores, width),
        ]
        grid = Table.grid(padding=(0, 1, 0, 0))
        for row in [panels] if beside else [[one] for one in panels]:
            grid.add_row(*row)
        yield grid


def panel(title: str, curves: dict[str, Curve], width: int, height: int = HEIGHT) -> Text:
    """A picture of curves: values upward, optimizer steps to the right, a colour for each."""
    points = [point for curve in curves.values() for point in curve]
    if not points or width < 20:
        return Text(f"{title}: nothing yet"[: max(width, 0)], style="dim")
    (left, right), (low, high) = (_range(axis) for axis in zip(*points, strict=True))
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
    margin = max(map(len, labels)) + 1
    columns = width - margin
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for colour, curve in zip(_colours(), curves.values(), strict=False):
        places = [
            (
                round((x - left) / (right - left) * (2 * columns - 1)),
                round((high - y) / (high - low) * (4 * height - 1)),
            )
            for x, y in curve
        ]
        for x, y in _joined(places):
            dots, _ = cells.get((y // 4, x // 2), (0, colour))
            cells[y // 4, x // 2] = dots | DOTS[y % 4][x % 2], colour
    text = Text(no_wrap=True)
    for colour, (name, curve) in zip(_colours(), curves.items(), strict=False):
        if curve:
            text.append(f"{name} {curve[-1][1]:.3g}  ", style=colour)
    text.truncate(width)
    for row in range(height):
        text.append(f"\n{labels[row]:>{margin - 1}} ", style="dim")
        for column in range(columns):
            dots, colour = cells.get((row, column), (0, ""))
            text.append(chr(BRAILLE + dots), style=colour)
    steps = f"step {left:g}".ljust(columns - len(f"{right:g}")) + f"{right:g}"
    text.append("\n" + " " * margin + steps, style="dim")
    return text


def _range(values: Iterable[float]) -> tuple[float, float]:
    """The least and the greatest, with room between them where they are equal."""
    low, high = min(values := list(values)), max(values)
    return (low, high) if low < high else (low, low + 1)


def _colours() -> Iterable[str]:
    while True:
        yield from COLOURS


def _joined(places: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The dots of straight lines from each place to the next."""
    yield from places[:1]
    for (x, y), (to_x, to_y) in pairwise(places):
        steps = max(abs(to_x - x), abs(to_y - y), 1)
        for k in range(1, steps + 1):
            yield x + round((to_x - x) * k / steps), y + round((to_y - y) * k / steps)
