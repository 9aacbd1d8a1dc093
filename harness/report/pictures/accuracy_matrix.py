"""Accuracy matrices: every skill (column) after every stage (row), one heat map a method."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from harness.report.links import stage_link
from harness.report.pictures.live import LiveCells, numbers
from harness.report.pictures.picture import MOST_PANELS, Picture, Source
from harness.report.style import (
    FRAME,
    FURTHER,
    HEAT,
    INK,
    NARROW,
    PAPER,
    WIDE,
    Form,
    grid,
    shorten,
)

# With more skills the numbers are not written into the cells, by the form.
MOST_NUMBERS = {WIDE: 10, NARROW: 5}
COLOURS = 17  # of the page's heat map, between which its script mixes
MOST_TICKS = 10  # on an axis whose cells have no numbers

# -- what is shown


@dataclass(frozen=True)
class Matrix:
    """Accuracy of one method in per cent [T + 1, T], mean over seeds; NaN where not measured.

    low, high: its interval; n: answers of a run; runs: how many have it; addresses: of the skills
    in the viewer.
    """

    label: str
    skills: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    runs: np.ndarray
    addresses: list[str]


@dataclass(frozen=True)
class AccuracyMatrices:
    """The matrices of the methods; of more than MOST_PANELS those that have a colour elsewhere.

    highest: of any run in per cent, where the scale of colours ends; stages: the most of any
    order; longest_name: letters of the longest skill's name as it is drawn; methods: how many there
    are that have numbers.
    """

    matrices: list[Matrix]
    highest: float
    stages: int
    longest_name: int
    methods: int

    def with_numbers(self, form: Form) -> bool:
        """Whether the cells are large enough for numbers."""
        return self.stages <= MOST_NUMBERS[form]


def accuracy_matrices(source: Source) -> AccuracyMatrices | None:
    """The matrices of the methods that have any number, None where none has."""
    results = source.results
    measured = [label for label in results.series if np.isfinite(results.R[label]).any()]
    if not measured:
        return None
    coloured = [label for label in measured if source.looks[label] != FURTHER]
    labels = measured if len(measured) <= MOST_PANELS else coloured
    return AccuracyMatrices(
        [_matrix(source, label) for label in labels],
        highest=float(max(np.nanmax(results.R[label]) for label in labels)) * 100,
        stages=source.axis.longest,
        longest_name=max((len(_column_name(skill)) for skill in results.skills), default=4),
        methods=len(measured),
    )


def _matrix(source: Source, label: str) -> Matrix:
    """One method's matrix; the interval of a cell is that of the curve at the end of its stage."""
    results, edges = source.results, source.axis.edges
    skills = tuple(results.series[label].order)
    known = np.full((4, len(skills) + 1, len(skills)), np.nan)  # low, high, n, runs
    points = source.curves[source.curves["label"] == label]
    for name, x, *facts in points[["name", "x", "low", "high", "n", "seeds"]].itertuples(False):
        stage = int(np.abs(edges - x).argmin())
        if name in skills and np.isclose(edges[stage], x, atol=1e-4):
            known[:, stage, skills.index(name)] = facts
    low, high, n, runs = known
    addresses = [stage_link(results, label, skill) for skill in skills]
    values = mean_over_seeds(results.R[label])
    return Matrix(label, skills, values, low * 100, high * 100, n, runs, addresses)


def mean_over_seeds(R: np.ndarray) -> np.ndarray:
    """Mean [T + 1, T] in per cent over the seeds that have a number; NaN where none has."""
    count = np.isfinite(R).sum(axis=0)
    return np.where(count > 0, np.nansum(R, axis=0) / np.maximum(count, 1), np.nan) * 100


def _column_name(skill: str) -> str:
    return shorten(skill, 14)


# -- how it is drawn


def draw(shown: AccuracyMatrices, form: Form) -> Figure:
    """One heat map a method, all in one scale of colours."""
    numbers = shown.with_numbers(form)
    narrow = shown.stages <= 6 or not numbers
    height = 0.9 + 0.32 * (shown.stages + 1) if numbers else 3.3
    figure, all_axes, rows, columns = grid(
        len(shown.matrices),
        form,
        width=3.6 if narrow else 5.2,
        height=height + 0.05 * shown.longest_name,
        columns=3 if narrow else 2,
    )
    for number, (axes, matrix) in enumerate(zip(all_axes, shown.matrices, strict=True)):
        mesh = _draw_cells(axes, matrix, shown, numbers)
        _name_cells(axes, matrix, shown, numbers)
        axes.set_title(matrix.label, color=INK)
        if number % columns == 0:
            axes.set_ylabel("after stage")
        if numbers:
            _write_numbers(axes, matrix, shown.highest)
        _frame_own_stages(axes, matrix, 1.6 if numbers else 0.7)
    bar = figure.colorbar(
        mesh,
        ax=all_axes,
        shrink=0.8 / rows,
        aspect=24,
        pad=0.02,
        anchor=(0, 1),
        label="accuracy (%)",
    )
    bar.outline.set_visible(False)
    return figure


