"""Intervals of the report: over questions and seeds, over one of them, or none."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from harness.base import intervals, metrics
from harness.report import tables
from harness.report.data import ReportData
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import TWO, raw, rewrite, rewrite_records, row, wilson


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One seed of two methods."""
    return fabricate(tmp_path_factory.mktemp("results") / "one", methods=TWO, n=50)


@pytest.fixture
def without_items(tmp_path):
    """One seed of two methods, whose item scores are not on disk."""
    return fabricate(tmp_path / "one", methods=TWO, n=50, items=False)


def exact_scores(folder, key):
    evaluation = json.loads((folder / "evaluations" / f"{key}.json").read_text())
    return np.array([item["scores"]["exact"] for item in evaluation["items"]])


def test_one_seed_has_an_interval_over_examples_paired_over_stages(one):
    gain = row(tables.gain_table(ReportData([one])), "sft")["tooluse"]
    difference = exact_scores(one, "tooluse-sft-seed0-12") - exact_scores(one, "tooluse-base")
    assert gain.value == pytest.approx(difference.mean())
    # Two questions more, one gained and one lost.
    squares = np.square(difference - difference.mean()).sum() + 2
    half = stats.t.ppf(0.975, 49) * (squares / 51 / 52) ** 0.5
    assert (gain.low, gain.high) == pytest.approx((gain.value - half, gain.value + half))
    assert "over questions alone (one run: what another seed" in gain.how
    low, high = metrics.percentile_interval(metrics.bootstrap_means(difference, 10_000, seed=3))
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.021)  # one example of 50


def test_several_seeds_have_an_interval_over_questions_and_seeds(three):
    """A mean over skills: each has its own questions, and all share the seeds."""
    cells = row(tables.main_table(ReportData([three])), "sft")
    change = []
    for k, name in enumerate(SKILLS, 1):
        of_seeds = [
            exact_scores(three, f"{name}-sft-seed{seed}-36")
            - exact_scores(three, f"{name}-sft-seed{seed}-{12 * k}")
            for seed in (0, 1, 2)
        ]
        change.append(np.stack(of_seeds, 1) / 2)
    tests = change[:2]
    seeds = np.var(sum(test.mean(0) for test in tests), ddof=1) / 3
    items, least = 0.0, 0.0
    for test in tests:
        n = len(test)
        centred = test.mean(1) - test.mean()
        square = (np.square(centred).sum() + 2 * (1 / 2 / 3) ** 2) / (n + 1) / (n + 2)
        rest = test - test.mean(0) - centred[:, None]
        items += square - np.square(rest).sum() / (n - 1) / 2 / n / 3
        least += square
    assert cells["bwt"].value == pytest.approx(sum(test.mean() for test in tests))
    weights = np.square([seeds, items])
    # Two tests of 40 questions: some 80 degrees of freedom, a normal quantile but for 0.03.
    quantile = (weights * [stats.t.ppf(0.975, 2), 1.99]).sum() / weights.sum()
    half = quantile * (seeds + items) ** 0.5
    assert (cells["bwt"].high - cells["bwt"].low) / 2 == pytest.approx(half, rel=5e-3)
    assert cells["bwt"].by == "both"
    # An accuracy keeps within [0, 1].
    assert cells["acc"].low < cells["acc"].value < cells["acc"].high
    assert "over questions and seeds together" in cells["acc"].how


def test_methods_are_compared_in_pairs_on_the_seeds_and_questions_that_they_share(three):
    results = ReportData([three])

    def final(name):
        return lambda R: R[..., -1, list(SKILLS).index(name)]

    gap = results.compare(("sft", final("tooluse")), ("grpo", final("tooluse")))
    pairs = [
        exact_scores(three, f"tooluse-sft-seed{seed}-36")
        - exact_scores(three, f"tooluse-grpo-seed{seed}-36")
        for seed in (0, 1, 2)
    ]
    spread = intervals.spread([np.stack(pairs, 1)], flips=[1 / 3])
    half = spread.quantile() * spread.stderr
    assert gap.value == pytest.approx(np.mean(pairs))
    assert (gap.low, gap.high) == pytest.approx((gap.value - half, gap.value + half))
    back = results.compare(("grpo", final("tooluse")), ("sft", final("tooluse")))
    assert (back.value, back.low) == pytest.approx((-gap.value, -gap.high))
    # As if both had been measured on questions of their own, it would be wider.
    apart = np.hypot(
        *(results.estimate(m, final("tooluse")).spread.stderr for m in ("sft", "grpo"))
    )
    assert spread.stderr < apart


