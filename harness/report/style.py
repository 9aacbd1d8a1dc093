"""The look of every picture: colours, fonts, the panels of a figure, the files it is saved as.

Colours are those of Okabe & Ito, which readers with any common colour blindness tell apart, four of
them darkened. Markers and dashes repeat the difference. Of many methods the best have them, and the
lines of the others are thin and grey. No letter is below SMALL points, 10 pixels.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox, ScaledTranslation, Transform
from matplotlib.typing import RcKeyType
from numpy.typing import ArrayLike

Dash = Literal["-"] | tuple[float, Sequence[float]]

INK = "#1b1f24"
MUTED = "#59636e"
GRID = "#e4e7eb"
PAPER = "#fefefe"
BASE = "#5a5a5a"
SHADE = "#f3f4f6"
FRAME = "#E69F00"
# The colours of a dark page. A dark picture is the light SVG with these replaced. Those of methods
# are not among them: each has a contrast of 3 to both papers, so that a method has one colour.
DARK = {
    INK: "#e8eaed",
    MUTED: "#a3abb5",
    GRID: "#343a42",
    PAPER: "#171a1f",
    BASE: "#b9bec5",
    SHADE: "#22272e",
}
FIXED = {"sft": ("#D55E00", "o"), "sdft": ("#0072B2", "s"), "grpo": ("#009E73", "^")}
OTHERS = ["#C673A1", "#B07800", "#3292CC", "#8A8000"]  # darkened: lines on white as on black
GREY = "#7b8490"
MOST_COLOURED = 10  # methods
MARKERS = ["D", "v", "P", "X", "<", ">", "p", "h"]
DASHES: list[Dash] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
BROKEN: Dash = (0, (4, 2))  # of the base model's line
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
)
FINE = 0.8  # points, of a grey line
SMALL = 8.0
LETTERS = 14  # of a name beside the end of its line
STEPS_AWAY = 6  # lines of letters that a name may be away from its point
MOST_NAMED = 6  # lines of a panel that are named there
SHIFT, MOST_SHIFT = 3.2, 14.0  # points between neighbouring lines; between the first and the last
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
    "path.simplify": True,
    "text.parse_math": False,  # a name with $ is a name
}


class Form(NamedTuple):
    """What a picture is drawn for: columns of panels, and the width of a column in inches.

    folder: of its files in the folder of the pictures; it has PNG beside SVG if it is the first.
    """

    folder: str
    columns: int
    width: float


WIDE = Form("", 3, 3.4)
NARROW = Form("narrow", 1, 3.6)  # of a screen of 390 pixels, without its margins


class Look(NamedTuple):
    """How the line of one method looks."""

    colour: str
    marker: str
    dash: Dash


FURTHER = Look(GREY, "o", "-")  # of each method beyond MOST_COLOURED


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each label: fixed for sft, sdft and grpo, else by the hash of the label.

    A label keeps its look from report to report, unless an alphabetically earlier one hashes to
    the same. Plain lines are given out before dashed ones. Of more than MOST_COLOURED labels those
    with a fixed look and the first others have one, the rest ``FURTHER``.
    """
    fixed = [label for label in labels if label in FIXED]
    others = [label for label in labels if label not in FIXED]
    coloured = [*fixed, *others[: MOST_COLOURED - len(fixed)]]
    slots = [
        [
            Look(colour, MARKERS[(i + len(OTHERS) * row + row // 2) % len(MARKERS)], dash)
            for i, colour in enumerate(OTHERS)
        ]
        for row, dash in enumerate(DASHES)
    ]
    chosen: dict[str, Look] = {}
    for label in sorted(coloured):
        if label in FIXED:
            chosen[label] = Look(*FIXED[label], "-")
            continue
        start = zlib.crc32(label.encode()) % len(OTHERS)
        ring = [look for row in slots for look in row[start:] + row[:start]]
        taken = set(chosen.values())
        chosen[label] = next(look for look in ring if look not in taken)
    return {label: chosen.get(label, FURTHER) for label in labels}


def save(figure: Figure, folder: Path, name: str, form: Form = WIDE) -> None:
    """Writes ``name`` as SVG into the form's folder of ``folder``, dark into ``dark`` in there.

    The wide form has a PNG too. The figure is laid out once, for it; the SVG has the same layout.
    """
    folder = folder / form.folder
    (folder / "dark").mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    if form is WIDE:
        figure.savefig(folder / f"{name}.png", dpi=160)
        figure.set_layout_engine(None)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    text = (folder / f"{name}.svg").read_text(encoding="utf-8")
    for light, dark in DARK.items():
        text = text.replace(light.lower(), dark)
    (folder / "dark" / f"{name}.svg").write_text(text, encoding="utf-8")


def single() -> tuple[Figure, Axes]:
    """A figure of one large panel, as wide as the narrow form."""
    figure = Figure(figsize=(NARROW.width, 3.4), layout="constrained")
    return figure, figure.subplots()


def grid(
    count: int,
    form: Form = WIDE,
    width: float = WIDE.width,
    height: float = 2.35,
    columns: int = WIDE.columns,
) -> tuple[Figure, list[Axes], int, int]:
    """A figure of ``count`` panels, each ``width`` by ``height`` inches in the wide form.

    Returns (figure, panels, rows, columns).
    """
    if form is not WIDE:
        width, columns = form.width, form.columns
    columns = min(columns, max(1, count))
    rows = -(-count // columns)
    figure = Figure(
        figsize=(max(NARROW.width, width * columns), height * rows + 0.55),
        layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06, hspace=0.04),
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    for empty in panels.flat[count:]:
        empty.set_visible(False)
    return figure, list(panels.flat[:count]), rows, columns


def legend(
    figure: Figure,
    look: Mapping[str, tuple[str, str, Dash]],
    labels: Sequence[str],
    base: bool = False,
) -> None:
    """Puts a legend above the panels, in as many columns as the figure's width has room for.

    Further rows make the figure higher. base: whether the base model's line is explained as well.
    All ``FURTHER`` labels have one entry together.
    """
    handles = []
    grey = [label for label in labels if look[label] == FURTHER]
    size = matplotlib.rcParams["legend.fontsize"]
    room = 72 * figure.get_figwidth() - size  # in points
    letters = min(54, int((room - 4 * size) / (0.64 * size)))
    for label in labels:
        if label in grey:
            continue
        colour, marker, dash = look[label]
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                linestyle=dash,
                label=shorten(label, letters),
            )
        )
    if grey:
        entry = Line2D([], [], color=GREY, marker="o", markersize=4, linewidth=FINE)
        entry.set_label(f"{len(grey)} others")
        handles.append(entry)
    if base:
        handles.append(Line2D([], [], color=BASE, linestyle=BROKEN, linewidth=1.2, label="base"))
    widest = max((_text_width(str(handle.get_label()), size) for handle in handles), default=0)
    # A column takes: handle 2.6 letters, gap to the text 0.8, to the next column 2.
    columns = max(1, min(6, len(handles), int((room + 2 * size) // (widest + 5.4 * size))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 1.6 * size / 72 * max(0, rows - 1))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)


def _text_width(text: str, size: float) -> float:
    return TextPath((0, 0), text, size=size).get_extents().width


def shifts(count: int) -> list[float]:
    """How far each of ``count`` lines of a panel is moved to the right, in points; 0 on average."""
    step = min(SHIFT, MOST_SHIFT / max(1, count - 1))
    return [step * (place - (count - 1) / 2) for place in range(count)]


def moved_right(axes: Axes, shift: float) -> Transform:
    """Where the data of axes are drawn, ``shift`` points further to the right."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)


def extend_limits(axes: Axes, x: ArrayLike, y: ArrayLike) -> None:
    """Counts points in the limits of the axes, in which what is moved does not count by itself."""
    points = np.stack([np.asarray(x, float), np.asarray(y, float)], 1)
    axes.update_datalim(points[np.isfinite(points).all(axis=1)])
    axes.autoscale_view()


def curve(
    axes: Axes,
    look: tuple[str, str, Dash],
    x: ArrayLike,
    y: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    scale: float = 100,
    shift: float = 0,
    at: ArrayLike | None = None,
) -> None:
    """Draws a line with its markers, and whiskers from ``low`` to ``high`` where they are finite.

    look: one of ``looks``; ``FURTHER`` has neither markers nor whiskers; scale: a factor on y and
    its whiskers, 100 for a fraction in per cent; shift: to the right, in points; at: the x of the
    points that have whiskers, None for all.
    """
    if look == FURTHER:
        further_line(axes, x, np.asarray(y, float) * scale)
        return
    colour, marker, dash = look
    x = np.asarray(x, float)
    y, low, high = (np.asarray(values, float) * scale for values in (y, low, high))
    moved = moved_right(axes, shift)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=dash,
        marker=marker if len(x) <= 40 else None,
        markersize=4,
        zorder=3,
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
        transform=moved,
    )
    known = np.isfinite(y) & np.isfinite(low) & np.isfinite(high)
    if at is not None:
        known &= np.isclose(x[:, None], np.asarray(at, float)).any(axis=1)
    axes.vlines(
        x[known], low[known], high[known], color=colour, linewidth=1, zorder=2.5, transform=moved
    )
    extend_limits(axes, x, y)
    for bound in (low, high):
        extend_limits(axes, x[known], bound[known])


def further_line(axes: Axes, x: ArrayLike, y: ArrayLike) -> None:
    """Draws the thin line of a ``FURTHER`` label, below the others."""
    axes.plot(x, y, color=GREY, linewidth=FINE, alpha=0.6, zorder=2)


def further_mark(axes: Axes, x: float, y: float) -> None:
    """Draws the small mark of a ``FURTHER`` label, below the others."""
    axes.plot(
        x,
        y,
        color=GREY,
        marker=FURTHER.marker,
        markersize=5,
        markeredgecolor=PAPER,
        linestyle="none",
        zorder=2.5,
    )


def can_be_named(labels: Sequence[str]) -> bool:
    """Whether the lines of a panel are few, and their names short, so that no legend is needed."""
    return len(labels) <= MOST_NAMED and max(map(len, labels), default=0) <= LETTERS


def name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Writes names (text, y of the line's end, colour) to the right of a panel, none on another.

    A thin line leads from the end to its name. The limits of y must be set.
    """
    ends = [end for end in ends if np.isfinite(end[1])]
    low, high = axes.get_ylim()
    places = [float(np.clip((y - low) / (high - low), 0, 1)) for _, y, _ in ends]
    order = np.argsort(places, kind="stable")
    room = 0.085  # of a line of letters, as a share of the panel's height
    free = [places[i] for i in order]
    for k in range(1, len(free)):
        free[k] = max(free[k], free[k - 1] + room)
    free = [y - max(0.0, free[-1] - 1.02) for y in free] if free else free
    for k in range(len(free) - 2, -1, -1):
        free[k] = min(free[k], free[k + 1] - room)
    for i, y in zip(order, free, strict=True):
        text, _, colour = ends[i]
        axes.annotate(
            text,
            (1.0, places[i]),
            xycoords="axes fraction",
            xytext=(1.06, y),
            textcoords="axes fraction",
            fontsize=SMALL,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def name_points(axes: Axes, points: Sequence[tuple[str, float, float, bool]]) -> None:
    """Writes the name of each point (text, x, y, rather above than below) beside it.

    A name takes the nearest place where it covers no other name and no point; from further away a
    thin line leads to its point. Call it last: what is near depends on the layout.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    unit = 72 / figure.dpi  # points per dot of the screen
    left, right = axes.bbox.x0 * unit, axes.bbox.x1 * unit
    spots = [axes.transData.transform((x, y)) * unit for _, x, y, _ in points]
    taken = [Bbox.from_extents(*(spot - 4), *(spot + 4)) for spot in spots]
    for (text, x, y, is_above), spot in zip(points, spots, strict=True):
        width, height = _text_width(text, SMALL), 1.15 * SMALL
        choices = []  # what is covered, in square points, and where, the nearest first
        for step in range(STEPS_AWAY):
            for up in (is_above, not is_above):
                for dx in (6.0, -6.0 - width):
                    dy = 4 + step * height if up else -4 - (step + 1) * height
                    box = Bbox.from_bounds(spot[0] + dx, spot[1] + dy, width, height)
                    outside = max(0.0, left - box.x0) + max(0.0, box.x1 - right)
                    covered = sum(_common_area(box, other) for other in taken)
                    choices.append((covered + outside * height, step, dx, dy, box))
        _, step, dx, dy, box = min(choices, key=lambda choice: choice[0])  # the first of equals
        taken.append(box)
        axes.annotate(
            text,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            fontsize=SMALL,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6} if step else None,
        )


def _common_area(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else float(common.width * common.height)


def base_line(axes: Axes, y: float) -> None:
    """Draws the broken line of a base model across the panel."""
    axes.axhline(y, color=BASE, linewidth=1.2, linestyle=BROKEN, zorder=1)


def shorten(text: str, most: int) -> str:
    """``text`` in at most ``most`` letters, shortened in the middle.

    Names of one family differ at their ends.
    """
    tail = (most - 1) // 2
    return text if len(text) <= most else text[: most - 1 - tail] + "…" + text[-tail:]
