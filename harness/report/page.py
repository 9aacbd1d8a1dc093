"""The HTML page: opens from disk, loads nothing from elsewhere, light and dark, reads on a phone.

This file says what is on the page; templates/ says how it is written. Every table and every picture
is in the section that it belongs to, and nothing that was made is left out.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

from markupsafe import Markup

from harness.report import samples
from harness.report.data import ReportData
from harness.report.html import environment
from harness.report.links import Link, answer_link, links
from harness.report.opening import opening, verdict_block, warnings
from harness.report.pictures.picture import PictureFile
from harness.report.style import BASE, GREY, Look
from harness.report.table import Table
from harness.report.tables import MEANINGS, measured, records_used
from harness.report.viewer import as_script
from harness.results.formats import evaluation_file, read_object

MOST_RECORDS = 400  # written into the page; tables/records.csv has all
MOST_RUNS = 200  # the same; runs/*/run.json has each
MOST_LETTERS = 400  # of one cell
WIDE = 7  # inches; a wider picture does not stand beside a text

# In the page's order. A picture names its section itself (pictures.picture.Picture.section).
SECTIONS = {
    "summary": "In short",
    "results": "Results",
    "skills": "Learning each skill",
    "retention-section": "Retention",
    "cost": "Cost and training",
    "samples": "Sample completions",
    "measured": "How it was measured",
    "provenance": "Where the runs come from",
}
# The section of each table; one that is not named here is in a section of its own.
TABLE_SECTIONS = {
    "summary": "summary",
    "main": "results",
    "comparisons": "results",
    "comparisons_holm": "results",
    "frontier": "results",
    "frontier_likelihoods": "results",
    "published": "results",
    "own_stage": "skills",
    "retention": "retention-section",
    "retention_continuous": "retention-section",
    "cost": "cost",
    "training": "cost",
    "every_metric": "measured",
}
# Tables that are folded away, with the text of the fold.
FOLDED = {
    "comparisons_holm": "Methods in pairs: p-values by Holm",
    "published": "Published numbers of the suite",
    "training": "Means of what training logged",
    "every_metric": "Every metric on record, base and final",
}

Dot = Callable[[str], Markup]


class Block(Protocol):
    """A part of a section, written by its template under the name ``block``."""

    template: ClassVar[str]


@dataclass(frozen=True)
class PageSection:
    key: str  # also its id on the page
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class TableView:
    """summary: of the fold that hides the table, "" where it is in sight."""

    name: str
    note: str
    markup: Markup
    summary: str
    template: ClassVar[str] = "table.html"


@dataclass(frozen=True)
class Meanings:
    """What the columns of the main table mean."""

    meanings: dict[str, str]
    template: ClassVar[str] = "meanings.html"


@dataclass(frozen=True)
class PictureView:
    """width: in CSS pixels; narrow: whether there is another for narrow screens.

    live: JSON of the panels that the page's script draws, "" for none.
    """

    name: str
    title: str
    caption: str
    alt: str
    width: float
    wide: bool
    narrow: bool
    live: Markup
    template: ClassVar[str] = "picture.html"


@dataclass(frozen=True)
class SampleCompletions:
    """skills: those with samples; metric: the one that counts, by skill; groups: samples.choose.

    link: from (method, seed, sequence, skill, item) to the answer in the viewer.
    """

    skills: list[str]
    metric: dict[str, str]
    groups: Sequence[Any]
    link: Callable[..., str] = answer_link
    template: ClassVar[str] = "samples.html"


@dataclass(frozen=True)
class ProtocolView:
    """How one skill or task is measured: in one line, in its author's words, in full."""

    summary: str
    description: str
    protocol: str


@dataclass(frozen=True)
class Protocols:
    protocols: list[ProtocolView]
    template: ClassVar[str] = "protocols.html"


@dataclass(frozen=True)
class RecordView:
    """One record as texts. link: to its evaluation's file, "" where that is not on disk."""

    folder: str
    label: str
    seed: str
    stage: str
    name: str
    metric: str
    value: str
    stderr: str
    n: str
    protocol: str
    evaluation: str
    link: str


@dataclass(frozen=True)
class Records:
    """The first records behind the numbers; total: how many there are in tables/records.csv."""

    records: list[RecordView]
    total: int
    several_folders: bool
    template: ClassVar[str] = "records.html"


