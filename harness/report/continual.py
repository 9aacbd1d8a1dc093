"""Measures of continual learning beside the headline: of the way, of references, of items.

Each is a row of the table of every metric; formulas and sources are those of
harness/base/metrics.py and harness/base/curves.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from harness.base import curves, intervals, metrics
from harness.base.metrics import Array
from harness.report.crossing import crossing
from harness.report.data import ReportData
from harness.report.entries import ArrayFunction
from harness.report.estimates import Estimate, IntervalSource, how_of
from harness.report.measurements import Kind, RunId
from harness.report.table import Cell, Row
from harness.results.formats import RELEARN

ALL, WEIGHTS = "all skills", "weights"
MOST_STAGES = 12  # rows of OP
SHARE = 0.9  # of the single run's accuracy, which a learning curve is to reach
NO_REFERENCES = (
    "Intransigence and plasticity loss are left out: they compare with reference runs, which "
    "`references` in an order asks for."
)


def of_joint(function: Callable[[Array, Array], Any]) -> ArrayFunction:
    """A function of R and the joint run's accuracies, as one of R with its references."""
    return lambda extended: function(extended[..., :-2, :], extended[..., -2, :])


def of_single(function: Callable[[Array, Array], Any]) -> ArrayFunction:
    """A function of R and the single runs' accuracies, as one of R with its references."""
    return lambda extended: function(extended[..., :-2, :], extended[..., -1, :])


