"""The loop: what it measures, what it does not measure twice, and what --plan and --check-teacher
say of it.
"""

import gc
import io
import json
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.families.trial import tiny_model as tiny_family
from harness.base import metrics
from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.metrics import mean_and_stderr
from harness.base.seeds import seed_for
from harness.evaluation.evaluator import Evaluator
from harness.learning.draws import draws
from harness.models.checkpoint import model_fingerprint
from harness.models.forward import can_share_prompts
from harness.models.load import load_model
from harness.models.memory import peak_memory, reset_peak_memory
from harness.models.segments import can_take_segments
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.results.writer import ResultsWriter
from harness.runs import provenance, sequence
from harness.runs.cost import Machine
from harness.runs.engines import load_order_model
from harness.runs.one_run import OneRun
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.teacher_check import check_teacher
from harness.sampling.transformers import TransformersSampler, way_of
from methods.trl import TRL, TRLMethodConfig
from tests.conftest import read_lines, tiny_tokenizer, write_rows


@pytest.fixture
def finished(order_file, tmp_path):
    order = read_order(
        order_file(
            methods={
                "sft": {"learning_rate": 1e-2},
                "grpo": {"learning_rate": 1e-3, "group_size": 2},
            }
        )
    )
    run_order(order, tmp_path / "out")
    return order, tmp_path / "out"


def test_every_skill_is_measured_after_every_stage_and_inside(finished):
    order, out = finished
    records = [r for r in read_lines(out / "records.jsonl") if r["metric"] == "token_f1"]
    points = Counter((r["method"], r["stage"], r["step"], r["final"], r["name"]) for r in records)
    assert set(points.values()) == {1}
    for label in order.methods:
        for skill in ("vowels", "digits"):
            steps = sorted(
                (r["stage"], r["step"], r["final"])
                for r in records
                if r["method"] == label and r["name"] == skill
            )
            # 12 prompts of 4 are 3 steps a stage; every 2 steps a point inside
            assert steps == [(0, 0, True), (1, 2, False), (1, 3, True), (2, 5, False), (2, 6, True)]
    by_step = {(r["stage"], r["step"]): r["prompts"] for r in records}
    assert by_step == {(0, 0): 0, (1, 2): 8, (1, 3): 12, (2, 5): 20, (2, 6): 24}


def test_a_record_is_what_its_evaluation_holds(finished):
    _, out = finished
    for record in read_lines(out / "records.jsonl"):
        evaluation = read_json(out / "evaluations" / f"{record['evaluation']}.json")
        if record["metric"] in evaluation["items"][0]["scores"]:
            scores = [item["scores"][record["metric"]] for item in evaluation["items"]]
            assert (record["value"], record["stderr"]) == pytest.approx(mean_and_stderr(scores))
        assert record["protocol"] in read_json(out / "protocols.json")


def test_mean_and_stderr_by_hand():
    assert mean_and_stderr([0.0, 1.0, 1.0, 0.0]) == pytest.approx((0.5, (1 / 3) ** 0.5 / 2))
    assert mean_and_stderr([1.0]) == (1.0, None)


def test_the_same_weights_are_measured_once(order_file, tmp_path, monkeypatch):
    asked = Counter()
    real = TransformersSampler.sample

    def counting(self, prompts, **settings):
        if not settings["temperature"]:
            asked[model_fingerprint(self.model), json.dumps(prompts)] += 1
        return real(self, prompts, **settings)

    monkeypatch.setattr(TransformersSampler, "sample", counting)
    order = read_order(order_file(seeds=[0, 1], evaluate={}, methods={"sft": {}, "sdft": {}}))
    run_order(order, tmp_path / "out")
    assert set(asked.values()) == {1}
    assert len(asked) == 2 * (1 + 4 * 2)  # two skills: the base once, and 4 runs of 2 stages
    before = sum(asked.values())
    run_order(order, tmp_path / "out")
    assert sum(asked.values()) == before


