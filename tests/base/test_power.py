"""The smallest difference that is told: against scipy, and what makes it smaller."""

import numpy as np
import pytest
from scipy import stats

from harness.base.intervals import ITEMS, spread
from harness.base.power import Sizes, Variation, budgets, detectable

ITEMS_ALONE = Variation(items=0.0004, seeds=0.0, both=0.0, count=1000)
SEEDS_ALONE = Variation(items=0.0, seeds=0.0003, both=0.0, count=100)
MIXED = Variation(items=0.0002, seeds=0.0001, both=0.0001, count=400)


def test_what_does_not_vary_is_told_whatever_it_is():
    assert Variation(0.0, 0.0, 0.0, 50).detectable(3) == 0.0
    assert Variation(0.0, 0.01, 0.0, 50).detectable(1) == 0.0  # of its questions alone


@pytest.mark.parametrize("df, seeds", [(2, 3), (4, 5), (9, 10)])
def test_seeds_alone_have_the_power_of_a_t_test(df, seeds):
    smallest = SEEDS_ALONE.detectable(seeds)
    error = (0.0003 / seeds) ** 0.5
    quantile = stats.t.ppf(0.975, df)
    assert stats.nct.sf(quantile, df, smallest / error) == pytest.approx(0.8, abs=1e-4)


def test_many_questions_have_the_power_of_a_normal_test():
    smallest = ITEMS_ALONE.detectable(1)
    assert smallest == pytest.approx(0.02 * (1.959964 + 0.841621), rel=2e-3)
    # More questions by four: half; more seeds: nothing.
    assert ITEMS_ALONE.detectable(1, 4) == pytest.approx(smallest / 2, rel=2e-3)
    assert ITEMS_ALONE.detectable(9) == pytest.approx(smallest, rel=2e-3)


def test_a_variation_is_that_of_its_spread():
    generator = np.random.default_rng(0)
    scores = (
        generator.normal(0, 1, (100, 1))
        + generator.normal(0, 0.3, 3)
        + generator.normal(0, 0.5, (100, 3))
    )
    found = spread([scores])
    again = Variation.of(found).spread(3)
    assert {k: (p.variance, p.df) for k, p in again.parts.items()} == {
        k: (pytest.approx(p.variance), pytest.approx(p.df)) for k, p in found.parts.items()
    }
    assert Variation.of(found).detectable(3) == pytest.approx(detectable(found))
    # One run alone knows of its questions, with what a seed does to them.
    alone = Variation.of(spread([scores[:, :1]]))
    assert alone.seeds == 0
    assert alone.detectable(1) == pytest.approx(2.8 * scores[:, 0].std(ddof=1) / 10, rel=0.02)


def test_twice_the_seeds_and_questions_lessen_each_part():
    now, then = MIXED.spread(3), MIXED.spread(6, 2)
    assert then.parts["seeds"].own == pytest.approx(now.parts["seeds"].own / 2)
    assert then.parts["seeds"].shared == pytest.approx(now.parts["seeds"].shared / 4)
    assert then.parts[ITEMS].variance == pytest.approx(now.parts[ITEMS].variance / 2)


def test_budgets_tell_the_target_and_a_little_less_does_not():
    target = MIXED.detectable(3) / 2
    found = budgets(MIXED, 3, target)
    assert found
    for budget in found.values():
        assert MIXED.detectable(budget.seeds, budget.times) <= target
        fewer = max(1.0, budget.times - 0.1)  # what is shown is rounded up
        assert round(budget.times, 1) == budget.times
        seeds = budget.seeds - (budget.times == 1)
        assert MIXED.detectable(seeds, fewer) > target


def test_a_way_that_leads_nowhere_is_left_out():
    assert list(budgets(ITEMS_ALONE, 1, ITEMS_ALONE.detectable(1) / 2)) == ["questions"]
    assert list(budgets(SEEDS_ALONE, 3, SEEDS_ALONE.detectable(3) / 2)) == ["seeds"]
    assert budgets(SEEDS_ALONE, 3, 0.0001) == {}
    assert budgets(MIXED, 3, 1.0)["questions"] == Sizes(3, 1.0)
