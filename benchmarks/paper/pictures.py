"""The three kinds of picture: bars, lines along an axis, and a plane. Numbers in, a figure out.

A frame has the columns of benchmarks.paper.form. Colours, markers and dashes of the series are
those of the harness's own report.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.form import TITLES
from benchmarks.paper.training import TrainingCurves
from harness.report.style import (
    BASE,
    BROKEN,
    INK,
    MUTED,
    PAPER,
    WIDE,
    Dash,
    Form,
    base_line,
    curve,
    grid,
    legend,
    shifts,
)

Looks = Mapping[str, tuple[str, str, Dash]]  # colour, marker and dash of a series
AXIS_LABELS = {  # of the values, by their unit; other units bear their name
    "%": "accuracy (%)",
    "points": "sdft − sft (points)",
    "normalised": "normalised accuracy",
}


def bars(frame: pd.DataFrame, looks: Looks, form: Form, panel: str, bar: str) -> Figure:
    """One panel a value of column ``panel``, one bar a value of column ``bar``, with its number."""
    names = _distinct(frame[panel])
    most = max(len(frame[frame[panel] == name]) for name in names)
    width = max(2.7, 1.0 + 0.85 * most)
    figure, panels, _, _ = grid(len(names), form, width=width, columns=2 if most < 5 else 1)
    for axes, name in zip(panels, names, strict=True):
        rows = frame[frame[panel] == name]
        _draw_bars(axes, rows, looks)
        labels = [_broken(text) for text in rows[bar].astype(str)]
        is_slanted = form is not WIDE and len(rows) > 3
        slanted: dict[str, Any] = (
            {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if is_slanted else {}
        )
        axes.set_xticks(range(len(rows)), labels, color=INK, **slanted)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.16)
        middle = (len(rows) - 1) / 2
        half = max(len(rows), 2.4) / 2  # few bars stay narrow
        axes.set_xlim(middle - half, middle + half)
        axes.set_title(TITLES.get(name, name))
        axes.set_ylabel(_axis_label(rows))
    return figure


def _draw_bars(axes: Axes, rows: pd.DataFrame, looks: Looks) -> None:
    """The bars of one panel, their intervals, and their values above or below them."""
    colours = [looks[series][0] if series in looks else BASE for series in rows["series"]]
    spread = _error_bars(rows)
    places = range(len(rows))
    axes.bar(places, rows["value"], width=0.62, color=colours, zorder=2)
    axes.errorbar(
        places, rows["value"], yerr=spread, fmt="none", ecolor=INK, elinewidth=1.1, zorder=3
    )
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    form = ".3g" if rows["unit"].iloc[0] == "nats" else ".1f"
    for place, value, below, above in zip(places, rows["value"], *spread, strict=True):
        up = value >= 0
        axes.annotate(
            format(value, form).replace("-", "−"),
            (place, value + above if up else value - below),
            xytext=(0, 3 if up else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize=8.5,
        )


def lines(
    frame: pd.DataFrame,
    looks: Looks,
    form: Form,
    x_label: str,
    y_label: str = "",
    log: bool = False,
) -> Figure:
    """One panel a task, one line a series with whiskers; log: x is powers of two."""
    figure, panels = _line_panels(frame, looks, form, x_label, y_label or _axis_label(frame))
    if log:
        ticks = sorted({int(x) for x in frame["x"]})
        for axes in panels.values():
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(k) for k in ticks])
            axes.minorticks_off()
    return figure


def sequence_lines(
    frame: pd.DataFrame, looks: Looks, form: Form, training: TrainingCurves
) -> Figure:
    """Lines of normalised accuracy along a sequence of skills, with the borders of its stages."""
    figure, panels = _line_panels(frame, looks, form, training.axis.title, _axis_label(frame))
    for skill, axes in panels.items():
        training.axis.frame(axes, training.axis.stage_of(skill))
        base_line(axes, 0)
        axes.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1), min(high, 1.8))
        axes.set_title(skill, pad=13)  # the names of the stages are below it
    return figure


def _line_panels(
    frame: pd.DataFrame, looks: Looks, form: Form, x_label: str, y_label: str
) -> tuple[Figure, dict[str, Axes]]:
    """A figure with the curves of every task in a panel, and {task: its panel}."""
    frame = frame.assign(x=frame["x"].astype(float))
    names, labels = _distinct(frame["panel"]), _distinct(frame["series"])
    several = len(names) > 1
    figure, panels, _, columns = grid(
        len(names), form, width=3.4 if several else 5.4, height=2.5 if several else 3.1
    )
    for name, axes in zip(names, panels, strict=True):
        for label, shift in zip(labels, shifts(len(labels)), strict=True):
            rows = frame[(frame["panel"] == name) & (frame["series"] == label)].sort_values("x")
            if len(rows):
                low, high = _band(rows)
                curve(axes, looks[label], rows["x"], rows["value"], low, high, 1, shift)
        axes.set_title(name)
    for axes in panels[::columns]:
        axes.set_ylabel(y_label)
    for axes in panels[-columns:]:
        axes.set_xlabel(x_label)
    legend(figure, looks, labels)
    return figure, dict(zip(names, panels, strict=True))


def _band(rows: pd.DataFrame) -> np.ndarray:
    """Lower and upper bounds [2, rows]; those of percentages stay within 0 and 100."""
    bounds = rows[["low", "high"]].to_numpy(float).T
    return bounds.clip(0, 100) if rows["unit"].iloc[0] == "%" else bounds


def plane(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figure 4: the new task (up) against the mean of prior capabilities (right).

    One panel a task; a dashed cross marks the base model.
    """
    frame = frame[frame["x"].isin(["new_task", "prior_avg"])]
    names = _distinct(frame["panel"])
    labels = [label for label in _distinct(frame["series"]) if label != "base"]
    several = len(names) > 1
    figure, panels, _, columns = grid(
        len(names), form, width=3.4 if several else 5.4, height=2.7 if several else 3.3
    )
    for name, axes in zip(names, panels, strict=True):
        points = frame[frame["panel"] == name]
        for rank, label in enumerate(["base", *labels]):
            # The first are larger, so that of two points in one place both are seen.
            size = max(7, 13 - 1.5 * rank)
            _draw_point(axes, points[points["series"] == label], looks, label, size)
        axes.margins(0.14)
        axes.set_title(name)
        axes.set_xlabel("mean of prior capabilities (%)")
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy on the new task (%)")
    without_lines: dict[str, Any] = {label: (*looks[label][:2], "none") for label in labels}
    legend(figure, without_lines, labels, base=True)
    return figure


