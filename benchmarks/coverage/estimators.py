"""Intervals that are compared: the report's, what it had before, and others of the literature.

Each takes the tests of one draw, [items, seeds] each or [items, seeds, orders], and whether scores
are right or wrong and whether the number is an accuracy; it returns (low, high).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.coverage.laws import Law
from harness.base import intervals, metrics
from harness.base.intervals import Spread, t_quantile

Array = np.ndarray
Bounds = tuple[float, float]
Tests = Sequence[Array]

NORMAL = 1.959963984540054
DRAWS = 400  # of a bootstrap


def value(tests: Tests) -> float:
    return sum(float(test.mean()) for test in tests)


def _spread(tests: Tests, law: Law) -> Spread | None:
    flips = [0.0] * len(tests)
    if law.of in ("change", "pair"):
        flips = [1 / law.tests / math.prod(tests[0].shape[1:])] * len(tests)
    return intervals.spread(tests, ("seeds", "orders"), flips)


def _around(tests: Tests, half: float) -> Bounds:
    return value(tests) - half, value(tests) + half


def report(tests: Tests, law: Law) -> Bounds:
    """All levels, each with its Student's t, weighted by squared variances."""
    spread = _spread(tests, law)
    if law.of == "accuracy":
        error = spread.stderr if spread else np.nan
        quantile = spread.quantile() if spread else None
        return metrics.score_interval(value(tests), error, len(tests[0]), quantile=quantile)
    return _around(tests, spread.quantile() * spread.stderr if spread else 0.0)


def cochran_cox(tests: Tests, law: Law) -> Bounds:
    """The same, weighted by the variances."""
    spread = _spread(tests, law)
    if spread is None:
        return _around(tests, 0.0)
    parts = spread.parts.values()
    quantile = sum(part.variance * t_quantile(0.975, part.df) for part in parts) / spread.variance
    return _around(tests, quantile * spread.stderr)


def satterthwaite(tests: Tests, law: Law) -> Bounds:
    """The same variance with Satterthwaite's degrees of freedom."""
    spread = _spread(tests, law)
    if spread is None:
        return _around(tests, 0.0)
    least = sum(part.variance**2 / part.df for part in spread.parts.values())
    return _around(tests, t_quantile(0.975, spread.variance**2 / least) * spread.stderr)


def two_way_cluster(tests: Tests, law: Law) -> Bounds:
    """Cameron, Gelbach & Miller 2011: by items + by seeds - by both, t with seeds - 1."""
    seeds = intervals.mean_square(np.sum([test.mean(0) for test in tests], 0), [0])
    items = sum(intervals.mean_square(test, [0]) for test in tests)
    both = sum(intervals.mean_square(test, [0, 1]) for test in tests)
    variance = max(items + seeds - both, 0.0)
    return _around(tests, t_quantile(0.975, tests[0].shape[1] - 1) * variance**0.5)


def over_seeds(tests: Tests, law: Law) -> Bounds:
    """The report's before: Student's t over seeds."""
    _, low, high = metrics.t_interval(np.sum([test.mean(0) for test in tests], 0))
    return low, high


def over_items(tests: Tests, law: Law) -> Bounds:
    """Over items alone, as for one run before: the mean over seeds of each item, normal."""
    items = sum(intervals.mean_square(test, [0]) for test in tests)
    return _around(tests, NORMAL * items**0.5)


def bootstrap_seeds(tests: Tests, law: Law) -> Bounds:
    """Percentiles of resampled seeds."""
    draws = metrics.bootstrap_means(np.sum([test.mean(0) for test in tests], 0), DRAWS)
    return metrics.percentile_interval(draws)


def bootstrap_both(tests: Tests, law: Law) -> Bounds:
    """Percentiles of resampled seeds and items, each level on its own (Owen 2007)."""
    generator = np.random.default_rng(0)
    seeds = tests[0].shape[1]
    of_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, DRAWS) / seeds
    draws = np.zeros(DRAWS)
    for test in tests:
        n = len(test)
        of_items = generator.multinomial(n, np.full(n, 1 / n), DRAWS) / n
        draws += ((of_items @ test) * of_seeds).sum(1)
    return metrics.percentile_interval(draws)


def runs_as_seeds(tests: Tests, law: Law) -> Bounds:
    """Every run as a seed of its own, whatever its sequence."""
    return report([test.reshape(len(test), -1) for test in tests], law)


def sequences_averaged(tests: Tests, law: Law) -> Bounds:
    """The sequences as they are, no sample of others: over seeds and items of their mean."""
    return report([test.mean(2) for test in tests], law)


ESTIMATORS_OF_ORDERS: dict[str, Callable[[Tests, Law], Bounds]] = {
    "report": report,
    "runs as seeds": runs_as_seeds,
    "sequences averaged": sequences_averaged,
}
ESTIMATORS: dict[str, Callable[[Tests, Law], Bounds]] = {
    "report": report,
    "Cochran-Cox": cochran_cox,
    "Satterthwaite": satterthwaite,
    "two-way cluster": two_way_cluster,
    "t over seeds": over_seeds,
    "items alone": over_items,
    "bootstrap of seeds": bootstrap_seeds,
    "bootstrap of both": bootstrap_both,
}
