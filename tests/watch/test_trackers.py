"""Trackers get what the records hold, once, also behind a kill; a broken one stops nothing."""

import importlib.util
import io
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from harness.base.console import Listener, Progress
from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.results.formats import VERSION
from harness.runs.reading import read_order, read_sections
from harness.runs.sequence import run_order
from harness.watch import tracking
from harness.watch.tracked import REPORT, key_of
from harness.watch.trackers import TRACKERS
from harness.watch.tracking import Tracking, plain
from tests.conftest import read_lines

INSTALLED = [name for name, of in TRACKERS.items() if importlib.util.find_spec(of.package)]
FAST = {
    "methods": {"sft": {"learning_rate": 1e-3}},
    "budget": {"prompts": 16, "batch_size": 4},
    "evaluate": {"every_steps": 2},
    "checkpoints": {"minutes": 0},
}
NOT_NUMBERS = {"seconds"}  # of a record: what took how long


class Stopping(Listener):
    """Ends the order at its sixth step, as Ctrl-C does in the middle of one."""

    steps = 0

    def learned(self, run, row):
        self.steps += 1
        if self.steps == 6:
            raise KeyboardInterrupt


def records(folder):
    rows = read_lines(folder / "records.jsonl")
    return [{key: row[key] for key in row if key not in NOT_NUMBERS} for row in rows]


def on_record(folder):
    """{(name, step): value} of a run's records and training logs."""
    run = folder / "runs" / "sft-seed0"
    found = {}
    for stage in sorted(run.glob("stage-*")):
        for row in read_lines(stage / "training.jsonl"):
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                    found[plain(f"train/{key}"), row["step"]] = value
    for row in read_lines(folder / "records.jsonl"):
        if row["value"] is not None:
            name = f"{row['kind']}/{row['name']}/{row['split']}/{row['metric']}"
            found[plain(name), row["step"]] = row["value"]
    return found


READING = """
import json, sys
from pathlib import Path
from harness.watch.trackers import TRACKERS
names, out, run, key = json.loads(sys.argv[1])
found = {name: TRACKERS[name]("out", Path(out)).points(run, key) for name in names}
Path(out, "read.json").write_text(json.dumps(found))
"""


def read_back(out):
    """{tracker: its points}, by a process of its own: Trackio's folder is that of its import."""
    asked = [INSTALLED, str(out), "sft-seed0", key_of(out, "sft-seed0")]
    words = [sys.executable, "-c", READING, json.dumps(asked)]
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(words, check=True, env=place, capture_output=True)
    return json.loads((out / "read.json").read_text())


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Each tracker's own place for its data."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(place / "trackio"))
        patch.setenv("MLFLOW_TRACKING_URI", f"file://{place}/mlflow")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no database
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(place))
        patch.chdir(place)
        yield place


@pytest.fixture
def watched(stores, order_file, tmp_path, monkeypatch):
    """An order that was stopped within a stage, went on and is done: (its folder, what it said)."""
    if not INSTALLED:
        pytest.skip("no tracker is installed")
    monkeypatch.setattr(tracking, "PATIENCE", 200.0)
    monkeypatch.setattr(tracking, "STOPPING", 200.0)
    path, out, said = order_file(**FAST, report_to=INSTALLED), tmp_path / "out", io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream=said) as progress:
        progress.listeners.insert(0, Stopping())
        run_order(read_order(path), out, progress)
    with Progress(stream=said) as progress:
        run_order(read_order(path), out, progress)
        from harness.report.build import write_report

        _, page = write_report([out])
        progress.reported(page)
    return out, said.getvalue()


def test_trackers_show_what_is_on_record_and_go_on(watched, order_file, tmp_path):
    out, said = watched
    assert " is off" not in said and "goes on after step" in said, said
    wanted = on_record(out)
    assert len({step for _, step in wanted}) == 9 and len(wanted) > 50
    for name, points in read_back(out).items():
        found = {(key, step): value for key, step, value in points}
        assert len(found) == len(points), (name, "double points")
        assert found.keys() == wanted.keys(), name
        for key, value in wanted.items():
            # Seconds of a step that was done twice are those of the first time.
            if key[0] != "train/seconds":
                assert found[key] == pytest.approx(value, rel=1e-6), (name, key)
    alone = tmp_path / "alone"
    run_order(read_order(order_file(**FAST)), alone, Progress(stream=io.StringIO()))
    assert records(alone) == records(out)
    assert (alone / "results.json").read_text() == (out / "results.json").read_text()
    if "tensorboard" in INSTALLED:
        assert any((out / "tensorboard" / REPORT).iterdir())


def test_report_to_is_validated(order_file, monkeypatch):
    order = {"report_to": "tensorbord"}
    with pytest.raises(UserError, match=r"report_to: .*'tensorbord'.*did you mean 'tensorboard'"):
        read_sections(order_file(**order))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    remedy = "report_to: mlflow is not installed; pip install mlflow, or leave it out"
    with pytest.raises(UserError, match=remedy):
        read_sections(order_file(report_to=["mlflow", "mlflow"]))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: name)
    assert read_sections(order_file(report_to="mlflow")).report_to == ["mlflow"]
    assert "report_to" not in read_order(order_file(report_to="mlflow")).about()


BROKEN = {
    "raises": ("raise ValueError('so')", "trackio is off: __init__.py, line 1: ValueError: so"),
    "hangs": ("import time; time.sleep(60)", r"trackio is off: no answer in \d seconds"),
    "dies": ("import os; os._exit(3)", "trackio is off: its process ended with code 3"),
    "cannot connect": (
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "trackio is off: .*ConnectionRefusedError: .*",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_tracker_is_one_line(how, tmp_path, monkeypatch):
    """A package that breaks when it is imported, in the place of a real one."""
    code, line = BROKEN[how]
    (tmp_path / "trackio").mkdir()
    (tmp_path / "trackio" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    said = io.StringIO()
    with Progress(stream=said) as progress:
        progress.listeners.append(Tracking("trackio", progress))
        progress.opened(tmp_path, {"version": VERSION})
        for step in range(20_000):  # more than a pipe holds
            progress.learned("sft-seed0", {"step": step, "loss": 1.0, "note": "no number"})
        progress.show("goes on")
    texts = [text.partition(" ")[2].partition(" ")[2] for text in said.getvalue().splitlines()]
    lines = [text for text in texts if text not in ("goes on", "waits for trackio")]
    assert len(lines) == 1 and re.fullmatch(line, lines[0]), lines


def test_names_suit_all_trackers():
    names = Counter(map(plain, ("skill/a b/test/pass@4", "train/loss", "x" * 300)))
    assert names == {"skill/a b/test/pass_4": 1, "train/loss": 1, "x" * 250: 1}
