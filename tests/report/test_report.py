"""The report from fabricated results folders: numbers against the raw records, refusals, partial
results, the page.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import report
from harness.base import metrics
from harness.base.errors import UserError
from harness.base.files import locked
from harness.report import figures, tables
from harness.report.build import made_beside, write_report
from harness.report.data import ReportData
from harness.results.reader import read_records
from tests.fabricate import METHODS, SKILLS, fabricate

ROOT = Path(__file__).resolve().parents[2]
TWO = {k: METHODS[k] for k in ("sft", "sdft")}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return fabricate(
        tmp_path_factory.mktemp("results") / "three", seeds=(0, 1, 2), steps={"sdft": 18}, n=40
    )


@pytest.fixture(scope="module")
def reported(three):
    text, index = write_report(three)
    return three, text, index


def raw(folder, **wanted):
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def row(table, label):
    return dict(table.rows)[label]


def test_the_main_table_is_that_of_the_raw_records(three):
    table = row(tables.main_table(ReportData([three])), "sft")
    names, final, bwt, delta = list(SKILLS), [], [], []
    for seed in (0, 1, 2):
        R = {
            (r["stage"], r["name"]): r["value"]
            for r in raw(three, method="sft", seed=seed, kind="skill", metric="exact", final=True)
        }
        D = {
            (r["stage"], r["name"]): r["value"]
            for r in raw(three, method="sft", seed=seed, kind="retention")
        }
        final.append(np.mean([R[3, name] for name in names]))
        bwt.append(np.mean([R[3, name] - R[k, name] for k, name in enumerate(names[:2], 1)]))
        delta.append(
            np.mean(
                [
                    D[3, t] - D[0, t]
                    for t in ("hellaswag", "winogrande", "arc_easy", "truthfulqa_mc1")
                ]
            )
        )  # no bits per byte
    for key, values in (("acc", final), ("bwt", bwt), ("retention", delta)):
        half = 4.302653 * np.std(values, ddof=1) / 3**0.5
        assert (table[key].value, table[key].low, table[key].high) == pytest.approx(
            (np.mean(values), np.mean(values) - half, np.mean(values) + half), rel=1e-5
        )
    assert len(set(final)) > 1  # else the interval above shows nothing


def test_retention_is_positive_when_better_also_where_lower_is_better(three):
    cell = row(tables.retention_table(ReportData([three])), "sft")["wikitext/delta"]
    rise = (
        np.mean([r["value"] for r in raw(three, method="sft", name="wikitext", stage=3)])
        - raw(three, name="wikitext", stage=0)[0]["value"]
    )
    assert rise > 0.05 and cell.value == pytest.approx(-rise)


def test_one_seed_has_an_interval_over_examples_paired_over_stages(tmp_path):
    folder = fabricate(tmp_path / "one", methods=TWO, n=50)
    results = ReportData([folder])
    gain = row(tables.gain_table(results), "sft")["tooluse"]
    scores = {
        k: np.array(
            [
                i["scores"]["exact"]
                for i in json.loads((folder / "evaluations" / f"{key}.json").read_text())["items"]
            ]
        )
        for k, key in ((0, "tooluse-base"), (1, "tooluse-sft-seed0-12"))
    }
    low, high = metrics.percentile_interval(
        metrics.bootstrap_means(scores[1] - scores[0], 10_000, seed=3)
    )
    assert gain.value == pytest.approx((scores[1] - scores[0]).mean())
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.021)  # one example of 50
    assert "over examples (one run; percentile bootstrap" in gain.how
    shutil.rmtree(folder / "evaluations")  # without item scores the standard errors stand in
    results = ReportData([folder])
    final = row(tables.main_table(results), "sft")["science/final"]
    record = raw(folder, method="sft", name="science", metric="exact", stage=3, final=True)[0]
    assert (final.low, final.high) == pytest.approx(
        wilson(round(50 * record["value"]), 50)
    ) and "Wilson" in final.how
    acc, own = (
        row(tables.main_table(results), "sft")["acc"],
        raw(folder, method="sft", kind="skill", metric="exact", stage=3, final=True),
    )
    half = 1.96 * np.sqrt(sum(r["stderr"] ** 2 for r in own)) / 3
    assert (acc.high - acc.low) / 2 == pytest.approx(half, rel=0.1) and "standard errors" in acc.how
    assert any("not on disk" in line for line in results.missing)
    # but not for differences: they do not know that the examples are the same
    table = tables.main_table(results)
    for key in ("bwt", "forgetting", "retention"):
        cell = row(table, "sft")[key]
        assert (
            np.isfinite(cell.value)
            and np.isnan([cell.low, cell.high]).all()
            and "no interval" in cell.how
        )
    assert (
        "from standard errors" in table.note
        and "No ±: differences" in table.note
        and "bootstrap" not in table.note
    )


def wilson(right, n, z=1.959963984540054):
    """The two p for which (right / n - p)^2 = z^2 p (1 - p) / n."""
    return sorted(np.roots([1 + z * z / n, -2 * right / n - z * z / n, (right / n) ** 2]).real)


def test_an_accuracy_of_right_and_wrong_answers_has_wilsons_interval_at_every_value(tmp_path):
    """So that one right answer of 48 has no bound below that of none; also where only the record is
    there. Half points: that of more.
    """
    folder = fabricate(
        tmp_path / "one", skills={"science": (0.0, 0.5)}, methods=TWO, retention={}, n=48, inside=0
    )

    def score(right, part):
        values = np.array([1.0] * right + [part] * 2 + [0.0] * (46 - right))
        rewrite(
            folder / "evaluations" / "science-base.json",
            lambda e: (
                [item["scores"].update(exact=v) for item, v in zip(e["items"], values)] and None
            ),
        )
        change = {"value": values.mean(), "stderr": values.std(ddof=1) / 48**0.5}
        lines = [
            r | change if (r["stage"], r["metric"]) == (0, "exact") else r for r in raw(folder)
        ]
        (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
        return row(tables.main_table(ReportData([folder])), "base")["science/final"]

    found = [score(right, 0.0) for right in range(5)]
    assert [x for cell in found for x in (cell.low, cell.high)] == pytest.approx(
        [x for r in range(5) for x in wilson(r, 48)], abs=1e-9
    )
    assert (np.diff([cell.low for cell in found]) > 0).all() and {cell.by for cell in found} == {
        "wilson"
    }
    # a mean of 6 / 48 from whole and half points: as many answers as would have its error, more
    # than 48
    half = score(5, 0.5)
    answers = 1 + 6 / 48 * 42 / 48 / (np.var([1.0] * 5 + [0.5] * 2 + [0.0] * 41, ddof=1) / 48)
    assert (half.low, half.high) == pytest.approx(
        wilson(answers * 6 / 48, answers), abs=1e-9
    ) and answers > 50
    lines = [
        r | {"stderr": None} if (r["stage"], r["metric"]) == (0, "exact") else r
        for r in raw(folder)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    # without an error, as of groups: the items
    cell = row(tables.main_table(ReportData([folder])), "base")["science/final"]
    assert cell.by == "bootstrap" and (cell.low, cell.high) == pytest.approx(
        (half.low, half.high), abs=0.03
    )
    score(5, 0.5)
    shutil.rmtree(folder / "evaluations")
    results = ReportData([folder])
    base = row(tables.main_table(results), "base")["science/final"]
    # the record alone says it
    assert (base.low, base.high, base.by) == (half.low, half.high, "wilson")
    cell = row(tables.main_table(results), "sft")["science/final"]
    assert (cell.low, cell.high) == pytest.approx(
        wilson(round(48 * cell.value), 48)
    ) and 0 < cell.value < 1
    # the mean over one skill is that skill
    assert row(tables.gain_table(results), "sft")["la"].by == "wilson"


def rewrite(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def test_a_ratio_is_resampled_with_its_weights_paired_over_stages(tmp_path):
    """Bits per byte: sum of log-likelihoods over sum of bytes, so neither the mean of the items nor
    drawn apart at each stage.
    """
    folder, n = fabricate(tmp_path / "ratio", methods=TWO, n=50), 50
    size, bits = np.random.default_rng(0).integers(20, 400, n), {}

    def weigh(evaluation):
        bits[evaluation["name"]] = scores = np.array(
            [item["score"] for item in evaluation["items"]]
        )
        for item, score, b in zip(evaluation["items"], scores, size):
            item["response"] = -score * b * np.log(2)

    stages = [folder / "evaluations" / f"wikitext-{who}.json" for who in ("base", "sft-seed0-3")]
    totals = []
    for path in stages:
        rewrite(path, weigh)
        totals.append(bits["wikitext"] * size)
    values = {path.stem: total.sum() / size.sum() for path, total in zip(stages, totals)}
    records = [
        r | {"value": values.get(r["evaluation"], r["value"]), "stderr": 0.05} for r in raw(folder)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    table = tables.retention_table(ReportData([folder]))
    final, delta = (row(table, "sft")[f"wikitext/{part}"] for part in ("final", "delta"))
    assert final.value == pytest.approx(
        values["wikitext-sft-seed0-3"]
    ) and final.value != pytest.approx(bits["wikitext"].mean(), abs=1e-4)
    for cell, total in ((final, totals[1]), (delta, totals[0] - totals[1])):
        _, error = metrics.ratio_and_stderr(total, size)
        assert (cell.high - cell.low) / 2 == pytest.approx(
            1.96 * error, rel=0.15
        ) and "bootstrap" in cell.how
    # drawn apart it would be 1.4 times as wide, not a tenth
    assert delta.high - delta.low < 0.1 * (final.high - final.low)


def test_items_count_by_their_weight(tmp_path):
    """As instructions do, of which a prompt has one or two: their share is not the mean over
    prompts.
    """
    folder, n = fabricate(tmp_path / "weights", methods=TWO, n=40), 40
    weight, values = np.where(np.arange(n) % 8, 1, 2), {}

    def weigh(evaluation):
        scores = np.array([item["score"] for item in evaluation["items"]])
        values[path.stem] = (scores * weight).sum() / weight.sum()
        for item, w in zip(evaluation["items"], weight.tolist()):
            item["weight"] = w

    for path in folder.glob("evaluations/hellaswag-*.json"):
        rewrite(path, weigh)
    records = [r | {"value": values.get(r["evaluation"], r["value"])} for r in raw(folder)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    results = ReportData([folder])
    delta = row(tables.retention_table(results), "sft")["hellaswag/delta"]
    assert delta.value == pytest.approx(values["hellaswag-sft-seed0-3"] - values["hellaswag-base"])
    assert delta.by == "bootstrap" == row(tables.main_table(results), "sft")["retention"].by


def test_an_interval_has_the_answers_of_its_own_record(tmp_path):
    """A judge's verdicts may be fewer at one stage."""
    folder = fabricate(
        tmp_path / "one", skills={"science": (-1.0, 0.0)}, methods=TWO, retention={}, n=48, inside=0
    )
    lines = [
        r | ({"n": 30} if (r["stage"], r["metric"], r["method"]) == (1, "exact", "sft") else {})
        for r in raw(folder)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    table = tables.main_table(ReportData([folder]))
    for label, n in (("base", 48), ("sft", 30), ("sdft", 48)):
        cell = row(table, label)["science/final"]
        assert (cell.value, cell.low, cell.high) == pytest.approx((0, *wilson(0, n)), abs=1e-9)


def test_seeds_that_agree_to_rounding_have_no_interval(tmp_path):
    """10 - 5 and 7 - 2 of 48 differ in the last bit."""
    folder = fabricate(
        tmp_path / "two",
        skills={"science": (0.0, 0.5)},
        methods=TWO,
        seeds=(0, 1),
        retention={},
        n=48,
        inside=0,
    )
    right = {(0, 0): 5, (0, 1): 10, (1, 0): 2, (1, 1): 7}
    lines = [
        r | ({"value": right[r["seed"], r["stage"]] / 48} if r["metric"] == "exact" else {})
        for r in raw(folder)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    gain = row(tables.gain_table(ReportData([folder])), "sft")["science"]
    assert (
        gain.value == pytest.approx(5 / 48)
        and np.isnan([gain.low, gain.high]).all()
        and gain.by == "alike"
    )


def test_all_wrong_has_wilsons_interval_and_no_change_has_none(tmp_path):
    folder = fabricate(
        tmp_path / "zero",
        skills={"science": (-1.0, 0.0), "medical": (0.22, 0.3)},
        methods=TWO,
        n=48,
    )
    results = ReportData([folder])
    main, gains = tables.main_table(results), tables.gain_table(results)
    for cell in (row(main, "base")["science/final"], row(main, "sft")["science/final"]):
        assert (cell.value, cell.low, cell.high) == pytest.approx(
            (0, 0, 1.959964**2 / (48 + 1.959964**2))
        )
    gain = row(gains, "sft")["science"]
    assert gain.value == 0 and np.isnan([gain.low, gain.high]).all()
    assert "±0.0" not in main.markdown() + gains.markdown()
    assert (
        "Wilson" in main.note
        and "percentile bootstrap" in main.note
        and "all examples, or all seeds" in gains.note
    )
    shutil.rmtree(folder / "evaluations")
    assert row(tables.main_table(ReportData([folder])), "sft")[
        "science/final"
    ].high == pytest.approx(0.0741, abs=1e-4)
    with figures.matplotlib.rc_context(figures.STYLE):
        drawer = figures.Drawer(results, tmp_path / "figures")
        drawer._axis()
        curves = drawer._curves()
        zero = curves[(curves["name"] == "science") & (curves["label"] == "sft")]
        assert zero["high"].to_numpy() == pytest.approx(0.0741, abs=1e-4) and not zero["low"].any()
        some = curves[curves["name"] == "medical"]
        for value, low, high in some[["value", "low", "high"]].to_numpy():
            assert (low, high) == pytest.approx(wilson(round(48 * value), 48), abs=1e-9)
        axes = figures.Figure().subplots()
        figures.curve(
            axes,
            ("red", "o", "-"),
            [0, 1, 2],
            [0.0, 0.98, 0.5],
            [0.0, 0.9, np.nan],
            [0.07, 1.0, np.nan],
        )
        band = axes.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 6)) for x, y in band} == {(0, 0), (0, 7), (1, 90), (1, 100)}


