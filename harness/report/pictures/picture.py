"""What a picture of the report is: what it shows, how that is drawn, what its caption says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from harness.report.data import ReportData
from harness.report.pictures.axis import TrainingAxis
from harness.report.style import Look, save

MOST_PANELS = 12  # more skills, tasks or methods than this are left to the tables

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Source:
    """What pictures are made from.

    axis: of training, the same for all pictures; looks: {label: colour, marker and dash}; curves:
    ``accuracy_curves_table``, which several pictures show and tables/curves.csv holds.
    """

    results: ReportData
    axis: TrainingAxis
    looks: dict[str, Look]
    curves: pd.DataFrame


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
    makes the figure of that, and of that alone; caption: says what is shown and how it was made.
    """

    name: str
    title: str
    section: str
    select: Callable[[Source], Shown | None]
    draw: Callable[[Shown], Figure]
    caption: Callable[[Shown], str]

    def save(self, source: Source, folder: Path) -> PictureFile | None:
        """Draws the picture into ``folder``, None where the records have nothing to show."""
        shown = self.select(source)
        if shown is None:
            return None
        figure = self.draw(shown)
        save(figure, folder, self.name)
        return PictureFile(
            self.name, self.title, self.section, self.caption(shown), figure.get_figwidth()
        )


def only_first(panels: int, count: int, what: str, rest: str = "") -> str:
    """A sentence for captions where fewer panels are drawn than there are, "" where all are."""
    return f" The first {panels} of {count} {what} are drawn{rest}." if panels < count else ""