def _draw_point(axes: Axes, rows: pd.DataFrame, looks: Looks, label: str, size: float) -> None:
    """One series in the plane; nothing where one of its two numbers is missing."""
    x, y = rows[rows["x"] == "prior_avg"], rows[rows["x"] == "new_task"]
    if x.empty or y.empty:
        return
    if label == "base":
        cross: dict[str, Any] = {"color": BASE, "linewidth": 1, "linestyle": BROKEN, "zorder": 1}
        axes.axvline(x["value"].iloc[0], **cross)
        axes.axhline(y["value"].iloc[0], **cross)
    colour, marker, _ = looks.get(label, (BASE, "*", "-"))
    axes.errorbar(
        x["value"],
        y["value"],
        xerr=_error_bars(x),
        yerr=_error_bars(y),
        color=colour,
        marker=marker,
        linestyle="none",
        markersize=size,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        elinewidth=1.1,
        zorder=4,
    )


def _error_bars(rows: pd.DataFrame) -> np.ndarray:
    """Lengths [2, rows] of the intervals below and above the values; 0 where there is none."""
    below = (rows["value"] - rows["low"]).to_numpy(float)
    above = (rows["high"] - rows["value"]).to_numpy(float)
    return np.nan_to_num(np.stack([below, above])).clip(0)


def _axis_label(rows: pd.DataFrame) -> str:
    unit = rows["unit"].iloc[0]
    return AXIS_LABELS.get(unit, unit)


def _broken(text: str, width: int = 13) -> str:
    """A label in lines of about ``width`` letters, broken at blanks, hyphens and underscores."""
    broken = [""]
    for part in re.findall(r"[^\s_-]+[\s_-]?", text):
        if broken[-1] and len(broken[-1] + part.strip()) > width:
            broken.append("")
        broken[-1] += part
    return "\n".join(line.strip() for line in broken)


def _distinct(values: pd.Series) -> list[str]:
    """The different values, in the order in which they first occur."""
    return list(dict.fromkeys(values))