def test_bands_over_seeds_stay_in_the_unit_interval_and_agreement_has_none(tmp_path):
    folder = fabricate(
        tmp_path / "seeds",
        skills={"science": (-1.0, 0.0), "medical": (0.02, 0.05)},
        methods=TWO,
        seeds=(0, 1, 2),
        n=48,
        items=False,
    )
    drawer = figures.Drawer(ReportData([folder]), tmp_path / "figures")
    drawer._axis()
    curves = drawer._curves()
    assert curves.loc[curves["name"] == "science", ["low", "high"]].isna().all(axis=None)
    records = pd.DataFrame(raw(folder, kind="skill", metric="exact", name="medical", method="sft"))
    cut = 0
    for step, values in records.groupby("step")["value"]:
        point = curves[
            (curves["name"] == "medical") & (curves["label"] == "sft") & (curves["x"] == step)
        ].iloc[0]
        half = 4.302653 * values.std() / 3**0.5 if len(set(values)) > 1 else np.nan
        bounds = [np.maximum(0, values.mean() - half), values.mean() + half]
        assert [point["low"], point["high"]] == pytest.approx(bounds, rel=1e-6, nan_ok=True)
        cut += values.mean() < half
    assert cut


@pytest.mark.parametrize("count", [1, 3])
def test_long_names_fit_into_the_legend(count, tmp_path):
    labels = [f"sdft_learning_rate_{rate}_reverse_kl_{'x' * 30 * (rate == 5)}" for rate in range(6)]
    with figures.matplotlib.rc_context(figures.STYLE):
        figure, *_ = figures.grid(count)
        figures.legend(figure, figures.looks(labels), labels, base=True)
        figures.save(figure, tmp_path, "legend")
        box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
    assert figure.legends[0]._ncols == (1 if count == 1 else 2)


