"""What a command says of an error: one line, a short value, and the right exit code."""

import argparse
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.base.errors import (
    MOST_OF_A_VALUE,
    Parser,
    UserError,
    exit_if_failed,
    lack_of_memory,
    one_line,
    reported,
)
from harness.base.files import ROOT
from harness.base.settings import build
from harness.base.stopping import Stopped
from harness.runs.schema import Schema
from tests.conftest import unwritable, without_progress

LONG = "x" * 100_000
WORDS = "so many words " * 9_000


@pytest.mark.parametrize("value", [LONG, WORDS, "a'b\"c" * 30_000, "\\" * 90_000, "é\n" * 50_000])
def test_a_long_value_is_quoted_in_part(value):
    line = str(UserError("order.yaml: methods.sft", f"unknown value {value!r}", "known: a, b"))
    assert line.startswith("order.yaml: methods.sft: unknown value ")
    assert line.endswith("; known: a, b") and "\n" not in line
    assert len(line) < 70 + MOST_OF_A_VALUE and "..." in line


@pytest.mark.parametrize("part", ["place", "problem", "remedy"])
def test_no_part_is_long(part):
    for value in (LONG, WORDS):
        parts = {"place": "p", "problem": "q", "remedy": "r", part: f"{value} end"}
        line = str(UserError(**parts))
        assert len(line) < 820 and "end" in line


def test_what_is_short_stays_as_it_is():
    for text in (
        "the model's template isn't what the tokenizer's file says, as far as one can see it, "
        "don't you think so",
        "/a/folder" * 20,
        "unknown value 'constant'; did you mean 'cosine'?",
        f"'{'y' * MOST_OF_A_VALUE}'",
    ):
        assert one_line(text) == text


def test_a_value_that_holds_itself_many_times_is_not_spelled_out():
    bomb = ["x"]
    for _ in range(60):
        bomb = [bomb] * 9
    for key in ("description", "name", "methods", "seeds"):
        with pytest.raises(UserError) as caught:
            build(Schema, {"skills": [], "methods": {}, key: bomb}, "order.yaml")
        assert len(str(caught.value)) < 200


def test_an_option_is_quoted_in_part(capsys):
    parser = Parser(prog="prog")
    parser.add_argument("--seed", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", LONG])
    assert len(capsys.readouterr().err) < 250
    assert isinstance(parser, argparse.ArgumentParser)


CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "


@pytest.mark.parametrize(
    "error, amount",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU"), "2.00 GiB"),
        (RuntimeError(f"{CPU}you tried to allocate 800000000 bytes."), "800000000 bytes"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), None),
        (RuntimeError("CUDA error: out of memory"), None),
        (MemoryError(), None),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error, amount, capsys):
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: out of memory" + (f" ({amount} more" if amount else ";"))
    assert "lower micro_batch_tokens" in said


def test_other_errors_are_no_lack_of_memory():
    for error in (RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("x")):
        assert lack_of_memory(error) is None


@pytest.mark.parametrize("code", [0, None, 1, "text"])
def test_sys_exit_in_a_plug_in_is_an_error(code, capsys):
    with pytest.raises(SystemExit) as caught, reported():
        raise SystemExit(code)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert re.match(rf"error: test_errors.py, line \d+: calls sys.exit\({code!r}\); raise", said)


@pytest.mark.parametrize("name", ["out", "out/data/x.js", ".out.partial"])
def test_an_out_that_no_folder_can_be_is_one_line(name, tmp_path, capsys):
    """As in /proc, where a folder is missing however often it is made."""
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / name))
    with pytest.raises(SystemExit) as caught, reported(tmp_path / "out"):
        raise missing
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path / name}: No such file or directory; give another")
    for written in ("disk", tmp_path / "other", tmp_path):  # a fault of ours
        with pytest.raises(FileNotFoundError), reported(written):
            raise missing


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize(
    "words",
    [
        ["report.py", "results/measured/quickstart"],
        ["report.py", "--published"],
        ["-m", "harness", "export", "results/measured/quickstart", "sft", "--numbers"],
    ],
)
def test_every_command_refuses_an_out_in_proc(words):
    command = [sys.executable, *words, "--out", "/proc/foo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = without_progress(done.stderr)
    assert line.startswith("error: /proc")


@pytest.mark.parametrize("number, code", [(2, 130), (15, 143)])
def test_a_stop_says_what_is_kept_and_how_to_go_on(number, code, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "a b.yaml"])
    monkeypatch.setattr("sys.orig_argv", ["python", "run.py", "a b.yaml"])
    with pytest.raises(SystemExit) as caught, reported():
        raise Stopped(number, "step 3 of 9 is kept")
    assert caught.value.code == code
    assert capsys.readouterr().err == (
        "stopped: step 3 of 9 is kept; go on with: python run.py 'a b.yaml'\n"
    )


def test_failed_runs_exit_with_1(capsys):
    exit_if_failed({}, 3)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit) as caught:
        exit_if_failed({"sft-seed0": "why"}, 3)
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1 and lines[0] == "failed: sft-seed0: why"
    assert lines[1].startswith("1 of 3 runs failed; ")


@pytest.mark.parametrize(("target", "code"), [("full", 2), ("pipe", 141)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_lost_is_no_traceback(target, code, unbuffered):
    """A reader that has gone is silent, as with any tool; a full disk has one line."""
    with unwritable(target) as out:
        found = subprocess.run(
            [sys.executable, "-m", "harness", "schema"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert found.returncode == code
    said = "error: output: No space left on device; write it elsewhere\n"
    assert found.stderr == (said if target == "full" else "")


def test_a_character_that_the_output_cannot_hold_is_spelled():
    code = "from harness.base.errors import reported\nwith reported(): print('Δ')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "\\u0394\n"


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--seed", "1", ""], ["", "x"]])
def test_an_empty_word_is_no_value(words, capsys):
    """`--out "$UNSET"` would else write to the default place."""
    parser = Parser(prog="command")
    parser.add_argument("order", nargs="*", default=[])
    parser.add_argument("--out")
    parser.add_argument("--seed", nargs="+", default=[])
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2
    assert " is empty; command --help lists every option" in capsys.readouterr().err
    assert parser.parse_args([]).out is None
