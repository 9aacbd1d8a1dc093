"""The frame of parts: hooks, refusals, cost, and a resume to the bit with every method.

    ALL_PARTS=1 python -m pytest tests/methods/test_parts.py

cuts off every method with every single part as well, where otherwise all parts join at once.
"""

import copy
import dataclasses
import json
import os

import pytest
import torch
import yaml

import harness.runs.plan
from harness.base.errors import UserError
from harness.base.files import ROOT, read_json
from harness.base.settings import option
from harness.learning.checks import check_done
from harness.learning.lessons import Lesson
from harness.learning.method import get_method
from harness.learning.part import Part, PartConfig, get_part, lacking
from harness.learning.trainer import Trainer, TrainingConfig, cross_entropy
from harness.models.load import load_model
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from methods.sft import SFT
from tests.conftest import read_lines
from tests.learning.test_training import Letters, make_stage

RATE = {"learning_rate": 1e-2, "warmup_steps": 1}
METHODS = {
    "sft": {},
    "dft": {},
    "sdft": {},
    "grpo": {"group_size": 2},
    "cpt": {"chunk_tokens": 8},
    "offline_distillation": {},
    "sft_from_teacher": {},
    "sft_reinvoke": {"reinvoke_prompts": 4},
    "grpo_inner": {
        "method": "grpo",
        "group_size": 2,
        "inner_batches": 2,
        "inner_epochs": 2,
        "resample": 1,
        "ratio": "sequence",
        "kl_beta": 0.1,
    },
    "sdft_run_start": {"method": "sdft", "teacher": "run_start", "entry_clip": 0.05},
    "sdft_trust_region": {"method": "sdft", "teacher": "trust_region", "ema_alpha": 0.3},
    "sdpo": {"group_size": 3, "accept": 0.05, "top_k": 20},
    "gkd": {},
    "psft": {"inner_batches": 2, "inner_epochs": 2},
    "self_sft": {"answers": 2, "accept": 0.1, "resample": "epoch", "batch_size": 4},
}
PARTS = {
    "replay": {"rows": 5},
    "ewc": {"examples": 3, "strength": 10, "gamma": 0.5},
    "mas": {"examples": 3, "answers": "demonstrations", "strength": 10},
    "anchor": {"along": "old_prompts", "beta": 1, "divergence": "reverse"},
    "l2sp": {"of": "run", "coupled": False, "strength": 100},
    "stm": {"threshold": 400},
    "random_mask": {"threshold": 400, "of": "run"},
    "talr": {"floor": 0.1},
    "eaft": {"top": 5},
    "flow": {"loss": "sum"},
    "sfa": {"beta": 0.1, "period": 0.5},
    "matched_norm": {"norm": 0.05},
    "agem": {"rows": 3, "share": 0.5},
    "ema": {"decay": 0.5},
    "wise_ft": {"alpha": 0.75, "of": "run"},
    "task_arithmetic": {"begin": "merged"},
    "ties": {"density": 0.5},
    "dare": {"drop": 0.5, "begin": "merged"},
    "tether": {"file": ROOT / "docs/examples/my_part.py", "share": 0.01},
}


class Numbers(Letters):
    name = "numbers"

    def load(self, split):
        return [dataclasses.replace(e, source=f"number {e.id}") for e in super().load(split)]


def class_of(name):
    return get_method(METHODS[name].get("method", name))


def method(name):
    cls = class_of(name)
    options = {key: value for key, value in METHODS[name].items() if key != "method"}
    return cls(cls.Config(**RATE, **options))