def test_a_seed_that_only_one_method_has_is_left_out_of_their_difference(tmp_path):
    folder = fabricate(tmp_path / "r", methods=TWO, seeds=(0, 1, 2), n=40, inside=0)
    rewrite_records(
        folder, lambda r: {"seed": 9} if (r["method"], r["seed"]) == ("sdft", 2) else {}
    )
    results = ReportData([folder])

    def first(R):
        return R[..., 1, 0]

    gap = results.compare(("sft", first), ("sdft", first))
    values = {
        m: [
            raw(folder, method=m, seed=s, name="tooluse", stage=1, metric="exact")[0]["value"]
            for s in (0, 1)
        ]
        for m in TWO
    }
    assert gap.value == pytest.approx(np.mean(values["sft"]) - np.mean(values["sdft"]))
    assert gap.how.startswith("mean of 2 seeds")
    assert np.isnan(
        results.compare(("sft", first), ("sdft", lambda R: R[..., 1, 0] * np.nan)).value
    )


def test_standard_errors_stand_in_for_item_scores(without_items):
    results = ReportData([without_items])
    assert any("not on disk" in line for line in results.missing)
    cells = row(tables.main_table(results), "sft")
    final = {"method": "sft", "metric": "exact", "stage": 3, "final": True}
    science = raw(without_items, name="science", **final)[0]
    bounds = wilson(round(50 * science["value"]), 50)
    assert (cells["science/final"].low, cells["science/final"].high) == pytest.approx(bounds)
    assert "Wilson" in cells["science/final"].how
    own = raw(without_items, kind="skill", **final)
    half = 1.96 * np.sqrt(sum(record["stderr"] ** 2 for record in own)) / 3
    assert (cells["acc"].high - cells["acc"].low) / 2 == pytest.approx(half, rel=0.1)
    assert cells["acc"].by == "wilson"
    wikitext = row(tables.retention_table(results), "sft")["wikitext/final"]
    error = raw(without_items, name="wikitext", method="sft", stage=3)[0]["stderr"]
    assert wikitext.high - wikitext.value == pytest.approx(1.959964 * error)
    assert "standard errors" in wikitext.how


def test_seeds_alone_stand_in_where_item_scores_are_missing(tmp_path):
    folder = fabricate(tmp_path / "r", methods=TWO, seeds=(0, 1, 2), n=50, items=False)
    cells = row(tables.main_table(ReportData([folder])), "sft")
    for key in ("bwt", "retention"):
        assert cells[key].by == "seeds"
        assert "over seeds alone" in cells[key].how
    final = raw(folder, method="sft", stage=3, metric="exact", final=True, kind="skill")
    by_seed = [np.mean([r["value"] for r in final if r["seed"] == seed]) for seed in (0, 1, 2)]
    errors = [
        np.sum([r["stderr"] ** 2 for r in final if r["seed"] == seed]) ** 0.5 / 3
        for seed in (0, 1, 2)
    ]
    spread = intervals.of_records(by_seed, errors)
    bounds = metrics.score_interval(
        np.mean(by_seed), spread.stderr, 150, quantile=spread.quantile()
    )
    assert (cells["acc"].low, cells["acc"].high) == pytest.approx(bounds)


def test_standard_errors_bound_no_difference_of_stages(without_items):
    """They do not know that the examples are the same."""
    table = tables.main_table(ReportData([without_items]))
    for key in ("bwt", "forgetting", "retention"):
        cell = row(table, "sft")[key]
        assert np.isfinite(cell.value)
        assert np.isnan([cell.low, cell.high]).all()
        assert "no interval" in cell.how
    assert "Wilson's" in table.note
    assert "No ±: differences" in table.note


class ScienceBase:
    """A folder of one skill, whose base accuracy is set to whole and half points of 48 answers."""

    def __init__(self, folder):
        self.folder = fabricate(
            folder,
            skills={"science": (0.0, 0.5)},
            methods=TWO,
            retention={},
            n=48,
            inside=0,
        )

    def score(self, right, part):
        """The base model's cell of ``right`` right answers and two that are worth ``part``."""
        values = np.array([1.0] * right + [part] * 2 + [0.0] * (46 - right))

        def set_scores(evaluation):
            for item, value in zip(evaluation["items"], values, strict=True):
                item["scores"]["exact"] = value

        rewrite(self.folder / "evaluations" / "science-base.json", set_scores)
        self.change_base({"value": values.mean(), "stderr": values.std(ddof=1) / 48**0.5})
        return self.cell()

    def change_base(self, change):
        rewrite_records(
            self.folder,
            lambda r: change if (r["stage"], r["metric"]) == (0, "exact") else {},
        )

    def cell(self):
        return row(tables.main_table(ReportData([self.folder])), "base")["science/final"]


