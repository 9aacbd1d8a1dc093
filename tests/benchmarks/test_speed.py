"""The speed benchmark on the tiny model: the two sides of every row run and do the same work.

No number of it is judged here.
"""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import __main__ as command
from benchmarks.speed import growth, profiler, rows, segments
from benchmarks.speed.evaluation import evaluation, identical_scores
from benchmarks.speed.orders import order, stage
from benchmarks.speed.sampling import sampling
from benchmarks.speed.steps import check_same_work
from benchmarks.speed.timing import Loop, Result, Settings, alternate
from harness.models.load import load_model


@pytest.fixture
def settings(tiny, tmp_path):
    """Small sizes, and a template that writes a newline after the token that ends a turn.

    The embedded model's template does so too.
    """
    model = shutil.copytree(tiny, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("<|end|>", "<|end|>\n"))
    return Settings(
        tmp_path,
        model=str(model),
        dtype="float32",
        skill="elements",
        skills=("elements", "bulletins"),
        prompts=4,
        tokens=6,
        groups=2,
        group_size=2,
        repeats=1,
        examples=2,
        documents=2,
        stage_prompts=8,
        order_prompts=2,
        batch=2,
        order_examples=1,
        order_documents=2,
    )


def test_two_loops_take_turns():
    steps = []

    def body(name, count):
        def loop(pause):
            for i in range(count):
                steps.append(f"{name}{i}")
                pause({"seconds": float(i), "name": name})

        return loop

    with Loop(body("a", 9)) as a, Loop(body("b", 9)) as b:
        ours, theirs = alternate(a.step, b.step, 2, lambda text: None)
    assert steps == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [x["seconds"] for x in ours] == [1, 2] and {x["name"] for x in theirs} == {"b"}
    with Loop(body("c", 1)) as c:
        c.step()
        with pytest.raises(RuntimeError, match="ended before"):
            c.step()


@pytest.mark.parametrize("kind", ["sft", "sdft", "grpo"])
def test_a_step_and_trls_on_the_same_completions(settings, kind):
    """Losses within 1e-4 of TRL's own training step, gradient norms within 1e-3.

    The row raises where the sides count different tokens.
    """
    (result,) = rows.ROWS[kind](settings)
    assert result.details["loss_difference"] < 1e-4
    assert result.details["gradient_difference"] < 1e-3
    assert result.n == 1
    assert result.ours > 0
    assert result.ratio == result.theirs / result.ours


@pytest.mark.parametrize("slower, wanted", [(1.9, ("float32", "bfloat16")), (2.1, ("float32",))])
def test_peers_are_spared_a_dtype_without_instructions(settings, monkeypatch, slower, wanted):
    class Timer:
        def __init__(self, *_, globals, **__):
            self.median = slower if globals["a"].dtype is torch.bfloat16 else 1.0

        def blocked_autorange(self):
            return self

    monkeypatch.setattr("benchmarks.speed.timing.Timer", Timer)
    assert settings.dtypes == wanted


@pytest.mark.parametrize("kind", ["sdft", "sampling", "evaluation"])
def test_profiler_says_where_the_time_goes(settings, kind):
    found = profiler.measure(settings, kind)
    products = sum(operator.seconds for operator in found.products)
    every = sum(operator.seconds for operator in found.operators)
    assert 0 < products < every <= 1.1 * found.seconds
    assert found.share == products / found.seconds
    assert sum(operator.flop for operator in found.products) > 0
    about, longest = found.lines()
    assert f"({found.share:.0%})" in about and found.operators[0].name[6:] in longest


def test_different_work_is_no_comparison(settings):
    with pytest.raises(RuntimeError, match="same work"):
        check_same_work(64, {63})


@pytest.mark.parametrize("share, met", [(0.59, False), (0.61, True)])
def test_a_row_that_misses_states_its_profile(settings, monkeypatch, share, met):
    """A share of products that leaves nothing else to win reaches the mark of some rows."""
    slow = Result("work", 2.0, 4.0, 2.0, "3x faster", False, 1)
    products = profiler.Operator("aten::mm", share, 1e9)
    found = profiler.Profile("sampling", "float32", 1.0, [products])
    monkeypatch.setattr(rows, "measure", lambda settings, kind: found)
    (result,) = rows._profiled("sampling", lambda settings: [slow], 0.6)(settings)
    assert result.met is met and result.wanted == "3x faster, or 60% in products"
    assert result.details["products_share"] == share and f"({share:.0%})" in result.notes[0]
    monkeypatch.delattr(rows, "measure")  # One that reaches its mark is not profiled.
    fast = Result("work", 1.0, 4.0, 4.0, "3x faster", True, 1)
    assert rows._profiled("sampling", lambda settings: [fast], 0.6)(settings) == [fast]
    assert not fast.notes


