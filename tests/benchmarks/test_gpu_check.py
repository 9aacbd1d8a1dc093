"""The check of a GPU, at tiny size on a CPU: every part runs, and its verdicts can fail."""

import json
import math
import subprocess
import sys
import types

import pytest
import torch

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import material
from benchmarks.gpu_check.bench import Bench, Skip
from benchmarks.gpu_check.order import compare_settings
from benchmarks.gpu_check.result import FAIL, PASS, SKIPPED, Check, PartResult, table
from harness.base.errors import UserError
from harness.base.files import ROOT, read_json, write_sealed
from harness.skills.graders import token_f1

ALL = [name for name, part in command.PARTS.items() if part.group != "vllm"]


def start(*arguments):
    words = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)


def results(done):
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(a start with all parts, its folder)."""
    out = tmp_path_factory.mktemp("check")
    return start("--out", out), out


def test_every_part_passes_on_a_cpu(whole):
    done, out = whole
    assert done.returncode == 0, done.stdout + done.stderr
    lines = results(done)
    assert [line["part"] for line in lines] == ALL
    for line in lines:
        assert line["verdict"] == PASS, line
        assert line["checks"]
    assert done.stdout.rstrip().splitlines()[-1].startswith("10 passed, 0 failed, 0 skipped in ")
    assert (out / "table.txt").read_text() in done.stdout
    names = {check["name"]: check for line in lines for check in line["checks"]}
    assert names["fused SDFT full, float32, gradient norm"]["value"] < 1e-6
    assert names["forward KL, bfloat16, distance of the gradients"]["ok"]
    assert 0 < names["8-bit moments, distance from float32's"]["value"] < 0.1
    assert names["bfloat16, can share prompts"]["ok"]
    assert names["sdft, training.jsonl equal"]["ok"]
    assert names["SFT, gradient norm"]["value"] > 0  # the two sides do take different kernels
    # marks on speed are printed, and judged on a GPU alone
    assert names["seconds beside --plan"]["mark"]
    assert names["seconds beside --plan"]["ok"] is None


def test_the_skills_of_the_check_have_rewards_that_differ(whole):
    """A group whose answers all have one reward would teach GRPO nothing."""
    tokenizer = material.make_tokenizer(1024)
    generator = torch.Generator().manual_seed(0)
    answers = [
        tokenizer.decode(torch.randint(0, 1020, (12,), generator=generator)) for _ in range(40)
    ]
    assert len({token_f1(answer, "b c d") for answer in answers}) > 3


def test_a_second_start_does_what_is_missing_or_failed(whole):
    _, out = whole
    for name in ALL:  # one failed, one is cut short, one is of another machine
        path = out / f"{name}.json"
        row = read_json(path)
        if name == "env":
            path.write_text(json.dumps({**row, "verdict": FAIL}))
        elif name == "load":
            path.write_text(json.dumps({**row, "about": {**row["about"], "torch": "0.1"}}))
        elif name == "syncs":
            path.write_text(json.dumps(row)[:40])
    done = start("--out", out)
    assert done.returncode == 0, done.stdout
    kept = {
        line["part"] for line in results(done) if line["reason"] == "kept from an earlier start"
    }
    assert kept == set(ALL) - {"env", "load", "syncs"}


def test_no_time_is_left(tmp_path):
    done = start("--part", "load", "syncs", "--limit", "1", "--out", tmp_path)
    assert done.returncode == 0
    assert [line["verdict"] for line in results(done)] == [SKIPPED, SKIPPED]
    assert "stopped after 1 s" in done.stdout
    assert "no time was left" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--part", "exactly"], "unknown part 'exactly'; did you mean 'exact'?"),
        (["--limit", "0"], "--limit: 0 is no time"),
        (["--limit", "nan"], "--limit: nan is no time"),
        (["--model", "no-such-folder"], "is not a folder"),
        (["--device", "cuda:99"], "--device: there is no cuda:99"),
        (["--device", "tpu"], "--device: unknown device 'tpu'"),
    ],
)
def test_bad_options_are_one_line(arguments, words, tmp_path):
    done = start(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_parts_by_name_and_group():
    assert command.chosen(["small"]) == ["env", "load", "exact", "repeat", "options", "order"]
    assert command.chosen(["7B step", "body", "env"]) == ["env", "7b-body", "7b-step"]
    assert command.chosen(["small", "large"]) == ALL
    with pytest.raises(UserError, match="unknown part"):
        command.chosen(["7b"])


def inside(monkeypatch, tmp_path, run):
    """The result of a part whose function is ``run``."""
    module = types.ModuleType("benchmarks.gpu_check.made_up")
    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(command.PARTS, "made-up", command.Chapter("made_up", "small", 1))
    monkeypatch.setattr(
        sys, "argv", ["x", "--inside", "made-up", "--out", str(tmp_path), "--device", "cpu"]
    )
    command.run_inside(command.arguments())
    return PartResult.read(tmp_path / "made-up.json")


def test_verdicts_of_a_part(monkeypatch, tmp_path, capsys):
    def passes(bench):
        bench.at_most("small", 0.5, 1)
        bench.speed("slow here", 9.0, "s", "at most 1", False)

    def misses(bench):
        bench.at_most("large", 2.0, 1)
        bench.equal("equal", 1, 1)

    def not_a_number(bench):
        bench.at_most("none", math.nan, 1)

    def skips(bench):
        bench.at_most("small", 0.5, 1)
        raise Skip("no memory")

    def misses_and_skips(bench):
        bench.equal("unequal", 1, 2)
        raise Skip("no memory")

    def raises(bench):
        bench.at_most("small", 0.5, 1)
        raise ValueError("broken\nin two lines")

    for run, verdict, reason in (
        (passes, PASS, ""),
        (misses, FAIL, ""),
        (not_a_number, FAIL, ""),
        (skips, SKIPPED, "no memory"),
        (misses_and_skips, FAIL, "no memory"),
        (raises, FAIL, "ValueError: broken"),
    ):
        result = inside(monkeypatch, tmp_path, run)
        assert (result.verdict, result.reason) == (verdict, reason), run.__name__
        assert result.checks
    assert "in two lines" in capsys.readouterr().err  # the traceback goes to the part's log


def test_a_part_that_dies_keeps_its_figures_and_fails(tmp_path):
    bench = Bench("dies", "cpu", None, tmp_path)
    bench.at_most("small", 0.5, 1)
    result = PartResult.read(tmp_path / "dies.json")
    assert result.verdict == FAIL
    assert [check.name for check in result.checks] == ["small"]


def test_one_failure_is_exit_1_and_in_the_table(tmp_path, monkeypatch, capsys):
    bad = PartResult("exact", FAIL, checks=[Check("loss", 2e-3, "", "at most 0.0001", False)])
    good = PartResult("env", PASS, checks=[Check("device", "a card")])
    answers = {"env": good, "exact": bad}
    monkeypatch.setattr(command, "run_part", lambda name, *_: answers[name])
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--device", "cpu"])
    assert command.run_parts(["env", "exact"], command.arguments()) == 1
    assert command.run_parts(["env"], command.arguments()) == 0
    printed = capsys.readouterr().out
    assert "  FAIL     loss: 0.002, wanted at most 0.0001" in printed
    assert table([good, bad]).splitlines()[-1].split() == [
        "FAIL",
        "loss",
        "0.002",
        "at",
        "most",
        "0.0001",
    ]


@pytest.mark.parametrize("grow", [True, False])
def test_segments_are_judged_by_what_a_run_recorded(grow, tmp_path):
    path = tmp_path / "whole" / "runs" / "sft-seed0" / "run.json"
    path.parent.mkdir(parents=True)
    write_sealed(path, {"allocator": "expandable_segments:True", "segments_grow": grow})
    bench = Bench("order", "cpu", None, tmp_path)
    compare_settings(bench, tmp_path / "whole")
    assert [check.ok for check in bench.result.checks] == [grow]


def test_shapes_are_those_of_the_models():
    """Parameters of SmolLM2-135M and Qwen2.5-7B, as their cards say."""
    meta = torch.device("meta")
    small = material.make_model(material.small_config(False), torch.bfloat16, meta)
    large = material.make_model(material.large_config(False), torch.bfloat16, meta)
    assert sum(p.numel() for p in small.parameters()) == 134_515_008
    assert sum(p.numel() for p in large.parameters()) == 7_615_616_512
