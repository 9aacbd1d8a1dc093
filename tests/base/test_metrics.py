"""The metrics against cases worked out by hand and against published quantiles."""

import itertools
import math

import numpy as np
import pytest

from harness.base import curves, metrics

# Three skills; by hand below. Row 0 is the base model.
R = np.array(
    [
        [0.10, 0.20, 0.30],
        [0.80, 0.25, 0.35],
        [0.60, 0.90, 0.15],
        [0.50, 0.70, 0.95],
    ]
)


def test_transfer_and_forgetting_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.5 + 0.7 + 0.95) / 3)
    assert metrics.learning_accuracy(R) == pytest.approx((0.8 + 0.9 + 0.95) / 3)
    assert metrics.own_stage_gain(R) == pytest.approx([0.7, 0.7, 0.65])
    assert metrics.backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.9)) / 2)
    assert metrics.forward_transfer(R) == pytest.approx(((0.25 - 0.2) + (0.15 - 0.3)) / 2)
    assert metrics.forgetting(R) == pytest.approx(((0.8 - 0.5) + (0.9 - 0.7)) / 2)


def test_forgetting_takes_the_best_stage_before_the_last_and_never_the_base():
    better_later = R.copy()
    better_later[2, 0] = 0.85  # skill 1 peaks a stage after its own
    assert metrics.forgetting(better_later) == pytest.approx(((0.85 - 0.5) + (0.9 - 0.7)) / 2)
    assert metrics.backward_transfer(better_later) == pytest.approx(metrics.backward_transfer(R))
    better_base = R.copy()
    better_base[0] = 1.0
    assert metrics.forgetting(better_base) == pytest.approx(metrics.forgetting(R))
    better_at_the_end = R.copy()
    better_at_the_end[3, :2] = 0.9  # above every earlier stage for skill 1: negative forgetting
    assert metrics.forgetting(better_at_the_end) == pytest.approx(((0.8 - 0.9) + (0.9 - 0.9)) / 2)


def test_leading_axes_are_kept_and_unknown_stays_unknown():
    stack = np.stack([R, R + 0.01, np.where(R == 0.5, np.nan, R)])
    for function in (metrics.average_accuracy, metrics.backward_transfer, metrics.forgetting):
        values = function(stack)
        assert values[0] == pytest.approx(function(R)) and np.isnan(values[2])
    assert metrics.learning_accuracy(stack)[2] == pytest.approx(metrics.learning_accuracy(R))
    assert metrics.own_stage_accuracy(stack).shape == (3, 3)


def test_one_skill_has_no_transfer():
    single = np.array([[0.2], [0.7]])
    assert metrics.average_accuracy(single) == 0.7
    assert all(
        np.isnan(f(single))
        for f in (metrics.backward_transfer, metrics.forward_transfer, metrics.forgetting)
    )


def test_retention_delta_is_positive_when_better_in_either_direction():
    assert metrics.retention_delta(0.6, 0.5) == pytest.approx(-0.1)
    # more bits per byte: lost
    assert metrics.retention_delta(1.0, 1.1, higher_is_better=False) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "metric, values, counts",
    [
        ("acc,none", [0.2, 1.0, np.nan], True),
        ("bleu_acc,none", [0.4], True),
        ("accuracy", [0, 1], True),
        ("acc,none", [0.5, 1.5], False),
        ("bleu,none", [0.4, 0.9], False),
        ("bleu_max,none", [0.4], False),
        ("rougeL", [0.4], False),
        ("mcc,none", [0.02], False),
        ("exact_match,flexible-extract", [-0.1], False),
    ],
)
def test_what_counts_in_a_mean_of_retention(metric, values, counts):
    assert metrics.in_unit_interval(metric, values) is counts
    assert not metrics.in_unit_interval(metric, values, higher_is_better=False)


def test_normalised_accuracy_is_linear_between_base_and_best():
    assert metrics.normalised([0.2, 0.5, 0.8, 0.05], 0.2, 0.8) == pytest.approx([0, 0.5, 1, -0.25])
    assert np.isnan(metrics.normalised([0.2], 0.2, 0.2)).all()


@pytest.mark.parametrize(
    ("df", "quantile"),
    [  # two-sided 95%, from the printed tables
        (1, 12.706205),
        (2, 4.302653),
        (3, 3.182446),
        (4, 2.776445),
        (5, 2.570582),
        (9, 2.262157),
        (10, 2.228139),
        (30, 2.042272),
        (99, 1.984217),
    ],
)
def test_t_quantiles_are_those_of_the_tables(df, quantile):
    assert metrics.t_quantile(0.975, df) == pytest.approx(quantile, abs=1e-6)


def test_t_quantile_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 2, 7, 8, 200):
        for p in (0.6, 0.9, 0.995):
            assert metrics.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)


