"""Intervals of the report: over seeds, over examples, or none."""

import json
import shutil

import numpy as np
import pytest

from harness.base import metrics
from harness.report import tables
from harness.report.data import ReportData
from tests.fabricate import fabricate
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
    low, high = metrics.percentile_interval(metrics.bootstrap_means(difference, 10_000, seed=3))
    assert gain.value == pytest.approx(difference.mean())
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.021)  # one example of 50
    assert "over examples (one run; percentile bootstrap" in gain.how


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
    assert "standard errors" in cells["acc"].how


def test_standard_errors_bound_no_difference_of_stages(without_items):
    """They do not know that the examples are the same."""
    table = tables.main_table(ReportData([without_items]))
    for key in ("bwt", "forgetting", "retention"):
        cell = row(table, "sft")[key]
        assert np.isfinite(cell.value)
        assert np.isnan([cell.low, cell.high]).all()
        assert "no interval" in cell.how
    assert "from standard errors" in table.note
    assert "No ±: differences" in table.note
    assert "bootstrap" not in table.note


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
    assert cell.by == "bootstrap"
    assert (cell.low, cell.high) == pytest.approx((half.low, half.high), abs=0.03)


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


def test_a_ratio_is_resampled_with_its_weights_paired_over_stages(tmp_path):
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
        assert (cell.high - cell.low) / 2 == pytest.approx(1.96 * error, rel=0.15)
        assert "bootstrap" in cell.how
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
    assert delta.by == "bootstrap"
    assert row(tables.main_table(results), "sft")["retention"].by == "bootstrap"


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


def test_all_wrong_has_wilsons_interval_and_no_change_has_none(tmp_path):
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
    assert np.isnan([gain.low, gain.high]).all()
    assert "±0.0" not in main.markdown() + gains.markdown()
    assert "Wilson" in main.note
    assert "percentile bootstrap" in main.note
    assert "all examples, or all seeds" in gains.note
    shutil.rmtree(folder / "evaluations")
    cell = row(tables.main_table(ReportData([folder])), "sft")["science/final"]
    assert cell.high == pytest.approx(0.0741, abs=1e-4)


def test_a_mean_where_all_is_wrong_is_one_test_of_all_examples(tmp_path):
    skills = {"science": (-1.0, 0.0), "medical": (-1.0, 0.0)}
    folder = fabricate(tmp_path / "zero", skills, methods=TWO, n=48, inside=0, retention={})
    acc = row(tables.main_table(ReportData([folder])), "sft")["acc"]
    assert (acc.value, acc.low, acc.high) == pytest.approx((0, *wilson(0, 96)), abs=1e-9)
    assert acc.by == "wilson"
