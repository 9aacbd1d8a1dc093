"""Trainers of TRL as methods: what they get, what is refused, and a resume to the bit.

    ALL_TRAINERS=1 python -m pytest tests/methods/test_trl.py

cuts off every trainer that the docs name, where otherwise one of each kind is.
"""

import copy
import json
import os
import shutil

import numpy as np
import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.settings import build
from harness.learning import trl_run, trl_trial
from harness.learning.outlook import Outlook
from harness.learning.trainer import TrainingConfig
from harness.models.load import load_model, load_tokenizer
from harness.models.others import model_checksum
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from methods.sft import SFT
from methods.trl import TRL, TRLMethodConfig, trainers
from tests.conftest import read_lines, save_tiny
from tests.learning.test_training import make_stage
from tests.methods.test_methods import Signal
from tests.methods.test_penalties import moved

RATE = {"learning_rate": 1e-3, "warmup_steps": 0, "schedule": "constant"}
TRAINERS = {
    "SFTTrainer": {},
    "GRPOTrainer": {"num_generations": 2},
    "RLOOTrainer": {"num_generations": 2},
    "SDFTTrainer": {"num_generations": 1},
    "SDPOTrainer": {"num_generations": 2, "success_reward_threshold": 0.3},
    "GKDTrainer": {},
    "DistillationTrainer": {},
    "DPOTrainer": {"beta": 0.2},
    "GOLDTrainer": {},
    "ORPOTrainer": {},
    "OnlineDPOTrainer": {},
}


KINDS = ["SFTTrainer", "GRPOTrainer", "SDPOTrainer", "GKDTrainer", "DPOTrainer"]
CUT = list(TRAINERS) if os.environ.get("ALL_TRAINERS") else KINDS


def method(name, **options):
    return TRL(TRLMethodConfig(**RATE, trainer=name, args=TRAINERS[name], **options))


def learned(tiny_model, folder, chosen, **changes):
    """(the stage, the model after it, the log lines)."""
    model, tokenizer = copy.deepcopy(tiny_model[0]), changes.pop("tokenizer", tiny_model[1])
    logs = []
    folder.mkdir(exist_ok=True)
    settings = {
        "skill": Signal(),
        "folder": folder,
        "index": 2,
        "load_start": lambda of: (
            moved(tiny_model[0], 7, 0.05) if of == "run" else copy.deepcopy(tiny_model[0])
        ),
        "on_step": lambda stage, step: logs.append(dict(step.logged)),
        **changes,
    }
    if weights := settings.pop("weights", None):
        model.load_state_dict(weights)
    stage = make_stage(model, tokenizer, **settings)
    torch.manual_seed(0)
    chosen.learn(stage)
    return stage, model, logs


@pytest.mark.parametrize("name", CUT)
def test_a_trainer_learns_and_goes_on(tiny_model, tmp_path, name):
    """Three steps; cut off after the second one it ends in the same weights, to the bit."""
    cut_off(tiny_model, tmp_path, name)


@pytest.mark.parametrize(
    ("name", "other", "of"),
    [
        ("GRPOTrainer", "ref_model", "stage"),
        ("RLOOTrainer", "ref_model", "stage"),
        ("DPOTrainer", "ref_model", "stage"),
        ("SDFTTrainer", "teacher_model", "stage"),
        ("SDPOTrainer", "teacher_model", "stage"),
        ("GKDTrainer", "teacher_model", "run"),
    ],
)
def test_teachers_and_references_are_the_start_and_in_the_plan(
    tiny_model, tmp_path, name, other, of
):
    """Neither where the live model was loaded from, nor what a resumed stage has become."""
    starts = {of: moved(tiny_model[0], seed, 0.05) for seed, of in enumerate(("stage", "run"))}
    model = moved(tiny_model[0], 9, 0.05)
    chosen = method(name)
    if name == "GRPOTrainer":
        chosen.config.args = {"num_generations": 2, "beta": 0.1}
    stage = make_stage(
        model, tiny_model[1], skill=Signal(), folder=tmp_path, index=2, load_start=starts.get
    )
    run = trl_run.TRLRun(stage, chosen)
    if chosen.shows == "pairs":
        run.pairs = {e.id: ["a", "b"] for e in stage.examples}
    beside = getattr(run._trainer(), other)
    for one, wanted in zip(beside.parameters(), starts[of].parameters(), strict=True):
        assert torch.equal(one, wanted)
    work = planned(chosen, stage)
    assert (work.copies, list(work.starts)) == ((0, ["run"]) if of == "run" else (1, []))
    assert work.scored == work.learned > 0