def assert_same(one, other):
    """Equal to the bit, through dicts and lists."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


def made(name, **options):
    cls = get_part(name, options.pop("file", None), "test")
    return cls(cls.Config(**options))


def learned(method, model, tokenizer, parts, folder, **changes):
    """The stage in which ``method`` teaches ``model`` the second of two skills."""
    folder.mkdir(exist_ok=True)
    stage = make_stage(
        model,
        tokenizer,
        **{
            "skill": Numbers(),
            "index": 2,
            "earlier": [Lesson(Letters(), 5)],
            "later": 1,
            "phases": method.phases(12),
            "parts": parts,
            "folder": folder,
            **changes,
        },
    )
    for part in parts:
        part.begin(stage)
    method.learn(stage)
    for part in parts:
        part.end(stage)
    return stage


def remembering(model, tokenizer, tmp_path, start, options=PARTS):
    """Parts that have seen the first stage."""
    parts = [made(name, **chosen) for name, chosen in options.items()]
    changes = {"skill": Letters(), "index": 1, "earlier": [], "phases": [4], "load_start": start}
    learned(method("sft"), copy.deepcopy(model), tokenizer, parts, tmp_path / "1", **changes)
    return {name: part.state_dict() for name, part in zip(options, parts, strict=True)}


def restored(states, options=PARTS):
    parts = [made(name, **options[name]) for name in states]
    for part, state in zip(parts, states.values(), strict=True):
        part.load_state_dict(copy.deepcopy(state))
    return parts


def joining(name):
    """The parts that can join a method at once, and each of them where all are tried."""
    able = [part for part in PARTS if not lacking(type(made(part, **PARTS[part])), class_of(name))]
    return [able, *([[part] for part in able] if os.environ.get("ALL_PARTS") else [])]


@pytest.mark.parametrize("cut", [2, "end"])
@pytest.mark.parametrize(
    ("name", "chosen"), [(name, chosen) for name in METHODS for chosen in joining(name)]
)
def test_a_cut_off_stage_is_the_same(tiny_model, tmp_path, name, chosen, cut):
    """Cut off after step 2, or before the parts end."""
    base, tokenizer = tiny_model

    def start(of):
        return copy.deepcopy(base)

    options = {part: PARTS[part] for part in chosen}
    if name in ("cpt", "offline_distillation", "sft_from_teacher") and "anchor" in options:
        options["anchor"] = {"along": "general_prompts", "share": 0.25}
    states = remembering(base, tokenizer, tmp_path, start, options)
    whole, logs, saved = copy.deepcopy(base), [], {}

    def on_step(stage, step):
        logs.append({k: v for k, v in step.logged.items() if k != "seconds"})
        if stage.step == (stage.steps_in_all if cut == "end" else cut) and not saved:
            saved.update(copy.deepcopy(stage.state_dict()))
            saved["model"] = copy.deepcopy(whole.state_dict())

    changes = {"on_step": on_step, "load_start": start}
    parts = restored(states, options)
    first = learned(method(name), whole, tokenizer, parts, tmp_path / "2", **changes)
    complete, resumed = logs[:], copy.deepcopy(base)
    logs.clear()
    resumed.load_state_dict(saved.pop("model"))
    again = restored(states, options)
    changes["restored"] = saved
    second = learned(method(name), resumed, tokenizer, again, tmp_path / "2", **changes)
    assert logs == complete[saved["step"] :]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert (first.tokens, first.prompts_drawn) == (second.tokens, second.prompts_drawn)
    for one, other in zip(parts, again, strict=True):
        assert_same(one.state_dict(), other.state_dict())


def test_the_example_of_the_docs_is_short():
    assert len(PARTS["tether"]["file"].read_text().splitlines()) <= 40


# ---- hooks --------------------------------------------------------------------------------------


class Every(Part):
    """Has every hook, and writes down which was called in which order."""

    def __init__(self, config=None):
        super().__init__(config or PartConfig())
        self.calls = []

    def examples(self, step):
        self.calls.append("examples")
        return step.examples[:3]

    def weigh(self, rows):
        assert len(rows) == 3
        self.calls.append("weigh")

    def weights(self, rows, positions, logits):
        assert not logits.requires_grad and len(logits) == len(positions.tokens)
        self.calls.append("weights")
        return 0.5 * torch.ones(len(logits))

    def loss(self, trainer, step):
        assert any(m.grad is not None for m in trainer.masters.values())
        self.calls.append("loss")
        return {"extra": step.index}

    def gradient(self, name, gradient):
        self.calls.append("gradient")
        gradient.mul_(2)

    def update(self, name, before, after):
        self.calls.append("update")
        return before + (after - before) / 2

    def project(self, before, after):
        assert before.keys() == after.keys()
        self.calls.append("project")

    def updated(self, step):
        self.calls.append("updated")

    def merge(self, weights):
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        self.calls.append("merge")

    def end(self, stage):
        self.calls.append("end")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_act_where_they_say(tiny_model, tmp_path, dtype, monkeypatch):
    """Weights of 1/2 and gradients times 2 are plain SFT on three examples; half of each update."""
    base, tokenizer = copy.deepcopy(tiny_model[0]).to(dtype), tiny_model[1]
    plain, joined, part, logs = copy.deepcopy(base), copy.deepcopy(base), Every(), []
    config = TrainingConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0)
    grads = []
    step = Trainer._step

    def spied(trainer):
        grads.append({n: m.grad.clone() for n, m in trainer.masters.items()})
        step(trainer)

    monkeypatch.setattr(Trainer, "_step", spied)
    changes = {"phases": [4], "on_step": lambda s, t: logs.append(t.logged)}
    stage = learned(SFT(config), joined, tokenizer, [part], tmp_path / "a", **changes)
    masters = len(dict(base.named_parameters()))
    others = [call for call in part.calls if call != "weights"]
    assert others == [
        "examples", "weigh", "loss", *["gradient"] * masters, *["update"] * masters,
        "project", "updated", "merge", "end",
    ]  # fmt: skip
    assert stage.prompts_drawn == 3 and logs[0]["extra"] == 0

    class Three(Part):
        def examples(self, step):
            return step.examples[:3]

    learned(SFT(config), plain, tokenizer, [Three(PartConfig())], tmp_path / "b", **changes)
    for name, gradient in grads[1].items():
        torch.testing.assert_close(gradient, grads[0][name], rtol=1e-5, atol=1e-7)
    for name, start in base.named_parameters():
        half = (start + dict(plain.named_parameters())[name]) / 2
        torch.testing.assert_close(
            dict(joined.named_parameters())[name], half, rtol=2e-2, atol=1e-4
        ) if dtype == torch.bfloat16 else torch.testing.assert_close(
            dict(joined.named_parameters())[name], half, rtol=1e-4, atol=2e-6
        )


def test_an_update_of_one_weight_at_a_time_is_adamws(tiny_model, tmp_path):
    class Same(Part):
        def update(self, name, before, after):
            return after

    base, tokenizer = tiny_model
    plain, joined = copy.deepcopy(base), copy.deepcopy(base)
    learned(method("sft"), plain, tokenizer, [], tmp_path / "a")
    learned(method("sft"), joined, tokenizer, [Same(PartConfig())], tmp_path / "b")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, joined.state_dict()[name]), name


# ---- in an order --------------------------------------------------------------------------------

MINE = """
from harness.learning.part import Part

