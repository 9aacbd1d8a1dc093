"""Reading a results folder: what was run, records, evaluations, costs."""

import json

import numpy as np
import pandas as pd
import pytest

from harness.base.errors import UserError
from harness.report.data import ReportData
from harness.results import reader
from harness.results.folders import open_results, read_stages, read_training
from harness.results.reader import read_records
from tests.fabricate import fabricate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("results") / "one", seeds=(0, 1), n=20)


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_folder_says_what_was_run_and_measured(folder):
    results = open_results(folder)
    assert (results.name, results.split) == ("one", "test")
    assert [skill["name"] for skill in results.skills] == ["tooluse", "science", "medical"]
    assert list(results.methods) == ["sft", "sdft", "grpo"]
    table, unreadable = results.read_records()
    assert len(table) == len((folder / "records.jsonl").read_text().splitlines())
    assert unreadable == 0
    assert set(table["protocol"]) == set(results.protocols)
    key = table["evaluation"].iloc[0]
    assert key in results.evaluation_keys()
    assert len(results.evaluation(key)["items"]) == 20


@pytest.mark.parametrize("key", ["absent", None, "../results", "a/b"])
def test_an_evaluation_that_is_not_there_is_empty(folder, key):
    assert open_results(folder).evaluation(key) == {}


def test_runs_have_stages_and_training_curves(folder):
    run = open_results(folder).runs()[-1]
    assert (run.label, run.seed) == ("sft", 1)
    assert [stage["stage"] for stage in read_stages(run.path)] == [1, 2, 3]
    curves = dict(read_training(run.path, most=6))
    assert {stage: len(table) for stage, table in curves.items()} == {1: 6, 2: 6, 3: 6}
    assert curves[2]["step"].tolist() == [13, 15, 17, 19, 21, 23]


@pytest.mark.parametrize("chance", [1, 1e308, -0.5])
def test_a_chance_that_cannot_be_is_one_line(tmp_path, chance):
    folder = fabricate(tmp_path / "odd", n=8)
    rewrite(folder / "results.json", lambda results: results["skills"][0].update(chance=chance))
    with pytest.raises(UserError, match=r"`chance` of tooluse is .*; it is from 0 to below 1"):
        open_results(folder)


@pytest.mark.parametrize("value", ["x", [1]])
def test_a_rollout_that_is_no_object_is_one_line(tmp_path, value):
    folder = fabricate(tmp_path / "odd", n=8)
    rewrite(folder / "results.json", lambda results: results.update(rollout=value))
    with pytest.raises(UserError, match=r"`rollout` is .*, not an object"):
        open_results(folder)


@pytest.mark.parametrize("stage", [-1, 1e300, 10**30])
def test_a_record_of_a_stage_that_cannot_be_counts_nowhere(tmp_path, stage):
    folder = fabricate(tmp_path / "odd", n=8)
    before = ReportData([folder]).R["sft"]
    lines = (folder / "records.jsonl").read_text().splitlines()
    odd = next(r for r in map(json.loads, lines) if r["method"] == "sft" and r["stage"] == 3)
    odd |= {"stage": stage, "value": 0.123}
    (folder / "records.jsonl").write_text("\n".join([json.dumps(odd), *lines]) + "\n")
    np.testing.assert_array_equal(ReportData([folder]).R["sft"], before)


def test_only_the_selected_point_of_a_grid_counts(tmp_path):
    folder = fabricate(tmp_path / "grid", n=8, inside=0, items=False)

    def make_grids(results):
        for label, grid in (("sft", "a"), ("sdft", "a"), ("grpo", "b")):
            results["methods"][label]["grid"] = {"of": grid, "values": {"learning_rate": 1}}

    rewrite(folder / "results.json", make_grids)
    choice = {"a": {"selected": "sdft", "rule": "highest", "points": [{}, {}]}}
    (folder / "selection.json").write_text(json.dumps(choice))
    results = open_results(folder)
    assert results.unselected == ["sft", "grpo"]
    assert results.undecided_grids == ["b"]
    assert list(results.methods) == ["sdft"]
    assert results.methods["sdft"]["grid"]["points"] == 2
    assert set(results.read_records().table["method"]) == {"sdft"}


def test_a_judges_metric_counts_once_it_is_on_record(tmp_path):
    folder = fabricate(tmp_path / "judged", n=8, inside=0, items=False)
    judge = {"rubric": "knowledge", "metrics": ["judged_strict"]}
    rewrite(folder / "results.json", lambda value: value["skills"][0].update(judge=judge))
    results = open_results(folder)
    records = results.read_records().table
    assert results.counting_metrics(records)["tooluse"] == "exact"
    verdict = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps(verdict | {"metric": "judged_strict"}) + "\n")
    metrics = results.counting_metrics(results.read_records().table)
    assert metrics == {"tooluse": "judged_strict", "science": "exact", "medical": "exact"}


def test_what_is_no_results_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_results(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no results\.json"):
        open_results(tmp_path)
    (tmp_path / "results.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="version 99"):
        open_results(tmp_path)


def test_many_records_are_read_in_chunks_as_one(folder, monkeypatch):
    whole, _ = read_records(folder / "records.jsonl")
    concat = reader.pd.concat
    chunks = []

    def counted(parts, **options):
        chunks.append(len(parts))
        return concat(parts, **options)

    monkeypatch.setattr(reader.pd, "concat", counted)
    monkeypatch.setattr(reader, "CHUNK", 20_000)
    parts, broken = read_records(folder / "records.jsonl")
    assert chunks[0] > 5
    assert broken == 0
    pd.testing.assert_frame_equal(whole.astype(object), parts.astype(object))
