"""New-task gain against retention: all settings of each method, and the line between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.estimates import Estimate
from harness.report.frontier import (
    MOST_ALONE,
    Family,
    Kept,
    Setting,
    alone_note,
    frontiers,
    retention_at,
)
from harness.report.pictures.live import LiveLine, LivePanel, numbers
from harness.report.pictures.picture import Picture, Source
from harness.report.style import (
    BASE,
    FURTHER,
    LETTERS,
    MUTED,
    PAPER,
    Form,
    Look,
    further_mark,
    legend,
    looks,
    name_points,
    shorten,
    single,
)

STEPS = 12  # of the band between two neighbouring points

# -- what is shown


@dataclass(frozen=True)
class Line:
    """One method. points: its settings, by rising gain.

    band: [steps, 4], gain, change of prior abilities, low, high between the points, NaN where not
    known.
    """

    name: str
    points: list[Setting]
    band: np.ndarray


@dataclass(frozen=True)
class Lines:
    """All methods with several settings; matched: the gain at which they are compared.

    alone: settings of the others, which have one.
    """

    kept: Kept
    looks: dict[str, Look]  # of families and of labels
    lines: list[Line]
    matched: float | None
    alone: list[Setting]


def lines(source: Source, key: str) -> Lines | None:
    """The frontier by a measure, None where no method has several settings."""
    shown = next((each for each in frontiers(source.results) if each.kept.key == key), None)
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
        shown.kept,
        source.looks | looks([family.name for family in shown.families]),
        [Line(family.name, family.points, band(family)) for family in shown.families],
        shown.matched,
        shown.alone,
    )


# -- how it is drawn


def draw(shown: Lines, form: Form) -> Figure:
    """All methods in one panel; the base model is where both are 0."""
    figure, axes = single()
    names = []
    for line in shown.lines:
        names += _draw_line(axes, line, shown.looks[line.name], shown.kept.scale)
    are_few = len(shown.alone) <= MOST_ALONE
    for point in shown.alone:
        look = shown.looks[point.label]
        if look == FURTHER:
            kept, gain = point.retention.value, point.gain.value
            further_mark(axes, kept * shown.kept.scale, gain * 100)
        else:
            _draw_mark(axes, point, look, shown.kept.scale)
        if are_few:
            names.append(_name(point, shown.kept.scale, is_above=True))
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
    axes.set_xlabel(_axis(shown))
    axes.set_ylabel("new-task gain (points)")
    axes.margins(0.1)
    named = [] if are_few else [point.label for point in shown.alone]
    legend(figure, shown.looks, [*(line.name for line in shown.lines), *named])
    name_points(axes, names)
    return figure


def _draw_line(
    axes: Axes, line: Line, look: Look, scale: float
) -> list[tuple[str, float, float, bool]]:
    """Points with error bars, the line between them, and the band of what is kept along it.

    Returns the points' names, to be written on the side where the line is not.
    """
    gain, (kept, low, high) = line.band[:, 0] * 100, line.band[:, 1:].T * scale
    axes.plot(kept, gain, color=look.colour, linestyle=look.dash, linewidth=1.6, zorder=3)
    axes.fill_betweenx(gain, low, high, color=look.colour, alpha=0.13, linewidth=0, zorder=2)
    rises = np.gradient([point.retention.value for point in line.points]) > 0
    for point in line.points:
        _draw_mark(axes, point, look, scale)
    return [
        _name(point, scale, is_above=not is_rising)
        for point, is_rising in zip(line.points, rises, strict=True)
    ]


def _draw_mark(axes: Axes, point: Setting, look: Look, scale: float) -> None:
    axes.errorbar(
        point.retention.value * scale,
        point.gain.value * 100,
        xerr=_error_bar(point.retention, scale),
        yerr=_error_bar(point.gain, 100),
        color=look.colour,
        marker=look.marker,
        markersize=7,
        markeredgecolor=PAPER,
        elinewidth=0.8,
        alpha=0.9,
        linestyle="none",
        zorder=4,
    )


def _name(point: Setting, scale: float, is_above: bool) -> tuple[str, float, float, bool]:
    """The name of a point, where it is, and on which side the name would rather be."""
    text = shorten(point.label, LETTERS)
    return text, point.retention.value * scale, point.gain.value * 100, is_above


def _error_bar(estimate: Estimate, scale: float) -> np.ndarray | None:
    """Lengths [2, 1] below and above the value as shown, None where there is no interval."""
    ends = np.array([[estimate.value - estimate.low], [estimate.high - estimate.value]]) * scale
    return np.abs(ends) if np.isfinite(ends).all() else None


# -- what the caption says


def caption(shown: Lines) -> str:
    text = (
        "Each mark is one setting of a method (as a learning rate) with 95% intervals; lines join "
        "neighbouring gains. Up learns more, right keeps more; the star is the base model. Band: "
        f"95% interval of the {shown.kept.name} at that gain."
    )
    if shown.matched is not None:
        text += " Broken line: the gain that most methods share, at which the table compares."
    return text + alone_note([point.label for point in shown.alone])


# -- in words, and for the page's script


def alt(shown: Lines) -> Iterator[str]:
    """Each method's points."""
    for line in shown.lines:
        form = ".1f" if shown.kept.unit == "%" else ".3f"
        points = [
            f"{p.gain.value * 100:+.1f} with {p.retention.value * shown.kept.scale:+{form}}"
            for p in line.points
        ]
        yield f"{line.name} gains {', '.join(points)} of prior abilities"


def live(shown: Lines) -> list[LivePanel]:
    """One panel: a line of each method with several settings, a mark of each other."""
    alone = [Line(point.label, [point], np.empty((0, 4))) for point in shown.alone]
    lines = [_live_line(line, shown.looks[line.name], shown.kept.scale) for line in shown.lines]
    lines += [_live_line(line, shown.looks[line.name], shown.kept.scale) for line in alone]
    levels: list[tuple[str, float | None]] = []
    if shown.matched is not None:
        levels.append(("matched gain", numbers([shown.matched], 100)[0]))
    title, kept = "new-task gain (points)", _axis(shown)
    return [LivePanel("", kept, title, lines, levels, bases=[(0.0, 0.0)])]


def _live_line(line: Line, look: Look, scale: float) -> LiveLine:
    kept, gain = ([getattr(p, key) for p in line.points] for key in ("retention", "gain"))
    return LiveLine(
        line.name,
        look.colour,
        look.marker,
        look.dash != "-",
        numbers([e.value for e in kept], scale),
        numbers([e.value for e in gain], 100),
        numbers([e.low for e in gain], 100),
        numbers([e.high for e in gain], 100),
        numbers([e.low for e in kept], scale),
        numbers([e.high for e in kept], scale),
        ends=list(range(len(line.points))),
        quiet=look == FURTHER,
        names=[point.label for point in line.points],
    )


def _axis(shown: Lines) -> str:
    """The name of x."""
    return f"{shown.kept.name} (points)" if shown.kept.unit == "%" else shown.kept.name


def _picture(key: str, title: str) -> Picture[Lines]:
    return Picture(key, title, "results", partial(lines, key=key), draw, caption, alt, live)


FRONTIER = _picture("frontier", "Gain against retention")
LIKELIHOODS = _picture("frontier_likelihoods", "Gain against likelihoods")