def test_cost_is_summed_over_stages(three):
    unfinished = three / "runs" / "sdft-seed0" / "stage-4.partial"  # of a killed run: not counted
    shutil.copytree(three / "runs" / "sdft-seed0" / "stage-3", unfinished)
    cells = row(tables.cost_table(ReportData([three])), "sdft")
    shutil.rmtree(unfinished)
    assert cells["tokens"] == 3 * 18 * 900 and cells["seconds_sampling"] == pytest.approx(
        3 * 18 * 3.1
    )
    assert cells["peak_memory_gib"] == pytest.approx(2.9)


def test_the_base_models_evaluation_is_no_methods_cost(tmp_path):
    """The run that came first measured it, here a point that its grid did not select; memory at
    stage 0 is what another run left.
    """
    folder = fabricate(tmp_path / "base", methods=TWO, items=False, n=8, inside=0, retention={})
    without = dict(tables.cost_table(ReportData([folder])).rows)
    assert "base" not in without
    for run, seconds, peak in (
        ("unselected-seed0", 100.0, 1.5),
        ("sft-seed0", 20.0, 1.5),
        ("sdft-seed0", 0.5, 9.9),
    ):
        place = folder / "runs" / run / "stage-0"
        place.mkdir(parents=True)
        (place / "stage.json").write_text(
            json.dumps(
                {
                    "stage": 0,
                    "steps": 0,
                    "prompts": 0,
                    "tokens": 0,
                    "peak_memory_gib": peak,
                    "seconds": {"evaluation": seconds, "retention": 2 * seconds, "training": 0.0},
                }
            )
        )
    rows = dict(tables.cost_table(ReportData([folder])).rows)
    assert list(rows) == ["base", "sft", "sdft"] and {k: rows[k] for k in TWO} == without
    assert rows["base"] == {"seconds_evaluation": 120.5, "seconds_retention": 241.0, "total": 361.5}


