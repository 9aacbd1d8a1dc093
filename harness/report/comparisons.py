"""Methods in pairs, on the same questions and seeds, and how such differences vary."""

from itertools import combinations

import numpy as np

from harness.base import metrics
from harness.base.power import Variation
from harness.report.data import ReportData
from harness.report.entries import ArrayFunction
from harness.report.estimates import Estimate
from harness.report.measurements import Kind
from harness.report.power import middle, power_note
from harness.report.table import Cell, Column, Row, Table, Unit
from harness.report.tables import interval_note, measured, retention_change

MEANS = ("acc", "bwt", "retention")  # columns of means over skills and tasks
LEVEL = 0.05  # of tests of all pairs together
MOST_PAIRS = 10  # of more methods each is compared with the first alone


def pairs(labels: list[str]) -> list[tuple[str, str]]:
    """The later label of a pair first: what it has over the earlier one."""
    of_all = [(later, earlier) for earlier, later in combinations(labels, 2)]
    if len(of_all) <= MOST_PAIRS:
        return of_all
    return [(later, labels[0]) for later in labels[1:]]


def comparison_table(results: ReportData) -> Table:
    """Every pair of methods: differences of means, of skills and of retention tasks."""
    columns = [
        Column(
            "acc", "ACC", signed=True, note="difference of mean accuracies after the last stage"
        ),
        Column("bwt", "BWT", signed=True, note="difference of backward transfers"),
    ]
    if any(results.tasks_in_mean.values()):
        note = "difference of the mean changes of retention"
        columns.append(Column("retention", "Retention Δ", signed=True, note=note))
    for name in results.skills:
        columns.append(Column(name, name, signed=True, note=measured(results, "skill", name)))
    for task in results.retention:
        unit: Unit = "%" if results.tasks_in_mean[task] else "own"
        note = measured(results, "retention", task)
        columns.append(Column(f"{task}/delta", task, unit=unit, signed=True, note=note))
    rows: list[Row] = [
        (f"{first} − {second}", _cells(results, first, second))
        for first, second in pairs(list(results.series))
    ]
    told = _told_apart(columns, holm_rows(columns, rows))
    note = (
        "What the first method has over the second after the last stage, on the seeds and "
        "questions that both have. Positive: the first is better, also where lower is better. "
        "Points of accuracy, other metrics in their own unit. An interval without 0 tells the two "
        "apart; of 20 such differences without an effect one does so by chance. "
        f"{told}"
        f"{interval_note(rows)} {power_note(results, columns, rows)}"
    ).rstrip()
    return Table("comparisons", "Methods in pairs", note, columns, rows, stub="methods")


def holm_rows(columns: list[Column], rows: list[Row]) -> list[Row]:
    """p-values of every difference, adjusted by Holm over the pairs of each column."""
    adjusted: list[dict[str, Cell]] = [{} for _ in rows]
    for column in columns:
        p = [_p_value(cells.get(column.key)) for _, cells in rows]
        for cells, value in zip(adjusted, metrics.holm(p), strict=True):
            cells[column.key] = float(value)
    return [(label, cells) for (label, _), cells in zip(rows, adjusted, strict=True)]


def _p_value(cell: Cell) -> float:
    """Two-sided, by the variance and the t quantiles of the interval; NaN where it has none."""
    if not isinstance(cell, Estimate) or cell.spread is None or not np.isfinite(cell.value):
        return np.nan
    return cell.spread.p_value(cell.value)


def _told_apart(columns: list[Column], rows: list[Row]) -> str:
    """What means tell apart also after Holm's correction, in a sentence; "" for one pair alone."""
    if len(rows) < 2:
        return ""
    told = []
    for column in columns:
        if column.key not in MEANS:
            continue
        pairs_told = [label for label, cells in rows if _below(cells[column.key])]
        if pairs_told:
            told.append(f"{column.heading}: {', '.join(pairs_told)}")
    found = "; ".join(told) or "nothing"
    return f"Means that differ also by Holm over the {len(rows)} pairs of a column: {found}. "


def _below(cell: Cell) -> bool:
    return isinstance(cell, float) and cell < LEVEL


def holm_table(comparisons: Table) -> Table:
    """The p-values of a table of comparisons, adjusted by Holm."""
    columns = [Column(c.key, c.title, c.group, "p", note=c.note) for c in comparisons.columns]
    return Table(
        "comparisons_holm",
        "Methods in pairs: p-values by Holm",
        "Two-sided p-values of the differences of methods in pairs, from the intervals' variances "
        "and quantiles, adjusted for the number of pairs in their column (Holm 1979). Below 0.05 "
        "two methods differ, with all pairs of the column in mind.",
        columns,
        holm_rows(comparisons.columns, comparisons.rows),
        stub="methods",
    )


def _cells(results: ReportData, first: str, second: str) -> dict[str, Cell]:
    both = (first, second)

    def compare(function: ArrayFunction, kind: Kind = "R") -> Estimate:
        return results.compare((first, function), (second, function), kind)

    cells: dict[str, Cell] = {"bwt": compare(metrics.backward_transfer)}
    if set(results.series[first].order) == set(results.series[second].order):
        cells["acc"] = compare(metrics.average_accuracy)
    if any(results.tasks_in_mean.values()):
        cells["retention"] = compare(retention_change(results), "D")
    for name in results.skills:
        orders = [results.series[label].order for label in both]
        if all(name in order for order in orders):
            mine, other = (_final(order.index(name)) for order in orders)
            cells[name] = results.compare((first, mine), (second, other), "S")
    for i, (task, entry) in enumerate(results.retention.items()):
        sign = 1 if entry.get("higher_is_better", True) else -1
        cells[f"{task}/delta"] = compare(_final(i, sign), "D")
    return cells


def _final(column: int, sign: int = 1) -> ArrayFunction:
    return lambda array: sign * array[..., -1, column]


def variations(results: ReportData) -> dict[str, tuple[Variation, int]]:
    """{"retention", "skills": how what an order's ``power`` asks for varies here, and the seeds}.

    Retention: the mean change since the base model, of the method in the middle. Skills: the mean
    accuracy of one method less another's, of the pair in the middle. Without what has no spread.
    """
    labels = list(results.series)
    change = retention_change(results)
    found = {
        "retention": [results.estimate(label, change, "D", difference=True) for label in labels],
        "skills": [
            results.compare((one, metrics.average_accuracy), (other, metrics.average_accuracy))
            for one, other in pairs(labels)
        ],
    }
    ways = {key: middle(estimates) for key, estimates in found.items()}
    return {key: way for key, way in ways.items() if way is not None}
