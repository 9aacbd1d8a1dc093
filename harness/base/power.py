"""The smallest difference that would be told, and what would make it smaller.

A difference is told where its 95% interval (harness.base.intervals) leaves 0 out. The smallest one
that is told in 80 of 100 repetitions follows from the variance by level, with the noncentral t of
each level (Cohen 1988, section 2.3), averaged as the quantiles of the interval are.
``python -m benchmarks.coverage --power`` checks it by simulation.
"""

import math
from dataclasses import dataclass, replace

from harness.base.intervals import ITEMS, Share, Spread, t_quantile

POWER, LEVEL = 0.8, 0.95
NORMAL_FROM = 300  # degrees of freedom
MOST_SEEDS, MOST_TIMES = 40, 40.0


@dataclass(frozen=True)
class Variation:
    """How a difference varies: variances of its mean by questions, by seeds and by both.

    items, both: of one run, with the present questions; seeds: of one run; count: of questions;
    orders: what the present sequences of skills add, whatever the seeds and questions.
    """

    items: float
    seeds: float
    both: float
    count: int
    orders: Share | None = None

    @classmethod
    def of(cls, spread: Spread) -> "Variation":
        """What a spread over questions and seeds, or over questions alone, says."""
        none = Share(0.0, 0.0, 1, math.inf)
        items, seeds = spread.parts.get(ITEMS, none), spread.parts.get("seeds", none)
        orders = spread.parts.get("orders")
        own = replace(orders, shared=0.0) if orders else None
        both = seeds.shared + (orders.shared if orders else 0.0)
        return cls(items.own, seeds.own * seeds.size, both * seeds.size, items.size, own)

    def spread(self, seeds: int, times: float = 1.0) -> Spread:
        """Of a mean over ``seeds`` runs with ``times`` the questions.

        One run knows of its questions alone.
        """
        df = max(1.0, self.count * times - 1)
        orders = {"orders": self.orders} if self.orders else {}
        if seeds == 1:
            of_items = Share((self.items + self.both) / times, 0.0, self.count, df)
            return Spread({**orders, ITEMS: of_items})
        of_seeds = Share(self.seeds / seeds, self.both / times / seeds, seeds, seeds - 1)
        of_items = Share(self.items / times, 0.0, self.count, df)
        return Spread({**orders, "seeds": of_seeds, ITEMS: of_items})

    def detectable(self, seeds: int, times: float = 1.0) -> float:
        return detectable(self.spread(seeds, times))


def detectable(spread: Spread, power: float = POWER) -> float:
    """The smallest true difference whose interval leaves 0 out with this probability.

    0 without a level that varies.
    """
    if not spread.variance:
        return 0.0
    return spread.stderr * spread.average(lambda df: _noncentrality(df, power))


def _noncentrality(df: float, power: float) -> float:
    """Of a t that is above its own quantile with probability ``power``."""
    from scipy import special

    quantile = t_quantile((1 + LEVEL) / 2, df)
    if df > NORMAL_FROM:
        return quantile + float(special.ndtri(power))
    return float(special.nctdtrinc(df, 1 - power, quantile))


@dataclass(frozen=True)
class Sizes:
    """So many seeds, and so many times the questions."""

    seeds: int
    times: float

    def text(self, seeds: int) -> str:
        """What is more than now; seeds: those of now."""
        parts = [f"{self.times:.1f} times the questions"] if self.times > 1 else []
        parts += [f"{self.seeds} seeds"] if self.seeds != seeds else []
        return " and ".join(parts)


def budgets(variation: Variation, seeds: int, target: float) -> dict[str, Sizes]:
    """What tells a difference of ``target``: more questions, more seeds, or more of both.

    seeds: those of now. A way that leads nowhere is left out: more questions do not help where
    seeds differ, nor more seeds where questions do. Both: the fewest answers in all, where these
    are fewer than by questions alone.
    """
    found = {}
    if budget := _with(variation, seeds, target):
        found["questions"] = budget
    more = [_with(variation, n, target) for n in range(max(seeds, 2) + 1, MOST_SEEDS + 1)]
    known = [budget for budget in more if budget is not None]
    for budget in known:
        if budget.times == 1:
            found["seeds"] = budget
            break
    both = min(known, key=lambda budget: budget.seeds * budget.times, default=None)
    most = found.get("questions")
    if both and both.times > 1 and (most is None or both.times * both.seeds < most.times * seeds):
        found["both"] = both
    return found


def _with(variation: Variation, seeds: int, target: float) -> Sizes | None:
    """The fewest questions that tell ``target`` with so many seeds; None where 40 times do not."""
    if variation.detectable(seeds) <= target:
        return Sizes(seeds, 1.0)
    low, high = 1.0, MOST_TIMES
    if variation.detectable(seeds, high) > target:
        return None
    for _ in range(20):  # halves the range
        middle = (low + high) / 2
        if variation.detectable(seeds, middle) <= target:
            high = middle
        else:
            low = middle
    return Sizes(seeds, math.ceil(round(10 * high, 6)) / 10)  # as it is shown