def test_two_protocols_are_refused_and_both_named(three, tmp_path):
    other = fabricate(tmp_path / "longer", methods=TWO, n=40, limit=128)
    hashes = {raw(f, name="tooluse")[0]["protocol"] for f in (three, other)}
    with pytest.raises(UserError) as refused:
        write_report([three, other], tmp_path / "out")
    assert len(hashes) == 2 and all(h in str(refused.value) for h in hashes)
    assert "max_new_tokens 64 / 128" in str(refused.value)
    lines = (other / "records.jsonl").read_text().splitlines()  # and within one folder
    lines = [
        x.replace(raw(other, name="tooluse")[0]["protocol"], "elsewhere") if '"sdft"' in x else x
        for x in lines
    ]
    (other / "records.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="elsewhere"):
        ReportData([other])


def test_another_metric_is_refused(three, tmp_path):
    other = shutil.copytree(
        three, tmp_path / "lenient", ignore=shutil.ignore_patterns("evaluations", "runs", "report")
    )
    head = json.loads((other / "results.json").read_text())
    head["skills"][1]["metric"] = "lenient"
    (other / "results.json").write_text(json.dumps(head))
    with pytest.raises(UserError, match=r"science counts by the metric 'lenient'.*'exact'"):
        ReportData([three, other])


def test_folders_pool_seeds_of_one_setting_and_stand_side_by_side_otherwise(tmp_path):
    a, b = (
        fabricate(tmp_path / "a", methods=TWO, items=False),
        fabricate(tmp_path / "b", methods=TWO, items=False, seeds=(1, 2)),
    )
    pooled = ReportData([a, b])
    assert list(pooled.series) == ["sft", "sdft"] and pooled.complete("sft") == 3
    values = [
        r["value"]
        for f in (a, b)
        for r in raw(f, method="sft", name="medical", metric="exact", stage=3, final=True)
    ]
    assert pooled.estimate("sft", lambda R: R[..., -1, 2]).value == pytest.approx(np.mean(values))
    # the same seed twice is no second seed
    again = fabricate(tmp_path / "again", methods=TWO, items=False)
    assert set(ReportData([a, again]).series) == {
        "sft (a)",
        "sft (again)",
        "sdft (a)",
        "sdft (again)",
    }
    head = json.loads((b / "results.json").read_text())
    head["model"]["device"] = "cuda"
    (b / "results.json").write_text(json.dumps(head))
    assert ReportData([a, b]).complete("sft") == 3  # where it ran keeps no seeds apart
    head["methods"]["sft"]["config"]["learning_rate"] = 1e-4
    (b / "results.json").write_text(json.dumps(head))
    assert set(ReportData([a, b]).series) == {"sft (a)", "sft (b)", "sdft"}
    reverse = fabricate(
        tmp_path / "reverse",
        skills=dict(reversed(SKILLS.items())),
        methods=TWO,
        items=False,
        seeds=(5,),
    )
    both = ReportData([a, reverse])
    assert (
        both.R["sft (reverse)"][0, 1, 0]
        == raw(reverse, method="sft", stage=1, name="medical", metric="exact", final=True)[0][
            "value"
        ]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head["budget"].update(examples=192),
        lambda head: head.update(rollout={"temperature": 0.6}),
        *(
            lambda head, key=key: head["skills"][1].update({key: "other"})
            for key in ("prompts", "teacher_template", "train")
        ),
    ],
)
def test_another_experiment_gives_no_further_seeds(tmp_path, change):
    a, b = (
        fabricate(
            tmp_path / name,
            methods=TWO,
            items=False,
            n=8,
            inside=0,
            retention={},
            seeds=(seed,),
            training=False,
        )
        for seed, name in enumerate("ab")
    )
    assert list(ReportData([a, b]).series) == ["sft", "sdft"]
    rewrite(b / "results.json", change)
    results = ReportData([a, b])
    assert (
        set(results.series) == {"sft (a)", "sft (b)", "sdft (a)", "sdft (b)"}
        and results.complete("sft (a)") == 1
    )


