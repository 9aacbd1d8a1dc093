"""The axis of training: where a record lies between the base model and the end of the last stage.

Methods may take different numbers of optimizer steps for one stage. Where all agree, x is optimizer
steps; else x is stages of equal width, and a record lies at its share of its own run's stage.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.base import intervals, metrics
from harness.report.crossing import crossing
from harness.report.data import ReportData
from harness.report.measurements import run_ids
from harness.report.style import INK, MUTED, SHADE, SMALL, shorten

MOST_BORDERS = 15  # with more stages no border is drawn
MOST_NAMES = 4  # with more stages the borders bear numbers
KEY = ["folder", "label", "seed", "sequence", "stage"]  # of the end of a stage of a run


class TrainingAxis:
    """The x axis that all methods of a report share.

    order: the skills in the order of training, None where methods differ in it
    longest: number of stages T of the longest order
    borders: {label: optimizer steps [T + 1] at which its stages end, 0 first}, the median over runs
    in_steps: whether x is optimizer steps
    edges: x [T + 1] of the base model and of the end of every stage
    note: one sentence for captions that says what x is
    """

    def __init__(self, results: ReportData) -> None:
        orders = {
            tuple(order)
            for series in results.series.values()
            for order in (series.orders.values() or [series.order])
        }
        self.order: tuple[str, ...] | None = next(iter(orders)) if len(orders) == 1 else None
        self.longest = max((len(order) for order in orders), default=0)
        table = results.skill_records
        finals = table[table["final"]].drop_duplicates(KEY)
        steps = finals.groupby(["label", "stage"], observed=True)["step"]
        ends = steps.median()
        self.borders: dict[str, np.ndarray] = {}
        for label in results.series:
            known = ends[label].to_dict() if label in ends.index.get_level_values(0) else {}
            self.borders[label] = _filled(known, self.longest)
        lines = [line for line in self.borders.values() if np.isfinite(line).all()]
        same_in_all_runs = not steps.nunique().max() > 1
        same_in_all_methods = all(np.array_equal(line, lines[0]) for line in lines)
        self.in_steps = bool(lines) and same_in_all_runs and same_in_all_methods
        self.edges: np.ndarray = lines[0] if self.in_steps else np.arange(self.longest + 1.0)
        self.note = self._note()
        if results.has_sequences:
            self.note += " A stage teaches another skill in each sequence."

    def _note(self) -> str:
        if self.in_steps:
            return "Across: optimizer steps, the same number a stage for every method."
        steps = ", ".join(
            f"{label} {line[-1]:,.0f}"
            for label, line in self.borders.items()
            if np.isfinite(line[-1])
        )
        return (
            "Across: stages of equal width, because methods differ in optimizer steps a stage; "
            f"within a stage, the share of the run's own steps. Steps a run: {steps}."
        )

    @property
    def title(self) -> str:
        """The label of the axis."""
        return "optimizer steps" if self.in_steps else "stage"

    @property
    def has_borders(self) -> bool:
        """Whether there are few enough stages to draw their borders."""
        return self.longest <= MOST_BORDERS

    @property
    def title_pad(self) -> float:
        """Points between a panel and its title: the names of the stages take the room below it."""
        return 13 if self.order and self.has_borders else 6

    def stage_of(self, skill: str) -> int | None:
        """The stage that teaches ``skill``, None where methods differ in the order of skills."""
        return self.order.index(skill) + 1 if self.order and skill in self.order else None

    def place(self, table: pd.DataFrame) -> np.ndarray:
        """The x of every record: its share of the stage that it belongs to, mapped to ``edges``.

        Where a run has not ended a stage, its method's usual steps stand in (``borders``). A record
        whose share is unknown lies at the end of its stage.
        """
        runs = table[[*KEY, "step", "final"]].astype({"label": object, "sequence": object})
        ends = runs[runs["final"]].drop_duplicates(KEY).set_index(KEY)["step"]
        start = self._stage_ends(runs.assign(stage=runs["stage"] - 1), ends)
        end = self._stage_ends(runs, ends)
        with np.errstate(all="ignore"):
            share = np.clip((runs["step"].to_numpy(float) - start) / (end - start), 0, 1)
        share = np.where(runs["final"] | ~np.isfinite(share), 1.0, share)
        position = np.where(runs["stage"] == 0, 0.0, runs["stage"] - 1 + share)
        return np.interp(position, np.arange(self.longest + 1), self.edges)

    def _stage_ends(self, runs: pd.DataFrame, ends: pd.Series) -> np.ndarray:
        """The step at which the stage of each row ended, NaN where nobody knows."""
        rows = pd.MultiIndex.from_frame(runs[KEY])
        steps = ends.reindex(rows).to_numpy(float, copy=True)
        gaps = np.isnan(steps)
        usual = {
            (label, stage): step
            for label, line in self.borders.items()
            for stage, step in enumerate(line)
        }
        steps[gaps] = [
            usual.get(row, np.nan)
            for row in zip(runs["label"][gaps], runs["stage"][gaps], strict=True)
        ]
        return steps

    def average(self, table: pd.DataFrame, fractions: Collection[str]) -> pd.DataFrame:
        """Mean of records over runs at each x, with a 95% interval; one row a label, name and x.

        Columns: label, name, x, value, seeds, stderr, n (answers a run), stage, low, high. The
        interval is over seeds, sequences and questions by the records alone (intervals.of_records),
        so that it may be a little wider than the table's. fractions: names whose values lie in
        [0, 1]: theirs is the score interval.
        """
        of_runs = pd.Series(run_ids(table), table.index, dtype=object)
        points = (
            table.assign(x=self.place(table).round(4), run_id=of_runs)
            .groupby(["label", "name", "x"], observed=True)
            .agg(
                value=("value", "mean"),
                values=("value", list),
                stderrs=("stderr", list),
                seeds=("value", "count"),
                runs=("run_id", list),
                stderr=("stderr", "mean"),
                n=("n", "mean"),
                stage=("stage", "max"),
            )
            .reset_index()
        )
        means = [_mean(point, point.name in fractions) for point in points.itertuples()]
        points[["value", "low", "high"]] = np.array(means, float).reshape(-1, 3)
        return points.drop(columns=["values", "stderrs", "runs"])

    def frame(self, axes: Axes, learned: int | None = None) -> None:
        """Draws the borders and names of stages, and sets the limits of x.

        learned: the stage that teaches the panel's skill; it is shaded.
        """
        if learned is not None:
            axes.axvspan(
                self.edges[learned - 1], self.edges[learned], color=SHADE, zorder=0, linewidth=0
            )
        self.draw_borders(axes)
        if self.order and self.has_borders:
            for stage, skill in enumerate(self.order, 1):
                axes.text(
                    (self.edges[stage - 1] + self.edges[stage]) / 2,
                    1.0,
                    shorten(skill, 26 // self.longest)
                    if self.longest <= MOST_NAMES
                    else str(stage),
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    va="bottom",
                    fontsize=SMALL,
                    color=INK if stage == learned else MUTED,
                    fontweight="bold" if stage == learned else "normal",
                )
        margin = 0.04 * (self.edges[-1] - self.edges[0])
        axes.set_xlim(self.edges[0] - margin, self.edges[-1] + margin)
        if not self.in_steps and self.has_borders:
            axes.set_xticks(self.edges)

    def draw_borders(self, axes: Axes) -> None:
        """Draws a dashed line where one stage ends and the next begins."""
        for edge in self.edges[1:-1] if self.has_borders else ():
            axes.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)


def _filled(ends: dict[int, float], stages: int) -> np.ndarray:
    """Steps [stages + 1] at which the stages end, 0 first.

    A stage that no run has ended is as long as the others are on average; NaN where none has ended.
    """
    ends = {0: 0.0, **ends}
    line = np.array([ends.get(stage, np.nan) for stage in range(stages + 1)], float)
    lengths = np.diff(line)
    usual = np.nanmean(lengths) if np.isfinite(lengths).any() else np.nan
    for stage in range(1, stages + 1):
        if np.isnan(line[stage]):
            line[stage] = line[stage - 1] + usual
    return line


def _mean(point: Any, is_fraction: bool) -> tuple[float, float, float]:
    """(mean, low, high) at one point, as ``TrainingAxis.average`` says; bounds NaN without any.

    Of the runs that are crossed, as in the tables.
    """
    values = np.array(point.values, float)
    known = np.flatnonzero(np.isfinite(values))
    crossed = crossing([point.runs[i] for i in known])
    values = values[known[crossed.places]].reshape(crossed.shape)
    spread = intervals.of_records(values, point.stderrs, levels=crossed.levels)
    value = float(values.mean()) if values.size else np.nan
    if is_fraction:
        error, quantile = point.stderr, None
        if point.seeds > 1:
            error, quantile = (spread.stderr, spread.quantile()) if spread else (np.nan, None)
        return value, *metrics.score_interval(value, error, point.n, quantile=quantile)
    half = spread.quantile() * spread.stderr if spread else np.nan
    return value, value - half, value + half
