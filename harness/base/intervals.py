"""Intervals of a mean that varies over questions and over runs: over crossed levels.

A number of the report is a mean over the items of one or several tests and over runs, whose seeds
and sequences of skills differ. All are samples: other items of the same kind, other seeds, other
sequences. So the number varies by items, by seeds, by sequences, and by what these do to each
other.

The model is that of crossed random effects, score = mean + item + seed + item x seed. ``spread``
takes it apart by the mean squares of the analysis of variance (Searle, Casella & McCulloch 1992,
chapter 4). Together they are the two-way cluster-robust variance of Cameron, Gelbach & Miller 2011:
by items + by seeds - by both. For one run it is the variance over items of Miller 2024 (arXiv
2411.00640, section 2).

Few seeds know little of their own variance, so that normal quantiles cover too little. Each level
has its own Student's t, and the interval's quantile is their average, weighted by the variances
(Cochran & Cox 1957, section 4.14), here by their squares, which is how Satterthwaite 1946 weights
degrees of freedom. ``python -m benchmarks.coverage`` compares these by simulation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

ITEMS = "items"
# A variance below this share of the largest score squared is 0, up to rounding.
ROUNDING = 1e-24


@dataclass(frozen=True)
class Share:
    """What one level adds to the variance of a mean.

    own: of it, what more members of this level alone would lessen, as other levels stay; shared:
    what more members of any level would lessen. size: members; df: degrees of freedom.
    """

    own: float
    shared: float
    size: int
    df: float

    @property
    def variance(self) -> float:
        return self.own + self.shared


@dataclass(frozen=True)
class Spread:
    """The variance of a mean by level, {level: Share}; none of it is all zero."""

    parts: dict[str, Share]

    @property
    def variance(self) -> float:
        return sum(part.variance for part in self.parts.values())

    @property
    def stderr(self) -> float:
        return math.sqrt(self.variance)

    def quantile(self, level: float = 0.95) -> float:
        """Half of the interval, in standard errors."""
        return self.average(lambda df: t_quantile((1 + level) / 2, df))

    def p_value(self, value: float) -> float:
        """Two-sided p of a mean that is ``value`` from 0: that of the interval that ends at 0.

        So p is below 0.05 where the 95% interval leaves 0 out. Found by halving, to 1e-12.
        """
        distance = abs(value) / self.stderr
        low, high = 0.0, 1.0
        while high - low > 1e-12:
            p = (low + high) / 2
            low, high = (low, p) if self.quantile(1 - p) < distance else (p, high)
        return high

    def average(self, of_df: Callable[[float], float]) -> float:
        """A function of degrees of freedom, averaged over the levels.

        Weights are the squared variances. One degree of freedom (two seeds) has Cochran & Cox's own
        weights, the variances: the square covers too little there.
        """
        parts = [part for part in self.parts.values() if part.variance > 0]
        power = min([2.0, *(part.df for part in parts)])
        weights = [part.variance**power for part in parts]
        return float(np.dot([of_df(part.df) for part in parts], weights) / sum(weights))


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t; df: any positive number, or infinite."""
    from scipy import special  # only reports and plans want it; a run goes on without

    return float(special.ndtri(p) if math.isinf(df) else special.stdtrit(df, p))