def test_partial_results_are_reported_with_what_is_missing(tmp_path):
    folder = fabricate(tmp_path / "part", seeds=(0, 1), n=20)
    kept = [
        json.dumps(r)
        for r in raw(folder)
        if r["method"] == "sft" or ((r["method"], r["seed"]) == ("sdft", 0) and r["stage"] < 3)
    ]
    # killed while it wrote
    (folder / "records.jsonl").write_text("\n".join(kept) + "\n" + kept[0][:50])
    text, index = write_report(folder, tmp_path / "out")
    html = index.read_text()
    for said in (
        "1 unreadable line",
        "sdft: no records of seed 1",
        "sdft, seed 0: 2 of 3 stages finished",
        "grpo: no records of seed 0, 1",
    ):
        assert said in text and said in html
    main = pd.read_csv(tmp_path / "out" / "tables" / "main.csv").set_index("method")
    assert (
        np.isnan(main.loc["sdft", "ACC"])
        and main.loc["sdft", "science own stage"] > 0
        and main.loc["sft", "seeds"] == "2/2"
    )


def test_answers_that_wait_for_a_judge_are_no_unfinished_stages(tmp_path):
    folder = fabricate(tmp_path / "judged", methods=TWO, n=20)
    rewrite(
        folder / "results.json",
        lambda head: (
            head["skills"][0].update(judge={"rubric": "knowledge", "metrics": ["judged_strict"]})
            and None
        ),
    )
    base = [
        r
        for r in raw(folder)
        if (r["stage"], r["name"], r["metric"]) == (0, next(iter(SKILLS)), "exact")
    ]
    with (folder / "records.jsonl").open("a") as file:
        file.writelines(
            json.dumps({**r, "metric": "judged_strict", "protocol": "judged"}) + "\n" for r in base
        )
    missing = ReportData([folder]).missing
    assert any(
        f"sft, seed 0: answers of stage 1, 2, 3 have no verdicts yet: python -m harness.judge {folder}"
        in m
        for m in missing
    )
    assert not any("stages finished" in m for m in missing)