@dataclass(frozen=True)
class ResolvedOrder:
    """The order of one results folder as JSON. link: from the page to the folder."""

    name: str
    link: str
    order: str
    template: ClassVar[str] = "order.html"


@dataclass(frozen=True)
class RunView:
    label: str
    cells: list[str]


@dataclass(frozen=True)
class Runs:
    """The first runs; total: how many there are."""

    columns: ClassVar[list[str]] = [
        "seed",
        "method",
        "settings",
        "with",
        "parameters",
        "device",
        "dtype",
        "threads",
        "git",
        "started",
        "packages",
    ]
    runs: list[RunView]
    total: int
    template: ClassVar[str] = "runs.html"


def render(
    results: ReportData,
    tables: Sequence[Table],
    pictures: Sequence[PictureFile],
    look: dict[str, Look],
    to_folder: Sequence[str],
) -> str:
    """The page as text.

    tables, pictures: in the page's order; look: of each label; to_folder: link from the page
    to each results folder.
    """
    dot = _dot(look)
    return (
        environment()
        .get_template("page.html")
        .render(
            opening=opening(results),
            sections=_sections(results, tables, pictures, dot, to_folder),
            folders=", ".join(folder.resolve().name for folder in results.folders),
            dot=dot,
            is_live=any(picture.panels for picture in pictures),
        )
    )


def _dot(look: dict[str, Look]) -> Dot:
    """A function that gives the markup of a label's colour mark, empty for a label without one."""

    def dot(label: str) -> Markup:
        colour = look[label].colour if label in look else BASE if label.startswith("base") else None
        mark = Markup('<span class="dot" style="background:{}"></span>')
        return mark.format(colour) if colour and colour != GREY else Markup("")

    return dot


# -- sections


def _sections(
    results: ReportData,
    tables: Sequence[Table],
    pictures: Sequence[PictureFile],
    dot: Dot,
    to_folder: Sequence[str],
) -> list[PageSection]:
    """The sections that have something in them: tables first, then pictures.

    The first has one table and one picture: that which says it is its own, or the first of all. A
    table without rows is left out: nothing was recorded of it.
    """
    sections = {key: PageSection(key, title) for key, title in SECTIONS.items()}
    sections["measured"].blocks.append(_protocols(results))
    summary = next((table for table in tables if table.name == "summary" and table.rows), None)
    if summary is not None:
        sections["summary"].blocks.append(verdict_block(results, summary))
    for table in tables:
        if table.rows:
            section = _section(sections, TABLE_SECTIONS.get(table.name, table.name))
            section.blocks.extend(_table(table, dot, links(results, table.name)))
    opens = next((p for p in pictures if p.section == "summary"), next(iter(pictures), None))
    for picture in pictures:
        key = "summary" if picture is opens and summary is not None else picture.section
        _section(sections, key).blocks.append(_picture(picture))
    sections["summary"].blocks.extend(warnings(results))
    sections["samples"].blocks.extend(_samples(results))
    sections["measured"].blocks.append(_records(results, to_folder))
    sections["provenance"].blocks.extend(_provenance(results, to_folder))
    return [section for section in sections.values() if section.blocks]


def _section(sections: dict[str, PageSection], key: str) -> PageSection:
    """The section of that key; one that the page does not know comes last, titled by its key."""
    return sections.setdefault(key, PageSection(key, key.replace("_", " ").capitalize()))


def _table(table: Table, dot: Dot, link: Link) -> list[Block]:
    markup = Markup(table.html(dot, link))
    view = TableView(table.name, table.note, markup, FOLDED.get(table.name, ""))
    return [view, Meanings(MEANINGS)] if table.name == "main" else [view]


def _picture(picture: PictureFile) -> PictureView:
    return PictureView(
        picture.name,
        picture.title,
        picture.caption,
        picture.alt,
        picture.width * 96,
        picture.width > WIDE,
        picture.has_narrow,
        Markup(as_script([panel.plain() for panel in picture.panels]) if picture.panels else ""),
    )


def _samples(results: ReportData) -> list[Block]:
    """Sample completions, none where no completion is on disk."""
    groups = samples.choose(results)
    with_samples = {group["skill"] for group in groups}
    skills = [skill for skill in results.skills if skill in with_samples]
    return [SampleCompletions(skills, results.metric, groups)] if groups else []


