"""Whether a difference has the sign of the published one, and whether its interval covers 0."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.paper.estimates import difference
from benchmarks.paper.form import TITLES
from harness.report.estimates import Estimate
from harness.report.table import Cell, Column, Row, Table

SAME, OTHER = "same sign", "other sign"
RANKS = {SAME: 0, OTHER: 2}  # in the table; between them are those of one of several models
BOUNDS = ("value", "low", "high")
SMALLEST = 0.05  # a smaller difference is printed as 0.0 and has no sign


@dataclass(frozen=True)
class Contrast:
    """Two series whose difference at ``x`` is compared with the published one.

    Without ``x`` they are two values of column ``x``, of whichever series has both.
    """

    one: str
    other: str
    x: str | None = None


@dataclass(frozen=True)
class Sign:
    """A measured difference beside the published ones, in points; of: what differs.

    paper: the published differences; verdict: SAME, OTHER, or whose sign of several it is.
    """

    of: str
    measured: Estimate
    paper: str
    verdict: str
    sentence: str


def sign_table(signs: Mapping[str, Sequence[Sign]]) -> Table:
    """Every sign that can be compared, those of the paper first; signs: by the title of an item.

    One that two items show, as figure 4 the numbers of table 5, has one row.
    """
    found: dict[str, tuple[list[str], Sign]] = {}
    for title, of_item in signs.items():
        for sign in of_item:
            found.setdefault(sign.sentence, ([], sign))[0].append(title)
    listed = [(f"{' and '.join(titles)}, {sign.of}", sign) for titles, sign in found.values()]
    listed.sort(key=lambda named: RANKS.get(named[1].verdict, 1))
    rows: list[Row] = []
    for label, sign in listed:
        fractions = {bound: getattr(sign.measured, bound) / 100 for bound in BOUNDS}
        estimate = replace(sign.measured, **fractions)
        texts: dict[str, Cell] = {
            "sign": sign.verdict,
            "told": _told(sign),
            "paper": sign.paper.replace("-", "−"),
        }
        rows.append((label, {**texts, "measured": estimate}))
    columns = [
        Column("sign", "sign", unit="text"),
        Column("measured", "measured", signed=True),
        Column("told", "told from 0", unit="text"),
        Column("paper", "in the paper", unit="text"),
    ]
    return Table("signs", "Same sign, other sign", _note(listed), columns, rows, stub="difference")


def _told(sign: Sign) -> str:
    low, high = sign.measured.low, sign.measured.high
    return "" if not math.isfinite(low) else "no" if low <= 0 <= high else "yes"


def _note(listed: Sequence[tuple[str, Sign]]) -> str:
    counts = Counter(sign.verdict for _, sign in listed)
    told = Counter(sign.verdict for _, sign in listed if _told(sign) == "yes")
    parts = [
        f"{counts[verdict]} {verdict} ({told[verdict]} of them told from 0)"
        for verdict in sorted(counts, key=lambda verdict: RANKS.get(verdict, 1))
    ]
    return (
        f"Of {len(listed)} differences that the paper prints and that were measured here: "
        f"{', '.join(parts)}. In points of accuracy; ± is half of a 95% interval. A difference "
        "whose interval holds 0 has no sign that can be told. Compared is the sign alone: model, "
        "data and budget are others than the paper's."
    )


def contrast_signs(
    contrasts: Iterable[Contrast], published: pd.DataFrame, measured: pd.DataFrame
) -> list[Sign]:
    """One a contrast and panel, where all published differences have one sign.

    Nothing is said of a metric that is not the paper's (of panels that are "not judged").
    """
    signs = []
    for contrast in contrasts:
        printed = sorted(gap.value for gap in differences(published, contrast).values())
        if not printed or printed[0] * printed[-1] <= 0:
            continue
        for panel, gap in differences(measured, contrast).items():
            if abs(gap.value) >= SMALLEST and "not judged" not in panel:
                signs.append(_sign(contrast, panel, gap, printed))
    return signs


def _sign(contrast: Contrast, panel: str, gap: Estimate, printed: list[float]) -> Sign:
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
    sentence = f"{panel}: {name} is {gap.value:+.1f}{interval}, in the paper {paper}: {verdict}"
    return Sign(f"{panel}: {name}", gap, paper, SAME if same else OTHER, sentence)


def model_size_signs(published: pd.DataFrame, measured: pd.DataFrame) -> list[Sign]:
    """One a model, on frames whose numbers are differences of SDFT and SFT.

    In the paper (figure 5 left) the smallest model has another sign than the larger ones.
    """
    smallest, largest = published.iloc[0], published.iloc[-1]
    signs = []
    for row in measured.to_dict("records"):
        value = row["value"]
        if not value:
            continue
        of_smallest = value * smallest["value"] > 0
        interval = _interval(row["low"], row["high"], row["note"])
        whose = "smallest model" if of_smallest else "larger models"
        sentence = (
            f"{row['panel']}, {row['x']}: sdft − sft is {value:+.1f} points{interval}; in the "
            f"paper {smallest['value']:+.1f} ({smallest['x']}) to {largest['value']:+.1f} "
            f"({largest['x']}): the sign of its {whose}."
        )
        paper = f"{smallest['value']:+.1f} to {largest['value']:+.1f}"
        gap = Estimate(value, row["low"], row["high"], row["note"])
        of = f"{row['panel']}, {row['x']}: sdft − sft"
        signs.append(Sign(of, gap, paper, f"sign of the {whose}", sentence))
    return signs


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
