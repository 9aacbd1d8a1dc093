"""New-task gain against retention: all settings of each method, and the line between them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from harness.report.estimates import Estimate
from harness.report.frontier import Family, alone_note, frontier, retention_at
from harness.report.pictures.picture import Picture, Source
from harness.report.style import (
    BASE,
    LETTERS,
    MUTED,
    PAPER,
    SMALL,
    Form,
    Look,
    legend,
    looks,
    shorten,
    single,
)

STEPS = 12  # of the band between two neighbouring points

# -- what is shown


@dataclass(frozen=True)
class Line:
    """One method. points: (label, retention Δ, gain) of its settings, by rising gain.

    band: [steps, 4], gain, retention Δ, low, high between the points, NaN where not known.
    """

    name: str
    points: list[tuple[str, Estimate, Estimate]]
    band: np.ndarray


@dataclass(frozen=True)
class Lines:
    """All methods with several settings; matched: the gain at which they are compared.

    alone: labels of the others, which have one setting with a gain and a retention Δ.
    """

    looks: dict[str, Look]
    lines: list[Line]
    matched: float | None
    alone: list[str]


def lines(source: Source) -> Lines | None:
    """The frontiers, None where no method has several settings."""
    shown = frontier(source.results)
    if shown is None:
        return None

    def band(family: Family) -> np.ndarray:
        gains = [
            gain
            for a, b in zip(family.gains, family.gains[1:], strict=False)
            for gain in np.linspace(a, b, STEPS, endpoint=False)
        ]
        found = [(gain, retention_at(shown, family, gain)) for gain in [*gains, family.gains[-1]]]
        return np.array([(gain, e.value, e.low, e.high) for gain, e in found])

    return Lines(
        looks(family.name for family in shown.families),
        [
            Line(family.name, [(p.label, p.retention, p.gain) for p in family.points], band(family))
            for family in shown.families
        ],
        shown.matched,
        shown.alone,
    )


# -- how it is drawn


def draw(shown: Lines, form: Form) -> Figure:
    """All methods in one panel, in points; the base model is where both are 0."""
    figure, axes = single()
    for line in shown.lines:
        _draw_line(axes, line, shown.looks[line.name])
    axes.plot(
        0,
        0,
        marker="*",
        color=BASE,
        markersize=14,
        markeredgecolor=PAPER,
        linestyle="none",
        zorder=5,
    )
    if shown.matched is not None:
        axes.axhline(shown.matched * 100, color=MUTED, linestyle=(0, (2, 2)), linewidth=1, zorder=1)
        axes.annotate(
            "matched gain",
            (0.01, shown.matched * 100),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=MUTED,
            fontsize=8,
        )
    axes.set_xlabel("retention Δ (points)")
    axes.set_ylabel("new-task gain (points)")
    axes.margins(0.1)
    legend(figure, shown.looks, [line.name for line in shown.lines])
    return figure


def _draw_line(axes: Axes, line: Line, look: Look) -> None:
    """Points with error bars, the line between them, and the band of retention along it."""
    gain, kept, low, high = line.band.T * 100
    axes.plot(kept, gain, color=look.colour, linestyle=look.dash, linewidth=1.6, zorder=3)
    axes.fill_betweenx(gain, low, high, color=look.colour, alpha=0.13, linewidth=0, zorder=2)
    rises = np.gradient([kept.value for _, kept, _ in line.points]) > 0
    for (label, retention, gained), is_rising in zip(line.points, rises, strict=True):
        axes.errorbar(
            retention.value * 100,
            gained.value * 100,
            xerr=_error_bar(retention),
            yerr=_error_bar(gained),
            color=look.colour,
            marker=look.marker,
            markersize=7,
            markeredgecolor=PAPER,
            elinewidth=0.8,
            alpha=0.9,
            linestyle="none",
            zorder=4,
        )
        axes.annotate(
            shorten(label, LETTERS),
            (retention.value * 100, gained.value * 100),
            xytext=(6, -5 if is_rising else 5),  # the line passes on the other side
            textcoords="offset points",
            va="top" if is_rising else "bottom",
            fontsize=SMALL,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )


def _error_bar(estimate: Estimate) -> np.ndarray | None:
    """Lengths [2, 1] below and above the value in points, None where there is no interval."""
    ends = np.array([[estimate.value - estimate.low], [estimate.high - estimate.value]]) * 100
    return np.abs(ends) if np.isfinite(ends).all() else None


# -- what the caption says


def caption(shown: Lines) -> str:
    text = (
        "Each mark is one setting of a method (as a learning rate) with 95% intervals; lines join "
        "neighbouring gains. Up learns more, right keeps more; the star is the base model. Band: "
        "95% interval of the retention Δ at that gain."
    )
    if shown.matched is not None:
        text += (
            " Broken line: the largest gain that all methods reach, at which the table compares."
        )
    return text + alone_note(shown.alone)


def alt(shown: Lines) -> Iterator[str]:
    """Each method's points."""
    for line in shown.lines:
        points = [f"{g.value * 100:+.1f} with {r.value * 100:+.1f}" for _, r, g in line.points]
        yield f"{line.name} gains {', '.join(points)} of prior abilities"


FRONTIER = Picture("frontier", "Gain against retention", "results", lines, draw, caption, alt)
