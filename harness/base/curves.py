"""Numbers of learning curves, of pairs of answers and of points in a plane.

They are no function of an accuracy matrix alone, as those of harness/base/metrics.py are.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from harness.base.metrics import Array


def learning_curve_area(prompts: ArrayLike, values: ArrayLike) -> float:
    """Mean height of a learning curve: its area by trapezia over the width of ``prompts``.

    The learning curve area of Chaudhry et al. 2019 (A-GEM, arXiv 1812.00420) is the
    mean over batches that are evenly spaced. Here points may be uneven, and the line between two is
    straight. prompts: drawn in the stage at each point, from 0 on, rising; values: accuracies. NaN
    with fewer than two points, or where one is NaN.
    """
    x, y = np.asarray(prompts, np.float64), np.asarray(values, np.float64)
    if len(x) < 2 or not (np.diff(x) > 0).all():
        return math.nan
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


def prompts_to_reach(prompts: ArrayLike, values: ArrayLike, target: float) -> float:
    """Prompts after which a learning curve is first at ``target``, between points on a line.

    0 where it begins there, infinite where it never gets there, NaN where a point or the target is
    NaN. prompts, values: as for ``learning_curve_area``.
    """
    x, y = np.asarray(prompts, np.float64), np.asarray(values, np.float64)
    if not len(x) or np.isnan(y).any() or np.isnan(target):
        return math.nan
    reached = np.flatnonzero(y >= target)
    if not len(reached):
        return math.inf
    k = int(reached[0])
    if k == 0:
        return float(x[0])
    return float(x[k - 1] + (x[k] - x[k - 1]) * (target - y[k - 1]) / (y[k] - y[k - 1]))


def transitions(before: ArrayLike, after: ArrayLike, chance: float = 0.0) -> tuple[Array, Array]:
    """What each item adds to the shares of items that were lost (1 to 0) and gained (0 to 1).

    before, after: scores of the same items, each 0 or 1. The means of the results are the shares;
    one less the other is the change of accuracy (over 1 - g), and hides how much was exchanged.

    chance: probability g that an item that is not known is guessed right, 1/k of k choices. Then
    the shares are of items known and not known, by the classical correction for guessing (p - g) /
    (1 - g) (Lord & Novick 1968) taken to pairs of answers, in which guesses are independent and
    what is known is right: with n[b, a] the shares of right (1) and wrong (0) before and after,

    lost = n[1, 0] / (1 - g) - g n[0, 0] / (1 - g)^2, gained = n[0, 1] / (1 - g) - g n[0, 0] / (1 -
    g)^2.

    Greedy answers that are guessed alike at both times make both too small, also below 0.
    """
    b, a = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not (np.isin(b, (0, 1)).all() and np.isin(a, (0, 1)).all()) or not 0 <= chance < 1:
        raise ValueError("transitions() wants scores of 0 and 1, and a chance from 0 to below 1")
    known = 1 - chance
    guessed = chance * (1 - b) * (1 - a) / known**2
    return b * (1 - a) / known - guessed, (1 - b) * a / known - guessed


def hypervolume(points: ArrayLike, reference: ArrayLike = (0.0, 0.0)) -> float:
    """Area that points [n, 2] dominate above a reference point; larger is better on both axes.

    Zitzler & Thiele 1998: the union of the rectangles between the reference and each point. Points
    that are not above the reference on both axes add nothing.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2) - np.asarray(reference, np.float64)
    points = points[(points > 0).all(axis=1)]
    area, height = 0.0, 0.0
    for x, y in points[np.argsort(-points[:, 0], kind="stable")]:
        area += x * max(0.0, y - height)
        height = max(height, y)
    return float(area)