def test_methods_that_log_nothing_make_a_page(tmp_path):
    folder = fabricate(tmp_path / "quiet", methods=TWO, n=20)
    for path in folder.glob("runs/*/stage-*/training.jsonl"):
        path.write_text(
            "".join(
                json.dumps({k: json.loads(line)[k] for k in ("step", "seconds", "tokens")}) + "\n"
                for line in path.read_text().splitlines()
            )
        )
    _, index = write_report(folder, tmp_path / "out")
    assert index.exists() and not (tmp_path / "out" / "figures" / "training.png").exists()


def test_two_base_models_have_a_line_each(tmp_path):
    folders = [fabricate(tmp_path / m, methods=TWO, model=m, n=20) for m in ("a", "b")]
    rewritten = [
        r | ({"value": r["value"] + 0.25} if r["stage"] == 0 else {}) for r in raw(folders[1])
    ]
    (folders[1] / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rewritten))
    with figures.matplotlib.rc_context(figures.STYLE):
        drawer = figures.Drawer(ReportData(folders), tmp_path / "figures")
        drawer._axis()
        curves = drawer._curves()
        start = curves[(curves["name"] == "science") & (curves["stage"] == 0)].set_index("label")[
            "value"
        ]
        bases = drawer._bases(start)
        assert len(bases) == 2 and bases.iloc[1] - bases.iloc[0] == pytest.approx(0.25)
        assert drawer._bases(start[:0]).empty


@pytest.mark.parametrize(
    "what", ["no records", "no runs folder", "base only", "no retention", "one skill"]
)
def test_whatever_is_there_makes_a_page(tmp_path, what):
    skills = dict(list(SKILLS.items())[:1]) if what == "one skill" else SKILLS
    folder = fabricate(
        tmp_path / "bare",
        skills=skills,
        methods=TWO,
        n=10,
        inside=0,
        items=False,
        retention={} if what == "no retention" else {"hellaswag": ("acc", True, 0.25, 0.42)},
    )
    if what == "no records":
        (folder / "records.jsonl").unlink()
    elif what == "no runs folder":
        shutil.rmtree(folder / "runs")
    elif what == "base only":
        (folder / "records.jsonl").write_text(
            "\n".join(json.dumps(r) for r in raw(folder, stage=0, method="sft"))
        )
    text, index = write_report(folder)
    assert index.is_file() and (what != "no records" or "nothing was measured" in text)
    assert (what != "base only") or "sft, seed 0: 0 of 3 stages finished" in text


def test_the_page_needs_nothing_from_elsewhere_and_all_its_links_lead_somewhere(reported):
    _, _, index = reported
    html = index.read_text()
    targets = re.findall(r"""(?:src|href|srcset)=["']([^"']+)["']""", html)
    assert len(targets) > 50 and not [t for t in targets if re.match(r"(https?:)?//", t)]
    assert not re.search(r"@import|url\(", html)
    gone = [
        t
        for t in targets
        if (f'id="{t[1:]}"' not in html if t.startswith("#") else not (index.parent / t).is_file())
    ]
    assert not gone
    for name in (
        "curves",
        "curves_normalised",
        "plane",
        "retention",
        "accuracy_matrix",
        "training",
    ):
        assert (
            f"figures/{name}.svg" in html
            and (index.parent / "figures" / f"{name}.png").stat().st_size > 5000
        )


