"""The look of every picture: colours, fonts, the panels of a figure, the files it is saved as.

Colours are the eight of Okabe & Ito, which readers with any common colour blindness tell apart.
Markers and dashes repeat the difference.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
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
from matplotlib.textpath import TextPath
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
# The colours of a dark page. A dark picture is the light SVG with these replaced.
DARK = {
    INK: "#e8eaed",
    MUTED: "#a3abb5",
    GRID: "#343a42",
    PAPER: "#171a1f",
    BASE: "#b9bec5",
    SHADE: "#22272e",
    "#0072b2": "#4aa3df",
    "#d55e00": "#f08a3c",
    "#009e73": "#2fc59a",
}
FIXED = {"sft": ("#D55E00", "o"), "sdft": ("#0072B2", "s"), "grpo": ("#009E73", "^")}
OTHERS = ["#CC79A7", "#E69F00", "#56B4E9", "#B8A900"]  # the yellow darkened: lines on white
MARKERS = ["D", "v", "P", "X", "<", ">", "p", "h"]
DASHES: list[Dash] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
BROKEN: Dash = (0, (4, 2))  # of the base model's line
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
)
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


class Look(NamedTuple):
    """How the line of one method looks."""

    colour: str
    marker: str
    dash: Dash


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """The look of each label: fixed for sft, sdft and grpo, else by the hash of the label.

    A label keeps its look from report to report, unless an alphabetically earlier one hashes to
    the same. Plain lines are given out before dashed ones.
    """
    slots = [
        [
            Look(colour, MARKERS[(i + len(OTHERS) * row) % len(MARKERS)], dash)
            for i, colour in enumerate(OTHERS)
        ]
        for row, dash in enumerate(DASHES)
    ]
    chosen: dict[str, Look] = {}
    for label in sorted(labels):
        if label in FIXED:
            chosen[label] = Look(*FIXED[label], "-")
            continue
        start = zlib.crc32(label.encode()) % len(OTHERS)
        ring = [look for row in slots for look in row[start:] + row[:start]]
        taken = set(chosen.values())
        chosen[label] = next((look for look in ring if look not in taken), ring[0])
    return chosen


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``name`` as PNG and SVG into ``folder``, and as a dark SVG into ``folder/dark``.

    The figure is laid out once, for the PNG; the SVG has the same layout.
    """
    (folder / "dark").mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(folder / f"{name}.png", dpi=160)
    figure.set_layout_engine(None)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    text = (folder / f"{name}.svg").read_text(encoding="utf-8")
    for light, dark in DARK.items():
        text = text.replace(light.lower(), dark)
    (folder / "dark" / f"{name}.svg").write_text(text, encoding="utf-8")


def grid(
    count: int, width: float = 3.4, height: float = 2.35, columns: int = 3
) -> tuple[Figure, list[Axes], int, int]:
    """A figure of ``count`` panels, each ``width`` by ``height`` inches.

    Returns (figure, panels, rows, columns).
    """
    columns = min(columns, max(1, count))
    rows = -(-count // columns)
    figure = Figure(
        figsize=(max(5.4, width * columns), height * rows + 0.55),
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
    markers: bool = True,
) -> None:
    """Puts a legend above the panels, in as many columns as the figure's width has room for.

    Further rows make the figure higher. base: whether the base model's line is explained as well.
    """
    handles = []
    for label in labels:
        colour, marker, dash = look[label]
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker if markers else None,
                linestyle=dash,
                label=shorten(label, 54),
            )
        )
    if base:
        handles.append(Line2D([], [], color=BASE, linestyle=BROKEN, linewidth=1.2, label="base"))
    size = matplotlib.rcParams["legend.fontsize"]
    widest = max((_text_width(str(handle.get_label()), size) for handle in handles), default=0)
    # In points. A column takes: handle 2.6 letters, gap to the text 0.8, to the next column 2.
    room = 72 * figure.get_figwidth() - size
    columns = max(1, min(6, len(handles), int((room + 2 * size) // (widest + 5.4 * size))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 1.6 * size / 72 * max(0, rows - 1))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)


def _text_width(text: str, size: float) -> float:
    return TextPath((0, 0), text, size=size).get_extents().width


def curve(
    axes: Axes,
    look: tuple[str, str, Dash],
    x: ArrayLike,
    y: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    scale: float = 100,
) -> None:
    """Draws a line with its markers, and the band from ``low`` to ``high`` where they are finite.

    look: one of ``looks``; scale: a factor on y and its band, 100 for a fraction in per cent.
    """
    colour, marker, dash = look
    x = np.asarray(x, float)
    y = np.asarray(y, float) * scale
    low = np.asarray(low, float) * scale
    high = np.asarray(high, float) * scale
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
    )
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)


def base_line(axes: Axes, y: float) -> None:
    """Draws the broken line of a base model across the panel."""
    axes.axhline(y, color=BASE, linewidth=1.2, linestyle=BROKEN, zorder=1)


def shorten(text: str, most: int) -> str:
    """``text`` in at most ``most`` letters, shortened in the middle.

    Names of one family differ at their ends.
    """
    tail = (most - 1) // 2
    return text if len(text) <= most else text[: most - 1 - tail] + "…" + text[-tail:]
