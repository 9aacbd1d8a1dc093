"""All methods below each other where they are many: accuracy, what was forgotten, what was kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.estimates import Estimate
from harness.report.pictures.picture import Picture, Source
from harness.report.style import (
    BASE,
    BROKEN,
    MOST_COLOURED,
    Form,
    Look,
    grid,
    shorten,
)
from harness.report.tables import headline

ROW = 0.19  # inches of a method
COLUMNS = {  # key of ``headline``: title, where the line of the base model is, None for its value
    "acc": ("accuracy at the end (%)", None),
    "bwt": ("earlier skills since learned", 0.0),
    "retention": ("prior abilities", 0.0),
}

# -- what is shown


@dataclass(frozen=True)
class Ranking:
    """Methods by accuracy at the end, the highest first, and their numbers, fractions.

    columns: those of ``COLUMNS`` that were measured; rows: {label: {column: number}}; base: the
    mean accuracy of each base model.
    """

    looks: dict[str, Look]
    columns: list[str]
    rows: dict[str, dict[str, Estimate]]
    base: list[float]


def ranking(source: Source) -> Ranking | None:
    """The methods that have ended a run, None where lines of all of them can be told apart."""
    results = source.results
    if len(source.looks) <= MOST_COLOURED:
        return None
    found = {label: headline(results, label) for label in source.looks}
    rows = {label: cells for label, cells in found.items() if np.isfinite(cells["acc"].value)}
    if not rows:
        return None
    known = {key for row in rows.values() for key, e in row.items() if np.isfinite(e.value)}
    columns = [column for column in COLUMNS if column in known]
    bases = [
        results.base_estimate(results.series[label].order, row).value
        for row, label in results.bases().items()
    ]
    return Ranking(source.looks, columns, rows, [base for base in bases if np.isfinite(base)])


# -- how it is drawn


def draw(shown: Ranking, form: Form) -> Figure:
    """A row a method and a panel a column; below each other on a narrow screen."""
    height = ROW * (len(shown.rows) + 1)
    figure, panels, _, columns = grid(len(shown.columns), form, height=height)
    for number, (axes, key) in enumerate(zip(panels, shown.columns, strict=True)):
        _draw_column(axes, shown, key)
        axes.tick_params(axis="y", length=0, labelleft=number % columns == 0)
    return figure


def _draw_column(axes: Axes, shown: Ranking, key: str) -> None:
    title, level = COLUMNS[key]
    for place, (label, row) in enumerate(shown.rows.items()):
        look, estimate = shown.looks[label], row[key]
        value, low, high = np.array([estimate.value, estimate.low, estimate.high]) * 100
        axes.hlines(place, low, high, color=look.colour, linewidth=1.4, zorder=2)
        axes.plot(value, place, look.marker, color=look.colour, markersize=5, zorder=3)
    for value in shown.base if level is None else [level]:
        axes.axvline(value * 100, color=BASE, linewidth=1.2, linestyle=BROKEN, zorder=1)
    axes.set_title(title)
    axes.set_yticks(range(len(shown.rows)), [shorten(label, 24) for label in shown.rows])
    axes.set_ylim(len(shown.rows) - 0.5, -0.5)


# -- what the caption says


def caption(shown: Ranking) -> str:
    return (
        "Methods by accuracy at the end. Bars: 95% intervals, over questions and seeds, where "
        "there is one seed over questions alone. Broken lines: the base model, or no change. "
        "Changes in points: of earlier skills since their own stage (BWT), and of the mean of "
        "prior abilities since the base model. Colours are those of the other pictures, where "
        "SFT, SDFT, GRPO and the best have one."
    )


# -- in words


def alt(shown: Ranking) -> Iterator[str]:
    """Each method's accuracy at the end."""
    for label, row in shown.rows.items():
        yield f"{label} {row['acc'].value * 100:.1f} %"


RANKING = Picture("ranking", "Methods by accuracy", "results", ranking, draw, caption, alt)
