"""Pictures as numbers for the page's script, which draws them again where one can point at them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.report.pictures.axis import TrainingAxis
from harness.report.style import FURTHER, Look

DIGITS = 5  # significant ones of a number


@dataclass(frozen=True)
class LiveLine:
    """One method's points; low, high: of y; left, right: of x; n: answers of a run; runs: how many.

    n_across: answers behind x, where it is measured; marker: its letter in style.looks; quiet: is
    drawn thin and without whiskers, as the lines of many methods are; names: of the points, where
    each has one.
    Lists are as long as ``x``, or empty where nothing is known of any point.
    """

    label: str
    colour: str
    marker: str
    dash: bool
    x: list[float | None]
    y: list[float | None]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    left: list[float | None] = field(default_factory=list)
    right: list[float | None] = field(default_factory=list)
    n: list[float | None] = field(default_factory=list)
    n_across: list[float | None] = field(default_factory=list)
    runs: list[float | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # places of the points that have whiskers
    quiet: bool = False
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LivePanel:
    """One panel; x, y: its axes in words; levels: (name, y) of lines across it; borders: x of lines
    down it; taught: the part of x that is shaded; bases: (x, y) of each base model, where both axes
    are measured.
    """

    title: str
    x: str
    y: str
    lines: list[LiveLine]
    levels: list[tuple[str, float | None]] = field(default_factory=list)
    borders: list[float] = field(default_factory=list)
    taught: tuple[float, float] | None = None
    bases: list[tuple[float | None, ...]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The panel as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class LiveCells:
    """A heat map of numbers by stage (row) and skill (column), each with a link to its answers.

    Row 0 is the base model's, row k + 1 that of the stage which teaches column k: there the cell
    has a frame. values, low, high, n, runs: [rows][columns], None where not measured;
    highest: the value at which the colours, from 0 on, end; frame: its colour; addresses: of each
    column in the viewer, to which a row adds its number.
    """

    title: str
    y: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    low: list[list[float | None]]
    high: list[list[float | None]]
    n: list[list[float | None]]
    runs: list[list[float | None]]
    highest: float
    colours: list[str]
    frame: str
    addresses: list[str]

    def plain(self) -> dict[str, Any]:
        """The panel as JSON has it."""
        return asdict(self)


def numbers(values: Iterable[float], scale: float = 1) -> list[float | None]:
    """Values times ``scale``, rounded; None for what is not finite."""
    return [
        float(f"{value * scale:.{DIGITS}g}") if math.isfinite(value) else None for value in values
    ]


def training_lines(
    axis: TrainingAxis,
    looks: Mapping[str, Look],
    lines: Mapping[str, pd.DataFrame],
    scale: float = 100,
) -> list[LiveLine]:
    """Lines along training; lines: {label: x, value, low, high, and where known n, seeds}."""
    found = []
    for label, line in lines.items():
        at_end = np.isclose(line["x"].to_numpy(float)[:, None], axis.edges).any(axis=1)
        found.append(
            LiveLine(
                label,
                looks[label].colour,
                looks[label].marker,
                looks[label].dash != "-",
                numbers(line["x"]),
                numbers(line["value"], scale),
                numbers(line["low"], scale),
                numbers(line["high"], scale),
                n=numbers(line["n"]) if "n" in line else [],
                runs=numbers(line["seeds"]) if "seeds" in line else [],
                ends=np.flatnonzero(at_end).tolist(),
                quiet=looks[label] == FURTHER,
            )
        )
    return found


def training_panel(
    axis: TrainingAxis,
    title: str,
    y: str,
    lines: list[LiveLine],
    levels: Sequence[tuple[str, float]] = (),
    stage: int | None = None,
) -> LivePanel:
    """A panel along training; stage: the one that teaches its skill."""
    taught = None if stage is None else (axis.edges[stage - 1], axis.edges[stage])
    return LivePanel(
        title,
        axis.title,
        y,
        lines,
        [(name, numbers([level])[0]) for name, level in levels],
        axis.edges[1:-1].tolist() if axis.has_borders else [],
        None if taught is None else (float(taught[0]), float(taught[1])),
    )