def continual_rows(results: ReportData) -> list[Row]:
    """All rows, each with its split and metric and a cell a method."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    splitless = {*results.retention, WEIGHTS}
    stages = results.stages()
    for label in results.series:
        for name, measure, estimate in _estimates(results, label, stages):
            if isinstance(estimate, str) or math.isfinite(estimate.value):
                rows.setdefault((name, measure), {})[label] = estimate
    return [
        (name, {"split": "" if name in splitless else results.split, "metric": m, **cells})
        for (name, m), cells in rows.items()
    ]


def _estimates(
    results: ReportData, label: str, stages: pd.DataFrame
) -> Iterator[tuple[str, str, Estimate | str]]:
    """(name of a skill or task, measure, number) of a method; stages: ``ReportData.stages``."""
    estimate = partial(results.estimate, label)
    yield ALL, "anytime accuracy", estimate(metrics.anytime_accuracy)
    for t in range(1, min(len(results.series[label].order), MOST_STAGES)):
        yield ALL, f"OP after stage {t}", estimate(_performance(t))
    yield ALL, "OP after the last stage (ACC)", estimate(metrics.average_accuracy)
    yield ALL, "BWT over T - 1", estimate(metrics.backward_transfer, difference=True)
    yield ALL, "BWT over T (TRACE)", estimate(metrics.backward_transfer_trace, difference=True)
    against: list[tuple[str, ArrayFunction]] = [
        ("intransigence", of_joint(metrics.intransigence)),
        ("plasticity loss", of_single(metrics.plasticity_loss)),
        ("FWT against single runs", of_single(metrics.forward_transfer_single)),
    ]
    for measure, function in against:
        yield ALL, measure, estimate(function, "R+", difference=True)
    yield from _curves(results, label)
    yield from relearning(results, label)
    yield from _transitions(results, label)
    yield from _drift(results, label)
    yield from _changes(results, label, stages)


def _performance(t: int) -> ArrayFunction:
    return lambda R: metrics.overall_performance(R)[..., t - 1]


# -- distributions


def _drift(results: ReportData, label: str) -> Iterator[tuple[str, str, Estimate | str]]:
    """KL from the base on prompts of the skill just learned and of earlier ones, nats a token.

    Of each run the mean over its stages of the mean over the skills.
    """
    records = results.records[(results.records["label"] == label) & results.records["final"]]
    for kind in ("new", "old"):
        mine = records[records["metric"] == f"{kind}_kl_forward_token"]
        run = ["folder", "seed", "sequence"]
        of_stages = mine.groupby([*run, "stage"], observed=True)["value"].mean()
        of_runs = of_stages.groupby(run, observed=True).mean()
        values = [float(of_runs.get(tuple(run), math.nan)) for run in results.runs[label]]
        measure = "KL from the base a token, mean of the stages"
        yield f"{kind} prompts", measure, over_known_runs(results, label, values)


# -- weights


def _changes(
    results: ReportData, label: str, stages: pd.DataFrame
) -> Iterator[tuple[str, str, Estimate | str]]:
    """How far the weights are from the start of the run, and went in a stage: means over runs."""
    if "change_run_norm" not in stages:
        return
    mine = stages[stages["label"] == label]
    last = mine[mine["stage"] == len(results.series[label].order)]
    for of, rows, when in (("run", last, "at the end"), ("stage", mine, "mean of the stages")):
        for what, words in (("norm", "norm of the change"), ("share", "share of changed entries")):
            runs = rows[rows["stage"] > 0].groupby(["seed", "sequence"])
            values = runs[f"change_{of}_{what}"].mean()
            of_runs = [float(values.get(run.key, math.nan)) for run in results.runs[label]]
            since = f"since the start of the {of}, {when}"
            yield WEIGHTS, f"{words} {since}", over_known_runs(results, label, of_runs)


# -- learning curves


def _curves(results: ReportData, label: str) -> Iterator[tuple[str, str, Estimate | str]]:
    """Area of each skill's curve in its own stage, and prompts to SHARE of the single result.

    Of curves with a point inside the stage; the second where that share is above the base.
    """
    records = results.skill_records[results.skill_records["label"] == label]
    own = records[records["name"].astype(object) == records["skill"].astype(object)]
    target = f"prompts to {SHARE:.0%} of the single result"
    for name in results.series[label].order:
        places = [results.order_of(label, i).index(name) for i in range(len(results.runs[label]))]
        points = [
            _points(records, own[own["name"] == name], run, results.R[label][i, place, place])
            for (i, run), place in zip(enumerate(results.runs[label]), places, strict=True)
        ]
        areas = [curves.learning_curve_area(x, y) if len(x) > 2 else math.nan for x, y in points]
        yield name, "area under the learning curve", over_known_runs(results, label, areas)
        goals = SHARE * _single(results, label, places)
        reached = [
            curves.prompts_to_reach(x, y, goal) if len(x) > 2 else math.nan
            for (x, y), goal in zip(points, goals, strict=True)
        ]
        yield name, target, over_known_runs(results, label, reached)


def relearning(results: ReportData, label: str) -> Iterator[tuple[str, str, Estimate | str]]:
    """Prompts until a skill that is learned again is within its standard error of its own stage.

    By validation, at the points of the schedule that are on record, 0 prompts among them.
    """
    records = results.reference_records
    again = records[(records["label"] == label) & (records["reference"] == RELEARN)]
    if again.empty:
        return
    every = results.records[(results.records["label"] == label) & results.records["final"]]
    own_stages = every[every["name"].astype(object) == every["skill"].astype(object)]
    for name in results.series[label].order:
        counted = [
            rows[(rows["name"] == name) & (rows["split"] == "validation")]
            for rows in (again, own_stages)
        ]
        mine, own = (rows[rows["metric"] == results.metric[name]] for rows in counted)
        prompts = [_regained(mine, own, run) for run in results.runs[label]]
        yield name, "prompts to relearn it (validation)", over_known_runs(results, label, prompts)


def _of_run(records: pd.DataFrame, run: RunId) -> pd.DataFrame:
    """Its records."""
    mine = (records["folder"] == run.folder) & (records["seed"] == run.seed)
    return records[mine & (records["sequence"] == run.sequence)]


def _regained(again: pd.DataFrame, own: pd.DataFrame, run: RunId) -> float:
    """Prompts of the first point within the standard error of ``own``; infinite without one."""
    mine, goals = (_of_run(rows, run) for rows in (again, own))
    if mine.empty or goals.empty or not mine.loc[mine["stage"] > 0, "final"].any():
        return math.nan
    goal = goals.iloc[0]["value"] - np.nan_to_num(goals.iloc[0]["stderr"])
    if math.isnan(goal):  # of an own stage without a number
        return math.nan
    reached = mine.loc[mine["value"] >= goal, "prompts"]
    return float(reached.min()) if len(reached) else math.inf


def _points(
    records: pd.DataFrame, own: pd.DataFrame, run: RunId, start: float
) -> tuple[np.ndarray, np.ndarray]:
    """(prompts drawn in the stage, accuracy) of a skill in its own stage, from ``start`` on.

    What parts read behind the last step is no way of the curve.
    """
    mine = _of_run(own, run).sort_values("step")
    if mine.empty:
        return np.array([]), np.array([])
    of_run = _of_run(records, run)
    before = of_run.loc[of_run["stage"] < mine["stage"].iloc[0], "prompts"].max()
    drawn = mine["prompts_learned"].fillna(mine["prompts"]).to_numpy(float)
    prompts = drawn - (0.0 if np.isnan(before) else before)
    return np.append(0.0, prompts), np.append(start, mine["value"].to_numpy(float))


def _single(results: ReportData, label: str, places: list[int]) -> np.ndarray:
    """The single run's accuracy on a skill in each run; NaN where its SHARE is not above the base:
    a curve would be there before it begins.

    places: of the skill in the runs' sequences.
    """
    extended = results.with_references(label)
    if extended is None:
        return np.full(len(results.runs[label]), np.nan)
    runs = range(len(places))
    single, base = extended[runs, -1, places], extended[runs, 0, places]
    return np.where(SHARE * single > base, single, np.nan)


def over_known_runs(results: ReportData, label: str, values: list[float]) -> Estimate | str:
    """``over_runs`` of the runs that have a number.

    Where some curve does not get to its target there is no mean, but how many do not.
    """
    runs = results.runs[label]
    known = [(run, v) for run, v in zip(runs, values, strict=True) if not math.isnan(v)]
    if not known:
        return Estimate(math.nan)
    if short := sum(math.isinf(value) for _, value in known):
        return f"not in {short} of {len(known)}"
    return over_runs([run for run, _ in known], [value for _, value in known])


def over_runs(runs: Sequence[RunId], values: Sequence[float]) -> Estimate:
    """The mean of numbers of whole runs, with Student's interval over seeds, and over sequences."""
    crossed = crossing(runs)
    runs = [runs[i] for i in crossed.places]
    kept = np.array([values[i] for i in crossed.places])
    source = IntervalSource.RUNS if len(kept) > 1 else IntervalSource.RUN
    each = ", ".join(f"{run.text}: {v:.4g}" for run, v in zip(runs, kept, strict=True))
    how = f"{each}, {how_of(source)}"
    spread = intervals.of_records(kept.reshape(crossed.shape), [], levels=crossed.levels)
    alike = 0.0 if len(kept) > 1 else math.nan
    mean, half = float(kept.mean()), spread.quantile() * spread.stderr if spread else alike
    return Estimate(mean, mean - half, mean + half, how, by=source, spread=spread)


