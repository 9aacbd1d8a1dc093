"""Learning against forgetting over the settings of one method, such as its learning rates.

What is joined to a method, which kind of it, what it trains, and which trainer of TRL it is are no
settings: of these each is a method of its own.

A method at one learning rate is a point; another rate learns more and forgets more. So methods are
compared at the same gain, by what each keeps there, and by the area that their points dominate.
What they keep is measured by accuracies, and by likelihoods, which tell more.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.base import curves, metrics
from harness.report.continual import over_runs
from harness.report.data import ReportData
from harness.report.estimates import ArrayFunction, Estimate, Weighted, how_of
from harness.report.measurements import RunId
from harness.report.table import FORMATS, Cell, Column, Row, Table, Unit
from harness.report.tables import interval_note, mean_change, retention_change

MOST_ALONE = 8  # labels that a note names


@dataclass(frozen=True)
class Kept:
    """What is held against the gain, a change of prior abilities of which more is better.

    key: of table and picture; name: in texts; unit: as of a table's column; area: that of points
    times this; note: what it is; change: f(D).
    """

    key: str
    name: str
    unit: Unit
    area: str
    note: str
    change: ArrayFunction

    @property
    def scale(self) -> int:
        """What is shown of a value of 1."""
        return FORMATS[self.unit][0]


def kept_measures(results: ReportData) -> list[Kept]:
    """By accuracies where the mean has some, and by likelihoods: of texts, else of choices."""
    found = []
    if results.in_mean:
        note = "retention Δ as in the main table"
        change = retention_change(results)
        found.append(Kept("frontier", "retention Δ", "%", "square points", note, change))
    columns = [*results.retention.items(), *results.continuous.items()]
    for metric, sign, name, area in (
        ("bits_per_byte", -1, "text Δ (bits per byte)", "points x bits per byte"),
        ("margin", 1, "margin Δ (nats)", "points x nats"),
    ):
        places = [i for i, (_, e) in enumerate(columns) if e["metric"].partition(",")[0] == metric]
        if places:
            what = "bits per byte, fewer" if sign < 0 else "margin of the right choice, more"
            note = f"{name}: mean change over {len(places)} tasks of the {what} being positive"
            change = mean_change(places, sign)
            found.append(Kept("frontier_likelihoods", name, "own", area, note, change))
            break
    return found


@dataclass(frozen=True)
class Setting:
    """One setting of a method: new-task gain, a fraction, and change of prior abilities."""

    label: str
    gain: Estimate
    retention: Estimate


@dataclass(frozen=True)
class Family:
    """The settings of one method that trains the same with the same parts, by rising gain."""

    name: str
    points: list[Setting]

    @property
    def gains(self) -> list[float]:
        return [point.gain.value for point in self.points]


@dataclass(frozen=True)
class Frontier:
    """Families of two points or more; matched: the gain at which they are compared, or None.

    results: those in which every point is a label; lowest: change of all points; alone: points
    that are in no family, since their method has one.
    """

    results: ReportData
    kept: Kept
    families: list[Family]
    matched: float | None
    lowest: float
    alone: list[Setting]

    def compared(self) -> list[Family]:
        """The families that have the matched gain between their points."""
        if self.matched is None:
            return []
        return [self.families[i] for i in _with_gain(self.families, self.matched)]


def mean_gain(R: np.ndarray) -> np.ndarray:
    """New-task gain: the mean over the skills of own-stage minus base accuracy."""
    return metrics.own_stage_gain(R).mean(-1)


def frontiers(results: ReportData) -> list[Frontier]:
    """One by each measure, of those on record: some method has two settings with both numbers."""
    results = results.with_every_point
    found = [_frontier(results, kept) for kept in kept_measures(results)]
    return [shown for shown in found if shown is not None]


def _frontier(results: ReportData, kept: Kept) -> Frontier | None:
    grouped: dict[str, list[str]] = defaultdict(list)
    for label in results.series:
        grouped[_setting(results, label)].append(label)
    families: list[Family] = []
    alone: list[Setting] = []
    for labels in grouped.values():
        points = [_point(results, kept, label) for label in labels]
        known = [p for p in points if np.isfinite([p.gain.value, p.retention.value]).all()]
        if len({point.gain.value for point in known}) > 1:
            known.sort(key=lambda point: point.gain.value)
            families.append(Family(_name(results, labels[0], families), known))
        else:
            alone += known
    if not families:
        return None
    lowest = min(point.retention.value for family in families for point in family.points)
    return Frontier(results, kept, families, matched_gain(families), lowest, alone)


def matched_gain(families: list[Family]) -> float | None:
    """The gain that most families have between their points, None where no two have one.

    Of several the first family's, of those the largest.
    """
    tops = [family.gains[-1] for family in families]
    best = max(tops, key=lambda gain: (len(who := _with_gain(families, gain)), 0 in who, gain))
    return best if len(_with_gain(families, best)) > 1 else None


def _with_gain(families: list[Family], gain: float) -> list[int]:
    """Places of the families that have a gain between their points."""
    return [i for i, f in enumerate(families) if f.gains[0] <= gain <= f.gains[-1]]


def _setting(results: ReportData, label: str) -> str:
    """What the settings of one method share, as text: all but its hyperparameters."""
    series = results.series[label]
    shared = [series.model, series.order, series.orders]
    return json.dumps([*_composed(results, label), _kinds(results, label), *shared])


def _composed(results: ReportData, label: str) -> tuple[str, list[str]]:
    """(a method in words, with its trainer and what it trains; the parts that join it)."""
    entry = _entry(results, label)
    trainer = (entry.get("config") or {}).get("trainer")
    trained = []
    for name, options in (entry.get("parameters") or {}).items():
        given = options or {}
        kinds = ["continued"] * (given.get("adapter") == "continued")
        kinds += ["nf4"] * (given.get("base") == "nf4")
        trained.append(" ".join([name, *kinds]))
    words = [str(word) for word in (results.series[label].method, trainer, *trained) if word]
    return ", ".join(words), sorted(entry.get("with") or {})


def _entry(results: ReportData, label: str) -> dict[str, Any]:
    folder, there = results.series[label].members[0]
    entry: dict[str, Any] = results.heads[folder]["methods"][there]
    return entry


def _kinds(results: ReportData, label: str) -> dict[str, dict[str, str]]:
    """{part: {option: value}} of those options that are words: they choose what a part does."""
    return {
        name: {key: value for key, value in options.items() if isinstance(value, str)}
        for name, options in (_entry(results, label).get("with") or {}).items()
        if isinstance(options, dict)
    }


def _name(results: ReportData, label: str, earlier: list[Family]) -> str:
    """The method in words; a part with what another method here has otherwise.

    Numbered where another model or order has the name already.
    """
    method, parts = _composed(results, label)
    others = [_kinds(results, other) for other in results.series]
    words = [method]
    for part in parts:
        chosen = _kinds(results, label).get(part, {})
        alike = [other[part] for other in others if part in other]
        told = [v for k, v in chosen.items() if any(other.get(k) != v for other in alike)]
        words.append(f"{part} {' '.join(told)}".rstrip())
    name = " + ".join(words)
    count = sum(family.name.partition(" (")[0] == name for family in earlier)
    return f"{name} ({count + 1})" if count else name


def _point(results: ReportData, kept: Kept, label: str) -> Setting:
    return Setting(
        label,
        results.estimate(label, mean_gain, difference=True),
        results.estimate(label, kept.change, "D", difference=True),
    )


def retention_at(shown: Frontier, family: Family, gain: float) -> Estimate:
    """What a family keeps at a gain between its points, on the line of the two neighbours.

    With w = (g - g1) / (g2 - g1) it is (1 - w) r1 + w r2. Its error is that of the first-order
    change with all four numbers, (1 - w) dr1 + w dr2 - s ((1 - w) dg1 + w dg2) for the slope s of
    the line, over questions and seeds that both points share. NaN beyond the points.
    """
    gains = np.array(family.gains)
    if not gains[0] <= gain <= gains[-1]:
        return Estimate(np.nan)
    right = int(np.clip(np.searchsorted(gains, gain), 1, len(gains) - 1))
    first, second = family.points[right - 1], family.points[right]
    width = second.gain.value - first.gain.value
    if width == 0:
        return second.retention
    w = (gain - first.gain.value) / width
    slope = (second.retention.value - first.retention.value) / width
    change = shown.kept.change
    parts = [
        part
        for point, share in ((first, 1 - w), (second, w))
        if share
        for part in (
            Weighted("D", point.label, change, share),
            Weighted("R", point.label, mean_gain, -slope * share),
        )
        if part.weight
    ]
    error = shown.results.combine(parts)
    value = (1 - w) * first.retention.value + w * second.retention.value
    moved = value - error.value
    how = f"between {first.label} and {second.label}, {how_of(error.by)}"
    return Estimate(value, error.low + moved, error.high + moved, how, by=error.by)


def area(shown: Frontier, family: Family) -> Estimate:
    """The hypervolume of a family's points over (no gain, the lowest change), as shown.

    The mean over the runs that all points have, with Student's interval.
    """
    results, change = shown.results, shown.kept.change
    square = 100 * shown.kept.scale
    by_run: dict[RunId, list[tuple[float, float]]] = defaultdict(list)
    for point in family.points:
        R, D = results.R[point.label], results.D[point.label]
        for run, gain, kept in zip(results.runs[point.label], mean_gain(R), change(D), strict=True):
            if np.isfinite([gain, kept]).all():
                by_run[run._replace(folder=0)].append((gain, kept))
    areas = {
        run: square * curves.hypervolume(points, (0.0, shown.lowest))
        for run, points in by_run.items()
        if len(points) == len(family.points)
    }
    if not areas:
        return Estimate(np.nan)
    found = over_runs(list(areas), list(areas.values()))
    return replace(found, how=how_of(found.by))


def alone_note(labels: list[str]) -> str:
    """A sentence on methods with one point, "" without any."""
    if not labels:
        return ""
    named = ", ".join(labels[:MOST_ALONE])
    more = f" and {len(labels) - MOST_ALONE} more" if len(labels) > MOST_ALONE else ""
    return f" With one setting, and so no line: {named}{more}."


def frontier_table(shown: Frontier) -> Table:
    """Every point, and of every family its retention at the matched gain and its area."""
    rows: list[Row] = []
    matched = shown.compared()
    for family in shown.families:
        cells: dict[str, Cell] = {"area": area(shown, family)}
        if family in matched and shown.matched is not None:
            cells |= {
                "gain": shown.matched,
                "retention": retention_at(shown, family, shown.matched),
            }
        rows.append((f"{family.name}, all settings", cells))
        rows += [
            (point.label, {"gain": point.gain, "retention": point.retention})
            for point in family.points
        ]
    rows += [
        (point.label, {"gain": point.gain, "retention": point.retention}) for point in shown.alone
    ]
    kept = shown.kept
    columns = [
        Column("gain", "gain", signed=True),
        Column("retention", kept.name, unit=kept.unit, signed=True),
        Column("area", "area", unit="count", note=kept.area),
    ]
    others = [family.name for family in shown.families if family not in matched]
    apart = f"Without a gain that is shared: {', '.join(others)}. " if others else ""
    note = (
        "All settings on record of each method; parts, words among their options, and what is "
        "trained make another method. Gain: mean over skills of own-stage minus base accuracy, in "
        f"points; {kept.note}. A method's row has it at the gain that most share, on straight "
        "lines between neighbouring points, to first order in the errors of both; and the area, in "
        f"{kept.area}, that its points dominate (Zitzler & Thiele 1998) above no gain and the "
        f"lowest here. {apart}{interval_note(rows)}{alone_note([p.label for p in shown.alone])}"
    )
    title = f"Gain against {kept.name.partition(' (')[0]}, over settings"
    return Table(kept.key, title, note, columns, rows)
