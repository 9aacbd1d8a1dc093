"""The tables of a report against the raw records."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from harness.base import intervals, metrics
from harness.report import tables
from harness.report.cost_table import cost_table
from harness.report.data import ReportData
from harness.report.every_metric import every_metric
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import ONE_SKILL, TWO, raw, row


def test_the_main_table_is_that_of_the_raw_records(three):
    cells = row(tables.main_table(ReportData([three])), "sft")
    names = list(SKILLS)
    tasks = ("hellaswag", "winogrande", "arc_easy", "truthfulqa_mc1")  # no bits per byte
    by_key = {"acc": [], "bwt": [], "retention": []}
    for seed in (0, 1, 2):
        final = raw(three, method="sft", seed=seed, kind="skill", metric="exact", final=True)
        R = {(r["stage"], r["name"]): r["value"] for r in final}
        retention = raw(three, method="sft", seed=seed, kind="retention")
        D = {(r["stage"], r["name"]): r["value"] for r in retention}
        by_key["acc"].append(np.mean([R[3, name] for name in names]))
        changes = [R[3, name] - R[k, name] for k, name in enumerate(names[:2], 1)]
        by_key["bwt"].append(np.mean(changes))
        by_key["retention"].append(np.mean([D[3, task] - D[0, task] for task in tasks]))
    for key, values in by_key.items():
        cell = cells[key]
        assert cell.value == pytest.approx(np.mean(values))
        assert cell.low < cell.value < cell.high
        # Questions and seeds vary it more than seeds alone.
        assert cell.spread.variance > np.var(values, ddof=1) / 3


def test_retention_is_positive_when_better_also_where_lower_is_better(three):
    cell = row(tables.retention_table(ReportData([three])), "sft")["wikitext/delta"]
    final = [r["value"] for r in raw(three, method="sft", name="wikitext", stage=3)]
    rise = np.mean(final) - raw(three, name="wikitext", stage=0)[0]["value"]
    assert rise > 0.05
    assert cell.value == pytest.approx(-rise)


def named(table, name, metric):
    return next(c for n, c in table.rows if (n, c["metric"]) == (name, metric))


def bounds(cell):
    return cell.low, cell.value, cell.high


def test_every_metric_is_on_record_with_base_and_final(three):
    """Intervals are over questions and seeds, those of the metric that counts as elsewhere."""
    results = ReportData([three])
    table = every_metric(results)
    names = {(name, cells["metric"]) for name, cells in table.rows}
    assert {("science", "exact"), ("science", "lenient"), ("wikitext", "bits_per_byte")} <= names
    cells = named(table, "science", "lenient")
    final = {"metric": "lenient", "name": "science", "stage": 3, "final": True}
    records = raw(three, method="grpo", **final)
    scores = []
    for record in records:
        text = (three / "evaluations" / f"{record['evaluation']}.json").read_text()
        scores.append([item["scores"]["lenient"] for item in json.loads(text)["items"]])
    spread = intervals.spread([np.array(scores).T])
    half = spread.quantile() * spread.stderr
    assert set(spread.parts) == {"seeds", "items"}
    assert cells["grpo"].value == pytest.approx(np.mean([r["value"] for r in records]))
    assert cells["grpo"].high - cells["grpo"].value == pytest.approx(half, rel=1e-9)
    assert cells["grpo"].by == "both" and "seed 2: " in cells["grpo"].how
    base = raw(three, metric="lenient", name="science", stage=0)[0]
    assert cells["base"].value == pytest.approx(base["value"])
    assert cells["base"].low < base["value"] < cells["base"].high
    main = row(tables.main_table(results), "grpo")["science/final"]
    counts = named(table, "science", "exact")["grpo"]
    assert bounds(counts) == pytest.approx(bounds(main))
    retention = row(tables.retention_table(results), "sft")
    for task in results.retention:
        cell = next(c for n, c in table.rows if n == task)["sft"]
        assert bounds(cell) == pytest.approx(bounds(retention[f"{task}/final"])), task
    assert (
        "over questions and seeds together" in table.note
        and "item scores are missing" not in table.note
    )


def test_every_metric_falls_back_to_the_errors_on_record(tmp_path):
    folder = fabricate(tmp_path / "r", methods=TWO, seeds=(0, 1), n=40, items=False, inside=0)
    table = every_metric(ReportData([folder]))
    cell = named(table, "science", "lenient")["sft"]
    records = raw(folder, method="sft", name="science", metric="lenient", stage=3)
    spread = intervals.of_records(*([r[key] for r in records] for key in ("value", "stderr")))
    assert cell.by == "errors"
    assert cell.high - cell.value == pytest.approx(spread.quantile() * spread.stderr)
    assert "from the standard errors on record" in table.note


def test_a_share_of_right_answers_keeps_within_its_bounds_and_a_divergence_does_not(tmp_path):
    """Graders beside the one that counts, pass@k and the teacher are shares, whatever they say."""
    folder = fabricate(tmp_path / "r", skills=ONE_SKILL, methods=TWO, n=40, items=False, inside=0)
    (skill,) = ONE_SKILL
    lines = (folder / "records.jsonl").read_text().splitlines()
    for metric in ("pass@4", "teacher_accuracy", "oracle_exact", "kl_forward_token"):
        record = raw(folder, method="sft", stage=1, metric="exact")[0] | {"metric": metric}
        lines.append(json.dumps(record | {"value": 0.01, "stderr": 0.01}))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    table = every_metric(ReportData([folder]))
    low, high = metrics.score_interval(0.01, 0.01, 40)
    for metric in ("pass@4", "teacher_accuracy", "oracle_exact"):
        cell = named(table, skill, metric)["sft"]
        assert (cell.low, cell.high) == pytest.approx((low, high))
    cell = named(table, skill, "kl_forward_token")["sft"]
    assert cell.low == pytest.approx(0.01 - 1.959964 * 0.01, rel=1e-4)


def test_the_records_used_are_final_ones_of_the_metrics_that_count(three):
    used = tables.records_used(ReportData([three]))
    assert list(used.columns[:3]) == ["folder", "label", "seed"]
    assert not {"run", "method", "final", "prompts"} & set(used.columns)
    final = [r for r in raw(three, final=True) if r["metric"] != "lenient"]
    assert len(used) == len(final)
    assert set(used["folder"]) == {"three"}


def test_cost_is_summed_over_stages(three):
    killed = three / "runs" / "sdft-seed0" / "stage-4.partial"  # does not count
    shutil.copytree(three / "runs" / "sdft-seed0" / "stage-3", killed)
    cells = row(cost_table(ReportData([three])), "sdft")
    shutil.rmtree(killed)
    assert cells["tokens"] == 3 * 18 * 900
    assert cells["seconds_sampling"] == pytest.approx(3 * 18 * 3.1)
    assert cells["peak_memory_gib"] == pytest.approx(2.9)


def test_the_base_models_evaluation_is_no_methods_cost(tmp_path):
    """The run that came first measured it, here a point that its grid did not select.

    Memory at stage 0 is what another run left.
    """
    folder = fabricate(tmp_path / "base", methods=TWO, items=False, n=8, inside=0, retention={})
    without = dict(cost_table(ReportData([folder])).rows)
    assert "base" not in without
    for run, seconds, peak in (
        ("unselected-seed0", 100.0, 1.5),
        ("sft-seed0", 20.0, 1.5),
        ("sdft-seed0", 0.5, 9.9),
    ):
        place = folder / "runs" / run / "stage-0"
        place.mkdir(parents=True)
        stage = {
            "stage": 0,
            "steps": 0,
            "prompts": 0,
            "tokens": 0,
            "peak_memory_gib": peak,
            "seconds": {"evaluation": seconds, "retention": 2 * seconds, "training": 0.0},
        }
        (place / "stage.json").write_text(json.dumps(stage))
    rows = dict(cost_table(ReportData([folder])).rows)
    assert list(rows) == ["base", "sft", "sdft"]
    assert {label: rows[label] for label in TWO} == without
    assert rows["base"] == {"seconds_evaluation": 120.5, "seconds_retention": 241.0, "total": 361.5}


def test_terminal_table_fits_and_the_files_agree(reported):
    _, text, page = reported
    assert max(map(len, text.split("\n\n")[1].splitlines())) <= 100
    files = page.parent / "tables"
    value = pd.read_csv(files / "main.csv").set_index("method").loc["grpo", "ACC"]
    per_cent = f"{100 * value:.1f}"
    assert re.search(rf"^grpo +3/3 +{per_cent}±", text, re.M)
    assert f"| grpo | 3/3 | {per_cent} ±" in (files / "main.md").read_text()
    tex = (files / "retention.tex").read_text()
    assert "truthfulqa\\_mc1" in tex
    assert tex.count("\\begin{tabular}") == 1
    assert re.search(r"\$-\d+\.\d \\pm", tex)
    starts = ("base", "sft", "sdft", "method")
    widths = {line.count("&") for line in tex.splitlines() if line.startswith(starts)}
    assert widths == {10}