# -- items


def _transitions(results: ReportData, label: str) -> Iterator[tuple[str, str, Estimate]]:
    """Shares of items that were lost and gained: skills since their own stage, tasks since the
    base model, both without what guessing explains.
    """
    for place, name in enumerate(results.series[label].order):
        later = [results.order_of(label, i)[-1] != name for i in range(len(results.runs[label]))]
        metric = results.metric[name]
        chance, less = _guessing(results.skills[name])
        pair = _pair(results, label, "S", place + 1, place, metric, chance, later)
        for what, estimate in zip(("lost", "gained"), pair, strict=False):
            yield name, f"items {what} since its own stage{less}", estimate
    for place, (name, entry) in enumerate(results.retention.items()):
        chance, less = _guessing(entry)
        pair = _pair(results, label, "D", 0, place, entry["metric"], chance)
        for what, estimate in zip(("lost", "gained"), pair, strict=False):
            yield name, f"items {what} since the base{less}", estimate


def _guessing(entry: Mapping[str, Any]) -> tuple[float, str]:
    """(the score of who guesses, what is said of it) of a skill or task as results.json has it."""
    chance = entry.get("chance") or 0.0
    return chance, ", guessing subtracted" if chance else ""


def _pair(
    results: ReportData,
    label: str,
    kind: Kind,
    first: int,
    place: int,
    metric: str,
    chance: float,
    counts: list[bool] | None = None,
) -> list[Estimate]:
    """(lost, gained) between stage ``first`` and the last one; [] where items are not 0 or 1.

    counts: whether a run does, None where all do.
    """
    runs: list[int] = []
    lost: list[Array] = []
    gained: list[Array] = []
    items: list[str] | None = None
    for run, keys in enumerate(results.keys[kind, label]):
        if not results.is_readable(kind, label, run) or (counts and not counts[run]):
            continue
        folder = results.runs[label][run].folder
        before, after = (results.read_items(folder, keys[k, place], metric) for k in (first, -1))
        if not before or not after or set(before) != set(after):
            continue
        items = items or list(before)
        if set(items) != set(before):
            continue
        both = np.array([[of[item] for item in items] for of in (before, after)])
        scores, weights = both[..., 0], both[..., 1]
        if not np.isin(scores, (0, 1)).all() or (weights != 1).any():
            return []
        runs.append(run)
        parts = curves.transitions(scores[0], scores[1], chance)
        lost.append(parts[0])
        gained.append(parts[1])
    if not runs:
        return []
    return [results.of_items(label, runs, np.stack(of, axis=1)) for of in (lost, gained)]