def planned(chosen, stage):
    outlook = Outlook(stage.tokenizer, stage.skill, None, 9, 12)
    outlook.earlier = [outlook]
    return chosen.work(outlook)


def test_another_model_teaches(tiny_model, tmp_path):
    """TRL's trainer has the weights of the folder, and the student ends nearer to them."""
    teacher = tmp_path / "teacher"
    save_tiny(teacher, seed=5)
    chosen = TRL(TRLMethodConfig(**RATE, trainer="GKDTrainer", teacher_model=str(teacher)))
    seen = []
    real = trl_run.TRLRun._trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_run.TRLRun, "_trainer", lambda run: seen.append(real(run)) or seen[-1])
        _, _, logs = learned(
            tiny_model,
            tmp_path / "a",
            chosen,
            models={str(teacher): model_checksum(str(teacher), "test")},
            prompts=80,
        )
    wanted, _ = load_model(str(teacher), "float32", "cpu")
    (trainer,) = seen
    for one, other in zip(trainer.teacher_model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(one, other)
    losses = [log["loss"] for log in logs]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]) and min(losses) > 0


def test_who_teaches_is_told_and_checked(order_file, tmp_path):
    """A trainer without a teacher has none to name; one that is the model itself is told."""
    save_tiny(tmp_path / "teacher", seed=5)
    teacher = {"teacher_model": "teacher"}
    path = order_file(methods={"trl": {"trainer": "SFTTrainer", **teacher}})
    with pytest.raises(UserError, match="trl: teacher_model: SFTTrainer has no teacher; leave it"):
        read_order(path)
    rows = {
        "trl": {"trainer": "GKDTrainer"},
        "gkd": {},
        "other": {"method": "gkd", **teacher},
        "theirs": {"method": "trl", "trainer": "GKDTrainer", **teacher},
    }
    order = read_order(order_file(methods=rows))
    tokenizer = load_tokenizer(order.model.name)[0]
    told = [note for note in order.check_prompts(tokenizer) if "nothing to teach" in note]
    assert [note.partition(": ")[0] for note in told] == ["methods.trl", "methods.gkd"]


@pytest.mark.parametrize("name", ["GRPOTrainer", "CPOTrainer", "ORPOTrainer", "SFTTrainer"])
def test_where_trl_has_no_reference_the_plan_has_none(tiny_model, name):
    stage = make_stage(*tiny_model, skill=Signal(), index=2)
    work = planned(TRL(TRLMethodConfig(**RATE, trainer=name)), stage)
    assert (work.copies, work.starts, work.scored) == (0, {}, 0)


def test_the_plan_has_both_answers_of_online_dpo(tiny_model):
    stage = make_stage(*tiny_model, skill=Signal(), index=2)
    assert planned(method("OnlineDPOTrainer"), stage).answers == 2


def test_a_bfloat16_model_learns_in_float32(tiny_model, tmp_path):
    """It goes on to the bit, and makes updates that bfloat16 weights would lose."""
    model = copy.deepcopy(tiny_model[0]).bfloat16()
    start = copy.deepcopy(model)
    cut_off((model, tiny_model[1]), tmp_path, "SFTTrainer")
    record = json.loads((tmp_path / "a" / "trl.json").read_text())
    assert (record["model"], record["weights"]) == ("bfloat16", "float32")
    assert record["autocast"] == "bfloat16"
    # Twenty steps of a rate far below half a unit in the last place of most weights
    chosen = TRL(TRLMethodConfig(**{**RATE, "learning_rate": 1e-5}))
    ours = SFT(TrainingConfig(**{**RATE, "learning_rate": 1e-5}))
    many = {"prompts": 80, "skill": Signal()}
    _, one, _ = learned((start, tiny_model[1]), tmp_path / "c", chosen, **many)
    _, other, _ = learned((start, tiny_model[1]), tmp_path / "d", ours, **many)
    assert one.dtype == torch.bfloat16

    def moves(model):
        return torch.cat(
            [
                (a - b).flatten().float()
                for a, b in zip(model.parameters(), start.parameters(), strict=True)
            ]
        )

    assert (moves(one) != 0).float().mean() > 0.05
    assert torch.cosine_similarity(moves(one), moves(other), dim=0) > 0.7