def _protocols(results: ReportData) -> Protocols:
    """The protocol of every skill and retention task that has one."""
    views = []
    for kind, entries in (("skill", results.skills), ("retention", results.retention)):
        for name, entry in entries.items():
            protocol = results.protocol_of.get((kind, name))
            if protocol is None:
                continue
            fields = results.protocols.get(protocol, "not in protocols.json")
            views.append(
                ProtocolView(
                    measured(results, kind, name),
                    entry.get("description") or "",
                    _json(fields),
                )
            )
    return Protocols(views)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _records(results: ReportData, to_folder: Sequence[str]) -> Records:
    """Records of the base model, of each skill's own stage and of the last stage."""
    used = records_used(results)
    last = {label: len(series.order) for label, series in results.series.items()}
    at_end = used["stage"] == used["label"].astype(object).map(last)
    at_own_stage = used["name"].astype(object) == used["skill"].astype(object)
    rows = used[at_end | (used["stage"] == 0) | at_own_stage].head(MOST_RECORDS)
    folders = dict(zip(results.names, to_folder, strict=True))
    views = [_record(results, row, folders[str(row.folder)]) for row in rows.itertuples()]
    return Records(views, len(used), len(results.names) > 1)


def _record(results: ReportData, row: Any, to_folder: str) -> RecordView:
    """row: of ``records_used``, a named tuple."""
    folder = results.names.index(row.folder)
    on_disk = isinstance(row.evaluation, str) and results.evaluation(folder, row.evaluation)
    file = evaluation_file(results.folders[folder], str(row.evaluation)).name
    return RecordView(
        folder=row.folder,
        label=str(row.label),
        seed=f"{row.seed} {getattr(row, 'sequence', '')}".rstrip(),
        stage=str(row.stage),
        name=str(row.name),
        metric=str(row.metric),
        value=f"{row.value:.4f}",
        stderr=f"{row.stderr:.3f}" if _is_finite(row.stderr) else "",
        n=f"{int(row.n)}" if _is_finite(row.n) else "–",
        protocol=str(row.protocol),
        evaluation=str(row.evaluation),
        link=f"{to_folder}/evaluations/{quote(file)}" if on_disk else "",
    )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _provenance(results: ReportData, to_folder: Sequence[str]) -> list[Block]:
    """The order of every folder, then the runs of all."""
    blocks: list[Block] = []
    for name, folder, link in zip(results.names, results.folders, to_folder, strict=True):
        blocks.append(ResolvedOrder(name, link, _json(read_object(folder / "results.json", {}))))
    labels = {
        member: series.label for series in results.series.values() for member in series.members
    }
    runs = results.provenance()
    views = []
    for run in runs[:MOST_RUNS]:
        label = str(run.get("label"))
        label = labels.get((run["folder"], label), label)
        label += f", {run['sequence']}" if run.get("sequence") else ""
        views.append(RunView(label, _run_cells(run)))
    return [*blocks, Runs(views, len(runs))]


def _run_cells(run: dict[str, Any]) -> list[str]:
    """run.json as texts, in the order of ``Runs.columns``."""
    values = {
        **run,
        "settings": _pairs(run.get("config")),
        "with": _named_pairs(run.get("with")),
        "parameters": _named_pairs(run.get("parameters")),
        "dtype": ", learns in ".join(filter(None, map(run.get, ("dtype", "learns_in")))) or None,
        "packages": _pairs(run.get("packages")),
    }
    cells = [values.get(column) for column in Runs.columns]
    texts = ["–" if cell is None else str(cell) for cell in cells]
    return [t if len(t) <= MOST_LETTERS else f"{t[:MOST_LETTERS]}…" for t in texts]


def _named_pairs(options: dict[str, dict[str, Any]] | None) -> str | None:
    """Options of parts or of a parametrisation, None without any."""
    return "; ".join(f"{name}: {_pairs(own)}" for name, own in (options or {}).items()) or None


def _pairs(values: dict[str, Any] | None) -> str:
    """Keys with their values; a key without one is not set, and says nothing."""
    known = {key: value for key, value in (values or {}).items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in known.items())