def _draw_cells(axes: Axes, matrix: Matrix, shown: AccuracyMatrices, numbers: bool) -> QuadMesh:
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(matrix.values),
        cmap=HEAT,
        vmin=0,
        vmax=max(shown.highest, 1),
        edgecolors=PAPER if numbers else "none",
        linewidth=1.2 if numbers else 0,
        rasterized=not numbers,
    )
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def _name_cells(axes: Axes, matrix: Matrix, shown: AccuracyMatrices, numbers: bool) -> None:
    """Names of skills below the columns; stages, with the skill that each teaches, left of rows."""
    count = len(matrix.skills)
    every = 1 if numbers else max(1, -(-count // MOST_TICKS))
    slanted = shown.longest_name > 8 or shown.stages > 4
    axes.set_xticks(
        np.arange(0, count, every) + 0.5,
        [_column_name(skill) for skill in matrix.skills[::every]],
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
    )
    rows = ["base"]
    for stage, skill in enumerate(matrix.skills, 1):
        rows.append(f"{stage} {shorten(skill, 12)}" if numbers else str(stage))
    axes.set_yticks(np.arange(0, count + 1, every) + 0.5, rows[::every])


def _write_numbers(axes: Axes, matrix: Matrix, highest: float) -> None:
    for stage, i in np.ndindex(matrix.values.shape):
        value = matrix.values[stage, i]
        if np.isfinite(value):
            axes.text(
                i + 0.5,
                stage + 0.5,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8.5,
                fontweight="bold" if stage == i + 1 else "normal",
                # Not PAPER and INK: a dark picture keeps the colours of the cells.
                color="#fffffe" if value > 0.55 * highest else "#111418",
            )


def _frame_own_stages(axes: Axes, matrix: Matrix, linewidth: float) -> None:
    """A frame around the accuracy of each skill after the stage that teaches it."""
    for i in range(len(matrix.skills)):
        axes.plot(
            [i, i + 1, i + 1, i, i],
            [i + 1, i + 1, i + 2, i + 2, i + 1],
            color=FRAME,
            linewidth=linewidth,
            zorder=4,
            clip_on=False,
        )


# -- what the caption says


def caption(shown: AccuracyMatrices) -> str:
    text = (
        "Accuracy of every skill (column) after every stage (row); framed: the stage that teaches "
        "it. Mean over the seeds that have it. Right of the frames: skills not yet "
        "learned; below: what is left of learned ones. Blank: not measured."
    )
    if len(shown.matrices) < shown.methods:
        text += (
            f" The {len(shown.matrices)} of {shown.methods} methods are drawn that have a colour "
            "in the curves: the best by accuracy, and SFT, SDFT and GRPO."
        )
    return text


def alt(shown: AccuracyMatrices) -> Iterator[str]:
    """The last row of each matrix."""
    for matrix in shown.matrices:
        cells = zip(matrix.skills, matrix.values[-1], strict=True)
        known = [f"{shorten(k, 14)} {v:.0f} %" for k, v in cells if np.isfinite(v)]
        yield f"{matrix.label} at the end: {', '.join(known) or 'not measured'}"


def live(shown: AccuracyMatrices) -> list[LiveCells]:
    """One heat map a method."""
    colours = [to_hex(HEAT(share)) for share in np.linspace(0, 1, COLOURS)]
    return [
        LiveCells(
            matrix.label,
            "accuracy (%)",
            ["base", *(f"{stage} {skill}" for stage, skill in enumerate(matrix.skills, 1))],
            list(matrix.skills),
            values=_cells(matrix.values),
            low=_cells(matrix.low),
            high=_cells(matrix.high),
            n=_cells(matrix.n),
            runs=_cells(matrix.runs),
            highest=max(shown.highest, 1),
            colours=colours,
            frame=FRAME,
            addresses=matrix.addresses,
        )
        for matrix in shown.matrices
    ]


def _cells(values: np.ndarray) -> list[list[float | None]]:
    return [numbers(row) for row in values]


ACCURACY_MATRIX = Picture(
    "accuracy_matrix",
    "Accuracy matrices",
    "skills",
    accuracy_matrices,
    draw,
    caption,
    alt,
    live,
    by_sequence=True,
)
