"""Where a command may write: no device, no file of a run's."""

import os
import subprocess
import sys

import pytest

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.base.places import OF_RUNS, check_export, check_file, check_folder
from harness.report.build import made_beside


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    (folder / "runs" / "sft-seed0").mkdir(parents=True)
    for name in ("results.json", "records.jsonl"):
        (folder / name).write_text("{}")
    return folder


def test_a_device_a_pipe_or_a_link_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "plain").touch()
    check_file(tmp_path / "plain")
    check_file(tmp_path / "new" / "file")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/stdout", "/dev/null"):
        with pytest.raises(UserError, match="is no plain file; give a file with --out"):
            check_file(path)
    with pytest.raises(UserError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(UserError, match="File name too long"):
        check_file(tmp_path / ("x" * 256))


@pytest.mark.parametrize("check", [check_folder, check_file, check_export])
def test_nothing_lands_among_the_files_of_runs(results, check):
    for name in sorted(OF_RUNS - {"results.json", "records.jsonl"}):
        for place in (results / name, results / name / "deeper"):
            with pytest.raises(UserError, match="lies among the files of the runs of"):
                check(place)
    for name in ("results.json", "records.jsonl"):
        with pytest.raises(UserError, match=r"is a file|lies among"):
            check(results / name)
    check(results / "report")
    check(results / "export" / "sft")


def test_a_results_folder_is_no_place_of_a_report(results):
    check_folder(results)  # a run goes on there
    with pytest.raises(UserError, match="is a results folder; give a folder in it or beside it"):
        check_export(results)


def test_grade_leaves_a_pipe_alone(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"reference": "H", "completion": "H"}\n')
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = [sys.executable, "-m", "harness.grade", "elements", str(rows), "--out", str(pipe)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and pipe.is_fifo()
    assert done.stderr == f"error: {pipe}: is no plain file; give a file with --out\n"
    assert done.stdout == ""


def test_a_report_that_cannot_be_whole_changes_nothing(tmp_path):
    """A file stands where a later folder goes: what comes before it stays as it was."""
    out = tmp_path / "out"
    with made_beside(out) as partial:
        (partial / "index.html").write_text("old")
    (out / "viewer").write_text("mine")
    refused = pytest.raises(UserError, match="viewer: is a file, and the report has another")
    with refused, made_beside(out) as partial:
        (partial / "index.html").write_text("new")
        (partial / "viewer").mkdir()
        (partial / "viewer" / "data.js").write_text("data")
    assert (out / "index.html").read_text() == "old"
    assert (out / "viewer").read_text() == "mine"
    assert sorted(os.listdir(out)) == ["index.html", "viewer"]
