"""A run that fails leaves the others alone: exit codes, what is on record, the next start."""

import gc
import json
import re
import signal
import sys

import pytest
import yaml

import run_sequence
from harness.base.errors import UserError
from harness.learning.trainer import Trainer
from harness.report.build import write_report
from harness.runs import checkpoints, stage_run
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from tests.conftest import read_lines

PLUG_IN = '''"""SFT that ends in the way that the order names, unless a file says otherwise."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.base.settings import option
from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from methods.sft import SFT


@dataclass
class Config(TrainingConfig):
    how: str = option("", "how it ends")
    mended: str = option("", "a file")


class Ends(SFT):
    Config = Config

    def learn(self, stage):
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                step.log(**trainer.token_mean(rows, cross_entropy))
                if step.index == 1 and not Path(self.config.mended).exists():
                    self.end(trainer)
                step.log(**trainer.update())

    def end(self, trainer):
        if self.config.how == "raises":
            raise ValueError("a bug\\nof mine " + "x" * 5000)
        if self.config.how == "exits":
            sys.exit(0)
        if self.config.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.config.how == "leaves":
            raise GeneratorExit
        if self.config.how == "no number":
            next(iter(trainer.masters.values())).grad.fill_(float("nan"))
'''
SAID = {
    "raises": "ends.py, line 34: ValueError: a bug of mine xxx",
    "exits": "ends.py, line 36: calls sys.exit(0); raise an exception there",
    "leaves": "ends.py, line 40: GeneratorExit",
    "memory": "out of memory (2.00 GiB more were wanted); lower micro_batch_tokens, ",
    "no number": "step 2: the gradients' norm is nan; take a smaller learning_rate, ",
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    gc.freeze()  # Each stage collects garbage: not what pytest and the imports have made.
    monkeypatch.setattr(run_sequence, "report", lambda out, progress: "")
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def one_skill(order_file):
    """A function that writes an order of the skill vowels alone."""

    def write(**changes):
        path = order_file(evaluate={}, **changes)
        order = yaml.safe_load(path.read_text())
        order["skills"] = order["skills"][:1]
        path.write_text(yaml.safe_dump(order))
        return path

    return write


@pytest.fixture
def failing(one_skill, tmp_path):
    """An order in which four methods fail in their second step, before one that does not."""
    (tmp_path / "ends.py").write_text(PLUG_IN)
    rate = {"learning_rate": 1e-3}
    mended = str(tmp_path / "mended")
    methods = {
        how.replace(" ", "-"): {"file": "ends.py", "how": how, "mended": mended, **rate}
        for how in SAID
    }
    return one_skill(methods={**methods, "sft": rate}, checkpoints={"minutes": 0, "keep": "none"})


def command(*words):
    """The exit code of run_sequence.py, run in this process."""
    sys.argv = ["run_sequence.py", *map(str, words)]
    try:
        run_sequence.main()
    except SystemExit as end:
        return end.code
    return 0


def finished(out):
    """{run: stages} of the committed stages."""
    stages = [path.parent for path in out.glob("runs/*/stage-*/stage.json")]
    return {run.name: sum(s.parent == run for s in stages) for run in out.glob("runs/*")}


def test_the_other_runs_go_on(failing, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(failing, "--out", out) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "5 of 6 runs failed; runs/NAME/failed.txt has the traceback, " in said
    text, page = write_report([out])
    html = page.read_text()
    for how, line in SAID.items():
        run = f"{how.replace(' ', '-')}-seed0"
        first, *rest = (out / "runs" / run / "failed.txt").read_text().splitlines()
        assert first.startswith(line) and len(first) < 400
        assert f"failed: {run}: {first}" in said
        assert rest[:2] == ["", "Traceback (most recent call last):"]
        assert f"{run.removesuffix('-seed0')}, seed 0: failed ({line[:20]}" in text
        assert "failed (" in html
    assert finished(out) == {
        "sft-seed0": 2,
        **{f"{how.replace(' ', '-')}-seed0": 1 for how in SAID},
    }
    wanted = read_lines(out / "runs/sft-seed0/stage-1/records.jsonl")
    # The next start tries again, from the checkpoint, and ends as the run that never failed.
    (tmp_path / "mended").write_text("")
    assert command(failing, "--out", out) == 0
    assert not list(out.glob("runs/*/failed.txt"))
    assert set(finished(out).values()) == {2}
    again = read_lines(out / "runs/exits-seed0/stage-1/records.jsonl")
    assert [r["evaluation"] for r in again] == [r["evaluation"] for r in wanted]


@pytest.mark.parametrize("how, code", [("raises", ValueError), ("exits", 2)])
def test_fail_fast_ends_at_the_first(how, code, failing, tmp_path, capsys):
    words = [failing, "--out", tmp_path / "out", "--fail-fast", "--method", how, "sft"]
    if code is ValueError:
        with pytest.raises(ValueError, match="a bug"):
            command(*words)
    else:
        assert command(*words) == code
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out/runs/sft-seed0").exists()


def test_what_concerns_every_run_ends_them_all(order_file, tmp_path, monkeypatch):
    """A full disk, and a file of the results folder that is damaged."""
    order = read_order(order_file(evaluate={}))
    failures = []
    for error in (
        OSError(28, "No space left on device"),
        UserError(tmp_path / "out/runs/x", "is damaged"),
        UserError(f"{order.place}: model", "cannot be loaded"),
    ):

        def fail(stage, error=error):
            raise error

        monkeypatch.setattr(SkillStage, "learn", fail)
        with pytest.raises(type(error)):
            run_order(order, tmp_path / "out", on_failure=lambda *run: failures.append(run))
    assert failures == [] and not list(tmp_path.glob("out/runs/*/failed.txt"))


def test_a_stop_writes_a_checkpoint_and_says_so(one_skill, tmp_path, monkeypatch, capsys):
    """Struck in the second step: the step is finished and kept, though no checkpoint was due."""
    path, out = one_skill(methods={"sft": {}}), tmp_path / "out"
    real = Trainer.update

    def struck(trainer):
        if trainer.stage.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(trainer)

    monkeypatch.setattr(Trainer, "update", struck)
    assert command(path, "--out", out) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "stopped: run 1/1 sft-seed0, stage 1/1 vowels: step 2 of 3 is kept; go on with: "
    )
    assert (out / "runs/sft-seed0/stage-1.partial/checkpoint/state.pt").exists()
    monkeypatch.setattr(Trainer, "update", real)
    assert command(path, "--out", out) == 0
    assert "stage 1/1 vowels: goes on after step 2" in capsys.readouterr().err
    assert json.loads((out / "runs/sft-seed0/stage-1/stage.json").read_text())["steps"] == 3


def test_a_stop_that_would_take_long_says_what_is_lost(one_skill, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage_run, "LONGEST_STOP", 0.0)
    real = Trainer.update

    def struck(trainer):
        if trainer.stage.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(trainer)

    monkeypatch.setattr(Trainer, "update", struck)
    path = one_skill(methods={"sft": {}})
    assert command(path, "--out", tmp_path / "out") == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"step 0 of 3 is kept, 2 further steps \(0:0\d\) are done again; go on ", line)