def test_methods_see_the_same_prompts(order_file, tmp_path, monkeypatch):
    seen = {}
    from harness.learning.stage import Stage

    real = Stage.steps

    def watching(self):
        for step in real(self):
            seen.setdefault((self.index, step.index), set()).add(tuple(e.id for e in step.examples))
            yield step

    monkeypatch.setattr(Stage, "steps", watching)
    run_order(read_order(order_file()), tmp_path / "out")
    assert len(seen) == 6 and all(len(ids) == 1 for ids in seen.values())
    assert draws(12, 24, seed_for(0, 1)) != draws(12, 24, seed_for(0, 2))


def test_a_changed_measurement_is_another_protocol(order_file, tmp_path, monkeypatch):
    def protocol(**evaluate):
        order = read_order(order_file(evaluate=evaluate))
        measure = Evaluator(
            None, None, order.evaluate, {s.name: order.limit(s) for s in order.skills}, {}
        )
        return json.dumps(
            measure.skill_protocol(order.skills[0], "test", "float32", "template", {}),
            sort_keys=True,
        )

    plain = protocol()
    assert protocol(batch_size=3) == plain  # how it is batched is no part of what is measured
    assert (
        len(
            {
                plain,
                protocol(examples=2),
                protocol(max_new_tokens=5),
                protocol(temperature=0.5),
                protocol(temperature=0.5, seed=1),
            }
        )
        == 5
    )
    monkeypatch.setattr("harness.runs.order.version", lambda: "vllm 0")
    assert '"engine"' not in plain and '"engine": "vllm"' in protocol(engine="vllm")


def test_the_kept_checkpoint_is_the_evaluated_model(finished):
    _, out = finished
    last = [
        r
        for r in read_lines(out / "records.jsonl")
        if r["run"] == "sft-seed0" and r["stage"] == 2 and r["final"]
    ]
    model, _ = load_model(str(out / "runs" / "sft-seed0" / "stage-2" / "weights"), "float32", "cpu")
    assert last and all(r["evaluation"].startswith(model_fingerprint(model)[:16]) for r in last)
    # checkpoints.keep is last
    assert not (out / "runs" / "sft-seed0" / "stage-1" / "weights").exists()


def test_what_the_model_can_do_is_asked_once_a_run(order_file, tmp_path):
    """A later start takes the answer of the first, whatever its own weights would say."""
    budget = {"prompts": 4, "batch_size": 4}
    order = read_order(order_file(methods={"sft": {}}, evaluate={}, budget=budget))
    run_order(order, tmp_path / "out")
    path = tmp_path / "out/runs/sft-seed0/model.json"
    assert read_json(path) == {"shares_prompts": True, "segments": True, "sampling": "buffers"}
    other = {"shares_prompts": False, "segments": False, "sampling": "generate"}
    path.write_text(json.dumps(other))
    model, tokenizer = load_order_model(order)
    results = ResultsWriter(tmp_path / "out")
    OneRun(order, order.runs()[0], results, model, tokenizer, "", None, Progress(), "run")
    assert not can_share_prompts(model) and not can_take_segments(model)
    assert way_of(model) == "generate"
    assert read_json(path) == other
    path.write_text('{"shares_prompts": true}')  # by an edition that did not ask for more
    OneRun(order, order.runs()[0], results, model, tokenizer, "", None, Progress(), "run")
    assert read_json(path) == {"shares_prompts": True, "segments": False, "sampling": "generate"}