def cut_off(tiny_model, tmp_path, name):
    """Asserts that a trainer goes on."""
    saved, dtype = {}, tiny_model[0].dtype

    def on_step(stage, step):
        assert stage.model.dtype == dtype and not stage.model.training
        logs.append({k: v for k, v in step.logged.items() if k not in ("seconds", "step_time")})
        state = copy.deepcopy(stage.state_dict())
        if stage.step == 2 and not saved:
            saved.update(state, model=copy.deepcopy(stage.model.state_dict()))
            saved["files"] = copied(tmp_path / "a" / "trl", tmp_path / "files")

    def copied(source, target):
        shutil.copytree(source, target)
        return target

    logs = []
    stage, model, _ = learned(tiny_model, tmp_path / "a", method(name), on_step=on_step)
    assert stage.step == 3 and len(logs) == 3 and all("loss" in line for line in logs)
    changes = [
        (a - b).abs().max().item()
        for a, b in zip(model.parameters(), tiny_model[0].parameters(), strict=True)
    ]
    assert 0 < max(changes) < 0.1 and stage.prompts_drawn == 12 and not model.training
    assert model.config.to_dict() == tiny_model[0].config.to_dict()
    assert model.generation_config.to_dict() == tiny_model[0].generation_config.to_dict()
    assert not (tmp_path / "a" / "trl").exists()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    whole = logs[:]
    logs.clear()
    (tmp_path / "b").mkdir()
    saved.pop("files").rename(tmp_path / "b" / "trl")
    assert not list((tmp_path / "b" / "trl").rglob("training_args.bin"))
    weights = saved.pop("model")
    _, again, _ = learned(
        tiny_model, tmp_path / "b", method(name), on_step=on_step, restored=saved, weights=weights
    )
    assert len(logs) == 1 and logs[0]["loss"] == whole[2]["loss"]
    for (key, one), other in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_sft_by_trl_is_sft(tiny_model, tmp_path):
    """The same draws, losses and weights as our own, over three steps."""
    options = {**RATE, "max_grad_norm": 1.0}
    stage, theirs, logs = learned(
        tiny_model, tmp_path / "a", TRL(TRLMethodConfig(**options)), temperature=0.7
    )
    rows = stage.demonstration_rows([stage.examples[i] for i in stage.draws()])
    sizes = [len(row.prompt) + len(row.completion) for row in rows]
    padded = [4 * max(sizes[first : first + 4]) for first in (0, 4, 8)]
    assert stage.tokens == sum(padded) and logs[0]["tokens"] == padded[0]
    assert stage.learned == stage.tokens
    _, ours, own = learned(tiny_model, tmp_path / "b", SFT(TrainingConfig(**options)))
    assert [line["loss"] for line in logs] == pytest.approx(
        [line["loss"] for line in own], rel=1e-4
    )
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert (one - other).abs().max() < 2e-5
    record = json.loads((tmp_path / "a" / "trl.json").read_text())
    assert record["weights"] == record["model"] == "float32"
    assert record["optimizer"] == "adamw_torch_fused" and record["autocast"] is None


def test_mixed_precision_is_recorded_and_taken_off(tiny_model, tmp_path):
    chosen = TRL(TRLMethodConfig(**RATE, args={"bf16": True}))
    _, model, logs = learned(tiny_model, tmp_path / "a", chosen)
    assert json.loads((tmp_path / "a" / "trl.json").read_text())["autocast"] == "bfloat16"
    assert model.dtype == torch.float32 and len(logs) == 3
    ids = torch.arange(5)[None]
    plain = copy.deepcopy(tiny_model[0])
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(ids).logits, plain(ids).logits)