class Mine(Part):
    apart = {"replay": "they are both mine"}
    def weights(self, rows, positions, logits):
        return logits.new_ones(len(logits))
"""


@pytest.mark.parametrize(
    ("method", "parts", "problem"),
    [
        ("sft", {"replays": {}}, "with: unknown part 'replays'; did you mean 'replay'?"),
        ("sft", {"replay": {"ratios": 1}}, "with.replay: ratios: unknown key"),
        ("sft", {"replay": {"ratio": 0.1, "rows": 3}}, "with.replay: give ratio or rows"),
        ("sft", ["replay"], "with: must be a mapping"),
        ("sft", {"replay": 3}, "with.replay: must be a mapping"),
        ("cpt", {"replay": {}}, "with.replay: cpt learns from no other examples than its own"),
        ("sft_from_teacher", {"replay": {}}, "sft_from_teacher learns from no other examples"),
        ("offline_distillation", {"replay": {}}, "offline_distillation learns from no other"),
        ("grpo", {"mine": {"file": "mine.py"}}, "mine: grpo does not weigh its tokens"),
        ("sft", {"replay": {}, "mine": {"file": "mine.py"}}, "beside replay: they are both mine"),
        ("sft", {"mine": {"file": "mine.py"}, "replay": {}}, "beside mine: they are both mine"),
        ("sft", {"mine": {"file": "no.py"}}, "no.py is not a file"),
        ("grpo", {"replay": {"content": "own"}}, "content: own changes nothing"),
        ("gkd_own", {"replay": {"content": "own"}}, "content: own changes nothing"),
        ("sdft_source", {"replay": {"content": "own"}}, "content: own changes nothing"),
        ("sft", {"stm": {}, "random_mask": {}}, "beside stm: each would divide by the tokens"),
        ("sft", {"random_mask": {}, "stm": {}}, "beside random_mask: each would divide by"),
        ("sft", {"mas": {"answers": "gold"}}, "with.mas: answers: unknown value 'gold'"),
        ("grpo", {"replay": {"general": "general.jsonl"}}, "replay: general: its rows have no rew"),
        ("sft", {"replay": {"general": "no.jsonl"}}, "general: no.jsonl is not a file"),
        ("sft", {"replay": {"selection": "reservoir"}}, "reservoir has a fixed size; give rows"),
        ("sft", {"replay": {"rows": 12, "extra": "inside"}}, "12 replayed examples inside a budg"),
        ("cpt", {"anchor": {}}, "with.anchor: along: demonstrations wants a method that learns"),
        ("sft", {"anchor": {"prompts": "general.jsonl"}}, "goes with along: general_prompts"),
        ("sft", {"replay": {"share": 1, "extra": "inside"}}, "share must be below 1"),
        ("sdft", {"stm": {}}, "with.stm: sdft does not weigh its tokens"),
        ("grpo", {"eaft": {}}, "with.eaft: grpo does not weigh its tokens"),
        ("cpt", {"flow": {}}, "with.flow: cpt learns from rows that are not known before"),
        ("sft", {"stm": {"threshold": 0.5}}, "with.stm: threshold: must be"),
        ("sft", {"random_mask": {"share": 24}}, "with.random_mask: share: must be"),
        (
            "sft",
            {"matched_norm": {"like": "stn"}},
            "with.matched_norm: the order has no method 'stn'",
        ),
        ("sft", {"matched_norm": {"like": "sft", "norm": 1}}, "norm is that of an update; leave"),
        ("sft", {"ema": {}, "wise_ft": {}}, "with.wise_ft: cannot join beside ema: both make the"),
        ("sft", {"ties": {}, "dare": {}}, "with.dare: cannot join beside ties: both make the wei"),
        ("sft", {"ties": {"density": 0}}, "with.ties: density: must be"),
        ("sft", {"dare": {"drop": 1}}, "with.dare: drop: must be"),
        ("sft", {"wise_ft": {"alpha": 1.5}}, "with.wise_ft: alpha: must be"),
        ("sft", {"ema": {"decay": 1}}, "with.ema: decay: must be"),
        ("sft", {"sfa": {"period": 0}}, "with.sfa: period: must be"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(order_file, tmp_path, method, parts, problem):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "general.jsonl").write_text('{"prompt": "p", "demonstration": "d"}\n')
    variants = {
        "gkd_own": {"method": "gkd", "student_share": 1},
        "sdft_source": {"method": "sdft", "teacher_context": "source"},
    }
    path = order_file(methods={method: {**variants.get(method, {}), "with": parts}})
    if method in ("cpt", "sdft_source"):
        for file in tmp_path.glob("*-train.jsonl"):
            rows = [{**json.loads(line), "source": "s"} for line in file.read_text().splitlines()]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        read_order(path)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_a_grid_goes_over_options_of_parts(order_file):
    grid = {"sft": {"with.ewc.strength": [0.5, 2], "learning_rate": [1e-4]}}
    path = order_file(methods={"sft": {"with": {"ewc": None, "replay": {"rows": 3}}}}, grid=grid)
    methods = read_order(path).methods
    assert list(methods) == [
        "sft.with.ewc.strength-0.5.learning_rate-0.0001",
        "sft.with.ewc.strength-2.learning_rate-0.0001",
    ]
    for spec, strength in zip(methods.values(), (0.5, 2), strict=True):
        ewc, replay = spec.parts
        assert (ewc.config.strength, replay.config.rows) == (strength, 3)
        assert spec.values == {"with.ewc.strength": strength, "learning_rate": 1e-4}
    grid["sft"] = {"with.l2sp.strength": [1]}
    path = order_file(methods={"sft": {"with": {"ewc": {}}}}, grid=grid)
    with pytest.raises(UserError, match=r"with\.l2sp\.strength: unknown key"):
        read_order(path)


def test_no_option_is_a_boolean_of_yaml():
    for name in [*PARTS, *METHODS]:
        cls = type(made(name, **PARTS[name])) if name in PARTS else class_of(name)
        for field in dataclasses.fields(cls.Config):
            assert yaml.safe_load(field.name) == field.name


@pytest.mark.parametrize("word", ["true", "off", "no", "null", "~", "12", "a: b"])
def test_no_choice_is_something_else_in_yaml(word):
    with pytest.raises(ValueError, match="YAML reads the choice"):
        option("keep", choices=("keep", word))


def test_parts_that_would_do_nothing_are_refused(tiny_model, tmp_path):
    """A method without a trainer, and one that draws examples of its own."""
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]

    class Bare(SFT):
        def learn(self, stage):
            for _ in stage.steps():
                pass

    class Own(SFT):
        def learn(self, stage):
            for _ in stage.steps(examples=stage.examples):
                pass

    class Alone(SFT):
        def learn(self, stage):
            trainer = Trainer(stage, self.config)
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                step.log(**trainer.token_mean(rows, cross_entropy), **trainer.update())
            trainer.close()

    config = TrainingConfig()
    changes = {"load_start": lambda of: tiny_model[0]}
    stage = learned(Alone(config), model, tokenizer, [made("wise_ft")], tmp_path / "c", **changes)
    with pytest.raises(UserError, match="parts act through a Trainer, and learn"):
        check_done(stage, "methods.alone")
    stage = learned(Bare(config), model, tokenizer, [Every()], tmp_path / "a")
    with pytest.raises(UserError, match="parts act through a Trainer, and learn"):
        check_done(stage, "methods.bare")
    with pytest.raises(UserError, match=r"gives stage\.steps\(\) examples of its own"):
        learned(Own(config), model, tokenizer, [Every()], tmp_path / "b")


def test_a_killed_run_with_parts_goes_on_and_is_on_record(order_file, tmp_path, monkeypatch):
    mine = str(ROOT / "docs/examples/my_part.py")
    parts = {
        "replay": {"ratio": 0.5, "content": "own", "mix": "after"},
        "ewc": {"examples": 2},
        "anchor": {"along": "own_answers"},
        "tether": {"file": mine},
    }
    path = order_file(
        methods={"sft": {"learning_rate": 1e-3, "with": parts}},
        evaluate={},
        checkpoints={"minutes": 0, "keep": "all"},
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_order(read_order(path), whole)
    real, seen = Trainer.update, [0]

    def struck(trainer):
        seen[0] += 1
        if seen[0] == 5:
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", struck)
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(path), cut)
        run_order(read_order(path), cut)
    run = "runs/sft-seed0/stage-2"
    one, other = (
        load_model(str(out / run / "weights"), "float32", "cpu")[0].state_dict()
        for out in (whole, cut)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    stages = [read_json(out / run / "stage.json") for out in (whole, cut)]
    assert stages[0]["prompts"] == stages[1]["prompts"] == 18
    assert stages[0]["tokens"] == stages[1]["tokens"]
    rows = read_lines(cut / run / "training.jsonl")
    assert len(rows) == 5 and [row["replayed"] for row in rows[3:]] == [4, 2]
    assert read_json(whole / "runs/sft-seed0/stage-1/stage.json")["kept_bytes"] > 0
    about = read_json(whole / "results.json")["methods"]["sft"]
    assert about["with"]["replay"]["ratio"] == 0.5
    assert about["with"]["tether"] == {"share": 0.1, "file": mine}
    assert list(about["files"]) == ["with.tether.file"]
    start, end = (
        load_model(str(whole / f"runs/sft-seed0/stage-{k}/weights"), "float32", "cpu")[0]
        for k in (1, 2)
    )
    for name, weight in start.named_parameters():
        moved = (end.get_parameter(name) - weight).abs().max()
        assert 0 < moved <= 0.1 * weight.abs().mean() * 1.0001, name
    # What --plan says of it
    costs = []
    estimate = harness.runs.plan.estimate_order
    monkeypatch.setattr(
        harness.runs.plan, "estimate_order", lambda *a: costs.append(estimate(*a)) or costs[-1]
    )
    plan(read_order(path), tmp_path / "other")
    assert [stage.steps for stage in costs[0].stages] == [3, 5]
    assert costs[0].stages[1].kept == 0  # no stage reads it
    kept = read_json(whole / "runs/sft-seed0/stage-1/stage.json")["kept_bytes"]
    assert costs[0].stages[0].kept == pytest.approx(kept, rel=0.25)
    costs.clear()
    plain = order_file("plain.yaml", methods={"sft": {"learning_rate": 1e-3}}, evaluate={})
    plan(read_order(plain), tmp_path / "other")
    free = costs[0].stages[0]
    assert (free.steps, free.kept) == (3, 0)
