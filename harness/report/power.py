"""What a table could have told: the smallest differences, and what would halve them."""

from collections.abc import Sequence

from harness.base.console import clock
from harness.base.power import Sizes, Variation, budgets
from harness.report.data import ReportData
from harness.report.estimates import Estimate, IntervalSource
from harness.report.table import Column, Row, Table

MOST_NAMED = 8  # columns in a note
EVALUATION = ("seconds_evaluation", "seconds_retention")  # columns of stages() that items fill


def power_note(results: ReportData, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """One sentence on the differences of a table, "" without one that has a spread.

    Of each column of differences: the median over the methods of the smallest one that would be
    told, with 80% power at two-sided 5%. Then what would halve it, of the first of these columns,
    by the spread of the method in the middle.
    """
    told = []
    for column in columns:
        cells = [of_row.get(column.key) for _, of_row in rows if column.signed]
        way = middle([cell for cell in cells if isinstance(cell, Estimate)])
        if way is not None:
            told.append((column, way))
    if not told:
        return ""
    named = [f"{column.heading} {_size(column, *way)}" for column, way in told[:MOST_NAMED]]
    more = f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    note = f"Would be told (80% power, two-sided 5%): {', '.join(named)}{more}."
    column, (variation, seeds) = told[0]
    if seeds == 1:
        note += " With one seed, what another seed changes is not in it."
    ways = budgets(variation, seeds, variation.detectable(seeds) / 2)
    return f"{note} {_halving(results, column.heading, ways, seeds)}"


def middle(estimates: Sequence[Estimate]) -> tuple[Variation, int] | None:
    """How the estimate in the middle varies, and its seeds: by the smallest difference it tells.

    Of an even number the lower one; None where no estimate has a spread over its questions.
    """
    variations = []
    for estimate in estimates:
        by_items = estimate.by in (IntervalSource.BOTH, IntervalSource.ITEMS)
        if by_items and estimate.spread is not None:
            seeds = estimate.spread.parts.get("seeds")
            variations.append((Variation.of(estimate.spread), seeds.size if seeds else 1))
    variations.sort(key=lambda way: way[0].detectable(way[1]))
    return variations[(len(variations) - 1) // 2] if variations else None


def _size(column: Column, variation: Variation, seeds: int) -> str:
    return Table("", "", "", []).text(
        Column(column.key, "", unit=column.unit), variation.detectable(seeds)
    )


def _halving(results: ReportData, name: str, ways: dict[str, Sizes], seeds: int) -> str:
    if not ways:
        return f"Half of {name}'s takes more than 40 times the questions or 40 seeds."
    of_items, rest = _seconds(results)
    parts = []
    for budget in ways.values():
        total = (of_items * budget.times + rest) * budget.seeds / seeds
        parts.append(budget.text(seeds) + (f" ({clock(total)})" if total else ""))
    return f"Half of {name}'s takes {' or '.join(parts)}."


def _seconds(results: ReportData) -> tuple[float, float]:
    """Of all stages on record: seconds that grow with the questions, and the others."""
    stages = results.stages()
    seconds = stages[[c for c in stages.columns if c.startswith("seconds_")]].sum()
    of_items = float(sum(seconds.get(column, 0.0) for column in EVALUATION))
    return of_items, float(seconds.sum()) - of_items
