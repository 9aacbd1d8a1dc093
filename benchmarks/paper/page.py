"""The page: published and measured side by side, figure by figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from benchmarks.paper.form import PAPER
from benchmarks.paper.items import Item
from benchmarks.paper.pictures import Looks
from benchmarks.paper.signs import Sign
from harness.report.html import environment
from harness.report.style import BASE
from harness.report.table import Table

HALF = 6.0  # inches of a picture that stands beside another
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Exhibit:
    """A picture or a table in files of one name, with its caption."""

    name: str
    caption: str
    alt: str = ""  # what a picture shows, in numbers
    table: Table | None = None  # None: a picture
    width: float = 0.0  # of a picture, in inches


@dataclass(frozen=True)
class Section:
    """What the page shows of one item."""

    item: Item
    published: list[Exhibit]
    measured: list[Exhibit]
    signs: list[Sign]  # of differences
    reproductions: pd.DataFrame  # what others report: other metrics, so never in one picture
    looks: Looks

    @property
    def is_wide(self) -> bool:
        """Whether a picture is too wide for half of the page: letters would shrink with it."""
        return any(shown.width > HALF for shown in (*self.published, *self.measured))


def paper_page(sections: list[Section], signs: Table | None, missing: list[str]) -> str:
    """The HTML text; signs: those of the measured side, None without one; missing: its gaps."""
    with_measured = signs is not None
    template = environment(TEMPLATES).get_template("paper.html")
    return template.render(
        title=f"{PAPER}, published and measured" if with_measured else f"{PAPER} as published",
        sections=sections,
        signs=signs,
        with_measured=with_measured,
        missing=missing,
        table_markup=table_markup,
    )


def table_markup(table: Table, looks: Looks) -> Markup:
    """The HTML of a table, with a dot in a series' colour before the label of each row."""
    return Markup(table.html(_dots(looks)))


def _dots(looks: Looks) -> Callable[[str], str]:
    def dot(label: str) -> str:
        series = label.rsplit(": ", 1)[-1]  # of a label "task: series"
        colour = looks[series][0] if series in looks else BASE
        return Markup('<span class="dot" style="background:{}"></span>').format(colour)

    return dot
