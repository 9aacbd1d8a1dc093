"""Which folders the report pools, which it shows side by side, and which it refuses."""

import json
import shutil

import numpy as np
import pytest

from harness.base.errors import UserError
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.results.pooling import distinct
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import TWO, raw, rewrite


def test_two_protocols_are_refused_and_both_named(three, tmp_path):
    other = fabricate(tmp_path / "longer", methods=TWO, n=40, limit=128)
    hashes = {raw(folder, name="tooluse")[0]["protocol"] for folder in (three, other)}
    with pytest.raises(UserError) as refused:
        write_report([three, other], tmp_path / "out")
    assert len(hashes) == 2
    assert all(key in str(refused.value) for key in hashes)
    assert "max_new_tokens 64 / 128" in str(refused.value)


def test_two_protocols_in_one_folder_are_refused(tmp_path):
    folder = fabricate(tmp_path / "one", methods=TWO, n=40)
    key = raw(folder, name="tooluse")[0]["protocol"]
    lines = (folder / "records.jsonl").read_text().splitlines()
    lines = [line.replace(key, "elsewhere") if '"sdft"' in line else line for line in lines]
    (folder / "records.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="elsewhere"):
        ReportData([folder])


def test_another_metric_is_refused(three, tmp_path):
    ignore = shutil.ignore_patterns("evaluations", "runs", "report")
    other = shutil.copytree(three, tmp_path / "lenient", ignore=ignore)
    rewrite(other / "results.json", lambda head: head["skills"][1].update(metric="lenient"))
    with pytest.raises(UserError, match=r"science counts by the metric 'lenient'.*'exact'"):
        ReportData([three, other])


def test_another_split_is_refused(tmp_path):
    folders = [fabricate(tmp_path / name, methods=TWO, n=8, items=False) for name in "ab"]
    rewrite(folders[1] / "results.json", lambda head: head["evaluate"].update(split="dev"))
    with pytest.raises(UserError, match=r"evaluate\.split counts by the split 'dev', in .*'test'"):
        ReportData(folders)


def test_folders_pool_seeds_of_one_setting(tmp_path):
    a = fabricate(tmp_path / "a", methods=TWO, items=False)
    b = fabricate(tmp_path / "b", methods=TWO, items=False, seeds=(1, 2))
    pooled = ReportData([a, b])
    assert list(pooled.series) == ["sft", "sdft"]
    assert pooled.complete("sft") == 3
    final = {"method": "sft", "name": "medical", "metric": "exact", "stage": 3, "final": True}
    values = [record["value"] for folder in (a, b) for record in raw(folder, **final)]
    assert pooled.estimate("sft", lambda R: R[..., -1, 2]).value == pytest.approx(np.mean(values))


def test_the_same_seed_twice_is_no_second_seed(tmp_path):
    a = fabricate(tmp_path / "a", methods=TWO, items=False)
    again = fabricate(tmp_path / "again", methods=TWO, items=False)
    labels = {"sft (a)", "sft (again)", "sdft (a)", "sdft (again)"}
    assert set(ReportData([a, again]).series) == labels


def test_the_device_keeps_no_seeds_apart_but_the_settings_do(tmp_path):
    a = fabricate(tmp_path / "a", methods=TWO, items=False)
    b = fabricate(tmp_path / "b", methods=TWO, items=False, seeds=(1, 2))
    rewrite(b / "results.json", lambda head: head["model"].update(device="cuda"))
    assert ReportData([a, b]).complete("sft") == 3

    def faster(head):
        head["methods"]["sft"]["config"]["learning_rate"] = 1e-4

    rewrite(b / "results.json", faster)
    assert set(ReportData([a, b]).series) == {"sft (a)", "sft (b)", "sdft"}


def test_another_order_stands_beside_the_first(tmp_path):
    a = fabricate(tmp_path / "a", methods=TWO, items=False)
    skills = dict(reversed(SKILLS.items()))
    reverse = fabricate(tmp_path / "reverse", skills, methods=TWO, items=False, seeds=(5,))
    both = ReportData([a, reverse])
    wanted = {"method": "sft", "stage": 1, "name": "medical", "metric": "exact", "final": True}
    value = raw(reverse, **wanted)[0]["value"]
    assert both.R["sft (reverse)"][0, 1, 0] == value


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
    small = {"items": False, "n": 8, "inside": 0, "retention": {}, "training": False}
    a = fabricate(tmp_path / "a", methods=TWO, seeds=(0,), **small)
    b = fabricate(tmp_path / "b", methods=TWO, seeds=(1,), **small)
    assert list(ReportData([a, b]).series) == ["sft", "sdft"]
    rewrite(b / "results.json", change)
    results = ReportData([a, b])
    assert set(results.series) == {"sft (a)", "sft (b)", "sdft (a)", "sdft (b)"}
    assert results.complete("sft (a)") == 1


def test_a_run_without_stage_0_has_the_base_of_its_folder(tmp_path):
    folder = fabricate(tmp_path / "base", methods=TWO, n=20, inside=0, items=False)
    base = raw(folder, method="sft", stage=0)
    later = [record for record in raw(folder) if record["stage"] > 0]
    (folder / "records.jsonl").write_text("\n".join(json.dumps(r) for r in base + later))
    results = ReportData([folder])
    np.testing.assert_array_equal(results.R["sdft"][0, 0], results.R["sft"][0, 0])
    np.testing.assert_array_equal(results.keys["R", "sdft"][0, 0], results.keys["R", "sft"][0, 0])


def test_folders_of_one_name_are_told_by_their_places(tmp_path):
    paths = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert distinct(["one", "two"], paths) == ["one", "two"]
    assert distinct(["one", "one"], [tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert distinct(["one", "one"], paths) == [str(path) for path in paths]