def test_trl_gets_the_orders_rollouts_and_rewards(tiny_model, tmp_path, monkeypatch):
    """Each prompt of a step is answered as often as asked, within the limit; rewards are the
    skill's.
    """
    seen = []

    class Watched(Signal):
        def reward(self, completion, reference):
            seen.append((completion, reference))
            return super().reward(completion, reference)

    chosen = TRL(
        TRLMethodConfig(**RATE, trainer="GRPOTrainer", args={"num_generations": 3}, rows_per_pass=6)
    )
    stage, _, logs = learned(tiny_model, tmp_path / "a", chosen, skill=Watched())
    assert len(seen) == 3 * 12
    references = [stage.examples[i].reference for i in stage.draws() for _ in range(3)]
    assert [reference for _, reference in seen] == references
    wanted = [Signal().reward(c, r) for c, r in seen]
    for step, line in enumerate(logs):
        rewards = wanted[12 * step : 12 * step + 12]
        assert line["reward"] == pytest.approx(sum(rewards) / 12, abs=1e-5)
        assert line["completion_tokens"] <= 10
    assert stage.tokens > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trainer": "GRPOTrainr"}, "has no 'GRPOTrainr'; did you mean 'GRPOTrainer'?"),
        ({"trainer": "RewardTrainer"}, "RewardTrainer learns to judge, not to answer"),
        ({"trainer": "GRPOTrainer", "args": {"num_generatons": 4}}, "num_generatons: unknown key"),
        ({"trainer": "GRPOTrainer", "args": {"max_steps": 4}}, "follows from epochs and steps"),
        (
            {"trainer": "GRPOTrainer", "args": {"num_iterations": 2}},
            "an update to each batch of pr",
        ),
        ({"args": {4: 4}}, "args: 4: unknown key"),
        ({"args": None}, "args: must be a mapping"),
        ({"trainer": "GRPOTrainer", "args": {"num_generations": "x"}}, "num_generations: must be"),
        ({"trainer": "GRPOTrainer", "args": {"num_generations": 1}}, "args: GRPO"),
        ({"args": {"seed": 4}}, "args: seed: follows from the order's seeds"),
        ({"args": {"output_dir": "x"}}, "args: output_dir: follows from the results folder"),
        ({"args": {"report_to": "wandb"}}, "follows from the results folder"),
        ({"args": {"push_to_hub": True}}, "follows from the results folder"),
        ({"args": {"learning_rate": 1}}, "every method; write learning_rate beside args"),
        ({"args": {"lr_scheduler_type": "linear"}}, "of every method; leave it out"),
        ({"args": {"packing": "yes"}}, "args: packing: must be"),
        ({"trainer": "GRPOTrainer", "args": {"bf16": True, "fp16": True}}, "args: At most one"),
        ({"trainer": "GRPOTrainer", "args": {"num_generations": 3}, "rows_per_pass": 5}, "rows_pe"),
        ({"trainer": "GRPOTrainer", "batch_size": 5}, "12 prompts of skill vowels are no whole"),
        ({"dropout": "none"}, "dropout does not reach a trainer of TRL"),
        ({"moments": "8bit"}, "moments does not reach a trainer of TRL"),
        ({"with": {"ewc": {}}}, "trl has a training loop of its own, which calls no part"),
    ],
)
def test_what_is_wrong_is_said_before_anything_loads(order_file, options, said):
    with pytest.raises(UserError) as error:
        read_order(order_file(methods={"mine": {"method": "trl", **options}}))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("trainer", "args", "said"),
    [
        ("GRPOTrainer", {"use_vllm": True}, "args: GRPOTrainer refuses them (vLLM is not"),
        ("GRPOTrainer", {"reward_weights": [1.0, 2.0]}, "refuses them (Number of reward weights"),
        ("GRPOTrainer", {"loss_type": "grpp"}, "(ValueError: Unknown loss type: grpp)"),
        ("SFTTrainer", {"optim": "lomo"}, "args: SFTTrainer refuses them ("),
        ("TPOTrainer", {}, "trainer: TPOTrainer cannot be built (TPO requires a triple"),
    ],
)
def test_what_trl_refuses_later_is_told_before_a_run(order_file, tmp_path, trainer, args, said):
    """Where the trainer is built, and in its first step; by the plan and by the start."""
    if trainer == "GRPOTrainer":
        args = {"num_generations": 2, **args}
    path = order_file(methods={"mine": {"method": "trl", "trainer": trainer, "args": args}})
    order, before = read_order(path), torch.get_rng_state()
    for start in (plan, run_order) if "use_vllm" in args else (plan,):
        with pytest.raises(UserError) as error:
            start(order, tmp_path / "out")
        line = str(error.value)
        assert line.startswith(f"{path}: methods.mine: ") and said in line and "\n" not in line
    assert not (tmp_path / "out" / "results.json").exists()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_label_that_is_new_to_a_folder_is_tried(order_file, tmp_path):
    sft = {"method": "sft", "learning_rate": 1e-3}
    run_order(read_order(order_file(methods={"sft": sft}, evaluate={})), tmp_path / "out")
    wrong = {"method": "trl", "args": {"optim": "lomo"}}
    both = read_order(order_file(methods={"sft": sft, "mine": wrong}, evaluate={}))
    with pytest.raises(UserError, match="mine: args: SFTTrainer refuses them"):
        run_order(both, tmp_path / "out")
    assert list(read_json(tmp_path / "out/results.json")["methods"]) == ["sft"]


