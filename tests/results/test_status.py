"""--status and --watch: what runs do, from the folder's files alone."""

import os
import subprocess
import sys

import pytest

import report
from harness.base.errors import UserError
from harness.base.files import ROOT, write_json
from harness.base.leases import Leases
from harness.report.watch import PAGE, watch
from harness.results.status import status_of
from harness.results.writer import ResultsWriter


def commit(folder, run, *seconds):
    for stage, spent in enumerate(seconds):
        path = folder / "runs" / run / f"stage-{stage}" / "stage.json"
        path.parent.mkdir(parents=True)
        write_json(path, {"seconds": {"training": spent, "evaluation": 1.0}})


@pytest.fixture
def folder(tmp_path):
    """Four runs of two stages: one done, one in its second stage, one failed, one not begun."""
    ResultsWriter(tmp_path).plan({f"sft-seed{seed}": 2 for seed in range(4)})
    commit(tmp_path, "sft-seed0", 5, 9, 9)
    commit(tmp_path, "sft-seed1", 0, 9)
    commit(tmp_path, "sft-seed2", 0)
    (tmp_path / "runs/sft-seed2/failed.txt").write_text("out of memory\n\nTraceback")
    lease = Leases(tmp_path / "leases/runs").claim("sft-seed1")
    lease.tell({"doing": "learns b", "step": 4, "steps": 10, "each": 0.5, "peak_gib": 1.25})
    lease._write()
    yield tmp_path
    lease.release()


def test_states_and_time_left(folder):
    found = status_of(folder)
    assert [run.state for run in found.runs] == ["done", "running", "failed", "waiting"]
    assert [run.left for run in found.runs][1::2] == [3.0, 20.0]  # 6 steps; 2 stages of 10 s
    assert found.left == 23.0 and not found.is_over
    assert found.summary() == (
        "4 runs: 1 done, 1 running, 1 waiting, 1 failed; about 0:23 left with 1 at work"
    )
    lines = list(found.lines())
    assert lines[0].split() == ["run", "state", "stages", "step", "rate", "left", "where", "peak"]
    where = f"process {os.getpid()} on {os.uname().nodename}"
    assert " ".join(lines[2].split()) == (
        f"sft-seed1 running 1/2 4/10 2.0 steps/s 0:03 {where} 1.2 GiB learns b"
    )
    assert lines[3].endswith("out of memory")


def test_the_command_needs_no_order_to_be_read(folder):
    words = ["run_sequence.py", "benchmarks/orders/taste.yaml", "--out", str(folder), "--status"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].startswith("4 runs: 1 done, 1 running,")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("runs/sft-seed0/stage-1/stage.json", '{"seconds": [1]}', "`seconds` is [1], not an obj"),
        ("runs/sft-seed0/stage-1/stage.json", '{"seconds": {"a": "x"}}', '`seconds.a` is "x", not'),
        ("leases/plan.json", '{"runs": [1]}', "`runs` is [1], not an object; remove it"),
        ("leases/plan.json", '{"runs": {"a": 1.5}}', "`runs.a` is 1.5, not a whole number"),
        ("leases/plan.json", '{"runs": null}', "`runs` is null, not an object"),
    ],
)
def test_a_damaged_file_is_one_line(folder, file, text, said):
    (folder / file).write_text(text)
    with pytest.raises(UserError) as error:
        status_of(folder)
    assert said in str(error.value) and file.rpartition("/")[2] in str(error.value)


def test_nothing_was_asked_for(tmp_path):
    with pytest.raises(UserError, match="has no run that was asked for"):
        status_of(tmp_path)


def test_the_page_redraws_itself_until_all_runs_are_over(folder, monkeypatch, capsys):
    pages = []

    def sleep(seconds):
        pages.append((folder / "report" / PAGE).read_text())
        for run in ("sft-seed1", "sft-seed2", "sft-seed3"):
            for stage in range(3):
                if not (folder / "runs" / run / f"stage-{stage}").exists():
                    commit_one = folder / "runs" / run / f"stage-{stage}" / "stage.json"
                    commit_one.parent.mkdir(parents=True)
                    write_json(commit_one, {"seconds": {}})

    monkeypatch.setattr("harness.report.watch.time.sleep", sleep)
    watch(folder, every=7)
    pages.append((folder / "report" / PAGE).read_text())
    assert ['http-equiv="refresh" content="7"' in page for page in pages] == [True, False]
    assert "out of memory" in pages[0] and "4 done" in pages[1]
    assert all(page.count('<th class="stub">sft-seed') == 4 for page in pages)  # a row each
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[0].startswith("page: ") and "4 done" in said[2]


@pytest.mark.parametrize("more", [["b"], ["--paper"]])
def test_one_folder_is_watched(more, capsys):
    with pytest.raises(SystemExit):
        report.main(["a", *more, "--watch"])
    assert "--watch: takes one RESULTS_DIR" in capsys.readouterr().err
