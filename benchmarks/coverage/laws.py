"""Laws that make scores of items in runs, with a known mean.

A law has a difficulty for each item, an effect of training on it, an effect of each seed, and one
of each seed on each item; of several sequences of skills also one of each sequence, on all items
and on each, and with each seed. Scores are right or wrong, by the sign of a latent number, or that
number itself.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

Array = np.ndarray
TAILS = 5  # degrees of freedom of the items' effects on continuous scores


@dataclass(frozen=True)
class Law:
    """What is measured, and how it varies.

    of: "accuracy" after training, its "change" from the base model, a "pair" of methods, or the
    change of a continuous score, weighing all items alike ("margin") or by their size ("ratio").
    right: share of right answers of the base model; shift: of the latent number by training;
    by_item, by_seed, by_both: standard deviations of its effects, in those of the difficulty;
    by_order: that of a sequence's effect, of which half is what it does to an item, and a quarter
    each what it does to all items and what it does with a seed; tests: how many there are; the
    number is their mean, and a seed has half of its effect on all, a sequence all of it.
    """

    name: str
    of: str
    right: float = 0.7
    shift: float = 0.0
    by_item: float = 0.2
    by_seed: float = 0.05
    by_both: float = 0.15
    by_order: float = 0.0
    tests: int = 1

    @property
    def is_fraction(self) -> bool:
        return self.of in ("accuracy", "change", "pair")

    @property
    def truth(self) -> float:
        """The mean over all items, seeds and sequences."""
        if not self.is_fraction:
            return self.shift
        variance = 1 + self.by_item**2 + self.by_seed**2 + self.by_both**2 + self.by_order**2
        after = float(special.ndtr((self.threshold + self.shift) / variance**0.5))
        without = float(special.ndtr(self.threshold / variance**0.5))
        return after - {"accuracy": 0.0, "change": self.right, "pair": without}[self.of]

    @property
    def threshold(self) -> float:
        return float(special.ndtri(self.right))

    def draw(
        self, generator: np.random.Generator, items: int, seeds: int, orders: int = 0
    ) -> list[Array]:
        """What each item adds to the number in each run, of every test.

        [items, seeds]; with several sequences of skills [items, seeds, orders].
        """
        runs = (seeds, orders) if orders else (seeds,)
        shared = generator.standard_normal((2, seeds)) * self.by_seed / 2**0.5
        if orders:
            of_orders = generator.standard_normal((2, 1, orders))
            of_runs = generator.standard_normal((2, seeds, orders))
            shared = shared[..., None] + (of_orders + of_runs) * self.by_order / 2
        return [self._test(generator, items, runs, shared) / self.tests for _ in range(self.tests)]

    def _test(
        self, generator: np.random.Generator, items: int, runs: tuple[int, ...], shared: Array
    ) -> Array:
        base = generator.standard_normal((items, *(1 for _ in runs))) + self.threshold
        one = base + self.shift + self._effects(generator, items, runs, shared[0])
        if self.of == "accuracy":
            return (one > 0).astype(float)
        if self.of == "change":
            return (one > 0).astype(float) - (base > 0)
        if self.of == "pair":
            other = base + self._effects(generator, items, runs, shared[1])
            return (one > 0).astype(float) - (other > 0)
        change = one - base
        if self.of == "ratio":
            size = generator.lognormal(5, 0.7, base.shape)
            mean = (change * size).sum(0) / size.sum()
            change = mean + (change - mean) * size / size.mean()  # intervals.parts_of
        return change

    def _effects(
        self, generator: np.random.Generator, items: int, runs: tuple[int, ...], shared: Array
    ) -> Array:
        seeds, *orders = runs
        of_seeds = generator.standard_normal((seeds, *(1 for _ in orders)))
        own = shared + of_seeds * self.by_seed / 2**0.5
        if orders:
            of_orders = generator.standard_normal((items, 1, *orders))
            own = own + of_orders * self.by_order / 2**0.5
        shapes = ((items, *(1 for _ in runs)), (items, *runs))
        if self.is_fraction:
            of_items, of_both = (generator.standard_normal(shape) for shape in shapes)
        else:  # of variance 1
            of_items, of_both = (
                generator.standard_t(TAILS, shape) * (1 - 2 / TAILS) ** 0.5 for shape in shapes
            )
        return own + of_items * self.by_item + of_both * self.by_both


# Of several sequences of skills: they matter not, as much as seeds, or more.
LAWS_OF_ORDERS = [
    Law("accuracy, sequences alike", "accuracy"),
    Law("accuracy", "accuracy", by_order=0.1),
    Law("accuracy, sequences differ much", "accuracy", by_order=0.4),
    Law("change, sequences alike", "change", shift=-0.05),
    Law("change", "change", shift=-0.05, by_order=0.1),
    Law("change, sequences differ much", "change", shift=-0.05, by_order=0.4),
    Law("pair", "pair", by_order=0.1),
    Law("pair, mean of 3 tests", "pair", by_order=0.1, tests=3),
    Law("margin", "margin", by_order=0.1),
]
LAWS = [
    Law("accuracy, seeds alike", "accuracy", by_seed=0.0),
    Law("accuracy", "accuracy"),
    Law("accuracy, seeds differ much", "accuracy", by_seed=0.3),
    Law("accuracy of 3%", "accuracy", right=0.03),
    Law("change, few flips, seeds alike", "change", 0.85, by_item=0.05, by_seed=0.0, by_both=0.05),
    Law("change, few flips", "change", 0.85, by_item=0.05, by_seed=0.03, by_both=0.05),
    Law("change", "change", shift=-0.05),
    Law("change, seeds differ much", "change", shift=-0.05, by_seed=0.2),
    Law("change, mean of 5 tests", "change", shift=-0.05, tests=5),
    Law("pair, few flips, seeds alike", "pair", 0.85, by_item=0.05, by_seed=0.0, by_both=0.05),
    Law("pair, few flips", "pair", 0.85, by_item=0.05, by_seed=0.03, by_both=0.05),
    Law("pair", "pair"),
    Law("pair, mean of 3 tests", "pair", tests=3),
    Law("margin, seeds alike", "margin", by_seed=0.0),
    Law("margin", "margin"),
    Law("margin, a seed's own answers", "margin", by_item=0.02, by_seed=0.01),
    Law("bits per byte", "ratio", by_seed=0.02),
    Law("bits per byte, seeds differ much", "ratio", by_seed=0.1),
]