def test_attention_by_the_price_of_a_group(tiny, monkeypatch):
    """A table of times and numbers of groups: free ones are many, one that costs all is alone."""
    monkeypatch.setattr(segments, "load_model", lambda _, *rest: load_model(str(tiny), *rest))
    monkeypatch.setattr(segments, "SKILLS", ("messages_urgency",))
    monkeypatch.setattr(segments, "PASSES", 1)
    head, _, row, *_ = segments.lines()
    assert head.endswith("| 10,000 | 30,000 | 1,000,000,000 |")
    times, groups = zip(*re.findall(r"([\d.]+) \((\d+)\)", row), strict=True)
    assert all(float(taken) >= 0 for taken in times)
    numbers = [int(count) for count in groups]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > 4 and numbers[-1] == 1


def test_sampling(settings):
    (result,) = sampling(settings)
    assert result.ours > 0 and result.theirs > 0


def test_lm_eval_scores_are_identical(settings):
    (result,) = identical_scores(settings)
    assert result.met and len(result.details["ours"]) == 6


def test_evaluation_is_the_commands(settings):
    (result,) = evaluation(replace(settings, long_repeats=2))
    assert result.n == len(result.details["ours"]) == len(result.details["theirs"]) == 2
    ours, theirs = result.details["skills"]
    assert result.details["identical_scores"] and ours == pytest.approx(theirs)


def test_stage(settings):
    against, share = stage(replace(settings, long_repeats=2))
    assert against.ratio > 0 and 0 < share.ratio < 1
    pairs = [pair["sdft"] for pair in against.details["pairs"]]
    assert against.n == len(pairs) == 2 and pairs[0] != pairs[1]
    assert against.ours == pytest.approx(sum(p["training"] + p["sampling"] for p in pairs) / 2)
    command.write([against, share], command.machine(), settings.work)
    written = json.loads((settings.work / "speed.json").read_text())["results"]
    assert [row["details"]["pairs"] for row in written] == 2 * [against.details["pairs"]]


def test_order_and_its_script(settings):
    """Both sides end in a trained checkpoint and in numbers for every stage."""
    (result,) = order(replace(settings, skills=("elements",)), ("grpo",))
    assert result.ratio > 0 and (settings.work / "grpo-1" / "model.safetensors").exists()
    for name in ("base", "grpo-1"):
        assert list(json.loads((settings.work / f"{name}.json").read_text())) == ["elements"]
        assert list((settings.work / name).rglob("results_*.json"))
    ours = [
        json.loads(line)
        for line in (settings.work / "order" / "records.jsonl").read_text().splitlines()
    ]
    assert {r["stage"] for r in ours} == {0, 1}


def test_the_loss_holds_a_chunk_of_the_vocabulary(settings):
    """Without chunks the step would hold five tensors of 732 MiB.

    They are the logits and log-probabilities of both models, and a gradient.
    """
    (result,) = growth.memory(
        settings, vocabulary=150_000, width=64, layers=1, completion=640, rows=2
    )
    assert result.ours > result.theirs > 0
    assert result.ours - result.theirs < 2 * 732


def test_slope():
    assert growth.slope([{"x": x, "t": 3 * x**2} for x in (2, 4, 8)], "t") == pytest.approx(2)


def test_command_writes_table_and_picture(settings, tmp_path, monkeypatch, capsys):
    axes = {
        "vocabulary": (1, [{"vocabulary": n, "examples": 4} for n in (300, 600)]),
        "skills": (2, [{"kind": "order", "skills": n} for n in (1, 2)]),
    }
    monkeypatch.setitem(rows.ROWS, "growth", lambda settings: growth.growth(settings, axes))
    monkeypatch.setitem(
        rows.ROWS,
        "records",
        lambda settings: growth.records(settings, skills=3, methods=2, seeds=2),
    )
    monkeypatch.setattr(
        "sys.argv",
        [
            "speed",
            "--rows",
            "records",
            "growth",
            "--model",
            settings.model,
            "--out",
            str(tmp_path / "bench"),
        ],
    )
    command.main()
    shown = capsys.readouterr().out
    assert "growth with vocabulary" in shown and "records of 3 skills" in shown
    kept = json.loads((tmp_path / "bench" / "speed.json").read_text())
    assert kept["machine"]["threads"] > 0 and len(kept["results"]) == 3
    assert kept["results"][0]["details"]["records"] == 4 * ((3 * 2 + 5) + 3 * (3 * 2 * 2 + 5))
    assert "| work | ours | theirs |" in (tmp_path / "bench" / "speed.md").read_text()
    assert (tmp_path / "bench" / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "wrong", [["--rows", "sdtf"], ["--repeats", "0"], ["--model", "some/hub-id"]]
)
def test_wrong_arguments_are_one_line(wrong, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed", *wrong])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")