@pytest.mark.parametrize("name", ["falcon", "granitemoehybrid"])
def test_a_model_of_another_kind_runs_and_says_how_it_is_sampled(name, tmp_path, order_file):
    """Sampling in training too; a model whose answers cross a border leaves no folder behind."""
    save_family(name, tmp_path / "model")
    model = {"name": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"}
    methods = {"grpo": {"group_size": 2}}
    order = read_order(order_file(model=model, methods=methods, budget=SMALL, evaluate={}))
    said = io.StringIO()
    run_order(order, tmp_path / "out", Progress(stream=said))
    assert said.getvalue().count("is sampled by transformers' generate: ") == 1
    kept = read_json(tmp_path / "out/runs/grpo-seed0/model.json")
    assert kept == {"shares_prompts": False, "segments": False, "sampling": "generate"}


def test_answers_that_cross_a_border_of_positions_are_refused_at_once(tmp_path, order_file):
    save_family("phi3 longrope", tmp_path / "model")
    model = {"name": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"}
    path = order_file(model=model, methods={"sft": {}}, evaluate={"max_new_tokens": 60})
    with pytest.raises(UserError, match=r"skill vowels, split test .*: .* crosses the length"):
        plan(read_order(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SMALL = {"prompts": 4, "batch_size": 4}


def save_family(name, folder):
    tiny_tokenizer().save_pretrained(folder)
    tiny_family(name, torch.float32).save_pretrained(folder)


def test_learning_changes_the_answers(finished):
    _, out = finished
    losses = [
        row["loss"] for row in read_lines(out / "runs" / "sft-seed0" / "stage-1" / "training.jsonl")
    ]
    assert losses[-1] < losses[0]


def test_plan_counts_and_touches_nothing(order_file, tmp_path):
    order = read_order(order_file(seeds=[0, 1, 2]))
    text = plan(order, tmp_path / "out")
    assert "9 runs (3 methods x 3 seeds), 2 stages each" in text
    rows = [
        line.split()
        for line in text.splitlines()
        if line.split()[:2] in ([m, s] for m in order.methods for s in ("vowels", "digits"))
    ]
    assert [row[2:6] for row in rows] == [["12", "4", "3", "2"]] * 6
    # the base once, and 9 runs x 2 stages x (1 inside + 1)
    assert "evaluations: 37, 296 answers in all" in text
    assert not (tmp_path / "out").exists()


def test_plan_prefers_what_was_measured(finished):
    order, out = finished
    assert plan(order, out).count("measured\n") == 4


@pytest.mark.parametrize(
    "which, wanted",
    [("seen", [["a"], ["a", "b"], ["a", "b", "c"], 4]), ("sampled", [["a"], 2, 2, 4])],
)
def test_which_skills_are_evaluated(order_file, tmp_path, which, wanted):
    """What stands in the records of each stage, what the plan says of it, and what the report makes
    of the gaps.
    """
    rows = [{"prompt": f"p{i}", "demonstration": "d", "reference": "d"} for i in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    skills = [
        {
            "name": n,
            "train": "rows.jsonl",
            "test": "rows.jsonl",
            "grader": "contains",
            "max_new_tokens": 4,
        }
        for n in "abcd"
    ]
    path = order_file(
        skills=skills,
        methods={"sft": {}},
        seeds=[0],
        budget={"prompts": 4, "batch_size": 4},
        retention=None,
        evaluate={"skills": which},
    )
    order, out = read_order(path), tmp_path / "out"
    text = plan(order, out)
    run_order(order, out)
    found = {}
    for r in read_lines(out / "records.jsonl"):
        if r["metric"] == "contains":
            found.setdefault(r["stage"], []).append(r["name"])
    assert found[0] == found[4] == list("abcd")
    for stage, names in enumerate(wanted[:3], 1):
        assert (
            found[stage] == names
            if isinstance(names, list)
            else len(found[stage]) == names and found[stage][-1] == "abcd"[stage - 1]
        )
    assert f"evaluations: 5, {4 * sum(map(len, found.values()))} answers in all" in text
    results = ReportData([out])
    assert not results.missing and results.complete("sft") == 1
    R = results.R["sft"][0]
    assert np.isfinite(
        [metrics.average_accuracy(R), metrics.backward_transfer(R), metrics.learning_accuracy(R)]
    ).all()
    assert np.isnan(metrics.forgetting(R))
    table, _ = write_report([out])
    assert "sft" in table


def test_the_estimate_grows_with_the_work():
    import torch

    machine = Machine(10**6, torch.float32, "cpu")
    assert machine.forward(200) == pytest.approx(2 * machine.forward(100))
    assert machine.sample(16, 20, 8) > machine.sample(16, 20, 16) > machine.sample(8, 20, 16) > 0


def test_check_teacher_reads_no_test_example(order_file, tmp_path):
    order = read_order(order_file())
    rows = check_teacher(order, tmp_path / "check")
    assert [(r["skill"], r["split"], r["n"]) for r in rows] == [
        ("vowels", "validation", 4),
        ("digits", "validation", 4),
    ]
    asked = [
        item["prompt"]
        for path in (tmp_path / "check" / "evaluations").glob("*.json")
        for item in read_json(path)["items"]
    ]
    assert len(asked) == 16 and not any(" test " in prompt for prompt in asked)
    assert sum("This is an example for a response" in prompt for prompt in asked) == 8


def test_the_model_of_a_run_is_gone_before_the_next_is_loaded(order_file, tmp_path, monkeypatch):
    """Whatever cycles it stands in: there may be room for one model alone."""
    alive, loads, real = [], [], load_order_model

    def load(*args):
        loads.append([ref() for ref in alive if ref() is not None])
        model, tokenizer = real(*args)
        model.itself = lambda: model
        alive.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(sequence, "load_order_model", load)
    monkeypatch.setattr(sequence, "run_stage", lambda live, number: None)
    monkeypatch.setattr(sequence, "judge_stage", lambda *_: None)
    gc.disable()
    try:
        run_order(read_order(order_file()), tmp_path / "out")
    finally:
        gc.enable()
    assert loads == [[]] * 3


def test_what_an_earlier_stage_left_is_gone_on_a_gpu(monkeypatch):
    class Block:
        pass

    block, seen = Block(), []
    block.itself, ref = block, weakref.ref(block)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: seen.append(ref()))
    gc.disable()
    try:
        del block
        reset_peak_memory(torch.device("cuda"))
    finally:
        gc.enable()
    assert seen == [None]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone has it")
def test_peak_memory_is_of_the_stage():
    """A large block of an earlier stage does not count in the next one."""
    cpu = torch.device("cpu")
    block = torch.ones(100 * 2**20)
    high = peak_memory(cpu)
    del block
    reset_peak_memory(cpu)
    assert peak_memory(cpu) < high - 0.3


def test_a_run_says_which_parts_and_numbers_it_has(order_file, tmp_path):
    sft = {"method": "sft", "learning_rate": 1e-3}
    methods = {
        "joined": {**sft, "preset": "lwf", "with": {"ewc": {"strength": 0.5}}},
        "adapter": {**sft, "parameters": {"lora": {"rank": 2}}},
    }
    order = read_order(order_file(methods=methods, evaluate={}))
    run_order(order, tmp_path / "out")
    joined, adapter = (
        read_json(tmp_path / f"out/runs/{label}-seed0/run.json") for label in methods
    )
    assert joined["preset"] == "lwf" and list(joined["with"]) == ["anchor", "ewc"]
    assert joined["with"]["anchor"]["temperature"] == 2
    assert joined["with"]["ewc"]["strength"] == 0.5 and "learns_in" not in joined
    assert adapter["parameters"]["lora"]["rank"] == 2 and "with" not in adapter
    page = write_report(tmp_path / "out")[1].read_text(encoding="utf-8")
    assert "ewc: strength 0.5" in page and "lora: " in page and "rank 2" in page


@pytest.mark.parametrize(
    ("args", "dtype", "said"),
    [
        ({}, torch.float32, "float32 weights"),
        ({}, torch.bfloat16, "float32 weights, autocast to bfloat16"),
        ({"bf16": True}, torch.float32, "float32 weights, autocast to bfloat16"),
        ({"fp16": True}, torch.bfloat16, "float32 weights, autocast to float16"),
        ({"bf16": False}, torch.bfloat16, "float32 weights"),
    ],
)
def test_a_trainer_of_trl_says_what_it_learns_in(args, dtype, said):
    assert TRL(TRLMethodConfig(args=args)).precision(dtype) == f"{said}, by TRL's adamw_torch_fused"
    sgd = TRL(TRLMethodConfig(args={**args, "optim": "sgd"}))
    assert sgd.precision(dtype) == f"{said}, by TRL's sgd"


def test_a_package_that_is_not_installed_has_no_version(order_file, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    order = read_order(order_file(methods={"sft": {}}, evaluate={}))
    run_order(order, tmp_path / "out")
    packages = read_json(tmp_path / "out/runs/sft-seed0/run.json")["packages"]
    assert packages == {"torch": torch.__version__, "no-such-package": None}
