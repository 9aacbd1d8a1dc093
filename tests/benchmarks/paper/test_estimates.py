"""Intervals of means and of paired differences."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.paper.estimates import difference, estimate
from benchmarks.paper.signs import Contrast, differences
from harness.base import intervals
from harness.base.files import write_json
from tests.benchmarks.paper.folders import BOTH, T2, further_folder, numbers, paired_folder, value

PRIOR_AVERAGE = Contrast("sdft", "sft", "prior_avg")
Z = 1.959963984540054  # quantile 0.975 of the normal distribution


def records(values, stderr, n=48):
    """One record a seed."""
    return pd.DataFrame({"seed": range(len(values)), "value": values, "stderr": stderr, "n": n})


def test_an_accuracy_of_0_of_one_seed_has_wilsons_interval():
    mean = estimate(records([0.0], 0.0), 100)
    assert (mean.value, mean.low) == (0, 0)
    assert mean.high == pytest.approx(100 * Z * Z / (48 + Z * Z), abs=1e-3)


def test_seeds_that_agree_have_the_interval_of_their_questions():
    """A spread of 0 between a few seeds is no certainty."""
    for values in ([0.5, 0.5], [0.1] * 3):
        mean = estimate(records(values, 1.5), 1)
        assert mean.high - mean.value == pytest.approx(Z * 1.5)
        assert np.isnan(estimate(records(values, 0.0), 1).low)
    both = estimate(records([20.0, 22.0, 24.0], 1.5), 1)
    spread = intervals.of_records([20, 22, 24], [1.5] * 3)
    assert both.high - both.value == pytest.approx(spread.quantile() * spread.stderr)
    assert both.high - both.value > Z * (2**2 / 3 + 1.5**2) ** 0.5


def test_an_accuracy_of_several_seeds_stays_between_0_and_1():
    mean = estimate(records([0.0, 0.02, 0.04], 0.02), 100)
    assert 0 < mean.low < mean.value < mean.high < 100


def test_an_accuracy_of_one_seed_has_the_score_interval_of_its_standard_error():
    one_right = (1 / 48 * 47 / 48 / 47) ** 0.5
    # Scores in between have a smaller error at the same mean, as more answers would.
    for stderr, answers in ((one_right, 48), (0.01, 1 + 1 / 48 * 47 / 48 / 0.01**2)):
        mean = estimate(records([1 / 48], stderr), 100)
        for p in (mean.low / 100, mean.high / 100):
            assert (1 / 48 - p) ** 2 == pytest.approx(Z * Z * p * (1 - p) / answers)


def test_tokens_and_nats_are_no_fractions():
    tokens = estimate(records([20.0], 1.5), 1)
    assert (tokens.low, tokens.high) == pytest.approx((20 - Z * 1.5, 20 + Z * 1.5))
    assert np.isnan(estimate(records([1.0], 0.0), 1).low)


def flipped_scores(rng, n):
    """Scores of n examples, of which one in ten changes between sft and sdft."""
    sft = (rng.random(n) < 0.5).astype(float)
    return {"base": sft, "sft": sft, "sdft": np.where(rng.random(n) < 0.1, 1 - sft, sft)}


def test_one_seed_of_two_methods_is_paired_over_examples(tmp_path):
    rng = np.random.default_rng(1)
    scores = {"elements": flipped_scores(rng, 300)}
    gap = scores["elements"]["sdft"] - scores["elements"]["sft"]
    row = value(numbers(paired_folder(tmp_path / "r", scores, tasks=()), "figure_5_left"))
    assert row["value"] == pytest.approx(100 * gap.mean())
    assert "paired over examples" in row["note"]
    # Unpaired it would be three times as wide.
    half = 196 * gap.std(ddof=1) / 300**0.5
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.1)
    naive = [100 * gap[rng.integers(0, 300, 300)].mean() for _ in range(2000)]
    two_examples = 0.7
    assert (row["low"], row["high"]) == pytest.approx(
        np.quantile(naive, [0.025, 0.975]), abs=two_examples
    )


def test_a_mean_over_tasks_is_paired_task_by_task(tmp_path):
    rng = np.random.default_rng(1)
    sizes = {"elements": 300, "facts": 200, "grammar": 80}
    scores = {name: flipped_scores(rng, n) for name, n in sizes.items()}
    folder = paired_folder(tmp_path / "r", scores)
    facts, grammar = (scores[task]["sdft"] - scores[task]["sft"] for task in ("facts", "grammar"))
    mean = 50 * (facts.mean() + grammar.mean())
    half = [196 * gap.std(ddof=1) / len(gap) ** 0.5 for gap in (facts, grammar)]
    gap = differences(numbers(folder, "table_5"), PRIOR_AVERAGE)["elements"]
    assert gap.value == pytest.approx(mean)
    assert (gap.high - gap.low) / 2 == pytest.approx(np.hypot(*half) / 2, rel=0.12)

    (folder / "evaluations" / "facts-sdft.json").unlink()
    gap = differences(numbers(folder, "table_5"), PRIOR_AVERAGE)["elements"]
    assert gap.value == pytest.approx(mean)
    assert np.isnan(gap.low)
    assert gap.how.startswith("no interval")


def test_the_teacher_is_paired_with_the_base_model_over_the_examples_of_its_split(tmp_path):
    """Its record has a metric of its own; the scores of its answers have the skill's."""
    folder = further_folder(tmp_path / "r")
    base, teacher = (np.arange(50) < right for right in (10, 45))
    for scores in (base, teacher):
        items = [{"id": str(i), "scores": {"accuracy": float(s)}} for i, s in enumerate(scores)]
        write_json(folder / "evaluations" / f"e-{scores.mean()}.json", {"items": items})
    contrast = Contrast("teacher", "base", "accuracy")
    gap = differences(numbers(folder, "figure_2_right"), contrast)["e"]
    half = 196 * (teacher.astype(float) - base).std(ddof=1) / 50**0.5
    assert gap.value == pytest.approx(70)
    assert (gap.high - gap.low) / 2 == pytest.approx(half, rel=0.1)