def test_t_interval_by_hand():
    mean, low, high = metrics.t_interval([0.5, 0.6, 0.7, np.nan])  # s = 0.1, n = 3
    assert (mean, high - mean, mean - low) == pytest.approx(
        (0.6, 4.302653 * 0.1 / 3**0.5, 4.302653 * 0.1 / 3**0.5), rel=1e-6
    )
    mean, low, high = metrics.t_interval([0.5])
    assert mean == 0.5 and np.isnan([low, high]).all()
    assert np.isnan(metrics.t_interval([])).all()


def test_the_bootstrap_is_seeded_and_has_the_binomial_width():
    scores = np.repeat([1.0, 0.0], [70, 30])
    means = metrics.bootstrap_means(scores, 10_000)
    assert (means == metrics.bootstrap_means(scores[::-1], 10_000)).all()
    # Resampling 100 draws of a fraction 0.7 is Binomial(100, 0.7) / 100; its quantiles are 61 and
    # 79.
    assert metrics.percentile_interval(means) == pytest.approx((0.61, 0.79), abs=0.011)
    assert (
        metrics.bootstrap_means(scores, 200, seed=1) != metrics.bootstrap_means(scores, 200, seed=2)
    ).any()


def test_wilson_interval_against_the_closed_form_and_printed_values():
    z2 = 1.959964**2
    for n in (1, 10, 48, 1000):
        assert metrics.wilson_interval(0, n) == pytest.approx(
            (0, z2 / (n + z2)), rel=1e-6, abs=1e-12
        )
        assert metrics.wilson_interval(n, n) == pytest.approx((n / (n + z2), 1), rel=1e-6)
    # Newcombe 1998, table I
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)  # the same
    assert np.isnan(metrics.wilson_interval(0, 0)).all()
    low, high = metrics.wilson_interval(np.array([0, 1, 81]), np.array([0, 29, 263]))
    assert (low[1:], high[1:]) == (
        pytest.approx([0.0061, 0.2553], abs=5e-5),
        pytest.approx([0.1718, 0.3662], abs=5e-5),
    )
    assert np.isnan([low[0], high[0]]).all()


