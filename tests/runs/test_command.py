"""The command: one line and exit code 2 for what a user can mend."""

import os
import sys
import typing

import pytest
import torch

import run_sequence
from harness.base.errors import UserError, reported
from harness.base.settings import build, option
from harness.runs.order import Order
from harness.runs.reading import read_source
from tests.runs.refusals import start


@pytest.mark.parametrize("options", [["--sead", "1"], ["--seed", "one"], ["--set"]])
def test_wrong_options_are_one_line(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", "order.yaml", *options])
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    said = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and said.startswith("error: run_sequence.py: ")
        and said.count("\n") == 1
        and options[0] in said
    )


GIVEN = {  # an option of the command, as it is written
    "order": ["order.yaml"],
    "out": ["--out", "somewhere"],
    "set": ["--set", "seeds=[1]"],
    "method": ["--method", "sft"],
    "seed": ["--seed", "1"],
    "sequence": ["--sequence", "one"],
    "quiet": ["--quiet"],
    "live": ["--live"],
    "shard": ["--shard", "1/2"],
    "fail_fast": ["--fail-fast"],
    "gpus": ["--gpus", "8x80"],
    "gpu_share": ["--gpu-share", "0.5"],
    "plan": ["--plan"],
    "check_teacher": ["--check-teacher"],
    "status": ["--status"],
    "explain": ["--explain", "seeds"],
    "workers": ["--workers", "2"],
}


@pytest.mark.parametrize("what", run_sequence.USES)
def test_an_option_without_a_use_is_refused(what, monkeypatch, capsys):
    """No option is passed over in silence; whoever adds one says here and there what uses it."""
    used = {what, *run_sequence.USES[what]}
    needed = [] if what == "explain" else GIVEN["order"]
    monkeypatch.setattr(sys, "argv", ["run_sequence.py", "--explain", "seeds"])
    assert set(vars(run_sequence.arguments())) == set(GIVEN)
    for name, words in GIVEN.items():
        if name == what or words == needed:
            continue
        monkeypatch.setattr(sys, "argv", ["run_sequence.py", *GIVEN[what], *needed, *words])
        if name in used:
            assert getattr(run_sequence.arguments(), name)
            continue
        with pytest.raises(SystemExit) as caught:
            run_sequence.arguments()
        said = capsys.readouterr().err
        assert caught.value.code == 2 and said.count("\n") == 1
        assert (words[0] if name != "order" else "order") in said


def test_a_full_gpu_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught, reported():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: out of memory (2.00 GiB more were wanted); lower micro_batch_tokens, "
    )


@pytest.mark.parametrize("how", [(), ("--check-teacher",), ("--plan",)])
def test_out_is_looked_at_before_a_model_is(how, order_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "run_sequence.py",
            str(order_file(model="no-such/model")),
            "--out",
            str(tmp_path / "out/sub"),
            *how,
        ],
    )
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    found = capsys.readouterr()
    assert (
        caught.value.code == 2
        and found.out == ""
        and found.err == f"error: {tmp_path}/out: is a file; give a folder with --out\n"
    )


def test_command_prints_one_line_and_exits_with_2(order_file, tmp_path):
    done = start(order_file(budget={"prompts": 0}), "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"error: {tmp_path}/tiny.yaml: budget: prompts: must be at least 1, not 0\n"
    )
    assert not (tmp_path / "out").exists()


LONG = 300 * "a"
VOWELS = {"name": "x", "train": "vowels-train.jsonl", "test": "vowels-test.jsonl"}


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"model": LONG}, "model"),
        ({"description": "a", "model": LONG}, "model"),  # which holds the other text
        ({"model": {"name": f"./{LONG}"}}, "model.name"),
        ({"skills": [{"name": "x", "train": LONG, "test": "b", "grader": "contains"}]}, "train"),
        ({"skills": [{"name": "science", "path": f"{LONG}/b"}]}, "skills[0].path"),
        ({"skills": [{**VOWELS, "grader": f"{LONG}.py"}]}, "skills[0].grader"),
        ({"methods": {"sft": {"with": {"replay": {"general": LONG}}}}}, "sft.with.replay.general"),
    ],
)
def test_a_path_that_cannot_be_is_said_with_its_key(changes, key, order_file):
    path = order_file(**changes)
    for source in ([path], [read_source(path, None)[0], path]):
        with pytest.raises(UserError) as caught:
            Order(*source)
        said = str(caught.value)
        assert said.startswith(f"{path}: ") and f"{key}: " in said
        assert "(File name too long)" in said and said.endswith("; give another path")


def exit_code(error):
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    return caught.value.code


def test_reported(capsys):
    assert exit_code(UserError("a file", "two\nlines", "mend it")) == 2
    assert capsys.readouterr().err == "error: a file: two lines; mend it\n"
    assert exit_code(KeyboardInterrupt()) == 130
    said = capsys.readouterr().err
    assert said.startswith("stopped: what is committed is kept; go on with: ")
    assert exit_code(OSError(28, "No space left on device", "x.json")) == 2
    assert capsys.readouterr().err.startswith("error: x.json: No space left on device; make room")
    for kind, number in (
        (NotADirectoryError, 20),
        (IsADirectoryError, 21),
        (FileExistsError, 17),
        (OSError, 36),
    ):
        assert exit_code(kind(number, "", "x.json")) == 2
        assert (
            capsys.readouterr().err == f"error: x.json: {os.strerror(number)}; give another path, "
            "or move away what stands there\n"
        )
    # bugs keep their traceback
    for bug in (ValueError("a bug"), FileNotFoundError(2, "No such file", "y")):
        with pytest.raises(type(bug)), reported():
            raise bug


def test_texts_become_numbers_where_yaml_reads_a_text():
    import dataclasses

    @dataclasses.dataclass
    class Config:
        rate: float = option(0.1, min=0)
        count: int | None = option(None, min=1)

    assert build(Config, {"rate": "1e-4"}, "x") == Config(rate=1e-4)
    assert build(Config, {"count": None}, "x") == Config()
    Choice = dataclasses.make_dataclass("Choice", [("kind", typing.Literal["a", "b"], option("a"))])
    assert build(Choice, {"kind": "b"}, "x").kind == "b"
    with pytest.raises(UserError, match="x: kind: unknown value 'c'; known: a, b"):
        build(Choice, {"kind": "c"}, "x")
    assert build(Config, None, "x") == Config()


def test_an_option_that_stands_twice_adds_up(monkeypatch):
    """Else the values of the first one would be lost without a word."""
    words = ["o.yaml", "--set", "a=1", "b=2", "--set", "c=3", "--seed", "1", "--seed", "2", "3"]
    monkeypatch.setattr("sys.argv", ["run_sequence.py", *words, "--method", "x", "--method", "y"])
    for _ in range(2):  # the default is not filled
        found = run_sequence.arguments()
        assert (found.set, found.seed) == (["a=1", "b=2", "c=3"], [1, 2, 3])
        assert found.method == ["x", "y"]
