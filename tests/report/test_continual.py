"""Measures beside the headline: references, learning curves, items that were lost and gained."""

import json

import numpy as np
import pandas as pd
import pytest

from harness.base import curves, metrics
from harness.report.continual import _regained, continual_rows
from harness.report.data import ReportData
from harness.report.every_metric import every_metric
from harness.report.measurements import RunId
from harness.report.tables import gain_table, main_table
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import raw, rewrite, row

NAMES = list(SKILLS)


def add_references(folder, label="sft", alone="grpo"):
    """References of a method: joint is its own last stage, single the own stages of ``alone``."""
    lines = []
    for record in raw(folder, final=True):
        mine = {"stage": 1, "reference": "joint", "method": f"{label}.joint"}
        if record["stage"] == 3 and record["method"] == label:
            lines.append(record | mine | {"run": f"{label}.joint-seed{record['seed']}"})
        place = NAMES.index(record["skill"]) + 1 if record["skill"] else 0
        own = record["name"] == record["skill"] and record["kind"] == "skill"
        if own and record["method"] == alone and place > 1:
            name = f"{label}.single-{place}"
            mine = {"stage": 1, "reference": "single", "method": name}
            lines.append(record | mine | {"run": f"{name}-seed{record['seed']}"})
    with open(folder / "records.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    rewrite(folder / "results.json", lambda results: results.update(references=[label]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "with_references"
    return add_references(fabricate(path, seeds=(0, 1), n=40))


@pytest.fixture(scope="module")
def results(folder):
    return ReportData([folder])


def measure(results, name, measure, label="sft"):
    return next(c for n, c in continual_rows(results) if (n, c["metric"]) == (name, measure))[label]


def test_references_are_paired_with_the_sequence_by_question_and_seed(results):
    """A joint run with the answers of the last stage: intransigence is BWT over T."""
    cells = row(gain_table(results), "sft")
    bwt = results.estimate("sft", metrics.backward_transfer_trace, difference=True)
    found = cells["intransigence"]
    assert found.value == pytest.approx(bwt.value) and found.by == bwt.by == "both"
    # up to degrees of freedom: the last skill's questions are in one and cancel
    assert (found.low, found.high) == pytest.approx((bwt.low, bwt.high), rel=1e-3)
    R, of_grpo = results.R["sft"], results.R["grpo"]
    wanted = [
        np.mean(
            [
                (of_grpo[run, k + 1, k] - R[run, 0, k]) - (R[run, k + 1, k] - R[run, k, k])
                for k in (1, 2)
            ]
        )
        for run in (0, 1)
    ]
    assert cells["plasticity loss"].value == pytest.approx(np.mean(wanted))
    assert cells["plasticity loss"].by == "both"
    assert np.isnan(row(gain_table(results), "sdft")["intransigence"].value)


def test_references_are_rows_of_the_main_table_and_of_no_other_number(results, tmp_path):
    plain = ReportData([fabricate(tmp_path / "plain", seeds=(0, 1), n=40)])
    table = main_table(results)
    labels = [label for label, _ in table.rows]
    assert labels[:4] == ["base", "sft", "sft joint", "sft single"]
    assert [label for label in labels if " " not in label] == ["base", "sft", "sdft", "grpo"]
    for label, cells in main_table(plain).rows:
        for key, cell in cells.items():
            other = row(table, label)[key]
            assert repr(cell) == repr(other)
    joint, single = row(table, "sft joint"), row(table, "sft single")
    sft = row(table, "sft")
    assert joint["acc"].value == sft["acc"].value
    assert joint["retention"].value == pytest.approx(sft["retention"].value)
    assert [joint[f"{n}/final"].value for n in NAMES] == [sft[f"{n}/final"].value for n in NAMES]
    assert single[f"{NAMES[0]}/own"].value == sft[f"{NAMES[0]}/own"].value  # not learned twice
    grpo = row(table, "grpo")
    for name in NAMES[1:]:
        assert single[f"{name}/own"].value == grpo[f"{name}/own"].value
    assert plain.references == [] and results.references == ["sft"]
    assert len(results.records) == len(plain.records)
    assert len(results.missing) == len(plain.missing)


def test_without_references_a_word_says_what_is_left_out(tmp_path):
    plain = ReportData([fabricate(tmp_path / "plain", n=20)])
    for table in (gain_table(plain), every_metric(plain)):
        assert "Intransigence and plasticity loss are left out" in table.note
        assert not any(column.key == "intransigence" for column in table.columns)
    rows = {cells["metric"] for _, cells in continual_rows(plain)}
    assert "anytime accuracy" in rows and "intransigence" not in rows


def test_what_a_reference_lacks_is_told(folder, tmp_path):
    cut = tmp_path / "cut"
    fabricate(cut, seeds=(0, 1), n=20)
    add_references(cut)
    lines = (cut / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"run": "sft.single-3-seed1"' not in line]
    (cut / "records.jsonl").write_text("".join(kept))
    lines = [line for line in ReportData([cut]).missing if "reference" in line]
    assert lines == ["sft, seed 1: reference not finished: single"]


def test_measures_of_the_way(results):
    R = results.R["sft"]
    one = measure(results, "all skills", "anytime accuracy")
    assert one.value == pytest.approx(metrics.anytime_accuracy(R).mean()) and one.by == "both"
    for t in (1, 2):
        of_stage = measure(results, "all skills", f"OP after stage {t}")
        assert of_stage.value == pytest.approx(R[:, t, :t].mean())
    both = [measure(results, "all skills", f"BWT over {t}") for t in ("T - 1", "T (TRACE)")]
    assert both[1].value == pytest.approx(both[0].value * 2 / 3)


def test_learning_curves_are_those_of_a_skills_own_stage(folder, results, tmp_path):
    name = NAMES[1]
    areas, reached = [], []
    for seed in (0, 1):
        points = [(12 * 8, results.R["sft"][seed, 1, 1])]
        points += [
            (record["prompts"], record["value"])
            for record in raw(folder, method="sft", seed=seed, stage=2, name=name, metric="exact")
        ]
        x, y = np.array(points).T
        areas.append(curves.learning_curve_area(x - 96, y))
        goal = 0.9 * results.R["grpo"][seed, 2, 1]
        reached.append(curves.prompts_to_reach(x - 96, y, goal))
    area = measure(results, name, "area under the learning curve")
    assert area.value == pytest.approx(np.mean(areas)) and area.by == "runs"
    found = measure(results, name, "prompts to 90% of the single result")
    assert np.isfinite(reached).all() and found.value == pytest.approx(np.mean(reached))
    with_more = add_references(fabricate(tmp_path / "more", seeds=(0, 1), n=40), alone="sdft")
    of_more = measure(ReportData([with_more]), name, "prompts to 90% of the single result")
    assert of_more == "not in 1 of 2"


def test_items_lost_and_gained_are_counted_one_by_one(folder, results):
    def answers(key, pick):
        items = json.loads((folder / f"evaluations/{key}.json").read_text())["items"]
        return {item["id"]: pick(item) for item in items}

    name, shares = NAMES[0], []
    for seed in (0, 1):
        before, after = (
            answers(f"{name}-sft-seed{seed}-{step}", lambda item: item["scores"]["exact"])
            for step in (12, 36)
        )
        shares.append(np.mean([before[i] > after[i] for i in before]))
    lost = measure(results, name, "items lost since its own stage")
    gained = measure(results, name, "items gained since its own stage")
    assert lost.value == pytest.approx(np.mean(shares)) and lost.by == "both"
    R = results.R["sft"]
    assert gained.value - lost.value == pytest.approx((R[:, 3, 0] - R[:, 1, 0]).mean())
    with pytest.raises(StopIteration):  # nothing comes after it
        measure(results, NAMES[2], "items lost since its own stage")


def test_guessing_is_subtracted_from_choice_tasks_alone(results):
    task, measured = "hellaswag", "items {} since the base, guessing subtracted"
    lost, gained = (measure(results, task, measured.format(w)) for w in ("lost", "gained"))
    D = results.D["sft"][:, :, list(results.retention).index(task)]
    assert gained.value - lost.value == pytest.approx((D[:, -1] - D[:, 0]).mean() / 0.75)
    assert measure(results, "truthfulqa_mc1", "items lost since the base").value >= 0
    with pytest.raises(StopIteration):  # bits per byte are not right or wrong
        measure(results, "wikitext", "items lost since the base")


def test_a_skill_of_choices_has_guessing_subtracted_too(results, tmp_path):
    fabricate(tmp_path, seeds=(0, 1), n=40)
    rewrite(tmp_path / "results.json", lambda head: head["skills"][0].update(chance=0.25))
    of, name = ReportData([tmp_path]), NAMES[0]
    lost, gained = (
        measure(of, name, f"items {what} since its own stage, guessing subtracted")
        for what in ("lost", "gained")
    )
    R = of.R["sft"]
    assert gained.value - lost.value == pytest.approx((R[:, 3, 0] - R[:, 1, 0]).mean() / 0.75)
    plain = measure(results, name, "items lost since its own stage")
    assert plain.value > 0 and lost.value != pytest.approx(plain.value)
    assert measure(of, NAMES[1], "items lost since its own stage").value >= 0


def test_tables_with_references_are_written(results):
    text, _ = main_table(results).terminal()
    assert "sft joint" in text
    csv, tex = (getattr(every_metric(results), form)() for form in ("csv", "latex"))
    assert "plasticity loss" in csv and "items lost since its own stage" in csv
    assert "Intransigence" not in tex


def test_what_is_read_at_a_stages_end_stretches_no_curve(folder, results, tmp_path):
    name, grown = NAMES[1], tmp_path / "grown"
    fabricate(grown, seeds=(0, 1), n=40)
    add_references(grown)
    records = [json.loads(line) for line in (grown / "records.jsonl").read_text().splitlines()]
    for record in records:
        if record["method"] == "sft" and record["stage"] == 2 and record["final"]:
            record |= {"prompts_learned": record["prompts"], "prompts": record["prompts"] + 500}
    (grown / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for of in ("area under the learning curve", "prompts to 90% of the single result"):
        found, wanted = (measure(each, name, of) for each in (ReportData([grown]), results))
        assert found.value == pytest.approx(wanted.value)


def with_values(folder, chosen, change):
    """The report of a folder in which ``change`` was made to the records that are ``chosen``."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    changed = [r | change for r in records if all(r.get(k) == v for k, v in chosen.items())]
    assert changed
    kept = [r for r in records if not all(r.get(k) == v for k, v in chosen.items())]
    text = "".join(json.dumps(r) + "\n" for r in [*kept, *changed])
    (folder / "records.jsonl").write_text(text)
    return ReportData([folder])


@pytest.mark.parametrize(("base", "is_there"), [(0.60, False), (0.55, True)])
def test_a_goal_below_the_base_is_none(tmp_path, base, is_there):
    """Nine tenths of 0.65 are 0.585: a skill that begins at 0.60 needs no prompt to get there."""
    name, folder = NAMES[1], fabricate(tmp_path / "results", seeds=(0, 1), n=40)
    add_references(folder)
    metric = {"name": name, "metric": "exact", "split": "test"}
    with_values(folder, {**metric, "stage": 0}, {"value": base})
    results = with_values(folder, {**metric, "reference": "single"}, {"value": 0.65})
    key = (name, "prompts to 90% of the single result")
    found = [c for n, c in continual_rows(results) if (n, c["metric"]) == key]
    assert bool(found and "sft" in found[0]) == is_there


def test_an_own_stage_without_a_number_is_no_goal():
    def table(*values, stderr=0.1):
        rows = [
            {"folder": 0, "seed": 0, "sequence": "", "stage": k, "final": True, "prompts": 4.0 * k,
             "value": v, "stderr": stderr}
            for k, v in enumerate(values)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    again = table(0.0, 0.9)
    assert np.isnan(_regained(again, table(np.nan), RunId(0, 0)))
    assert _regained(again, table(0.6), RunId(0, 0)) == 4
    assert _regained(again, table(1.2), RunId(0, 0)) == np.inf