def test_a_stop_while_a_stage_is_measured_repeats_no_step(one_skill, tmp_path, monkeypatch, capsys):
    """Struck behind the last step, where the steps took long beside a checkpoint."""
    monkeypatch.setattr(checkpoints, "WORTH_KEEPING", 0.0)
    monkeypatch.setattr(checkpoints, "TIMES_WRITING", 0.0)
    path, out = one_skill(methods={"sft": {}}), tmp_path / "out"
    real = SkillStage.evaluate

    def struck(stage, final):
        if final:
            signal.raise_signal(signal.SIGTERM)
        real(stage, final)

    monkeypatch.setattr(SkillStage, "evaluate", struck)
    assert command(path, "--out", out) == 143
    assert "vowels: step 3 of 3 is kept; go on with: " in capsys.readouterr().err
    monkeypatch.setattr(SkillStage, "evaluate", real)
    monkeypatch.setattr(Trainer, "update", lambda trainer: pytest.fail("a step was done again"))
    assert command(path, "--out", out) == 0
    assert json.loads((out / "runs/sft-seed0/stage-1/stage.json").read_text())["steps"] == 3


def test_what_a_method_keeps_is_on_record(one_skill, tmp_path):
    path = one_skill(methods={"sft": {}, "sft_reinvoke": {"reinvoke_prompts": 4}})
    run_order(read_order(path), tmp_path / "out")
    kept = {
        name: json.loads((tmp_path / f"out/runs/{name}-seed0/stage-1/stage.json").read_text())
        for name in ("sft", "sft_reinvoke")
    }
    file = tmp_path / "out/runs/sft_reinvoke-seed0/stage-1/method/general_prompts.json"
    assert kept["sft_reinvoke"]["kept_bytes"] - kept["sft"]["kept_bytes"] == file.stat().st_size
