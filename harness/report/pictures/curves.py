"""Forgetting curves: the accuracy of every skill along training, in per cent and normalised."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.base import metrics
from harness.report.data import ReportData
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.live import LivePanel, training_lines, training_panel
from harness.report.pictures.picture import MOST_PANELS, Picture, Source, only_first
from harness.report.style import (
    BASE,
    FURTHER,
    MUTED,
    Form,
    Look,
    base_line,
    can_be_named,
    curve,
    grid,
    legend,
    name_ends,
    shifts,
    shorten,
)

COLUMNS = ["label", "name", "x", "value", "seeds", "stderr", "n", "stage", "low", "high"]
BOUNDS = ["value", "low", "high"]

# -- what is shown


@dataclass(frozen=True)
class SkillPanel:
    """The curves of one skill.

    stage: the one that teaches the skill, None where methods differ in it; lines: {label: x, value,
    low, high}; bases: the accuracy of each base model.
    """

    skill: str
    stage: int | None
    lines: dict[str, pd.DataFrame]
    bases: list[float]


@dataclass(frozen=True)
class AccuracyCurves:
    """Panels of the first skills, and what the captions say about them.

    skills: how many there are in all; uneven: labels with points that not all runs have reached;
    level: skills on which no method is above the base model.
    """

    axis: TrainingAxis
    looks: dict[str, Look]
    labels: list[str]
    panels: list[SkillPanel]
    skills: int
    uneven: list[str]
    level: list[str]


def accuracy_curves_table(results: ReportData, axis: TrainingAxis) -> pd.DataFrame:
    """The accuracy of every skill along training, mean over seeds: ``COLUMNS``, fractions."""
    if results.skill_records.empty:
        return pd.DataFrame(columns=COLUMNS)
    return axis.average(results.skill_records, results.skills)


def normalised_curves_table(curves: pd.DataFrame, axis: TrainingAxis) -> pd.DataFrame:
    """The same, linear in the accuracy: 0 = base model, 1 = the highest point of any curve.

    NaN on a skill where no method is above the base model.
    """
    at_start = curves["value"].where(curves["x"] == axis.edges[0])
    base = at_start.groupby([curves["label"], curves["name"]], observed=True).transform("max")
    best = curves.groupby("name", observed=True)["value"].transform("max")
    values = {column: metrics.normalised(curves[column], base, best) for column in BOUNDS}
    return curves.assign(**values)


def base_values(results: ReportData, start: pd.Series) -> pd.Series:
    """The value of each base model, by its name. start: the value before training, by label."""
    models = [results.series[label].model for label in start.index]
    return start.groupby(np.array(models, object)).mean()


def lines_of(table: pd.DataFrame, labels: list[str]) -> dict[str, pd.DataFrame]:
    """{label: its rows in the order of x}, of the labels that have rows."""
    lines = {label: table[table["label"] == label].sort_values("x") for label in labels}
    return {label: line for label, line in lines.items() if len(line)}


def accuracy_curves(source: Source) -> AccuracyCurves | None:
    """The curves in fractions, None without records of skills."""
    return _panels(source, source.curves)


def normalised_curves(source: Source) -> AccuracyCurves | None:
    """The normalised curves, None without records of skills."""
    if source.curves.empty:
        return None
    return _panels(source, normalised_curves_table(source.curves, source.axis))


def _panels(source: Source, table: pd.DataFrame) -> AccuracyCurves | None:
    if table.empty:
        return None
    results, axis = source.results, source.axis
    labels = [label for label in results.series if (table["label"] == label).any()]
    panels = []
    level = []
    for skill in list(results.skills)[:MOST_PANELS]:
        rows = source.curves[source.curves["name"] == skill]
        start = rows[rows["x"] == axis.edges[0]].set_index("label")["value"]
        if not rows["value"].max() > start.min():
            level.append(skill)
        panels.append(
            SkillPanel(
                skill,
                axis.stage_of(skill),
                lines_of(table[table["name"] == skill], labels),
                list(base_values(results, start)),
            )
        )
    uneven = _uneven(results, source.curves)
    return AccuracyCurves(axis, source.looks, labels, panels, len(results.skills), uneven, level)


def _uneven(results: ReportData, curves: pd.DataFrame) -> list[str]:
    """Labels with points that not all of their runs have reached."""
    runs = {label: len(runs) for label, runs in results.runs.items()}
    fewer = curves["seeds"] < curves["label"].astype(object).map(runs)
    return sorted(set(curves.loc[fewer, "label"].astype(str)))


# -- how it is drawn


def draw_accuracy(shown: AccuracyCurves, form: Form) -> Figure:
    """One panel a skill, in per cent; a broken line at each base model."""
    return _draw(shown, form, "accuracy (%)", 100, _percent_scale, lambda panel: panel.bases)


def draw_normalised(shown: AccuracyCurves, form: Form) -> Figure:
    """One panel a skill; a broken line at the base model, a plain one at the best point."""
    return _draw(shown, form, "normalised accuracy", 1, _normalised_scale, lambda panel: [0.0])


def _draw(
    shown: AccuracyCurves,
    form: Form,
    quantity: str,
    scale: float,
    set_scale: Callable[[Axes, SkillPanel], None],
    bases_of: Callable[[SkillPanel], list[float]],
) -> Figure:
    figure, all_axes, _, columns = grid(len(shown.panels), form)
    named = can_be_named(shown.labels)
    for number, (axes, panel) in enumerate(zip(all_axes, shown.panels, strict=True)):
        draw_lines(axes, shown.axis, shown.looks, panel.lines, scale)
        shown.axis.frame(axes, panel.stage)
        axes.set_title(shorten(panel.skill, 34), pad=shown.axis.title_pad)
        set_scale(axes, panel)
        if named:
            name_lines(axes, shown.looks, panel.lines, scale, bases_of(panel))
        if number % columns == 0:
            axes.set_ylabel(quantity)
        if number >= len(all_axes) - columns:
            axes.set_xlabel(shown.axis.title)
    if not named:
        legend(figure, shown.looks, shown.labels, base=True)
    return figure


def draw_lines(
    axes: Axes,
    axis: TrainingAxis,
    looks: Mapping[str, Look],
    lines: Mapping[str, pd.DataFrame],
    scale: float,
) -> None:
    """Draws some of ``lines_of`` beside each other, with whiskers at the ends of stages."""
    moved = [label for label in lines if looks[label] != FURTHER]
    shift_of = dict(zip(moved, shifts(len(moved)), strict=True))
    for label, line in lines.items():
        y, low, high = line["value"], line["low"], line["high"]
        shift = shift_of.get(label, 0)
        curve(axes, looks[label], line["x"], y, low, high, scale, shift, axis.edges)


def name_lines(
    axes: Axes,
    looks: Mapping[str, Look],
    lines: Mapping[str, pd.DataFrame],
    scale: float,
    bases: Sequence[float],
) -> None:
    """Names the lines and the first base at their ends, where the picture has no legend."""
    known = {label: line["value"].dropna() for label, line in lines.items()}
    ends = [(k, v.iloc[-1] * scale, looks[k].colour) for k, v in known.items() if len(v)]
    base = [("base", bases[0] * scale, BASE)] if bases else []
    name_ends(axes, [*ends, *base])


def _values(panel: SkillPanel) -> np.ndarray:
    """All finite values and bounds of a panel."""
    values = [line[BOUNDS].to_numpy(float).ravel() for line in panel.lines.values()]
    flat = np.concatenate(values) if values else np.array([0.0, 1.0])
    return flat[np.isfinite(flat)]


def _percent_scale(axes: Axes, panel: SkillPanel) -> None:
    for value in panel.bases:
        base_line(axes, value * 100)
    values = _values(panel) * 100
    pad = max(2, 0.06 * np.ptp(values)) if len(values) else 2
    axes.set_ylim(max(-2, values.min(initial=100) - pad), min(102, values.max(initial=0) + pad))


def _normalised_scale(axes: Axes, panel: SkillPanel) -> None:
    base_line(axes, 0)
    axes.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
    values = _values(panel)
    low = min(-0.1, values.min(initial=0) - 0.05)
    high = max(1.1, values.max(initial=1) + 0.05)
    axes.set_ylim(max(-1.0, low), min(1.8, high))


# -- what the captions say


def caption_accuracy(shown: AccuracyCurves) -> str:
    return f"Accuracy of each skill along training. {_caption(shown)}{_gaps(shown)}"


def caption_normalised(shown: AccuracyCurves) -> str:
    text = (
        "Accuracy of each skill, 0 = base model, 1 = the highest point of any method's mean curve. "
        f"Linear in the accuracy. {_caption(shown)}"
    )
    if shown.level:
        text += f" No method is above the base on {', '.join(shown.level)}."
    return text + _gaps(shown)


def _caption(shown: AccuracyCurves) -> str:
    return (
        f"{shown.axis.note} The shaded stage teaches the skill of the panel; dashed lines down are "
        "stage borders, the one across is the base model. Lines of methods are set a little apart. "
        "Whiskers at the ends of stages: 95% interval over questions and seeds, from the values "
        "and standard errors on record; where there is one seed over questions alone (Wilson's)."
    )


def _gaps(shown: AccuracyCurves) -> str:
    text = ""
    if shown.uneven:
        text += (
            f" Some points of {', '.join(shown.uneven)} are means of fewer seeds: not all runs "
            "have reached them."
        )
    rest = "; tables/curves.csv has all"
    text += only_first(len(shown.panels), shown.skills, "skills", rest)
    return text


# -- in words, and for the page's script


def alt_accuracy(shown: AccuracyCurves) -> Iterator[str]:
    return _alt(shown, 100, ".0f", " %")


def alt_normalised(shown: AccuracyCurves) -> Iterator[str]:
    return _alt(shown, 1, ".2f", "")


def _alt(shown: AccuracyCurves, scale: float, form: str, unit: str) -> Iterator[str]:
    """The last value of each line."""
    for panel in shown.panels:
        known = {label: line["value"].dropna() for label, line in panel.lines.items()}
        ends = [f"{k} {v.iloc[-1] * scale:{form}}{unit}" for k, v in known.items() if len(v)]
        yield f"{shorten(panel.skill, 20)} ends at {', '.join(ends)}"


def live_accuracy(shown: AccuracyCurves) -> list[LivePanel]:
    return _live(shown, "accuracy (%)", 100, [])


def live_normalised(shown: AccuracyCurves) -> list[LivePanel]:
    return _live(shown, "normalised accuracy", 1, [("base", 0), ("best", 1)])


def _live(
    shown: AccuracyCurves, quantity: str, scale: float, levels: list[tuple[str, float]]
) -> list[LivePanel]:
    return [
        training_panel(
            shown.axis,
            panel.skill,
            quantity,
            training_lines(shown.axis, shown.looks, panel.lines, scale),
            levels or [("base", value * scale) for value in panel.bases],
            panel.stage,
        )
        for panel in shown.panels
    ]


ACCURACY = Picture(
    "curves",
    "Forgetting curves",
    "results",
    accuracy_curves,
    draw_accuracy,
    caption_accuracy,
    alt_accuracy,
    live_accuracy,
    by_sequence=True,
)
NORMALISED = Picture(
    "curves_normalised",
    "Forgetting curves, normalised",
    "results",
    normalised_curves,
    draw_normalised,
    caption_normalised,
    alt_normalised,
    live_normalised,
    by_sequence=True,
)
