"""What a picture of the report is: what it shows, how that is drawn, what its caption says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from harness.report.data import ReportData
from harness.report.pictures.axis import TrainingAxis
from harness.report.style import Look, save
from harness.results.formats import OF_SEQUENCE

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
    """A picture in the folder ``figures``: ``name``.png, .svg and dark/``name``.svg."""

    name: str
    title: str
    section: str
    caption: str
    width: float  # inches


@dataclass(frozen=True)
class Picture(Generic[Shown]):
    """One picture of the report.

    name: of its files and of its place on the page; section: key of the page's section that shows
    it; select: takes what is shown from the records, None where they have nothing to show; draw:
    makes the figure of that, and of that alone; caption: says what is shown and how it was made;
    by_sequence: of several sequences of skills it is drawn once each, because its stages or its x
    mean other skills in each.
    """

    name: str
    title: str
    section: str
    select: Callable[[Source], Shown | None]
    draw: Callable[[Shown], Figure]
    caption: Callable[[Shown], str]
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
        figure = self.draw(shown)
        name, title = self.name, self.title
        if sequence:
            name, title = f"{name}{OF_SEQUENCE}{sequence}", f"{title}, {sequence}"
        save(figure, folder, name)
        caption = self.caption(shown) + note
        return [PictureFile(name, title, self.section, caption, figure.get_figwidth())]


def only_first(panels: int, count: int, what: str, rest: str = "") -> str:
    """A sentence for captions where fewer panels are drawn than there are, "" where all are."""
    return f" The first {panels} of {count} {what} are drawn{rest}." if panels < count else ""