def test_the_score_interval_is_wilsons_for_right_and_wrong_answers():
    rng = np.random.default_rng(0)
    for n in (2, 7, 48, 1000):
        for right in {0, 1, n // 3, n - 1, n}:
            scores = rng.permutation([1.0] * right + [0.0] * (n - right))
            value, stderr = metrics.mean_and_stderr(scores.tolist())
            assert metrics.score_interval(value, stderr, n) == pytest.approx(
                metrics.wilson_interval(right, n), rel=1e-9, abs=1e-12
            )
    low, high = metrics.score_interval(
        [0.0, 1.0, 0.5, 0.5, 1.5, 0.0], [0, 0, np.nan, 0, 0.1, 0], [48, 48, 48, 48, 48, 0]
    )
    assert (
        np.isfinite(low).tolist()
        == np.isfinite(high).tolist()
        == [True, True, False, False, False, False]
    )
    assert (low[0], high[1]) == pytest.approx((0, 1))


@pytest.mark.parametrize("law", ["pass@8 of 16", "beta", "three values"])
def test_the_score_interval_covers_the_mean_of_scores_in_between(law):
    """95% of 4,000 samples of 40 scores, to the error of the count and of the approximation; the
    bounds lie in [0, 1].
    """
    rng, shape = np.random.default_rng(1), (4_000, 40)
    if law == "beta":
        scores, mean = rng.beta(0.4, 0.8, shape), 0.4 / 1.2
    elif law == "three values":
        scores, mean = rng.choice([0, 0.5, 1], shape, p=[0.6, 0.3, 0.1]), 0.25
    else:  # two thirds of the prompts are never answered right, a third one time in five
        scores = metrics.pass_at_k(
            16, rng.binomial(16, 0.2, shape) * (rng.random(shape) < 1 / 3), 8
        )
        mean = (1 - 0.8**8) / 3
    low, high = metrics.score_interval(scores.mean(1), scores.std(1, ddof=1) / 40**0.5, 40)
    assert np.mean((low <= mean) & (mean <= high)) == pytest.approx(0.95, abs=0.015)
    assert low.min() >= 0 and high.max() <= 1
    # such scores say more than 40 votes
    assert (high - low < np.subtract(*metrics.wilson_interval(scores.sum(1), 40)[::-1])).all()


def test_bootstrap_of_many_columns_is_paired():
    scores = np.random.default_rng(0).random(50)
    both = metrics.bootstrap_means(np.stack([scores, scores - 0.1], 1), draws=300)
    assert both.shape == (300, 2) and np.ptp(both[:, 0] - both[:, 1]) < 1e-12
    assert both[:, 0].std() == pytest.approx(scores.std() / 50**0.5, rel=0.15)


@pytest.mark.parametrize("samples", [1, 2, 5, 9])
def test_pass_at_k_is_the_mean_over_all_subsets(samples):
    for correct in range(samples + 1):
        answers = [i < correct for i in range(samples)]
        for k in range(1, samples + 1):
            subsets = [any(s) for s in itertools.combinations(answers, k)]
            assert metrics.pass_at_k(samples, correct, k) == pytest.approx(
                np.mean(subsets), abs=1e-12
            )


def test_pass_at_k_is_unbiased():
    """Its expectation over the number of right answers is the chance that one of k is right, 1 - (1
    - p)^k.
    """
    n, p = 128, 0.03
    chance = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
    for k in (1, 2, 17, 64, 128):
        values = metrics.pass_at_k(n, np.arange(n + 1), k)
        assert (chance * values).sum() == pytest.approx(1 - (1 - p) ** k, rel=1e-12)
        assert values[[0, n]].tolist() == [0, 1] and (np.diff(values) >= 0).all()


@pytest.mark.parametrize("samples, correct, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_of_impossible_counts(samples, correct, k):
    with pytest.raises(ValueError, match="wants 0 <= correct <= samples"):
        metrics.pass_at_k(samples, correct, k)


def test_ratio_and_its_error():
    assert metrics.ratio_and_stderr([3.0], [2]) == (1.5, None)
    values = [0.1, 0.5, 0.3, 0.7]  # equal counts: the plain mean and its plain error
    assert metrics.ratio_and_stderr([4 * v for v in values], [4] * 4) == pytest.approx(
        (0.4, np.std(values, ddof=1) / 2)
    )
    generator = np.random.default_rng(0)  # against the spread of many repetitions
    counts = generator.integers(1, 30, size=(4000, 60))
    totals = counts * 0.4 + generator.normal(size=counts.shape) * counts**0.5
    pairs = zip(totals, counts, strict=True)
    ratios, errors = np.array([metrics.ratio_and_stderr(t, c) for t, c in pairs]).T
    assert ratios.std() == pytest.approx(
        errors.mean(), rel=0.05
    ) and ratios.mean() == pytest.approx(0.4, abs=0.01)


def test_select():
    assert metrics.select({"a": [0.2, 0.4], "b": [0.5, 0.2], "c": [0.1, 0.1]}) == "b"
    assert metrics.select({"b": [0.5], "a": [0.5]}) == "b"  # of equals the first
    scores = [0.1, 0.2, 0.3]
    assert np.mean(scores) > np.mean(scores[::-1])  # 3 to 1, in binary
    assert (
        metrics.select({"b": scores[::-1], "a": scores}) == "b"
        and metrics.select({"b": [0.5], "a": [0.5 + 1e-9]}) == "a"
    )
    for missing in (None, float("nan")):
        assert metrics.select({"a": [0.2, 0.4], "b": [0.9, missing]}) is None
    assert metrics.select({}) is None


def test_measures_of_the_whole_way_by_hand():
    wanted = [0.8, (0.6 + 0.9) / 2, (0.5 + 0.7 + 0.95) / 3]
    assert metrics.overall_performance(R) == pytest.approx(wanted)
    assert metrics.anytime_accuracy(R) == pytest.approx(sum(wanted) / 3)
    # the same sum of -0.3 and -0.2, over three skills and over the two that something follows
    assert metrics.backward_transfer_trace(R) == pytest.approx(-0.5 / 3)
    assert metrics.backward_transfer(R) == pytest.approx(-0.5 / 2)


def test_measures_against_references_by_hand():
    joint, single = np.array([0.7, 0.95, 0.9]), np.array([0.8, 0.8, 0.9])
    wanted = ((0.7 - 0.8) + (0.95 - 0.9) + (0.9 - 0.95)) / 3
    assert metrics.intransigence(R, joint) == pytest.approx(wanted)
    second = (0.8 - 0.2) - (0.9 - 0.25)
    third = (0.9 - 0.3) - (0.95 - 0.15)
    assert metrics.plasticity_loss(R, single) == pytest.approx((second + third) / 2)
    wanted = ((0.9 - 0.8) + (0.95 - 0.9)) / 2
    assert metrics.forward_transfer_single(R, single) == pytest.approx(wanted)
    # what the sequence did before the stage is FWT, and with it the two say the same
    assert metrics.plasticity_loss(R, single) == pytest.approx(
        metrics.forward_transfer(R) - metrics.forward_transfer_single(R, single)
    )
    without = np.where(single == 0.9, np.nan, single)
    assert np.isnan(metrics.plasticity_loss(R, without))
    assert np.isnan(metrics.intransigence(R, without))


def test_new_measures_keep_leading_axes_and_are_not_defined_for_one_skill():
    rng = np.random.default_rng(0)
    stack, joint = rng.random((2, 5, 4, 3)), rng.random((2, 5, 3))
    for function in (metrics.anytime_accuracy, metrics.backward_transfer_trace):
        naive = [[function(matrix) for matrix in row] for row in stack]
        assert function(stack) == pytest.approx(np.array(naive))
    for function in (
        metrics.intransigence,
        metrics.plasticity_loss,
        metrics.forward_transfer_single,
    ):
        naive = [[function(stack[i, j], joint[i, j]) for j in range(5)] for i in range(2)]
        assert function(stack, joint) == pytest.approx(np.array(naive))
    alone = np.array([[0.2], [0.7]])
    assert metrics.anytime_accuracy(alone) == 0.7 and metrics.intransigence(alone, [0.8]) == (
        pytest.approx(0.1)
    )
    assert np.isnan(metrics.backward_transfer_trace(alone))
    assert np.isnan(metrics.plasticity_loss(alone, [0.7]))
    assert np.isnan(metrics.forward_transfer_single(alone, [0.7]))


def test_learning_curves_by_hand():
    prompts, values = [0, 10, 40], [0.2, 0.6, 0.3]
    area = (10 * 0.4 + 30 * 0.45) / 40
    assert curves.learning_curve_area(prompts, values) == pytest.approx(area)
    even = np.linspace(0, 1, 7)
    trapezia = np.trapezoid(even**2, even)
    assert curves.learning_curve_area(even, even**2) == pytest.approx(trapezia)
    assert np.isnan(curves.learning_curve_area([0], [0.5]))
    assert np.isnan(curves.learning_curve_area([0, 10], [0.5, np.nan]))
    assert curves.prompts_to_reach(prompts, values, 0.4) == pytest.approx(5)
    assert curves.prompts_to_reach(prompts, values, 0.6) == 10  # and not where it comes back
    assert curves.prompts_to_reach(prompts, values, 0.1) == 0
    assert curves.prompts_to_reach(prompts, values, 0.61) == np.inf
    assert np.isnan(curves.prompts_to_reach(prompts, values, np.nan))


def test_transitions_by_hand_and_with_guesses_simulated():
    before, after = [1, 1, 1, 0, 0], [1, 0, 0, 1, 0]
    lost, gained = curves.transitions(before, after)
    assert lost.tolist() == [0, 1, 1, 0, 0] and gained.tolist() == [0, 0, 0, 1, 0]
    # 20% forgotten, 10% learned, 30% never known, each guessed right with 1 in 4
    rng = np.random.default_rng(1)
    n = 400_000
    kind = rng.choice(4, n, p=[0.4, 0.2, 0.1, 0.3])  # kept, lost, gained, never known
    guesses = rng.random((2, n)) < 0.25
    before = np.isin(kind, (0, 1)) | guesses[0]
    after = np.isin(kind, (0, 2)) | guesses[1]
    lost, gained = curves.transitions(before, after, chance=0.25)
    assert (lost.mean(), gained.mean()) == pytest.approx((0.2, 0.1), abs=0.004)
    change = (after.mean() - before.mean()) / 0.75
    assert gained.mean() - lost.mean() == pytest.approx(change)
    with pytest.raises(ValueError, match="0 and 1"):
        curves.transitions([0.5], [1])


def test_holm_by_hand_and_against_the_definition():
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([0.5, np.nan, 0.9])[[0, 2]] == pytest.approx([1, 1])
    assert np.isnan(metrics.holm([np.nan])).all() and metrics.holm([]).size == 0
    p = np.random.default_rng(3).random(9) ** 3
    for level in (0.01, 0.05, 0.2):  # step down: stop at the first that is not below its level
        rejected = np.zeros(9, bool)
        for k, place in enumerate(np.argsort(p)):
            if p[place] > level / (9 - k):
                break
            rejected[place] = True
        assert ((metrics.holm(p) <= level) == rejected).all()


def test_hypervolume_by_hand_and_by_counting_cells():
    assert curves.hypervolume([[2, 1], [1, 3]]) == 2 * 1 + 1 * 2
    assert curves.hypervolume([[2, 1], [1, 1], [-1, 9]], (0, 0)) == 2
    assert curves.hypervolume([[2, 1]], (1, -1)) == 2 and curves.hypervolume([]) == 0
    points = np.random.default_rng(5).integers(0, 20, (12, 2))
    cells = [(x, y) for x in range(20) for y in range(20)]
    counted = sum(any(x < a and y < b for a, b in points) for x, y in cells)
    assert curves.hypervolume(points) == counted
