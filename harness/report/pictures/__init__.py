"""The pictures of a report, one file each, and how to add one.

A picture is a file of this folder with four parts and the ``Picture`` that joins them:

* what is shown: a function from a ``Source`` to a dataclass or DataFrame of numbers and labels
  (None where the records have nothing to show), which a test reads without drawing anything;
* how it is drawn: a function from that and a ``Form``, wide or narrow, to a matplotlib ``Figure``,
  with the colours and helpers of harness.report.style;
* its caption: a function from the same to sentences, of which the first stands alone;
* its numbers in words, for those who do not see it; and, if one can point at it, as panels
  (live.py) that the page's script draws.

Then it gets one line in ``PICTURES`` below. Its ``section`` is the key of the page's section that
shows it (harness.report.page.SECTIONS); another key opens a section of its own.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from harness.base import metrics
from harness.report.data import ReportData
from harness.report.pictures import (
    accuracy_matrix,
    curves,
    drift,
    frontier,
    plane,
    ranking,
    retention,
    training,
)
from harness.report.pictures.axis import TrainingAxis
from harness.report.pictures.curves import accuracy_curves_table
from harness.report.pictures.picture import Picture, PictureFile, Source
from harness.report.style import STYLE, Look, looks

PICTURES: list[Picture[Any]] = [  # in the page's order
    curves.ACCURACY,
    curves.NORMALISED,
    plane.PLANE,
    ranking.RANKING,
    frontier.FRONTIER,
    frontier.LIKELIHOODS,
    accuracy_matrix.ACCURACY_MATRIX,
    retention.RETENTION,
    drift.DRIFT,
    training.TRAINING,
]


def source_of(results: ReportData, look: dict[str, Look] | None = None) -> Source:
    """What the pictures of ``results`` are made from.

    look: of each label; None for ``looks``, the highest accuracy after the last stage first.
    """
    look = look or looks(by_accuracy(results))
    axis = TrainingAxis(results)
    sequences = {n: source_of(of, look) for n, of in results.of_sequences.items() if of.series}
    curves = accuracy_curves_table(results, axis)
    if sequences:
        tables = [of.curves.assign(sequence=name) for name, of in sequences.items()]
        curves = pd.concat(tables, ignore_index=True)
    return Source(results, axis, look, curves, sequences)


def by_accuracy(results: ReportData) -> list[str]:
    """All labels, the highest mean ACC over the runs that have one first; without any last."""

    def accuracy(label: str) -> float:
        of_runs = (
            metrics.average_accuracy(results.R[label]) if results.R[label].size else np.array([])
        )
        known = of_runs[np.isfinite(of_runs)]
        return float(known.mean()) if known.size else -1.0

    return sorted(results.series, key=accuracy, reverse=True)


def draw_pictures(source: Source, folder: Path) -> list[PictureFile]:
    """Draws every picture that the records allow into ``folder``; returns them in order."""
    with matplotlib.rc_context(STYLE):
        return [file for picture in PICTURES for file in picture.save(source, folder)]
