"""What a table could have told: the smallest differences, and what would halve them."""

from collections.abc import Sequence
from typing import NamedTuple

from harness.base.console import clock
from harness.base.power import Variation, budgets
from harness.report.data import ReportData
from harness.report.estimates import Estimate, IntervalSource
from harness.report.table import Column, Row, Table

MOST_NAMED = 8  # columns of one unit in a note


class Told(NamedTuple):
    """The smallest change of one number that would be told, as a text.

    unit: what it is in; variation: of the method in the middle, over so many seeds; of_retention:
    whether its questions are those of retention tasks, otherwise of skills.
    """

    name: str
    size: str
    unit: str
    variation: Variation
    seeds: int
    of_retention: bool


def power_note(results: ReportData, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """``told_note`` of a table's columns of differences."""
    told = []
    for column in columns:
        cells = [of_row.get(column.key) for _, of_row in rows if column.signed]
        way = middle([cell for cell in cells if isinstance(cell, Estimate)])
        if way is not None:
            of_retention = column.key == "retention" or column.key.endswith("/delta")
            size = _size(column, *way)
            told.append(Told(column.heading, size, column.unit, *way, of_retention))
    return told_note(results, told)


def told_note(results: ReportData, told: Sequence[Told]) -> str:
    """Some sentences on the differences of a table, "" without one that has a spread.

    Of each number: the median over the methods of the smallest difference that would be told, with
    80% power at two-sided 5%. Then what would halve it, of the first one in each unit, by the
    spread of the method in the middle.
    """
    if not told:
        return ""
    units: dict[str, list[Told]] = {}
    for of_one in told:
        units.setdefault(of_one.unit, []).append(of_one)
    named = [
        f"{of_one.name} {of_one.size}"
        for of_unit in units.values()
        for of_one in of_unit[:MOST_NAMED]
    ]
    more = f" and {len(told) - len(named)} more" if len(told) > len(named) else ""
    comma = "; " if any("," in name for name in named) else ", "
    note = f"Would be told (80% power, two-sided 5%): {comma.join(named)}{more}."
    if told[0].seeds == 1:
        note += " With one seed, what another seed changes is not in it."
    if any(of_one.variation.orders for of_one in told):
        note += " More sequences of skills are not counted."
    return " ".join([note, *(_halving(results, of_unit[0]) for of_unit in units.values())])


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


def _halving(results: ReportData, told: Told) -> str:
    variation, seeds = told.variation, told.seeds
    ways = budgets(variation, seeds, variation.detectable(seeds) / 2)
    if not ways:
        return f"Half of {told.name}'s takes more than 40 times the questions or 40 seeds."
    of_items, rest = _seconds(results, told.of_retention)
    parts = []
    for budget in ways.values():
        total = (of_items * budget.times + rest) * budget.seeds / seeds
        notes = [clock(total)] if total else []
        if budget.times > 1 and _all_are_asked(results, told.of_retention):
            notes.append("the tests have no more")
        parts.append(budget.text(seeds) + (f" ({'; '.join(notes)})" if notes else ""))
    return f"Half of {told.name}'s takes {' or '.join(parts)}."


def _seconds(results: ReportData, of_retention: bool) -> tuple[float, float]:
    """Of all stages on record: seconds that grow with these questions, and the others."""
    stages = results.stages()
    seconds = stages[[c for c in stages.columns if c.startswith("seconds_")]].sum()
    asked = "seconds_retention" if of_retention else "seconds_evaluation"
    of_items = float(seconds.get(asked, 0.0))
    return of_items, float(seconds.sum()) - of_items


def _all_are_asked(results: ReportData, of_retention: bool) -> bool:
    """Whether every folder asks all questions that its tests have."""
    if of_retention:
        tasks = [task for head in results.heads for task in head.get("retention") or ()]
        return not any(task.get("limit") for task in tasks)
    return not any((head.get("evaluate") or {}).get("examples") for head in results.heads)
