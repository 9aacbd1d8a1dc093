"""Whether a difference has the sign of the published one, and whether its interval covers 0."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from benchmarks.paper.estimates import difference
from benchmarks.paper.form import TITLES
from harness.report.estimates import Estimate

SMALLEST = 0.05  # a smaller difference is printed as 0.0 and has no sign


@dataclass(frozen=True)
class Contrast:
    """Two series whose difference at ``x`` is compared with the published one.

    Without ``x`` they are two values of column ``x``, of whichever series has both.
    """

    one: str
    other: str
    x: str | None = None


def contrast_signs(
    contrasts: Iterable[Contrast], published: pd.DataFrame, measured: pd.DataFrame
) -> list[str]:
    """One sentence a contrast and panel, where all published differences have one sign.

    Nothing is said of a metric that is not the paper's (of panels that are "not judged").
    """
    sentences = []
    for contrast in contrasts:
        printed = sorted(gap.value for gap in differences(published, contrast).values())
        if not printed or printed[0] * printed[-1] <= 0:
            continue
        for panel, gap in differences(measured, contrast).items():
            if abs(gap.value) >= SMALLEST and "not judged" not in panel:
                sentences.append(_sentence(contrast, panel, gap, printed))
    return sentences


def _sentence(contrast: Contrast, panel: str, gap: Estimate, printed: list[float]) -> str:
    """printed: the published differences, in ascending order."""
    name = f"{contrast.one} − {contrast.other}"
    if contrast.x:
        name += f" on {TITLES.get(contrast.x, contrast.x)}"
    paper = f"{printed[0]:+.1f}"
    if len(printed) > 1:
        paper += f" to {printed[-1]:+.1f}"
    same = gap.value * printed[0] > 0
    verdict = "the same sign." if same else "another sign than the paper's."
    interval = _interval(gap.low, gap.high, gap.how)
    return f"{panel}: {name} is {gap.value:+.1f}{interval}, in the paper {paper}: {verdict}"


def model_size_signs(published: pd.DataFrame, measured: pd.DataFrame) -> list[str]:
    """One sentence a model, on frames whose numbers are differences of SDFT and SFT.

    In the paper (figure 5 left) the smallest model has another sign than the larger ones.
    """
    smallest, largest = published.iloc[0], published.iloc[-1]
    sentences = []
    for row in measured.to_dict("records"):
        value = row["value"]
        if value:
            same_as_smallest = value * smallest["value"] > 0
            interval = _interval(row["low"], row["high"], row["note"])
            sentences.append(
                f"{row['panel']}, {row['x']}: sdft − sft is {value:+.1f} points{interval}; in the "
                f"paper {smallest['value']:+.1f} ({smallest['x']}) to {largest['value']:+.1f} "
                f"({largest['x']}): the sign of its "
                + ("smallest model." if same_as_smallest else "larger models.")
            )
    return sentences


def _interval(low: float, high: float, how: str) -> str:
    """An interval as text, or why there is none."""
    if not math.isfinite(low):
        return f" ({how.split(';')[0]})"
    return f" [{low:+.1f}, {high:+.1f}]" + (" (0 is inside)" if low <= 0 <= high else "")


def differences(frame: pd.DataFrame, contrast: Contrast) -> dict[str, Estimate]:
    """The difference in each panel that has both sides of the contrast.

    A measured difference is paired (benchmarks.paper.estimates.difference). A published one has no
    interval.
    """
    column = "series"
    if contrast.x:
        frame = frame[frame["x"] == contrast.x]
    else:
        column = "x"
    gaps = {}
    for panel, rows in frame.groupby("panel", sort=False):
        one = rows[rows[column] == contrast.one]
        other = rows[rows[column] == contrast.other]
        if len(one) == len(other) == 1:
            gap = _difference(one.iloc[0], other.iloc[0])
            if gap is not None:
                gaps[str(panel)] = gap
    return gaps


def _difference(one: pd.Series, other: pd.Series) -> Estimate | None:
    """None where two orders measured the two numbers, of other budgets or other data."""
    if "records" not in one:
        return Estimate(one["value"] - other["value"])
    if one["results"] is not other["results"]:
        return None
    scale = 100 if one["unit"] == "%" else 1
    return difference(one["results"], one["records"], other["records"], scale)