def spread(
    tests: Sequence[ArrayLike], levels: Sequence[str] = ("seeds",), flips: Sequence[float] = ()
) -> Spread | None:
    """The variance of a mean over items and over every level of the runs; None where it is 0.

    tests: of each test an array [items, *levels], an item's part in the number in each run. The
    number is the sum over the tests of the mean over all axes; tests have their own items and share
    the runs. levels: names of the axes behind the items. An axis of length 1 is no sample: what it
    would add is not known, and left out.

    flips: of each test what the mean over runs of an item changes where one answer of one run
    changes, 0 for scores that are not right or wrong. Where answers change seldom, their number
    says little of its own variance, so that one more item is taken to have gained and one to have
    lost (the adjusted interval of Bonett & Price 2012 for paired proportions), in all tests
    together: each has its share of the two squares.

    Levels are taken by their number of members, and what one shares with an earlier one (their
    interaction) counts in the earlier one, that of fewer degrees of freedom.
    """
    arrays = [np.asarray(test, np.float64) for test in tests]
    sizes = arrays[0].shape[1:]
    axes = sorted((a for a in range(len(sizes)) if sizes[a] > 1), key=sizes.__getitem__)
    runs = np.sum([array.mean(0) for array in arrays], axis=0)
    own = [_own(lambda at: mean_square(runs, at), a, axes[:i]) for i, a in enumerate(axes)]
    of_flips = flips or [0.0] * len(arrays)
    sampled = [(a, f) for a, f in zip(arrays, of_flips, strict=True) if len(a) > 1]
    by_item = [
        _of_items(array, 2 * flip**2 / len(sampled), [a + 1 for a in axes])
        for array, flip in sampled
    ]
    items = sum(part for part, _, _ in by_item)
    shared = sum(interaction for _, _, interaction in by_item)
    squares = [square for _, square, _ in by_item]
    parts = {}
    for place, axis in enumerate(axes):
        variance = max(0.0, own[place])
        in_first = min(variance, shared) if place == 0 else 0.0
        parts[levels[axis]] = Share(variance - in_first, in_first, sizes[axis], sizes[axis] - 1)
    if not (items > 0 or any(share.variance for share in parts.values())):
        items = sum(squares)  # Other items in each seed, of the same mean: all that is known.
    if any(squares):
        count = sum(len(array) for array, _ in sampled)
        least = sum(s * s / (len(a) - 1) for s, (a, _) in zip(squares, sampled, strict=True))
        parts[ITEMS] = Share(max(0.0, items), 0.0, count, sum(squares) ** 2 / least)
    found = Spread(parts)
    largest = max((float(np.square(array).max(initial=0)) for array in arrays), default=0.0)
    return found if parts and found.variance > ROUNDING * largest else None


def _own(square: Callable[[Sequence[int]], float], axis: int, before: Sequence[int]) -> float:
    """The variance by one axis, less what it shares with those ``before`` it: by inclusion and
    exclusion over their interactions. square: mean squares by axes.
    """
    return sum(
        (-1) ** size * square([axis, *others])
        for size in range(len(before) + 1)
        for others in combinations(before, size)
    )


def _of_items(array: Array, more: float, axes: Sequence[int]) -> tuple[float, float, float]:
    """(own variance, mean square, interaction with all ``axes``) of one test's items.

    more: sum of squares of two items more, one above and one below the mean.
    """
    n = len(array)
    main = mean_square(array, [0])
    if more:
        main = (main * n * (n - 1) + more) / (n + 1) / (n + 2)
    own = _own(lambda at: main if at == [0] else mean_square(array, at), 0, axes)
    return own, main, main - own


def parts_of(scores: ArrayLike, values: ArrayLike) -> Array:
    """What each item adds to a mean: [items, members, 2] -> [items, members].

    scores: score times weight, and weight; values: the weighted means [members], which the results
    have as their means. Where weights differ, the mean is a ratio of two, and this is its expansion
    to first order (Cochran 1977, eq. 2.46).
    """
    table, means = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    weight = table[..., 1]
    return means + (table[..., 0] - means * weight) / weight.mean(0)


def mean_square(array: Array, axes: Sequence[int]) -> float:
    """The mean square of one effect over the number of entries: the variance it gives to the mean.

    axes: the effect's axes; several: their interaction. The others are averaged over.
    """
    effect = array.mean(tuple(set(range(array.ndim)) - set(axes)), keepdims=True)
    for axis in axes:
        effect = effect - effect.mean(axis, keepdims=True)
    entries = [array.shape[axis] for axis in axes]
    return float(np.square(effect).sum()) / math.prod(n - 1 for n in entries) / math.prod(entries)


def of_records(
    values: ArrayLike,
    stderrs: ArrayLike,
    items: float = math.inf,
    levels: Sequence[str] = ("seeds",),
) -> Spread | None:
    """The variance of a mean over runs from records alone, without the scores of items.

    values: of one number, [*levels]; stderrs: its standard error over items in each run. The
    part of the items is at most the mean of the squared errors, and is taken to be that: what a
    run does to an item counts twice, so the interval is wide rather than narrow. None where there
    is no spread.
    """
    values, stderrs = np.asarray(values, np.float64), np.asarray(stderrs, np.float64)
    found = spread([values[None]], levels)
    parts = dict(found.parts) if found else {}
    if len(stderrs) and np.isfinite(stderrs).all() and (stderrs > 0).any():
        by_items = float(np.square(stderrs).mean())
        parts[ITEMS] = Share(by_items, 0.0, 0, items - 1)
    return Spread(parts) if parts else None