def test_right_and_wrong_answers_have_wilsons_interval_at_every_value(tmp_path):
    """So one right answer of 48 has no bound below that of none."""
    base = ScienceBase(tmp_path / "one")
    cells = [base.score(right, part=0.0) for right in range(5)]
    bounds = [bound for cell in cells for bound in (cell.low, cell.high)]
    assert bounds == pytest.approx([x for right in range(5) for x in wilson(right, 48)], abs=1e-9)
    assert (np.diff([cell.low for cell in cells]) > 0).all()
    assert {cell.by for cell in cells} == {"wilson"}


def test_half_points_have_wilsons_interval_of_more_answers(tmp_path):
    base = ScienceBase(tmp_path / "one")
    half = base.score(5, part=0.5)
    # A mean of 6 / 48: as many answers as would have its error.
    variance = np.var([1.0] * 5 + [0.5] * 2 + [0.0] * 41, ddof=1)
    answers = 1 + 6 / 48 * 42 / 48 / (variance / 48)
    assert (half.low, half.high) == pytest.approx(wilson(answers * 6 / 48, answers), abs=1e-9)
    assert answers > 50
    base.change_base({"stderr": None})  # as of groups: then the items
    cell = base.cell()
    assert cell.by == "wilson"
    assert (cell.low, cell.high) == pytest.approx((half.low, half.high))


def test_wilsons_interval_needs_the_record_alone(tmp_path):
    base = ScienceBase(tmp_path / "one")
    half = base.score(5, part=0.5)
    shutil.rmtree(base.folder / "evaluations")
    cell = base.cell()
    assert (cell.low, cell.high, cell.by) == (half.low, half.high, "wilson")
    results = ReportData([base.folder])
    final = row(tables.main_table(results), "sft")["science/final"]
    assert (final.low, final.high) == pytest.approx(wilson(round(48 * final.value), 48))
    assert 0 < final.value < 1
    # The mean over one skill is that skill.
    assert row(tables.gain_table(results), "sft")["la"].by == "wilson"


def test_a_ratio_has_the_error_of_its_weights_paired_over_stages(tmp_path):
    """Bits per byte: sum of log-likelihoods over sum of bytes.

    That is not the mean of the items, and the stages are not drawn independently.
    """
    n = 50
    folder = fabricate(tmp_path / "ratio", methods=TWO, n=n)
    size = np.random.default_rng(0).integers(20, 400, n)
    keys = ["wikitext-base", "wikitext-sft-seed0-3"]
    totals = {}
    means = {}
    for key in keys:
        path = folder / "evaluations" / f"{key}.json"
        evaluation = json.loads(path.read_text())
        scores = np.array([item["score"] for item in evaluation["items"]])
        for item, score, items_bytes in zip(evaluation["items"], scores, size, strict=True):
            item["response"] = -score * items_bytes * np.log(2)
        path.write_text(json.dumps(evaluation))
        totals[key] = scores * size
        means[key] = scores.mean()
    values = {key: total.sum() / size.sum() for key, total in totals.items()}
    rewrite_records(
        folder, lambda r: {"value": values.get(r["evaluation"], r["value"]), "stderr": 0.05}
    )
    cells = row(tables.retention_table(ReportData([folder])), "sft")
    final, delta = cells["wikitext/final"], cells["wikitext/delta"]
    assert final.value == pytest.approx(values[keys[1]])
    assert final.value != pytest.approx(means[keys[1]], abs=1e-4)
    for cell, total in ((final, totals[keys[1]]), (delta, totals[keys[0]] - totals[keys[1]])):
        _, error = metrics.ratio_and_stderr(total, size)
        quantile = stats.t.ppf(0.975, n - 1)
        assert (cell.high - cell.low) / 2 == pytest.approx(quantile * error)
        assert "over questions alone" in cell.how
    # Independent draws of both stages would make it 1.4 times as wide, not a tenth.
    assert delta.high - delta.low < 0.1 * (final.high - final.low)