def test_two_methods_with_none_right_differ_by_0_give_or_take_a_flip(tmp_path):
    none_right = dict.fromkeys(("base", *BOTH), [0.0] * 48)
    scores = dict.fromkeys(("elements", "facts", "grammar"), none_right)
    row = value(numbers(paired_folder(tmp_path / "r", scores), "figure_5_left"))
    spread = intervals.spread([np.zeros((48, 1))], flips=[1.0])
    half = 100 * spread.quantile() * spread.stderr
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0, -half, half))


def test_a_method_and_the_base_model_are_compared_at_every_seed():
    """The base is one model, on record once. Seeds that only one method has do not count."""

    def rows(seeds, values, stage=1):
        columns = {"name": "e", "seed": seeds, "stage": stage, "value": values}
        return pd.DataFrame(columns | {"metric": "accuracy", "folder": 0, "evaluation": None})

    class WithoutItems:
        def together(self, evaluations):
            return None, []

    results = WithoutItems()
    gap = difference(results, rows([0, 1, 2], [0.5, 0.7, 0.6]), rows([7], [0.2], 0), 100)
    assert (gap.value, gap.high) == pytest.approx((40, 40 + 100 * T2 * 0.1 / 3**0.5))
    gap = difference(
        results,
        rows([0, 1, 2, 3], [0.5, 0.7, 0.6, 9.0]),
        rows([2, 1, 0, 4], [0.1, 0.5, 0.5, 9.0]),
        100,
    )
    assert gap.value == pytest.approx(100 * np.mean([0.0, 0.2, 0.5]))
    assert difference(results, rows([0], [0.5]), rows([1], [0.2])) is None


def test_a_mean_over_tasks_has_an_interval_where_each_has():
    tasks = pd.DataFrame(
        {"name": ["a", "b"], "seed": 0, "value": [0.2, 0.4], "stderr": [0.03, 0.04], "n": 50}
    )
    mean = estimate(tasks, 100, tasks=2)
    assert (mean.value, mean.low) == pytest.approx((30, 30 - 100 * Z * 0.05 / 2))
    assert np.isnan(estimate(tasks.assign(stderr=[0.03, np.nan]), 100, tasks=2).low)
    assert estimate(tasks[:1], 100, tasks=2) is None
