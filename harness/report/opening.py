"""What a page opens with: what was compared, when, from which model, and what each method did."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from harness.report.data import ReportData
from harness.report.names import model_names
from harness.report.summary import Verdict, verdicts
from harness.report.table import Table

MOST_SKILLS = 15  # named at the top of the page
MOST_MISSING = 60  # lines of a warning


@dataclass(frozen=True)
class ModelPath:
    """A base model and the skills that it learns in turn; more: skills that are not named.

    machine: the name of the model in the order; sequence: of ``orders``, "" for the only one.
    """

    model: str
    machine: str
    sequence: str
    skills: list[str]
    more: int


@dataclass(frozen=True)
class Warnings:
    """Lines on what a reader must know; key: their id on the page; brief: how many of what."""

    key: str
    title: str
    brief: str
    lines: list[str]
    most: ClassVar[int] = MOST_MISSING
    template: ClassVar[str] = "warnings.html"


@dataclass(frozen=True)
class Verdicts:
    """What each method did; warnings: those that a reader of the sentences must know of."""

    verdicts: list[Verdict]
    warnings: list[Warnings]
    template: ClassVar[str] = "verdicts.html"


@dataclass(frozen=True)
class Opening:
    """The head of the page."""

    title: str
    descriptions: list[str]
    facts: str
    paths: list[ModelPath]


def opening(results: ReportData) -> Opening:
    """The head of a report's page."""
    said = (str(head.get("description") or "") for head in results.heads)
    return Opening(
        title=" and ".join(results.names),
        descriptions=[text for text in dict.fromkeys(said) if text],
        facts=_facts(results),
        paths=list(_paths(results)),
    )


def verdict_block(results: ReportData, summary: Table) -> Verdicts:
    """The sentences of all methods, and what to keep in mind with them."""
    return Verdicts(verdicts(results, summary), warnings(results))


def warnings(results: ReportData) -> list[Warnings]:
    """What is missing, and what was both taught and tested; without lines there is no warning."""
    found = [
        ("missing", "What is missing", "gap", results.missing),
        ("overlap", "Questions that were taught and tested", "overlap", results.overlaps),
    ]
    return [
        Warnings(key, title, _count(len(lines), noun), lines)
        for key, title, noun, lines in found
        if lines
    ]


def _facts(results: ReportData) -> str:
    runs = sum(len(runs) for runs in results.runs.values())
    counts = [
        _count(len(results.skills), "skill"),
        _count(len(results.series), "method"),
        _count(runs, "run"),
        _count(len(results.retention), "retention task"),
    ]
    parts = [*_dates(results), ", ".join(counts) + f", {len(results.records):,} records"]
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _dates(results: ReportData) -> Iterator[str]:
    """When the runs started, by their run.json; nothing where none says."""
    started = set()
    for run in results.provenance():
        try:
            started.add(datetime.datetime.fromisoformat(str(run.get("started"))).date())
        except ValueError:
            continue
    if started:
        ends = dict.fromkeys((min(started), max(started)))
        yield "measured " + " to ".join(f"{day.day} {day:%B %Y}" for day in ends)


def _paths(results: ReportData) -> Iterator[ModelPath]:
    names = model_names({series.model for series in results.series.values()})
    for label in results.bases().values():
        series = results.series[label]
        more = max(0, len(series.order) - MOST_SKILLS)
        for name, order in (series.orders or {"": series.order}).items():
            skills = list(order[:MOST_SKILLS])
            yield ModelPath(names[series.model], series.model, name, skills, more)
