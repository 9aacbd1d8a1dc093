"""Intervals over items and seeds against loops, closed forms, scipy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.base import intervals, metrics
from harness.base.intervals import spread


def anova(scores):
    """Mean squares (items, seeds, both) of [items, seeds], by loops, over the number of scores."""
    n, s = scores.shape
    mean = sum(scores[i, k] for i in range(n) for k in range(s)) / (n * s)
    by_item = [sum(scores[i]) / s for i in range(n)]
    by_seed = [sum(scores[:, k]) / n for k in range(s)]
    items = s * sum((x - mean) ** 2 for x in by_item) / (n - 1)
    seeds = n * sum((x - mean) ** 2 for x in by_seed) / (s - 1)
    rest = sum(
        (scores[i, k] - by_item[i] - by_seed[k] + mean) ** 2 for i in range(n) for k in range(s)
    ) / ((n - 1) * (s - 1))
    return items / n / s, seeds / n / s, rest / n / s


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    seeds = generator.normal(0, 0.2, 3)
    return generator.normal(0, 1, (40, 1)) + seeds + generator.normal(0, 0.5, (40, 3))


def test_variances_are_those_of_the_analysis_of_variance(scores):
    items, seeds, both = anova(scores)
    found = spread([scores])
    assert list(found.parts) == ["seeds", "items"]
    assert found.parts["seeds"].variance == pytest.approx(seeds)
    assert found.parts["seeds"].shared == pytest.approx(both)
    assert found.parts["items"].variance == pytest.approx(items - both)
    assert (found.parts["seeds"].df, found.parts["items"].df) == (2, pytest.approx(39))
    # Cameron, Gelbach & Miller: by items + by seeds - by both
    assert found.variance == pytest.approx(items + seeds - both)


def test_the_quantile_lies_between_those_of_the_levels_by_their_squared_variances(scores):
    found = spread([scores])
    seeds, items = (found.parts[level].variance for level in ("seeds", "items"))
    weights = np.array([seeds, items]) ** 2
    quantile = (weights * stats.t.ppf(0.975, [2, 39])).sum() / weights.sum()
    assert found.quantile() == pytest.approx(quantile)
    assert stats.t.ppf(0.975, 39) < quantile < stats.t.ppf(0.975, 2)
    two = spread([scores[:, :2]])
    seeds, items = (two.parts[level].variance for level in ("seeds", "items"))
    weighted = seeds * stats.t.ppf(0.975, 1) + items * stats.t.ppf(0.975, 39)
    assert two.quantile() == pytest.approx(weighted / (seeds + items))


def test_one_run_has_students_interval_over_items(scores):
    found = spread([scores[:, :1]])
    assert list(found.parts) == ["items"]
    low, high = stats.t.interval(0.95, 39, scores[:, 0].mean(), stats.sem(scores[:, 0]))
    assert found.quantile() * found.stderr == pytest.approx((high - low) / 2)


def test_items_that_behave_alike_leave_students_interval_over_seeds(scores):
    alike = np.repeat(scores[:1], 30, axis=0)
    found = spread([alike])
    _, low, high = metrics.t_interval(alike.mean(0))
    assert found.quantile() * found.stderr == pytest.approx((high - low) / 2)


def test_tests_have_their_own_items_and_share_the_seeds(scores):
    other = scores[:25] * 2 + np.array([0.3, 0.0, -0.1])
    found = spread([scores / 2, other / 2])
    parts = [anova(scores / 2), anova(other / 2)]
    seeds = np.var((scores.mean(0) + other.mean(0)) / 2, ddof=1) / 3
    assert found.parts["seeds"].variance == pytest.approx(seeds)
    assert found.parts["items"].variance == pytest.approx(sum(i - both for i, _, both in parts))
    of_items = [items for items, _, _ in parts]
    df = sum(of_items) ** 2 / (of_items[0] ** 2 / 39 + of_items[1] ** 2 / 24)  # Satterthwaite
    assert found.parts["items"].df == pytest.approx(df)


def test_a_third_level_joins_as_one_more_axis():
    """Of items, seeds and orders the variance is unbiased, by inclusion and exclusion."""
    generator = np.random.default_rng(1)
    means, variances = [], []
    for _ in range(3000):
        scores = (
            generator.normal(0, 0.8, (20, 1, 1))
            + generator.normal(0, 0.3, (4, 1))
            + generator.normal(0, 0.4, 5)
            + generator.normal(0, 0.3, (4, 5))
            + generator.normal(0, 0.5, (20, 4, 1))
            + generator.normal(0, 0.5, (20, 4, 5))
        )
        found = spread([scores], ("seeds", "orders"))
        means.append(scores.mean())
        variances.append(found.variance)
    assert list(found.parts) == ["seeds", "orders", "items"]
    assert [part.df for part in found.parts.values()] == pytest.approx([3, 4, 19])
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.06)


def test_an_axis_of_one_member_is_no_sample(scores):
    seeds_only = spread([scores[..., None]], ("seeds", "orders"))
    assert seeds_only == spread([scores])


def test_where_nothing_varies_there_is_no_spread():
    assert spread([np.full((30, 3), 0.1)]) is None
    assert spread([np.full((30, 1), 1 / 3)]) is None
    assert spread([np.zeros((1, 1))]) is None


def test_seeds_of_one_mean_that_differ_in_every_item_have_the_spread_of_the_items():
    """One answer right in each run, another one each time: the means agree by chance."""
    scores = np.zeros((100, 3))
    scores[[0, 1, 2], [0, 1, 2]] = 1
    found = spread([scores])
    assert list(found.parts) == ["seeds", "items"]
    assert found.stderr == pytest.approx(stats.sem(scores.mean(1)))


@pytest.mark.parametrize("n", [48, 300])
def test_no_flip_of_n_leaves_room_for_one_each_way(n):
    """Bonett & Price 2012: one more of n + 2 in each direction."""
    found = spread([np.zeros((n, 1))], flips=[1.0])
    share = 1 / (n + 2)
    variance = 2 * share / (n + 1)
    assert found.variance == pytest.approx(variance)
    assert found.quantile() * found.stderr == pytest.approx(2.8 / n, rel=0.05)
    # In the mean of three runs one answer counts a third.
    assert spread([np.zeros((n, 3))], flips=[1 / 3]).variance == pytest.approx(variance / 9)


def test_parts_of_a_ratio_have_its_standard_error():
    generator = np.random.default_rng(2)
    weight = generator.integers(20, 400, 50).astype(float)
    total = weight * generator.normal(1, 0.2, 50)
    ratio, error = metrics.ratio_and_stderr(total, weight)
    parts = intervals.parts_of(np.stack([total, weight], 1)[:, None], [ratio])
    assert parts.shape == (50, 1)
    assert parts.mean() == pytest.approx(ratio)
    assert spread([parts]).stderr == pytest.approx(error)


def test_records_alone_bound_the_variance_from_above(scores):
    _, seeds, both = anova(scores)
    found = intervals.of_records(scores.mean(0), scores.std(0, ddof=1) / 40**0.5)
    assert found.parts["seeds"].variance == pytest.approx(seeds)
    assert found.variance == pytest.approx(spread([scores]).variance + 3 * both)
    assert intervals.of_records([0.1] * 3, []) is None
    alone = intervals.of_records([0.5], [0.1])
    assert alone.quantile() * alone.stderr == pytest.approx(0.1959964)
    assert intervals.of_records([0.5], [math.nan]) is None
    _, low, high = metrics.t_interval([0.1, 0.3, 0.2])
    over_seeds = intervals.of_records([0.1, 0.3, 0.2], [])
    assert over_seeds.quantile() * over_seeds.stderr == pytest.approx((high - low) / 2)


def test_p_values_are_those_at_which_the_interval_ends_at_zero():
    rng = np.random.default_rng(2)
    one_run = rng.normal(0.3, 1, (30, 1))
    found = spread([one_run])
    wanted = stats.ttest_1samp(one_run[:, 0], 0).pvalue
    assert found.p_value(one_run.mean()) == pytest.approx(wanted, rel=1e-6)
    assert found.p_value(0.0) == pytest.approx(1)
    assert found.p_value(1e9) == pytest.approx(0, abs=1e-9)
    several = spread([rng.normal(0, 1, (30, 4)) + rng.normal(0, 1, 4)])
    for level in (0.5, 0.9, 0.95, 0.999):  # where two levels have quantiles of their own
        edge = several.quantile(level) * several.stderr
        assert several.p_value(edge) == pytest.approx(1 - level, abs=1e-9)
        assert several.p_value(-edge) == pytest.approx(1 - level, abs=1e-9)