def test_the_page_says_of_a_number_how_it_was_measured(reported):
    folder, _, index = reported
    html = index.read_text()
    note = re.search(r'title="(sdft, science final:[^"]+)"', html)[1]
    for part in (
        "mean of 3 seeds",
        "seed 2: ",
        "split test",
        "metric exact",
        "greedy",
        "n = 40",
        raw(folder, name="science")[0]["protocol"],
    ):
        assert part in note
    assert (
        "Show the &lt;b&gt;steps&lt;/b&gt; &amp; answer" in html and "<b>steps</b>" not in html
    )  # completions are text, never markup


def test_the_page_shows_the_order_as_it_was_resolved(reported):
    folder, _, index = reported
    shown = re.search(
        r"the order as it was resolved</summary>.*?<pre>(.*?)</pre>", index.read_text(), re.S
    )[1]
    assert json.loads(unescape(shown)) == json.loads((folder / "results.json").read_text())


def test_terminal_table_fits_and_the_files_agree(reported):
    _, text, index = reported
    assert max(map(len, text.split("\n\n")[1].splitlines())) <= 100
    value = pd.read_csv(index.parent / "tables" / "main.csv").set_index("method").loc["grpo", "ACC"]
    shown = f"{100 * value:.1f}"
    assert re.search(rf"^grpo +3/3 +{shown}±", text, re.M)
    assert f"| grpo | 3/3 | {shown} ±" in (index.parent / "tables" / "main.md").read_text()
    tex = (index.parent / "tables" / "retention.tex").read_text()
    assert (
        "truthfulqa\\_mc1" in tex
        and tex.count("\\begin{tabular}") == 1
        and re.search(r"\$-\d+\.\d \\pm", tex)
    )
    widths = {
        line.count("&")
        for line in tex.splitlines()
        if line.startswith(("base", "sft", "sdft", "method"))
    }
    assert widths == {10}


def test_curves_align_methods_of_different_length(reported):
    curves = pd.read_csv(reported[2].parent / "tables" / "curves.csv")
    ends = defaultdict(set)
    for label, x in curves[["label", "x"]].itertuples(index=False):
        ends[label].add(x)
    # 12 and 18 steps a stage end at the same place
    assert {0.0, 1.0, 2.0, 3.0} <= ends["sft"] & ends["sdft"]
    assert 0.25 in ends["sft"]


def test_curves_are_in_optimizer_steps_where_all_methods_agree(tmp_path):
    folder = fabricate(tmp_path / "equal", methods=TWO, items=False, n=10)
    drawer = figures.Drawer(ReportData([folder]), tmp_path / "figures")
    drawer._axis()
    assert drawer.in_steps and drawer.edges.tolist() == [0, 12, 24, 36]
    assert set(drawer._curves()["x"]) == set(range(0, 37, 3))


def test_a_label_has_the_same_colour_in_every_report():
    few, many = (
        figures.looks(["sdft", "ewc"]),
        figures.looks(["replay", "sft", "ewc", "grpo", "sdft", *"abcdefgh"]),
    )
    assert (
        few["sdft"] == many["sdft"] == ("#0072B2", "s", "-")
        and many["sft"][0] == "#D55E00"
        and many["grpo"][0] == "#009E73"
    )
    assert len(set(many.values())) == len(many)


def test_many_records_are_read_in_chunks_as_one(three, monkeypatch):
    from harness.results import reader as data

    whole, _ = read_records(three / "records.jsonl")
    small = data.pd.concat  # joined from several chunks the table must be the same
    joined = []
    monkeypatch.setattr(
        data.pd, "concat", lambda parts, **k: joined.append(len(parts)) or small(parts, **k)
    )
    monkeypatch.setattr(data, "CHUNK", 20_000)
    parts, broken = read_records(three / "records.jsonl")
    assert joined and joined[0] > 5 and broken == 0
    pd.testing.assert_frame_equal(whole.astype(object), parts.astype(object))


