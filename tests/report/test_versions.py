"""Results of two versions in one report, files without hashes, links in the place of a report."""

import json

import pytest

from harness.base.errors import UserError
from harness.base.sums import sum_folder, write_summed
from harness.report.build import write_report
from harness.report.data import ReportData
from tests.fabricate import fabricate


@pytest.fixture
def folders(tmp_path):
    """Folders of version 1 and 2 that measured the same under other hashes."""
    made = [
        fabricate(tmp_path / name, n=8, inside=0, limit=limit, items=False)
        for name, limit in (("old", 64), ("new", 32))
    ]
    path = made[1] / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    return made


def test_two_versions_are_drawn_apart_and_said_in_one_line(folders):
    results = ReportData(folders)
    assert [label for label in results.series if label.startswith("sft")] == [
        "sft (old)",
        "sft (new)",
    ]
    assert [row.rpartition("(results version ")[2] for row in results.bases()] == ["1))", "2))"]
    said = [line for line in results.missing if "versions" in line]
    assert said == [
        "results of versions 1 (old) and 2 (new) are drawn apart: their hashes of models and "
        "measurements do not mean the same"
    ]
    text, page = write_report(folders)
    assert said[0] in text and said[0] in page.read_text()


def test_two_protocols_of_one_version_are_still_refused(folders):
    path = folders[0] / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(UserError, match="measured under protocol"):
        ReportData(folders)


def test_files_without_hashes_are_said_and_those_with_are_checked(folders):
    """The first version has none; of the second each folder that lacks them is named."""
    alone = "old: results version 1 without SHA-256 of its files: damage to them would not be"
    assert ReportData([folders[0]]).missing[0].startswith(alone)
    records = folders[1] / "records.jsonl"
    stages = sorted(path.parent for path in folders[1].glob("runs/*/stage-*/stage.json"))
    names = [f"{stage.relative_to(folders[1])}/SHA256SUMS" for stage in stages]
    words = "which results of version 2 have: damage to the files beside would not be noticed"
    assert ReportData([folders[1]]).missing[0] == (
        f"new: SHA256SUMS, {names[0]}, {names[1]} and {len(names) - 2} more are gone, {words}"
    )
    write_summed(records, records.read_text())
    for stage in stages[1:]:
        sum_folder(stage)
    assert ReportData([folders[1]]).missing[0] == f"new: {names[0]} is gone, {words}"
    sum_folder(stages[0])
    (stages[0] / "SHA256SUMS").rename(stages[0] / "kept")
    (stages[0].with_name("stage-9.partial")).mkdir()  # not committed: nothing is promised
    (stages[0].with_name("stage-9.partial") / "stage.json").touch()
    assert any("is gone" in line for line in ReportData([folders[1]]).missing)
    (stages[0] / "kept").rename(stages[0] / "SHA256SUMS")
    assert not any("gone" in line for line in ReportData([folders[1]]).missing)
    records.write_text(records.read_text().replace("0.5", "0.6", 1))
    with pytest.raises(UserError, match=r"records\.jsonl: is not what was written"):
        ReportData([folders[1]])


@pytest.mark.parametrize("place", ["report", "report/tables"])
def test_no_report_is_written_through_a_link(place, folders, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (folders[0] / place).parent.mkdir(exist_ok=True)
    (folders[0] / place).symlink_to(victim)
    with pytest.raises(UserError, match=f"old/{place}: is a symbolic link"):
        write_report([folders[0]])
    assert list(victim.iterdir()) == []