@pytest.mark.parametrize("name", CUT)
def test_arguments_that_trl_takes_pass_the_trial(tiny_model, name):
    dtype = torch.bfloat16 if name == "SFTTrainer" else torch.float32
    model = copy.deepcopy(tiny_model[0]).to(dtype)
    method(name, rows_per_pass=4).try_out(model, tiny_model[1], None, "order")


def test_what_fails_without_the_arguments_too_is_not_theirs(tiny_model, monkeypatch):
    """In a step; what the trainer's constructor refuses is told in any case."""
    model, tokenizer = tiny_model
    answers = {"args": ("loss_type", True), "plain": ("no template", True)}
    monkeypatch.setattr(trl_trial, "_tried", lambda of, *_: answers[of])
    assert trl_trial.trial_error("args", "plain", model, tokenizer, None) == ""
    assert trl_trial.trial_error("args", None, model, tokenizer, None) == ""
    answers["plain"] = ("", True)
    assert trl_trial.trial_error("args", "plain", model, tokenizer, None) == "loss_type"
    answers["args"] = ("no vLLM", False)
    assert trl_trial.trial_error("args", None, model, tokenizer, None) == "no vLLM"


def test_a_killed_run_goes_on_and_is_on_record(order_file, tmp_path, monkeypatch):
    """In the second of two skills, with a penalty to the start of the stage."""
    path = order_file(
        methods={
            "grpo_trl": {
                "method": "trl",
                "trainer": "GRPOTrainer",
                "args": {"num_generations": 2, "beta": "1e-2"},
                "learning_rate": 1e-3,
            },
        },
        evaluate={},
        budget={"prompts": 8, "batch_size": 4},
        checkpoints={"minutes": 0, "keep": "all"},
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_order(read_order(path), whole)
    real, seen = trl_run.Clock.on_step_begin, [0]

    def struck(clock, *args, **given):
        seen[0] += 1
        if seen[0] == 4:
            raise KeyboardInterrupt
        return real(clock, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(trl_run.Clock, "on_step_begin", struck)
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(path), cut)
        run_order(read_order(path), cut)
    run = "runs/grpo_trl-seed0/stage-2"
    one, other = (
        load_model(str(out / run / "weights"), "float32", "cpu")[0].state_dict()
        for out in (whole, cut)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    for out in (whole, cut):
        rows = read_lines(out / run / "training.jsonl")
        assert len(rows) == 2 and all("reward" in row for row in rows)
        assert [f.name for f in (out / run / "method").iterdir()] == ["trl.json"]
    about = read_json(whole / "results.json")["methods"]["grpo_trl"]
    assert about["config"]["args"] == {"num_generations": 2, "beta": "1e-2"}
    stages = [read_json(out / run / "stage.json") for out in (whole, cut)]
    assert stages[0]["prompts"] == stages[1]["prompts"] == 8
    assert stages[0]["tokens"] == stages[1]["tokens"] > 0


def test_options_are_checked_as_those_of_methods():
    with pytest.raises(UserError, match="answers"):
        build(TRLMethodConfig, {"answers": 1}, "order")
    assert {"SFTTrainer", "SDPOTrainer", "GKDTrainer"} <= set(trainers())


def test_a_prompt_without_a_pair_gives_its_place_to_another(tiny_model, tmp_path):
    """Each row asks the question that its two answers are to."""
    stage = make_stage(
        copy.deepcopy(tiny_model[0]), tiny_model[1], skill=Signal(), folder=tmp_path, prompts=24
    )
    run = trl_run.TRLRun(stage, method("DPOTrainer"))
    ids = [example.id for example in stage.examples]
    run.pairs = {id: [f"right {id}", f"wrong {id}"] for id in ids[::4]}
    rows = [run._row(i, example) for i, example in enumerate(run.examples)]
    prompts = {example.id: example.prompt for example in stage.examples}
    taught = []
    for example, row in zip(run.examples, rows, strict=True):
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        word, id = chosen["content"].split()
        assert (word, rejected["content"]) == ("right", f"wrong {id}")
        assert row["prompt"] == prompts[id]
        taught.append(id)
        if example.id in run.pairs:
            assert id == example.id
    assert len(rows) == 24 and set(taught) == set(ids[::4])
