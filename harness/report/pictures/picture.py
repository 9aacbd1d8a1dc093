"""What a picture of the report is: what it shows, how that is drawn, what its caption says."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from harness.report.data import ReportData
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.live import LiveCells, LivePanel
from harness.report.style import NARROW, WIDE, Form, Look, save, shorten
from harness.results.formats import OF_SEQUENCE

MOST_ALT = 200  # letters of the text for those who do not see the picture
MOST_PANELS = 12  # more skills, tasks or methods than this are left to the tables

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Source:
    """What pictures are made from.

    axis: of training, the same for all pictures; looks: {label: colour, marker and dash}; curves:
    ``accuracy_curves_table``, which several pictures show and tables/curves.csv holds; sequences:
    the same of each sequence of skills, where there are several.
    """

    results: ReportData
    axis: TrainingAxis
    looks: dict[str, Look]
    curves: pd.DataFrame
    sequences: dict[str, "Source"] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureFile:
    """A picture in the folder ``figures``: ``name``.png, .svg and dark/``name``.svg.

    alt: what it shows, in fewer than MOST_ALT letters; width: of the wide form; panels: for the
    page's script. One that is wider than a narrow screen has SVG in narrow/ and narrow/dark/ too.
    """

    name: str
    title: str
    section: str
    caption: str
    alt: str
    width: float  # inches
    panels: Sequence[LivePanel | LiveCells] = ()

    @property
    def has_narrow(self) -> bool:
        return self.width > NARROW.width


@dataclass(frozen=True)
class Picture(Generic[Shown]):
    """One picture of the report.

    name: of its files and of its place on the page; section: key of the page's section that shows
    it; select: takes what is shown from the records, None where they have nothing to show; draw:
    makes the figure of that, and of that alone, in a form; caption: says what is shown and how it
    was made, the first sentence what one must know; alt: the numbers that it shows, in parts; live:
    the same for the page's script, None for a picture that stays still;
    by_sequence: of several sequences of skills it is drawn once each, because its stages or its x
    mean other skills in each.
    """

    name: str
    title: str
    section: str
    select: Callable[[Source], Shown | None]
    draw: Callable[[Shown, Form], Figure]
    caption: Callable[[Shown], str]
    alt: Callable[[Shown], Iterable[str]]
    live: Callable[[Shown], Sequence[LivePanel | LiveCells]] | None = None
    by_sequence: bool = False

    def save(self, source: Source, folder: Path) -> list[PictureFile]:
        """Draws the picture into ``folder``; [] where the records have nothing to show."""
        if not (self.by_sequence and source.sequences):
            return self._save(source, folder, "", "")
        drawn = []
        for name, of_sequence in source.sequences.items():
            skills = ", ".join(next(iter(of_sequence.results.series.values())).order)
            drawn += self._save(of_sequence, folder, name, f" The runs of {name}: {skills}.")
        return drawn

    def _save(self, source: Source, folder: Path, sequence: str, note: str) -> list[PictureFile]:
        shown = self.select(source)
        if shown is None:
            return []
        figure = self.draw(shown, WIDE)
        name, title = self.name, self.title
        if sequence:
            name, title = f"{name}{OF_SEQUENCE}{sequence}", f"{title}, {sequence}"
        save(figure, folder, name)
        width = figure.get_figwidth()
        if width > NARROW.width:
            save(self.draw(shown, NARROW), folder, name, NARROW)
        caption = self.caption(shown) + note
        alt = alt_text(title, self.alt(shown))
        panels = self.live(shown) if self.live else ()
        return [PictureFile(name, title, self.section, caption, alt, figure.get_figwidth(), panels)]


def alt_text(title: str, parts: Iterable[str]) -> str:
    """A title and as many of ``parts`` as there is room for."""
    text, rest = f"{shorten(title, 80)}. ", list(parts)
    said: list[str] = []
    for place, part in enumerate(rest):
        more = "; …" if place < len(rest) - 1 else ""
        if len(text + "; ".join([*said, part]) + more) >= MOST_ALT:
            return text + "; ".join([*said, "…"])
        said.append(part)
    return text + "; ".join(said)


def only_first(panels: int, count: int, what: str, rest: str = "") -> str:
    """A sentence for captions where fewer panels are drawn than there are, "" where all are."""
    return f" The first {panels} of {count} {what} are drawn{rest}." if panels < count else ""