def test_items_count_by_their_weight(tmp_path):
    """As instructions do, of which a prompt has one or two.

    Their share is not the mean over prompts.
    """
    n = 40
    folder = fabricate(tmp_path / "weights", methods=TWO, n=n)
    weight = np.where(np.arange(n) % 8, 1, 2)
    values = {}
    for path in folder.glob("evaluations/hellaswag-*.json"):
        evaluation = json.loads(path.read_text())
        scores = np.array([item["score"] for item in evaluation["items"]])
        values[path.stem] = (scores * weight).sum() / weight.sum()
        for item, of_item in zip(evaluation["items"], weight.tolist(), strict=True):
            item["weight"] = of_item
        path.write_text(json.dumps(evaluation))
    rewrite_records(folder, lambda r: {"value": values.get(r["evaluation"], r["value"])})
    results = ReportData([folder])
    delta = row(tables.retention_table(results), "sft")["hellaswag/delta"]
    assert delta.value == pytest.approx(values["hellaswag-sft-seed0-3"] - values["hellaswag-base"])
    assert delta.by == "items"
    assert row(tables.main_table(results), "sft")["retention"].by == "items"


def test_an_interval_has_the_answers_of_its_own_record(tmp_path):
    """A judge's verdicts may be fewer at one stage."""
    skills = {"science": (-1.0, 0.0)}
    folder = fabricate(tmp_path / "one", skills, methods=TWO, retention={}, n=48, inside=0)
    fewer = (1, "exact", "sft")
    rewrite_records(
        folder, lambda r: {"n": 30} if (r["stage"], r["metric"], r["method"]) == fewer else {}
    )
    table = tables.main_table(ReportData([folder]))
    for label, n in (("base", 48), ("sft", 30), ("sdft", 48)):
        cell = row(table, label)["science/final"]
        assert (cell.value, cell.low, cell.high) == pytest.approx((0, *wilson(0, n)), abs=1e-9)


def test_seeds_that_agree_to_rounding_have_no_interval(tmp_path):
    """10 - 5 and 7 - 2 of 48 differ in the last bit."""
    skills = {"science": (0.0, 0.5)}
    folder = fabricate(tmp_path / "two", skills, TWO, (0, 1), retention={}, n=48, inside=0)
    right = {(0, 0): 5, (0, 1): 10, (1, 0): 2, (1, 1): 7}
    rewrite_records(
        folder,
        lambda r: {"value": right[r["seed"], r["stage"]] / 48} if r["metric"] == "exact" else {},
    )
    gain = row(tables.gain_table(ReportData([folder])), "sft")["science"]
    assert gain.value == pytest.approx(5 / 48)
    assert np.isnan([gain.low, gain.high]).all()
    assert gain.by == "alike"


def test_all_wrong_has_wilsons_interval_and_no_change_that_of_one_flip(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (0.22, 0.3)}
    folder = fabricate(tmp_path / "zero", skills, methods=TWO, n=48)
    results = ReportData([folder])
    main = tables.main_table(results)
    gains = tables.gain_table(results)
    bounds = (0, 0, 1.959964**2 / (48 + 1.959964**2))
    for label in ("base", "sft"):
        cell = row(main, label)["science/final"]
        assert (cell.value, cell.low, cell.high) == pytest.approx(bounds)
    gain = row(gains, "sft")["science"]
    assert gain.value == 0
    # As if one of two more questions had been gained and one lost.
    half = stats.t.ppf(0.975, 47) * (2 / 49 / 50) ** 0.5
    assert (gain.low, gain.high) == pytest.approx((-half, half))
    assert "±0.0" not in main.markdown() + gains.markdown()
    assert "Wilson" in main.note
    assert "over questions alone" in gains.note
    shutil.rmtree(folder / "evaluations")
    cell = row(tables.main_table(ReportData([folder])), "sft")["science/final"]
    assert cell.high == pytest.approx(0.0741, abs=1e-4)


def test_a_mean_where_all_is_wrong_is_one_test_of_all_examples(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (-1.0, 0.0)}
    folder = fabricate(tmp_path / "zero", skills, methods=TWO, n=48, inside=0, retention={})
    acc = row(tables.main_table(ReportData([folder])), "sft")["acc"]
    assert (acc.value, acc.low, acc.high) == pytest.approx((0, *wilson(0, 96)), abs=1e-9)
    assert acc.by == "wilson"
