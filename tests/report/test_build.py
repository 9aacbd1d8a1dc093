"""The report as a whole: what it writes, what it refuses, and what it leaves alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import report
from harness.base.errors import UserError
from harness.base.files import locked
from harness.report.build import made_beside, write_report
from harness.report.data import ReportData
from tests.conftest import without_progress
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import ONE_SKILL, TWO, raw

ROOT = Path(__file__).resolve().parents[2]
HELLASWAG = {"hellaswag": ("acc", True, 0.25, 0.42)}


@pytest.mark.parametrize(
    "what", ["no records", "no runs folder", "base only", "no retention", "one skill"]
)
def test_whatever_is_there_makes_a_page(tmp_path, what):
    folder = fabricate(
        tmp_path / "bare",
        skills=ONE_SKILL if what == "one skill" else SKILLS,
        methods=TWO,
        n=10,
        inside=0,
        items=False,
        retention={} if what == "no retention" else HELLASWAG,
    )
    if what == "no records":
        (folder / "records.jsonl").unlink()
    elif what == "no runs folder":
        shutil.rmtree(folder / "runs")
    elif what == "base only":
        base = [json.dumps(record) for record in raw(folder, stage=0, method="sft")]
        (folder / "records.jsonl").write_text("\n".join(base))
    text, page = write_report(folder)
    assert page.is_file()
    if what == "no records":
        assert "nothing was measured" in text
    if what == "base only":
        assert "sft, seed 0: 0 of 3 stages finished" in text


def test_methods_that_log_nothing_make_a_page(tmp_path):
    folder = fabricate(tmp_path / "quiet", methods=TWO, n=20)
    for path in folder.glob("runs/*/stage-*/training.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps({k: row[k] for k in ("step", "seconds", "tokens")}) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    _, page = write_report(folder, tmp_path / "out")
    assert page.exists()
    assert not (tmp_path / "out" / "figures" / "training.png").exists()


def test_report_loads_neither_torch_nor_transformers():
    code = (
        "import sys, harness.report.build; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_command_says_user_errors_in_one_line(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text('{"version": 99}')
    (tmp_path / "empty").mkdir()
    for place, message in (
        ("absent", "is not a folder"),
        ("empty", "no results.json"),
        ("old", "version 99"),
    ):
        command = [sys.executable, "report.py", str(tmp_path / place)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 2
        assert process.stdout == ""
        (line,) = without_progress(process.stderr)
        assert message in line


def test_the_first_line_is_there_before_what_makes_reports_is_loaded():
    """Matplotlib and pandas take seconds on a busy machine."""
    code = (
        "import os, sys, report; from harness.base.console import PlainLines; "
        "PlainLines.shown = lambda self, progress: "
        "(print(progress.text, 'pandas' in sys.modules, flush=True), os._exit(0)); "
        "report.main(['.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "loads what makes reports False\n"


def head(**changes):
    return "results.json", lambda value: value | changes


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("protocols.json", lambda _: [1], "is not a JSON object"),
        ("protocols.json", lambda _: "x", "is not a JSON object"),
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
        ("selection.json", lambda _: [], "is not a JSON object"),
        ("evaluations/tooluse-base.json", lambda _: [1], "is not a JSON object"),
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
def test_odd_json_is_said_in_one_line_and_leaves_nothing_half_written(
    tmp_path, file, change, message
):
    folder = fabricate(tmp_path / "odd", ONE_SKILL, methods=TWO, retention={}, n=8, inside=0)
    (folder / file).touch()
    value = json.loads((folder / file).read_text() or "0")
    (folder / file).write_text(json.dumps(change(value)))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refused:
        write_report(folder)
    assert str(folder / file) in str(refused.value)
    assert message in str(refused.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.fixture
def tiny(tmp_path):
    """A folder of one skill without item scores."""
    folder = tmp_path / "odd"
    return fabricate(folder, ONE_SKILL, methods=TWO, retention={}, n=8, inside=0, items=False)


@pytest.mark.parametrize("text", ["null", '{"a":'])
def test_a_file_that_is_no_object_at_all_is_named(tiny, text):
    (tiny / "protocols.json").write_text(text)
    with pytest.raises(UserError, match=r"protocols\.json: is not (a JSON object|JSON)"):
        ReportData([tiny])


@pytest.mark.parametrize(("key", "value"), [("name", ["x"]), ("protocol", {"a": 1}), ("method", 3)])
def test_a_record_of_another_type_is_named(tiny, key, value):
    record = raw(tiny)[-1] | {key: value}
    with open(tiny / "records.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=rf"records\.jsonl: a record's `{key}` is .*, not a text"):
        ReportData([tiny])


def test_half_of_a_pair_in_an_answer_does_not_stop_the_report(tmp_path):
    """Our runs write none, but a folder may come from elsewhere."""
    folder = fabricate(
        tmp_path / "few", ONE_SKILL, methods=TWO, retention={}, n=8, inside=0, training=False
    )
    for path in (folder / "evaluations").glob("*.json"):
        evaluation = json.loads(path.read_text())
        for item in evaluation["items"]:
            item["completion"] = "\ud83d halved"
        path.write_text(json.dumps(evaluation))
    _, page = write_report(folder, tmp_path / "out")
    assert "? halved" in page.read_text()


def test_a_report_keeps_what_else_lies_in_its_folder(tmp_path):
    folder = fabricate(
        tmp_path / "few", ONE_SKILL, methods=TWO, retention={}, n=8, inside=0, training=False
    )
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "mine.txt").write_text("kept")
    (out / "index.html").write_text("old")
    _, page = write_report(folder, out)
    assert page == out / "index.html"
    assert "<!doctype html>" in page.read_text()
    assert (out / "tables" / "mine.txt").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "out"]
    with pytest.raises(UserError, match="is a file; give a folder with --out"):
        write_report(folder, page)


def test_a_stage_commits_while_a_report_is_drawn(tmp_path):
    with (
        made_beside(tmp_path / "report"),
        locked(tmp_path, wait=False),
        pytest.raises(BlockingIOError),
        locked(tmp_path / "report", wait=False),
    ):
        pass  # a stage commits, another report would wait


@pytest.mark.parametrize("how", [["absent"], ["absent", "--paper"], ["--published"]])
def test_an_impossible_out_is_refused_before_anything_is_written(how, tmp_path, capsys):
    (tmp_path / "page/index.html").mkdir(parents=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/figures").touch()
    for name, message in (
        ("page", "index.html: is a folder"),
        ("pictures", "figures: is a file"),
        ("pictures/figures", "figures: is a file"),
        ("x" * 300, "cannot be a folder (File name too long)"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            report.main([*how, "--out", str(tmp_path / name)])
        output = capsys.readouterr()
        assert caught.value.code == 2
        assert output.out == ""
        assert message in output.err
        assert output.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
