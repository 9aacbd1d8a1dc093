"""Retention along training: what the model could do before, after each stage."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.data import ReportData
from harness.report.names import metric_name
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import base_values, draw_lines, lines_of, name_lines
from harness.report.pictures.live import LivePanel, training_lines, training_panel
from harness.report.pictures.picture import MOST_PANELS, Picture, Source, only_first
from harness.report.style import (
    MUTED,
    SMALL,
    Form,
    Look,
    base_line,
    can_be_named,
    grid,
    legend,
    shorten,
)

MOST_TASKS = MOST_PANELS - 1  # the mean has a panel of its own
MEAN = "mean change"  # its title

# -- what is shown


@dataclass(frozen=True)
class TaskPanel:
    """The curves of one retention task, by the metric that counts or by its margin.

    metric: as the axis names it; lines: {label: x, value, low, high}; bases: the value of each base
    model; scale: 100 for a fraction, which is drawn in per cent, else 1; chance: the value of
    guesses, None where it is not known.
    """

    task: str
    metric: str
    lines: dict[str, pd.DataFrame]
    bases: list[float]
    scale: float
    chance: float | None


@dataclass(frozen=True)
class RetentionCurves:
    """Panels of the first tasks, then of their margins, and of the mean change.

    change: {label: x, value, low, high} of the mean change since the base model, None where no task
    counts in the mean; tasks: how many there are in all; outside: tasks that do not count in the
    mean; lower_is_better, margins: whether that is so of any task, and whether any has a margin.
    """

    axis: TrainingAxis
    looks: dict[str, Look]
    labels: list[str]
    panels: list[TaskPanel]
    change: dict[str, pd.DataFrame] | None
    tasks: int
    outside: list[str]
    lower_is_better: bool
    margins: bool


def retention_curves_table(results: ReportData, axis: TrainingAxis) -> pd.DataFrame:
    """Every task after each stage, mean over seeds: columns of ``TrainingAxis.average``."""
    records = results.retention_records
    in_mean = results.in_mean
    return axis.average(records[records["final"]], in_mean)


def mean_change_table(results: ReportData, axis: TrainingAxis, label: str) -> pd.DataFrame:
    """Mean change of retention since the base model after each stage.

    Columns x, value, low, high (over questions and seeds), n (questions a run of all tasks in the
    mean), seeds.
    """
    rows = []
    n = results.asked("retention", results.in_mean)
    means = results.retention_mean(results.D[label])
    for stage in range(means.shape[-1] if means.size else 0):

        def change(D: np.ndarray, stage: int = stage) -> np.ndarray:
            mean = results.retention_mean(D)
            return mean[..., stage] - mean[..., 0]

        estimate = results.estimate(label, change, "D", difference=True)
        if np.isfinite(estimate.value):
            # The base model differs from itself by nothing.
            low, high = (estimate.low, estimate.high) if stage else (0.0, 0.0)
            runs = int(np.isfinite(means[:, stage]).sum())
            rows.append((axis.edges[stage], estimate.value, low, high, n, runs))
    return pd.DataFrame(rows, columns=["x", "value", "low", "high", "n", "seeds"])


def retention_curves(source: Source) -> RetentionCurves | None:
    """The curves of all tasks, None without records of retention."""
    results, axis = source.results, source.axis
    records = results.retention_records
    if records.empty or not records["final"].any():
        return None
    table = retention_curves_table(results, axis)
    labels = [label for label in results.series if (table["label"] == label).any()]
    margins = [task for task, e in results.continuous.items() if e["metric"] == "margin"]
    tasks = [*results.retention, *margins]
    panels = [
        _task_panel(results, axis, table[table["name"] == task], labels, task)
        for task in tasks[:MOST_TASKS]
    ]
    change = None
    if any(results.tasks_in_mean.values()):
        change = {label: mean_change_table(results, axis, label) for label in labels}
        change = {label: line for label, line in change.items() if len(line)}
    return RetentionCurves(
        axis=axis,
        looks=source.looks,
        labels=labels,
        panels=panels,
        change=change,
        tasks=len(tasks),
        outside=[task for task in results.retention if not results.tasks_in_mean[task]],
        lower_is_better=not all(map(_higher_is_better, results.retention.values())),
        margins=bool(margins),
    )


def _task_panel(
    results: ReportData, axis: TrainingAxis, rows: pd.DataFrame, labels: list[str], task: str
) -> TaskPanel:
    entry = results.retention.get(task) or results.continuous[task]
    metric = metric_name(entry["metric"])
    fraction = results.tasks_in_mean[task]
    if entry["metric"] == "margin":
        metric += " (nats)"
    if fraction:
        metric += " (%)"
    elif not _higher_is_better(entry):
        metric += " (↓)"
    start = rows[rows["x"] == axis.edges[0]].set_index("label")["value"]
    return TaskPanel(
        entry.get("of", task),
        metric,
        lines_of(rows, labels),
        list(base_values(results, start)),
        100 if fraction else 1,
        entry.get("chance"),
    )


def _higher_is_better(entry: dict) -> bool:
    return bool(entry.get("higher_is_better", True))


# -- how it is drawn


def draw(shown: RetentionCurves, form: Form) -> Figure:
    """The mean change first, then one panel a task."""
    mean = shown.change is not None
    figure, all_axes, _, columns = grid(len(shown.panels) + mean, form)
    if shown.change is not None:
        _draw_change(all_axes[0], shown, shown.change)
    for axes, panel in zip(all_axes[mean:], shown.panels, strict=True):
        _draw_task(axes, shown, panel)
    for axes in all_axes[-columns:]:
        axes.set_xlabel(shown.axis.title)
    if not can_be_named(shown.labels):
        legend(figure, shown.looks, shown.labels, base=True)
    return figure


def _draw_change(axes: Axes, shown: RetentionCurves, change: dict[str, pd.DataFrame]) -> None:
    draw_lines(axes, shown.axis, shown.looks, change, 100)
    base_line(axes, 0)
    axes.set_title(MEAN, pad=shown.axis.title_pad)
    axes.set_ylabel("points")
    shown.axis.frame(axes)
    if can_be_named(shown.labels):
        name_lines(axes, shown.looks, change, 100, [0.0])


def _draw_task(axes: Axes, shown: RetentionCurves, panel: TaskPanel) -> None:
    draw_lines(axes, shown.axis, shown.looks, panel.lines, panel.scale)
    for value in panel.bases:
        base_line(axes, value * panel.scale)
    if panel.chance is not None:
        _draw_chance(axes, panel.chance * panel.scale)
    axes.set_title(shorten(panel.task, 30), pad=shown.axis.title_pad)
    axes.set_ylabel(shorten(panel.metric, 26))
    shown.axis.frame(axes)
    if can_be_named(shown.labels):
        name_lines(axes, shown.looks, panel.lines, panel.scale, panel.bases)


def _draw_chance(axes: Axes, chance: float) -> None:
    """A dotted line at the value of guesses, where it lies near the values."""
    low, high = axes.get_ylim()
    if not low - (high - low) * 0.5 <= chance <= high:
        return
    axes.axhline(chance, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
    axes.text(
        0.01,
        chance,
        "chance",
        transform=axes.get_yaxis_transform(),
        ha="left",
        va="bottom",
        fontsize=SMALL,
        color=MUTED,
    )


# -- what the caption says


def caption(shown: RetentionCurves) -> str:
    without = f", so without {', '.join(shown.outside)}" if shown.outside else ""
    return (
        f"What the model could do before, after each stage. {shown.axis.note} "
        "Whiskers: 95% interval over questions and seeds, where there is one seed over questions "
        "alone; of the mean change, where item scores are missing or do not make up the values, "
        "over seeds alone, and none of one seed. Mean change: final minus base over the tasks "
        f"whose metric is a fraction, higher is better{without}."
        + (
            " Margin: the right choice's log-likelihood less the best wrong one's, in nats."
            if shown.margins
            else ""
        )
        + (" ↓: lower is better." if shown.lower_is_better else "")
        + only_first(len(shown.panels), shown.tasks, "tasks")
    )


# -- in words, and for the page's script


def alt(shown: RetentionCurves) -> Iterator[str]:
    """Where the mean change ends, then each task."""
    for label, line in (shown.change or {}).items():
        yield f"{MEAN} {label} {line['value'].iloc[-1] * 100:+.1f} points"
    for panel in shown.panels:
        ends = [f"{k} {v['value'].iloc[-1] * panel.scale:.3g}" for k, v in panel.lines.items()]
        yield f"{shorten(panel.task, 20)} {', '.join(ends)}"


def live(shown: RetentionCurves) -> list[LivePanel]:
    axis, looks = shown.axis, shown.looks
    panels = []
    if shown.change is not None:
        lines = training_lines(axis, looks, shown.change, 100)
        panels.append(training_panel(axis, MEAN, "points", lines, [("base", 0.0)]))
    for panel in shown.panels:
        lines = training_lines(axis, looks, panel.lines, panel.scale)
        levels = [("base", value * panel.scale) for value in panel.bases]
        panels.append(training_panel(axis, panel.task, panel.metric, lines, levels))
    return panels


RETENTION = Picture(
    "retention",
    "Retention along training",
    "retention-section",
    retention_curves,
    draw,
    caption,
    alt,
    live,
)
