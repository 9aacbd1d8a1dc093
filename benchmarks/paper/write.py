"""Writes the paper's figures and tables: the published numbers, and the measured ones beside them.

Both sides have one form (benchmarks.paper.form) and go through the same drawing. The published side
is read from CSV files; the measured one comes from results folders whose order names an
``experiment``.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import matplotlib
import pandas as pd

from benchmarks.paper.caption import caption
from benchmarks.paper.collect import Collection, MeasuredSide, collect
from benchmarks.paper.form import COLUMNS, TITLES
from benchmarks.paper.items import ITEMS, Item
from benchmarks.paper.page import Exhibit, Section, paper_page
from benchmarks.paper.pictures import Looks
from benchmarks.paper.published import published_numbers, reproduced_numbers
from benchmarks.paper.signs import sign_table
from benchmarks.paper.tables import number_table
from harness.report.build import made_beside
from harness.report.exports import write_csv
from harness.report.pictures.picture import alt_text
from harness.report.style import BASE, BROKEN, NARROW, STYLE, WIDE, Look, looks, save
from harness.report.table import Table

ROOT = Path(__file__).resolve().parents[2]


def write_paper(
    folders: Iterable[str | Path] = (),
    out: str | Path | None = None,
    show: Callable[[str], object] = lambda what: None,
) -> tuple[str, Path]:
    """Draws the published numbers and, of results folders, the measured ones beside them.

    folders: results folders or parents of such; none for the published side alone. ``data/`` gets
    the numbers behind each picture and table, ``figures/`` pictures (PNG, SVG), ``tables/`` tables
    (CSV, Markdown, LaTeX), and ``index.html`` shows both sides. Returns (what was drawn, one line
    an item; path of the page). show: is told what is being made. Raises UserError for folders that
    hold no results of the paper's experiments or broken ones, and for an ``out`` that cannot be a
    folder.
    """
    paths = [Path(folder) for folder in folders]
    show("reads records")
    collection = collect(paths) if paths else Collection()
    if out is None:
        out = paths[0] / "paper" if paths else ROOT / "results" / "paper" / "report"
    place = Path(out)
    stale = rf"(published|measured)_({'|'.join(ITEMS)})(_\d+)?\.\w+"
    with made_beside(place, stale=stale) as partial:
        sections = _write_sections(partial, collection, show)
        signs = None
        if paths:
            signs = sign_table({section.item.title: section.signs for section in sections})
            _write_table(partial, signs)
        html = paper_page(sections, signs, collection.missing)
        (partial / "index.html").write_text(html, encoding="utf-8")
    summary = [_summary(section, bool(paths)) for section in sections]
    for folder in collection.without_experiment:
        summary.append(f"left out: {folder} (its order names no experiment)")
    return "\n".join(summary), place / "index.html"


def _write_sections(
    out: Path, collection: Collection, show: Callable[[str], object]
) -> list[Section]:
    for part in ("data", "tables", "figures"):
        (out / part).mkdir()
    published, reproduced = published_numbers(), reproduced_numbers()
    sections = []
    for key, item in ITEMS.items():
        show(f"draws {item.title}")
        section = _write_section(
            out,
            item,
            published[published["experiment"] == item.experiment],
            collection.sides.get(key, []),
            reproduced[reproduced["experiment"] == key],
        )
        sections.append(section)
    return sections


def _write_section(
    out: Path,
    item: Item,
    published: pd.DataFrame,
    sides: list[MeasuredSide],
    reproductions: pd.DataFrame,
) -> Section:
    """Writes the files of one item."""
    colours = _looks([published, *(side.numbers for side in sides)])
    section = Section(item, [], [], [], reproductions, colours)
    if len(published) and not item.absent:
        source = "The numbers of " + " and ".join(published["source"].unique()) + "."
        name = f"published_{item.key}"
        section.published.append(_exhibit(out, name, item, published, colours, source))
    for number, side in enumerate(sides, 1):
        name = f"measured_{item.key}" + (f"_{number}" if number > 1 else "")
        text = caption(side.results)
        section.measured.append(_exhibit(out, name, item, side.numbers, colours, text))
        section.signs.extend(item.signs(published, side.numbers))
    return section


def _looks(frames: list[pd.DataFrame]) -> Looks:
    """Colour, marker and dash of every series of an item, the same on both sides.

    A difference of SDFT and SFT looks like SDFT.
    """
    series = {name for frame in frames for name in frame["series"]}
    return {
        **looks(sorted(series - {"base", "sdft - sft"})),
        "base": Look(BASE, "*", BROKEN),
        "sdft - sft": looks(["sdft"])["sdft"],
    }


def _exhibit(
    out: Path, name: str, item: Item, numbers: pd.DataFrame, colours: Looks, text: str
) -> Exhibit:
    """Writes one side of an item: its data, and its picture or table; text: the caption."""
    write_csv(numbers, out / "data" / f"{name}.csv", COLUMNS)
    if item.draw is None:
        table = number_table(numbers, name, item.title, text)
        _write_table(out, table)
        return Exhibit(name, text, table=table)
    with matplotlib.rc_context(STYLE):
        figure = item.draw(numbers, colours, WIDE)
        save(figure, out / "figures", name)
        save(item.draw(numbers, colours, NARROW), out / "figures", name, NARROW)
    side = name.partition("_")[0]
    alt = alt_text(f"{item.title}, {side}", _last_numbers(numbers))
    return Exhibit(name, text, alt, width=figure.get_figwidth())


def _write_table(out: Path, table: Table) -> None:
    forms = {"csv": table.csv(), "md": table.markdown(), "tex": table.latex()}
    for ending, content in forms.items():
        (out / "tables" / f"{table.name}.{ending}").write_text(content, encoding="utf-8")


def _last_numbers(numbers: pd.DataFrame) -> Iterator[str]:
    """The last number of each series and panel, in words."""
    last = numbers.drop_duplicates(["panel", "series"], keep="last")
    for panel, rows in last.groupby("panel", sort=False):
        said = [f"{row.series} {row.value:.3g} {row.unit}" for row in rows.itertuples()]
        yield f"{panel}, {TITLES.get(rows['x'].iloc[0], rows['x'].iloc[0])}: {', '.join(said)}"


def _summary(section: Section, with_measured: bool) -> str:
    """One line for the terminal: the names of the files of an item, and what was not drawn."""
    exhibits = [exhibit.name for exhibit in [*section.published, *section.measured]]
    parts = [", ".join(exhibits)] if exhibits else []
    if section.item.absent:
        parts.append(f"published: not drawn, {section.item.absent}")
    if with_measured and not section.measured:
        parts.append("measured: no results here")
    return f"{section.item.title + ':':<16}" + "; ".join(parts)
