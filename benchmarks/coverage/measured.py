"""What the runs of a results folder tell, what more would tell, and how their numbers vary."""

from collections.abc import Iterator, Sequence

import numpy as np

from harness.base import metrics
from harness.base.errors import UserError
from harness.base.power import Variation
from harness.report.comparisons import pairs
from harness.report.continuous import UNITS
from harness.report.data import ReportData
from harness.report.estimates import ArrayFunction
from harness.report.power import middle
from harness.report.tables import mean_change, retention_change
from harness.runs.power import share_of_answers


def measured_table(results: ReportData, questions: int, seeds: int) -> Iterator[str]:
    """The table in Markdown: of every change the method in the middle, of accuracies the pair.

    questions: of each test, where it has fewer now; seeds: of the last column, where there are
    fewer now. Raises UserError where the folders hold no scores of items.
    """
    rows = [row for row in _rows(results) if row[-1] is not None]
    if not rows:
        place = " and ".join(map(str, results.folders))
        raise UserError(place, "holds no scores of items", "give a folder with its evaluations/")
    yield (
        f"| measure | questions | told | with {questions} questions | "
        f"with {questions}, {seeds} seeds |"
    )
    yield "|---|---:|---:|---:|---:|"
    for name, is_share, tests, way in rows:
        assert way is not None
        variation, now = way
        times = max(1.0, questions * tests / variation.count)
        told = [_size(variation, now, 1.0, is_share), "–", "–"]
        if times > 1:
            told[1] = _size(variation, now, times, is_share)
        if now > 1:  # one seed does not know what another one changes
            told[2] = _size(variation, max(now, seeds), times, is_share)
        yield f"| {name} | {variation.count} | {' | '.join(told)} |"


def typical_lines(results: ReportData) -> Iterator[str]:
    """How differences of accuracy vary, as ``harness.runs.power.Typical``, on the median.

    Of retention over methods, of skills over pairs of methods. Raises UserError where the folders
    hold no scores of items of several seeds.
    """
    labels = list(results.series)
    place = " and ".join(map(str, results.folders))
    at_base = dict(zip(results.tasks_in_mean, results.D[labels[0]][:, 0].mean(0), strict=True))
    change = retention_change(results)
    of_pairs = [
        results.compare((one, metrics.average_accuracy), (other, metrics.average_accuracy))
        for one, other in pairs(labels)
    ]
    found = {
        "retention": (
            {task: results.n["retention", task] for task in results.in_mean},
            at_base,
            [results.estimate(label, change, "D", difference=True) for label in labels],
        ),
        "skills": ({name: results.n["skill", name] for name in results.skills}, {}, of_pairs),
    }
    for key, (counts, accuracies, estimates) in found.items():
        spreads = [
            each.spread for each in estimates if each.spread and "seeds" in each.spread.parts
        ]
        if not spreads or not counts:
            raise UserError(place, f"holds no scores of {key} of several seeds", "give another one")
        ways = [Variation.of(each) for each in spreads]
        share = share_of_answers(counts, accuracies)
        items = np.median([way.items for way in ways]) / share
        both = np.median([way.both for way in ways]) / share
        seeds = np.median([way.seeds for way in ways]) ** 0.5
        yield f"{key}: items {items:.2f}, both {both:.2f}, seeds {seeds:.4f}, of {len(ways)}"


def _size(variation: Variation, seeds: int, times: float, is_share: bool) -> str:
    size = variation.detectable(seeds, times)
    return f"{100 * size:.1f}" if is_share else f"{size:.3f}"


Row = tuple[str, bool, int, tuple[Variation, int] | None]


def _rows(results: ReportData) -> Iterator[Row]:
    """(name, whether it is in points, its tests, how it varies) of every measure."""
    labels = list(results.series)

    def of_changes(function: ArrayFunction) -> tuple[Variation, int] | None:
        return middle([results.estimate(at, function, "D", difference=True) for at in labels])

    entries = {**results.retention, **results.continuous}
    for place, (task, entry) in enumerate(entries.items()):
        is_share = results.tasks_in_mean[task]
        metric = entry["metric"].partition(",")[0]
        unit = f" ({UNITS[metric]})" if metric in UNITS else ""
        more = "" if is_share else f", {metric.replace('_', ' ')}{unit}"
        yield f"`{entry.get('of', task)}`{more}", is_share, 1, of_changes(mean_change([place]))
    shares = sum(results.tasks_in_mean.values())
    if shares > 1:
        yield f"mean of {shares} accuracies", True, shares, of_changes(retention_change(results))
    for metric, places in _continuous(results, list(entries)).items():
        unit = f" ({UNITS[metric]})" if metric in UNITS else ""
        change = of_changes(mean_change(places))
        yield f"mean {metric} of {len(places)} tasks{unit}", False, len(places), change
    both = [
        results.compare((one, metrics.average_accuracy), (other, metrics.average_accuracy))
        for one, other in pairs(labels)
    ]
    tests = len(results.skills)
    name = f"mean accuracy of {tests} skills, a pair" if tests > 1 else "accuracy, a pair"
    yield name, True, tests, middle(both)


def _continuous(results: ReportData, columns: Sequence[str]) -> dict[str, list[int]]:
    """{continuous metric: places of its tasks in D}, of those with several tasks."""
    places: dict[str, list[int]] = {}
    for task, entry in results.continuous.items():
        places.setdefault(entry["metric"], []).append(columns.index(task))
    return {metric: found for metric, found in places.items() if len(found) > 1}