def test_report_loads_neither_torch_nor_transformers():
    code = "import sys, harness.report; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_command_says_user_errors_in_one_line(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text('{"version": 99}')
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("absent", "is not a folder"),
        ("empty", "no results.json"),
        ("old", "version 99"),
    ):
        done = subprocess.run(
            [sys.executable, "report.py", str(tmp_path / place)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (
            done.returncode == 2
            and done.stdout == ""
            and len(done.stderr.splitlines()) == 1
            and said in done.stderr
        )


def head(**changes):
    return "results.json", lambda value: value | changes


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("protocols.json", lambda _: [1], "is not an object"),
        ("protocols.json", lambda _: "x", "is not an object"),
        (*head(skills=None), "`skills` is null, not a list"),
        (*head(methods=[]), "`methods` is [], not an object"),
        (*head(methods={"sft": 1}), "`methods.sft` is 1, not an object"),
        (*head(seeds=["a"]), '`seeds[0]` is "a", not a whole number'),
        (*head(skills=[{"name": "tooluse"}]), "`skills[0].metric` is null, not a text"),
        (
            *head(retention=[{"name": ["x"], "metric": "acc"}]),
            '`retention[0].name` is ["x"], not a text',
        ),
        (*head(evaluate=3), "`evaluate` is 3, not an object"),
        ("selection.json", lambda _: [], "is not an object"),
        ("evaluations/tooluse-base.json", lambda _: [1], "is not an object"),
        (
            "evaluations/tooluse-base.json",
            lambda _: {"items": [1]},
            "`items[0]` is 1, not an object",
        ),
        (
            "runs/sft-seed0/stage-1/stage.json",
            lambda _: {"stage": 1, "seconds": [2]},
            "`seconds` is [2], not an object",
        ),
        (
            "runs/sft-seed0/run.json",
            lambda _: {"packages": "x"},
            '`packages` is "x", not an object',
        ),
        ("runs/sft-seed0/run.json", lambda _: {"label": [1]}, "`label` is [1], not a text"),
    ],
)
def test_odd_json_is_said_in_one_line_and_leaves_nothing_half_written(tmp_path, file, change, said):
    folder = fabricate(
        tmp_path / "odd",
        skills=dict(list(SKILLS.items())[:1]),
        methods=TWO,
        retention={},
        n=8,
        inside=0,
    )
    (folder / file).touch()
    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text() or "0"))))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refused:
        write_report(folder)
    assert str(folder / file) in str(refused.value) and said in str(refused.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["null", '{"a":'])
def test_a_file_that_is_no_object_at_all_is_named(tmp_path, text):
    folder = fabricate(
        tmp_path / "odd",
        skills=dict(list(SKILLS.items())[:1]),
        methods=TWO,
        retention={},
        n=8,
        inside=0,
        items=False,
    )
    (folder / "protocols.json").write_text(text)
    with pytest.raises(UserError, match=r"protocols\.json: is not (an object|JSON)"):
        ReportData([folder])


@pytest.mark.parametrize(("key", "value"), [("name", ["x"]), ("protocol", {"a": 1}), ("method", 3)])
def test_a_record_of_another_type_is_named(tmp_path, key, value):
    folder = fabricate(
        tmp_path / "odd",
        skills=dict(list(SKILLS.items())[:1]),
        methods=TWO,
        retention={},
        n=8,
        inside=0,
        items=False,
    )
    with open(folder / "records.jsonl", "a") as file:
        file.write(json.dumps(raw(folder)[-1] | {key: value}) + "\n")
    with pytest.raises(UserError, match=rf"records\.jsonl: a record's `{key}` is .*, not a text"):
        ReportData([folder])


def test_a_report_keeps_what_else_lies_in_its_folder(tmp_path):
    folder = fabricate(
        tmp_path / "few",
        skills=dict(list(SKILLS.items())[:1]),
        methods=TWO,
        retention={},
        n=8,
        inside=0,
        training=False,
    )
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "mine.txt").write_text("kept")
    (out / "index.html").write_text("old")
    _, index = write_report(folder, out)
    assert (
        index == out / "index.html"
        and "<!doctype html>" in index.read_text()
        and (out / "tables" / "mine.txt").read_text() == "kept"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "out"]
    with pytest.raises(UserError, match="cannot be a folder"):
        write_report(folder, index)


def test_a_stage_commits_while_a_report_is_drawn(tmp_path):
    with (
        made_beside(tmp_path / "report"),
        locked(tmp_path, wait=False),
        locked(tmp_path / ".lock", wait=False),
        pytest.raises(BlockingIOError),
        locked(tmp_path / "report", wait=False),
    ):
        pass  # a stage commits, another report would wait


@pytest.mark.parametrize("how", [["absent"], ["absent", "--paper"], ["--published"]])
def test_an_impossible_out_is_refused_before_anything_is_written(how, tmp_path, capsys):
    for name, said in (
        ("page", "index.html: is a folder"),
        ("pictures", "figures: is a file"),
        ("pictures/figures", "figures: is a file"),
        ("x" * 300, "cannot be a folder (File name too long)"),
    ):
        (tmp_path / "page/index.html").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures/figures").touch()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            report.main([*how, "--out", str(tmp_path / name)])
        found = capsys.readouterr()
        assert (
            caught.value.code == 2
            and found.out == ""
            and said in found.err
            and found.err.count("\n") == 1
        )
        assert sorted(tmp_path.rglob("*")) == before
