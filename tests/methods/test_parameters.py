"""Parametrisations against PEFT's layers under PyTorch's AdamW; resume, refusals, what is saved.

    ALL_PARTS=1 python -m pytest tests/methods/test_parameters.py

cuts off every method with an adapter, where otherwise some do, and SFT with every single part and
parametrisation, where otherwise all parts that can join do at once.
"""

import copy
import os
from contextlib import nullcontext
from dataclasses import fields

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import harness.runs.plan
from harness.base.errors import UserError
from harness.base.files import ROOT, read_json
from harness.learning.lessons import Lesson
from harness.learning.parametrisation import get_parametrisation
from harness.learning.part import get_part, lacking
from harness.learning.starts import EarlierWeights
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer, TrainingConfig, cross_entropy, learning
from harness.models.load import load_model
from harness.models.size import product_weights
from harness.runs.listing import LISTINGS
from harness.runs.methods import beside
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import read_lines
from tests.learning.test_training import Letters, make_stage, some_rows
from tests.methods.test_parts import METHODS, PARTS, Numbers, assert_same, method
from tests.methods.test_parts import made as made_part
from tests.methods.test_penalties import moved

PLAIN = {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0}


def made(name, **options):
    cls = get_parametrisation(name, None, "test")
    return cls(cls.Config(**options))


@pytest.fixture(scope="module")
def gpt2():
    """Two layers whose linear maps hold [inputs, outputs]."""
    torch.manual_seed(0)
    size = {"vocab_size": 264, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(**size, **dropout, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def biased(tiny_model):
    """The tiny model with biases in all linear maps, as Qwen2 has some; a head of its own."""
    config = copy.deepcopy(tiny_model[0].config)
    config.attention_bias = config.mlp_bias = True
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
    return model


@pytest.fixture(params=["llama", "gpt2"])
def any_model(request, biased, gpt2):
    return copy.deepcopy(biased if request.param == "llama" else gpt2)


def loss_of(model, rows):
    """The mean of -log p over completion tokens, row by row."""
    total = torch.zeros(())
    for row in rows:
        logits = model(torch.tensor([row.prompt + row.completion])).logits[0]
        tail = logits[len(row.prompt) - 1 : -1].float()
        total = total + F.cross_entropy(tail, torch.tensor(row.completion), reduction="sum")
    return total / sum(len(row.completion) for row in rows)


def with_layers(model, config, numbers):
    """PEFT's layers on a copy of ``model``, and their trained tensors by the harness's names."""
    oracle = peft.get_peft_model(copy.deepcopy(model), config)
    own = {
        name.removeprefix("base_model.model.").replace(".default", ""): weight
        for name, weight in oracle.named_parameters()
        if weight.requires_grad
    }
    own = {n if n.endswith(".weight") else f"{n}.weight": w for n, w in own.items()}
    assert own.keys() == numbers.keys()
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(numbers[name])
    return oracle.eval(), own


def near(tensor, reference, share):
    """Whether the difference has at most this share of the reference's norm.

    Not each number: AdamW's first steps have the gradient's sign, and where that is near 0 it is
    the processor's.
    """
    return (tensor - reference).norm() <= share * reference.norm() + 1e-7


def learn_as_peft(stage, oracle, own):
    """Five steps of both: losses, gradients, and the numbers at the end."""
    adamw = torch.optim.AdamW(own.values(), lr=PLAIN["learning_rate"], weight_decay=0.1)
    rows = some_rows(6)
    with learning(stage, TrainingConfig(**PLAIN, weight_decay=0.1)) as trainer:
        for _ in range(5):
            expected = loss_of(oracle, rows)
            expected.backward()
            count = sum(len(row.completion) for row in rows)
            loss = trainer.backward(rows, lambda x, at: cross_entropy(x, at.tokens) / count)
            assert loss == pytest.approx(expected.item(), rel=1e-5)
            for name, weight in own.items():
                assert near(trainer.masters[name].grad, weight.grad, 2e-4)
            torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
            adamw.step()
            adamw.zero_grad()
            trainer.update()
        for name, weight in own.items():
            assert near(trainer.masters[name], weight, 5e-4)


OPTIONS = {
    "lora": ({"rank": 4, "alpha": 12}, {"r": 4, "lora_alpha": 12}),
    "dora": ({"rank": 2}, {"r": 2, "lora_alpha": 4, "use_dora": True}),
    "pissa": ({"rank": 4}, {"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}),
    "rslora": (
        {"rank": 3, "rslora": True},
        {"r": 3, "lora_alpha": 6, "use_rslora": True},
    ),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_gradients_and_steps_are_those_of_peft(any_model, tiny_model, kind):
    """Five steps: losses, gradients of the first, numbers, merged weights."""
    given, wanted = OPTIONS[kind]
    parameters = made(kind.replace("rs", ""), **given)
    is_gpt2 = isinstance(any_model, GPT2LMHeadModel)
    stage = make_stage(any_model, tiny_model[1], parameters=parameters, sampler=None)
    before = copy.deepcopy(any_model)
    parameters.begin(stage)
    config = peft.LoraConfig(
        target_modules="all-linear", fan_in_fan_out=is_gpt2, bias="none", **wanted
    )
    oracle, own = with_layers(before, config, parameters.numbers)
    assert parameters.size(before).numbers == sum(w.numel() for w in own.values())
    learn_as_peft(stage, oracle, own)
    parameters.end(stage)
    merged = dict(oracle.merge_and_unload().named_parameters())
    moved = 0
    for name, weight in any_model.named_parameters():
        assert near(weight, merged[name], 2e-4)
        moved += not torch.equal(weight, before.get_parameter(name))
    assert moved == len(parameters.trained(any_model))
    assert all(weight.requires_grad for weight in any_model.parameters())


@pytest.mark.parametrize("kind", ["pissa", "milora"])
def test_a_start_of_singular_values_is_that_of_the_papers(any_model, tiny_model, kind):
    """The best and the worst approximation of rank 3, by NumPy; the weights are as they were."""
    before, parameters = copy.deepcopy(any_model), made(kind, rank=3, alpha=12)
    stage = make_stage(any_model, tiny_model[1], parameters=parameters, sampler=None)
    parameters.begin(stage)
    for name in parameters.trained(before):
        path, weight = name.removesuffix("weight"), before.get_parameter(name).detach().numpy()
        weight = weight.T if isinstance(before, GPT2LMHeadModel) else weight
        u, values, v = np.linalg.svd(weight.astype(float), full_matrices=False)
        at = slice(3) if kind == "pissa" else slice(-3, None)
        wanted = (u[:, at] * values[at]) @ v[at]
        down, up = (parameters.numbers[f"{path}lora_{each}.weight"] for each in "AB")
        np.testing.assert_allclose(4 * (up @ down).numpy(), wanted, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))
    with learning(stage, TrainingConfig()) as trainer:
        parameters.write(trainer.params, trainer.masters)
        assert_same(dict(any_model.state_dict()), dict(before.state_dict()))


def test_a_new_adapter_begins_as_peft_has_it(tiny_model):
    """Uniform in +-1 / sqrt(inputs), another one in each stage and run, and B 0."""
    model, parameters, seen = copy.deepcopy(tiny_model[0]), made("lora"), []
    for changes in ({}, {"index": 2}, {"seed": 2}, {}):
        stage = make_stage(model, tiny_model[1], parameters=parameters, **changes)
        parameters.begin(stage)
        seen.append(parameters.numbers)
        parameters.end(stage)
    assert_same(seen[0], seen[3])
    name = "model.layers.1.mlp.down_proj.lora_A.weight"
    assert seen[0][name].shape == (8, 64)
    for numbers in seen:
        assert 0.9 * 64**-0.5 < numbers[name].abs().max() <= 64**-0.5
        assert not numbers[name.replace("_A", "_B")].any()
    assert not torch.equal(seen[0][name], seen[1][name])
    assert not torch.equal(seen[0][name], seen[2][name])
    assert_same(dict(model.named_parameters()), dict(tiny_model[0].named_parameters()))


def test_a_pass_computes_no_gradient_of_whole_weights(tiny_model):
    """A third of the products of the linear maps is saved, but for what A and B take."""
    flops = {}
    for name, options in (("all", {}), ("lora", {"rank": 1}), ("dora", {"rank": 1})):
        model, parameters = copy.deepcopy(tiny_model[0]), made(name, **options)
        stage = make_stage(model, tiny_model[1], parameters=parameters)
        parameters.begin(stage)
        with (
            learning(stage, TrainingConfig(**PLAIN)) as trainer,
            FlopCounterMode(display=False) as counter,
        ):
            trainer.token_mean(some_rows(6), cross_entropy)
        flops[name] = counter.get_total_flops()
        assert not any("forward" in vars(module) for module in model.modules())
    assert flops["lora"] < 0.8 * flops["all"] and flops["dora"] > 0.9 * flops["all"]


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "olora", "osf"])
def test_bfloat16_weights_are_the_rounded_ones_of_float32(tiny_model, name):
    """Numbers of a bfloat16 model in host memory learn as those of a float32 model, nearly: its
    weights are what the numbers make, up to the distance of two weights.
    """
    rows, losses = some_rows(6), {}
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(tiny_model[0]).to(torch.bfloat16).to(dtype)
        parameters = made(name)
        stage = make_stage(model, tiny_model[1], parameters=parameters)
        parameters.begin(stage)
        with learning(stage, TrainingConfig(**PLAIN, masters="host")) as trainer:
            losses[dtype] = []
            for _ in range(6):
                losses[dtype].append(trainer.token_mean(rows, cross_entropy)["loss"])
                trainer.update()
            assert all(master.dtype == torch.float32 for master in trainer.masters.values())
            for weight, effective in trainer.effective():
                off = (model.get_parameter(weight).float() - effective).abs()
                distance = 2**-7 * effective.abs()  # of two weights, at least
                assert (off <= (distance if dtype == torch.bfloat16 else 0)).all()
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.01)
    assert losses[torch.float32][-1] < 0.9 * losses[torch.float32][0]


def test_a_continued_adapter_wants_weights_that_nobody_changes(tiny_model):
    for adapter, is_refused in (("merged", False), ("continued", True)):
        model, parameters = copy.deepcopy(tiny_model[0]), made("lora", adapter=adapter)
        stage = make_stage(model, tiny_model[1], parameters=parameters)
        parameters.begin(stage)
        method("sft").learn(stage)
        with torch.no_grad():
            model.get_parameter(parameters.trained(model)[3]).mul_(1.01)
        with (
            pytest.raises(UserError, match="take adapter: merged") if is_refused else nullcontext()
        ):
            parameters.end(stage)


# ---- resume -------------------------------------------------------------------------------------

KINDS = {
    "merged": ("lora", {"rank": 4}),
    "continued": ("lora", {"rank": 4, "adapter": "continued"}),
    "freeze": ("freeze", {"layers": "last 1"}),
    "dora": ("dora", {"rank": 2, "adapter": "continued"}),
    "milora": ("milora", {"rank": 2, "adapter": "continued"}),
    "olora": ("olora", {"rank": 2}),
    "osf": ("osf", {"preserved": 0.25, "growth": 0.25}),
}


def two_stages(name, kind, base, tokenizer, folder, cut=None, names=()):
    """The model after two stages of a method, and the rows of the log.

    cut: (stage, step) after which everything is made again, as a resume does; names: of the parts
    that join.
    """
    chosen, options = KINDS[kind]
    parameters, model = made(chosen, **options), copy.deepcopy(base)
    parts = [made_part(part, **PARTS[part]) for part in names]
    logs, starts, kept = [], {"run": base}, {}

    def on_step(stage, step):
        logs.append({k: v for k, v in step.logged.items() if k != "seconds"})
        if (stage.index, stage.step) == cut and not kept:
            kept["stage"] = copy.deepcopy(stage.state_dict())
            kept["weights"] = copy.deepcopy(parameters.checkpoint(model))
            kept["model"] = copy.deepcopy(dict(model.state_dict()))
            raise InterruptedError

    for index in (1, 2):
        starts["stage"], memory = copy.deepcopy(model), copy.deepcopy(parameters.state_dict())
        memories = [copy.deepcopy(part.state_dict()) for part in parts]
        restored = None
        while True:
            stage = make_stage(
                model,
                tokenizer,
                skill=Numbers(),
                index=index,
                earlier=[Lesson(Letters(), 5)][: index - 1],
                later=2 - index,
                phases=method(name).phases(12),
                parameters=parameters,
                load_start=lambda of: copy.deepcopy(starts[of]),
                restored=restored,
                parts=parts,
                on_step=on_step,
                folder=folder / str(index),
            )
            stage.folder.mkdir(parents=True, exist_ok=True)
            parameters.begin(stage)
            if restored:
                parameters.restore(model, kept["weights"])
                assert_same(dict(model.state_dict()), kept["model"])
            try:
                for part in parts:
                    part.begin(stage)
                method(name).learn(stage)
            except InterruptedError:
                restored = kept["stage"]
                model, parameters = copy.deepcopy(starts["stage"]), made(chosen, **options)
                parameters.load_state_dict(memory)
                parts = [made_part(part, **PARTS[part]) for part in names]
                for part, state in zip(parts, memories, strict=True):
                    part.load_state_dict(copy.deepcopy(state))
                continue
            break
        for part in parts:
            part.end(stage)
        parameters.end(stage)
        stage.close()
    return model, logs


CUT = {
    "sft": tuple(KINDS),
    "sdft": ("merged", "continued"),
    "grpo": ("merged", "continued"),
    "sft_reinvoke": ("merged",),
    "sdft_trust_region": ("continued",),
}
if os.environ.get("ALL_PARTS"):
    CUT |= {name: ("merged", "continued") for name in METHODS if name not in ("sft", "trl")}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in CUT for kind in CUT[name]])
def test_a_cut_off_stage_is_the_same(tiny_model, tmp_path, name, kind):
    base, tokenizer = tiny_model
    whole, logs = two_stages(name, kind, base, tokenizer, tmp_path / "a")
    steps = len(logs) // 2
    for cut in [(1, 2), (2, steps - 1)] if name == "sft" else [(2, steps - 1)]:
        model, again = two_stages(name, kind, base, tokenizer, tmp_path / str(cut), cut)
        assert again == logs
        for key, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key
    frozen = [
        n for n, weight in whole.named_parameters() if torch.equal(weight, base.get_parameter(n))
    ]
    assert set(frozen) == {n for n, _ in base.named_parameters()} - set(
        made(KINDS[kind][0], **KINDS[kind][1]).trained(base)
    )


def joining(kind):
    """The parts that can join SFT beside a parametrisation; each alone where all are tried."""
    trained = made(KINDS[kind][0], **KINDS[kind][1])
    parts = {name: made_part(name, **options) for name, options in PARTS.items()}
    able = [
        name
        for name, part in parts.items()
        if not lacking(type(part), type(method("sft"))) and not beside(part, trained)
    ]
    return [able, *([[part] for part in able] if os.environ.get("ALL_PARTS") else [])]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (kind, names)
        for kind in (KINDS if os.environ.get("ALL_PARTS") else ("merged", "osf", "freeze"))
        for names in joining(kind)
    ],
)
def test_a_cut_off_stage_with_parts_is_the_same(tiny_model, tmp_path, kind, names):
    base, tokenizer = tiny_model
    whole, logs = two_stages("sft", kind, base, tokenizer, tmp_path / "a", names=names)
    cut = (2, len(logs) // 2 - 1)
    model, again = two_stages("sft", kind, base, tokenizer, tmp_path / "b", cut, names)
    assert again == logs
    for key, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_osf_with_projected_gradients_is_pefts(tiny_model):
    model, parameters = copy.deepcopy(tiny_model[0]), made("osf", preserved=0.6, project="gradient")
    stage = make_stage(model, tiny_model[1], parameters=parameters)
    config = peft.OSFConfig(target_modules="all-linear", effective_rank=0.6)
    oracle = peft.get_peft_model(copy.deepcopy(model), config)
    own = [weight for weight in oracle.parameters() if weight.requires_grad]
    assert parameters.size(model).numbers == sum(weight.numel() for weight in own)
    adamw = torch.optim.AdamW(own, lr=PLAIN["learning_rate"], weight_decay=0)
    parameters.begin(stage)
    rows = some_rows(6)
    with learning(stage, TrainingConfig(**PLAIN)) as trainer:
        for _ in range(4):
            loss = trainer.token_mean(rows, cross_entropy)["loss"]
            norm = trainer.update()["grad_norm"]
            expected = loss_of(oracle, rows)
            expected.backward()
            assert loss == pytest.approx(expected.item(), rel=1e-4)
            wanted = torch.nn.utils.clip_grad_norm_(own, 1.0)
            assert norm == pytest.approx(wanted.item(), rel=1e-3)
            adamw.step()
            adamw.zero_grad()


def test_osf_leaves_what_it_preserves(any_model, tiny_model):
    """The block of the large singular values is that of the start, and the weight has moved."""
    before, parameters = copy.deepcopy(any_model), made("osf", preserved=0.6)
    stage = make_stage(any_model, tiny_model[1], parameters=parameters, sampler=None)
    parameters.begin(stage)
    with learning(stage, TrainingConfig(**PLAIN)) as trainer:
        for _ in range(4):
            trainer.token_mean(some_rows(6), cross_entropy)
            trainer.update()
    parameters.end(stage)
    for name in parameters.trained(any_model):
        weight, old = (m.get_parameter(name).detach().double() for m in (any_model, before))
        if isinstance(before, GPT2LMHeadModel):
            weight, old = weight.T, old.T
        u, values, v = torch.linalg.svd(old, full_matrices=False)
        k = int(0.6 * len(values))
        kept = u[:, :k].T @ weight @ v[:k].T
        torch.testing.assert_close(kept, torch.diag(values[:k]), rtol=1e-5, atol=1e-5)
        assert (weight - old).abs().max() > 1e-3


def test_olora_is_its_formula(tiny_model):
    """Gradient and losses of the third adapter, by autograd; the state is A of the two before."""
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    parameters, old = made("olora", rank=2, lambda_1=0.7, lambda_2=0.3), []
    for index in (1, 2, 3):
        stage = make_stage(model, tokenizer, parameters=parameters, index=index)
        parameters.begin(stage)
        method("sft").learn(stage)
        if index < 3:
            old.append({n: v.detach().clone() for n, v in parameters.numbers.items()})
            parameters.end(stage)
            again = made("olora", rank=2, lambda_1=0.7, lambda_2=0.3)
            again.load_state_dict(copy.deepcopy(parameters.state_dict()))
            parameters = again
    numbers = {n: v.detach().double().requires_grad_() for n, v in parameters.numbers.items()}
    total = 0.3 * sum(value.norm() for value in numbers.values())
    for name, value in numbers.items():
        if "lora_A" in name:
            for each in old:
                total = total + 0.7 * (each[name].double() @ value.T).abs().sum()
    total.backward()
    with learning(stage, TrainingConfig()) as trainer:
        logged = parameters.loss(trainer.masters)
        for name, master in trainer.masters.items():
            torch.testing.assert_close(
                master.grad.double(), numbers[name].grad, rtol=1e-4, atol=1e-6
            )
    assert logged["olora_loss"] == pytest.approx(total.item(), rel=1e-5)
    downs = [value.detach() for name, value in numbers.items() if "lora_A" in name]
    assert logged["adapter_norm"] == pytest.approx(float(sum(a.norm() ** 2 for a in downs)) ** 0.5)
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(parameters.earlier[name], torch.cat([each[name] for each in old]))
    assert 0 < logged["overlap"] < 1


def test_olora_makes_adapters_orthogonal(tiny_model):
    overlaps = {}
    for weight in (0.0, 5.0):
        model, parameters = copy.deepcopy(tiny_model[0]), made("olora", rank=2, lambda_1=weight)
        for index in (1, 2):
            logs = []
            stage = make_stage(
                model,
                tiny_model[1],
                parameters=parameters,
                index=index,
                phases=[60],
                on_step=lambda s, t, logs=logs: logs.append(t.logged["overlap"]),
            )
            parameters.begin(stage)
            method("sft").learn(stage)
            parameters.end(stage)
        overlaps[weight] = logs[0], logs[-1]
    assert overlaps[0.0][0] == overlaps[5.0][0]
    assert overlaps[5.0][1] < 0.3 * overlaps[0.0][1]


def test_a_continued_adapter_is_of_one_low_rank(tiny_model, tmp_path):
    base, tokenizer = tiny_model
    name = "model.layers.0.mlp.up_proj.weight"
    ranks = {}
    for kind in ("merged", "continued"):
        model, _ = two_stages("sft", kind, base, tokenizer, tmp_path / kind)
        change = (model.get_parameter(name) - base.get_parameter(name)).detach().double()
        ranks[kind] = int(torch.linalg.matrix_rank(change, atol=1e-5))
    assert ranks == {"merged": 8, "continued": 4}


# ---- parts and teachers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l2sp", "ewc"])
def test_a_penalty_is_of_the_weights_that_numbers_make(tiny_model, name):
    """Its gradient is that of (strength / 2) sum F (W - W*)^2 through B A, by autograd."""
    base, tokenizer = tiny_model
    model, start, parameters = copy.deepcopy(base), copy.deepcopy(base), made("lora", rank=2)
    cls = get_part(name, None, "test")
    part = cls(cls.Config(strength=3.0))
    stage = make_stage(
        model, tokenizer, parts=[part], parameters=parameters, load_start=lambda of: start
    )
    parameters.begin(stage)
    if name == "ewc":
        part.fisher = {n: base.get_parameter(n).detach() ** 2 for n in parameters.trained(base)}
    with learning(stage, TrainingConfig(**PLAIN)) as trainer:
        with torch.no_grad():
            for master in trainer.masters.values():
                master.add_(0.01)
        logged = part.loss(trainer, None)
        numbers = {n: m.detach().requires_grad_() for n, m in trainer.masters.items()}
        total = 0.0
        for weight in parameters.trained(base):
            path = weight.removesuffix("weight")
            change = 2 * numbers[f"{path}lora_B.weight"] @ numbers[f"{path}lora_A.weight"]
            share = 1.0 if name == "l2sp" else part.fisher[weight]
            total = total + 1.5 * (share * change**2).sum()
        total.backward()
        for number, master in trainer.masters.items():
            torch.testing.assert_close(master.grad, numbers[number].grad, rtol=1e-3, atol=1e-6)
        assert logged[f"{name}_loss"] == pytest.approx(total.item(), rel=1e-4)


def test_fisher_information_is_of_the_weights(tiny_model, tmp_path):
    """EWC with an adapter that has not moved has that of all weights, of those that it changes."""
    base, tokenizer = tiny_model
    fishers = []
    for parameters in (made("all"), made("lora")):
        model = copy.deepcopy(base)
        cls = get_part("ewc", None, "test")
        part = cls(cls.Config(examples=3, fisher="empirical"))
        stage = make_stage(
            model, tokenizer, parts=[part], parameters=parameters, folder=tmp_path, later=1
        )
        parameters.begin(stage)
        stage.training = TrainingConfig()
        part.end(stage)
        parameters.end(stage)
        fishers.append(part.fisher)
    whole, own = fishers
    assert list(own) == made("lora").trained(base)
    ratios = [float((own[n] / whole[n].clamp(min=1e-30)).median()) for n in own]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-4)  # each divided by its own mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_averages_the_numbers_and_has_no_model_of_its_own(tiny_model, dtype):
    base, tokenizer = copy.deepcopy(tiny_model[0]).to(dtype), tiny_model[1]
    parameters = made("lora", rank=2)
    stage = make_stage(base, tokenizer, parameters=parameters)
    parameters.begin(stage)
    rows, config = some_rows(4), TrainingConfig(**{**PLAIN, "learning_rate": 0.05})
    with learning(stage, config) as trainer:
        frozen = Teacher(stage, 0, 1024, name="frozen")
        average = Teacher(stage, 0.5, 1024)
        assert frozen.model is base and average.model is base
        before = frozen.states(rows)
        expected = {n: m.detach().clone() for n, m in trainer.masters.items()}
        for _ in range(2):
            trainer.token_mean(rows, cross_entropy)
            trainer.update()
            for teacher in (frozen, average):
                teacher.follow(trainer.masters)
            for name, master in trainer.masters.items():
                expected[name] = expected[name] + 0.5 * (master.detach() - expected[name])
        weights = copy.deepcopy(base.state_dict())
        for state, was in zip(frozen.states(rows), before, strict=True):
            assert torch.equal(state, was)
        states = average.states(rows)
        assert_same(dict(base.state_dict()), dict(weights))
        for name, value in average.state_dict()["weights"].items():
            torch.testing.assert_close(value, expected[name])
        other = copy.deepcopy(base)
        for name in parameters.trained(base):
            path = name.removesuffix("weight")
            change = expected[f"{path}lora_B.weight"] @ expected[f"{path}lora_A.weight"]
            start = tiny_model[0].get_parameter(name).to(dtype).float()
            with torch.no_grad():
                other.get_parameter(name).copy_(start + 2 * change)
        copied = Teacher(stage, 0, 1024, model=other).states(rows)
        tolerance = (
            {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
        )
        for state, wanted in zip(states, copied, strict=True):
            torch.testing.assert_close(state, wanted, **tolerance)


# ---- in an order --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "parts", "problem"),
    [
        ("lorra", {}, "parameters: unknown parametrisation 'lorra'; did you mean 'lora'?"),
        ({"lora": {}, "freeze": {}}, {}, "parameters: must name one parametrisation"),
        (["lora"], {}, "parameters: must name one parametrisation"),
        (8, {}, "parameters: must name one parametrisation"),
        ({"lora": 8}, {}, "parameters.lora: must be a mapping of options"),
        ({"lora": {"rank": 0}}, {}, "parameters.lora: rank: "),
        ({"lora": {"ranks": 4}}, {}, "parameters.lora: ranks: unknown key; did you mean 'rank'?"),
        ({"lora": {"adapter": "kept"}}, {}, "adapter: unknown value 'kept'"),
        ({"lora": {"targets": []}}, {}, "parameters.lora: targets is an empty list"),
        ({"freeze": {"layers": "top 3"}}, {}, "layers: 'top 3' is not as `last 4` or `8-15`"),
        ({"all": {"rank": 8}}, {}, "parameters.all: rank: unknown key"),
        ("lora", {"l2sp": {"coupled": False}}, "with.l2sp: cannot join parameters: lora: coupled"),
        ("lora", {"ewc": {"coupled": False}}, "with.ewc: cannot join parameters: lora: coupled"),
        (
            "lora",
            {"tether": {"file": str(ROOT / "docs/examples/my_part.py")}},
            "with.tether: cannot join parameters: lora: update() is of weights that are trained",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(order_file, parameters, parts, problem):
    path = order_file(methods={"sft": {"parameters": parameters, "with": parts}})
    with pytest.raises(UserError) as error:
        read_order(path)
    assert problem in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (
            {"lora": {"targets": ["q_proj", "qq"]}},
            "parameters.lora: targets: the model has no linear map 'qq'; it has down_proj",
        ),
        ({"freeze": {"layers": "last 3"}}, "layers: 'last 3' is not within the model's 2 layers"),
        ({"freeze": {"layers": "1-2"}}, "layers: '1-2' is not within the model's 2 layers"),
    ],
)
def test_what_the_model_has_not_is_said_before_a_folder_is_begun(
    order_file, tmp_path, parameters, problem
):
    path = order_file(methods={"sft": {"parameters": parameters}})
    for start in (run_order, plan):
        with pytest.raises(UserError) as error:
            start(read_order(path), tmp_path / "out")
        assert problem in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


MINE = """
from harness.learning.parametrisation import Parametrisation

class Norms(Parametrisation):
    def trained(self, model):
        return [name for name in super().trained(model) if "norm" in name]
"""


def test_a_loop_of_its_own_trains_no_adapter(order_file):
    path = order_file(methods={"trl": {"trainer": "SFTTrainer", "parameters": "lora"}})
    with pytest.raises(UserError, match="parameters: trl has a training loop of its own"):
        read_order(path)


def test_names_alone_options_and_a_file_of_the_users(order_file, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    names = [name for name, _ in LISTINGS["parameters"]()]
    assert names == ["all", "dora", "freeze", "lora", "milora", "olora", "osf", "pissa"]
    methods = {name: {"method": "sft", "parameters": name} for name in names}
    methods |= {f"{name}_0": {"method": "sft", "parameters": {name: {}}} for name in names}
    mine = {"mine": {"file": "mine.py"}}
    order = read_order(
        order_file(methods={**methods, "mine": {"method": "sft", "parameters": mine}, "sft": {}})
    )
    about = order.about()["methods"]
    for name in names:
        assert about[name].get("parameters") == about[f"{name}_0"].get("parameters")
    assert about["all"] == about["sft"]
    assert list(about["mine"]["files"]) == ["parameters.mine.file"]
    assert about["mine"]["parameters"] == mine
    run_order(
        read_order(order_file(methods={"mine": {"method": "sft", "parameters": mine}})),
        tmp_path / "out",
    )
    base, end = (
        load_model(str(folder), "float32", "cpu")[0]
        for folder in (order.model.name, tmp_path / "out/runs/mine-seed0/stage-2/weights")
    )
    for name, weight in base.named_parameters():
        assert torch.equal(weight, end.get_parameter(name)) == ("norm" not in name), name


def test_freeze_lets_learn_what_it_says(tiny_model, gpt2):
    def names(model=tiny_model[0], **options):
        return made("freeze", **options).trained(model)

    every = [name for name, _ in tiny_model[0].named_parameters()]
    assert names() == [n for n in every if "embed" not in n]
    assert names(embeddings=True) == every
    assert names(layers="first 1") == [n for n in every if ".0." in n]
    assert names(layers="1-1", modules="attention") == [n for n in every if "1.self_attn" in n]
    assert names(modules="mlp", embeddings=True) == [n for n in every if "mlp" in n or "embed" in n]
    assert names(gpt2, layers="last 1", modules="attention") == [
        n for n, _ in gpt2.named_parameters() if "h.1.attn" in n
    ]


def test_a_grid_goes_over_options_of_parametrisations(order_file):
    grid = {"sft": {"parameters.lora.rank": [2, 4]}}
    for given in ("lora", {"lora": {"alpha": 8}}):
        path = order_file(methods={"sft": {"parameters": given}}, grid=grid)
        specs = read_order(path).methods
        assert list(specs) == ["sft.parameters.lora.rank-2", "sft.parameters.lora.rank-4"]
        assert [spec.parameters.config.rank for spec in specs.values()] == [2, 4]


def test_a_killed_run_goes_on_and_is_on_record(order_file, tmp_path, monkeypatch):
    """Both kinds of adapter and a penalty through the command's loop, cut off in each stage."""
    methods = {
        "continued": {
            "method": "sft",
            "learning_rate": 1e-2,
            "parameters": {"lora": {"rank": 2, "adapter": "continued"}},
            "with": {"ewc": {"examples": 2}},
        },
        "merged": {"method": "sdft", "learning_rate": 1e-2, "parameters": "lora"},
    }
    path = order_file(
        methods=methods, evaluate={"every_steps": 2}, checkpoints={"minutes": 0, "keep": "all"}
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_order(read_order(path), whole)
    real, seen = Trainer.update, [0]

    def struck(trainer):
        seen[0] += 1
        if seen[0] in (6, 13):  # in the second stage of both runs
            raise KeyboardInterrupt
        return real(trainer)

    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", struck)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_order(read_order(path), cut)
            saved += [file.stat().st_size for file in cut.rglob("checkpoint/state.pt")]
        run_order(read_order(path), cut)
    for run in ("continued-seed0", "merged-seed0"):
        for stage in (1, 2):
            one, other = (
                load_model(str(out / f"runs/{run}/stage-{stage}/weights"), "float32", "cpu")[0]
                for out in (whole, cut)
            )
            assert_same(dict(one.state_dict()), dict(other.state_dict()))
        lines = [
            [{**row, "seconds": 0} for row in read_lines(out / f"runs/{run}/stage-2/records.jsonl")]
            for out in (whole, cut)
        ]
        assert lines[0] == lines[1]
        sizes = read_json(whole / f"runs/{run}/stage-2/stage.json")
        rank = {"continued-seed0": 2, "merged-seed0": 8}[run]
        model = load_model(str(whole / f"runs/{run}/stage-2/weights"), "float32", "cpu")[0]
        adapters = made("lora", rank=rank).size(model).numbers
        n, learned = product_weights(model), sizes["learned_tokens"]
        others = sizes["tokens"] - learned
        assert sizes["flops"] == (4 * n + 6 * adapters) * learned + 2 * n * others
    about = read_json(whole / "results.json")["methods"]
    assert about["continued"]["parameters"]["lora"]["adapter"] == "continued"
    assert about["merged"]["parameters"]["lora"]["rank"] == 8
    for change, said in [
        (
            "merged.parameters={lora: {rank: 4}}",
            r"merged\.parameters\.lora\.rank` was 8 and is now 4",
        ),
        ("merged.parameters=all", r"merged\.parameters` was \{"),
        ("continued.with={ewc: {examples: 3}}", r"with\.ewc\.examples` was 2 and is now 3"),
    ]:
        with pytest.raises(UserError, match=said):
            run_order(read_order(path, [f"methods.{change}"]), whole)
    # A checkpoint has no weights of the model, but three or four float32 tensors for A and B.
    sizes = {"continued": 2048, "merged": 8192}
    assert all(size < 4 * 4 * sizes["merged"] + 100_000 for size in saved)
    memory = torch.load(whole / "runs/continued-seed0/stage-1/method.pt", weights_only=True)
    numbers = memory["parameters"]["numbers"]
    assert sum(value.numel() for value in numbers.values()) == sizes["continued"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_adapter_saves(tiny_model, tmp_path, dtype):
    """Masters, gradients, moments and checkpoints hold A and B alone, the teacher as well."""
    sizes = {}
    for name in ("all", "lora"):
        model = copy.deepcopy(tiny_model[0]).to(dtype)
        parameters, states = made(name, **({"rank": 2} if name == "lora" else {})), []
        stage = make_stage(
            model,
            tiny_model[1],
            parameters=parameters,
            on_step=lambda s, t, p=parameters, m=model, states=states: states.append(
                copy.deepcopy({"stage": s.state_dict(), "model": p.checkpoint(m)})
            ),
        )
        parameters.begin(stage)
        method("sdft").learn(stage)
        trainer, teacher = (states[0]["stage"]["kept"][kept] for kept in ("trainer", "teacher"))
        moments = [m[key] for m in trainer["moments"].values() for key in ("exp_avg", "exp_avg_sq")]
        held = [*trainer["masters"].values(), *moments, *teacher["weights"].values()]
        assert all(tensor.dtype == torch.float32 for tensor in held)
        sizes[name] = (
            sum(tensor.numel() for tensor in held),
            sum(
                value.numel()
                for value in (states[0]["model"].get("numbers") or model.state_dict()).values()
            ),
        )
    assert sizes["all"][0] == 4 * 26912
    assert sizes["lora"] == (4 * 2048, 2048)


def test_plan_knows_what_an_adapter_costs(order_file, tiny, tmp_path, monkeypatch):
    path = order_file(
        methods={
            "sdft": {},
            "lora": {"method": "sdft", "parameters": {"lora": {"adapter": "continued"}}},
            "fast": {"method": "sdft", "learning_rate": 1e-3, "parameters": "lora"},
            "freeze": {"method": "sft", "parameters": "freeze"},
        },
        model={"name": str(tiny), "dtype": "bfloat16", "device": "cpu"},
    )
    costs = []
    estimate = harness.runs.plan.estimate_order
    monkeypatch.setattr(
        harness.runs.plan, "estimate_order", lambda *a: costs.append(estimate(*a)) or costs[-1]
    )
    text = plan(read_order(path), tmp_path / "out")
    assert "parameters: lora trains 8,192 numbers (lora); learning_rate 2e-05 suits all" in text
    assert "parameters: fast trains 8,192 numbers (lora)\n" in text
    assert "parameters: freeze trains 18,592 numbers (freeze)\n" in text
    assert "parameters: sdft" not in text
    stages = {stage.label: stage for stage in costs[0].stages if stage.skill == "vowels"}
    every, weights, numbers = 26912, 18432, 8192
    assert [stages[name].trained for name in ("sdft", "lora", "freeze")] == [every, numbers, 18592]
    # In a checkpoint: master, two moments, average
    assert (stages["sdft"].state, stages["lora"].state) == (16 * every, 16 * numbers)
    assert (stages["sdft"].kept, stages["fast"].kept, stages["lora"].kept) == (0, 0, 4 * numbers)
    # All weights: master, gradient, two moments, average; a teacher in bfloat16; the head's sum
    saved = 20 * every + 2 * every + 4 * 260 * 32 - 20 * numbers - 2 * weights
    saved -= 4 * numbers  # those at the start of the stage
    gib = stages["sdft"].memory[0] - stages["lora"].memory[0]
    assert gib * 2**30 == pytest.approx(saved, abs=1)


# ---- parts that make the weights with which a stage ends -----------------------------------------


@pytest.mark.parametrize("name", ["lora", "dora", "osf"])
def test_averages_are_of_the_weights_that_numbers_make(tiny_model, tmp_path, name):
    """WiSE-FT and EMA of adapters, by the weights after each step."""
    base, tokenizer = tiny_model
    start = copy.deepcopy(base)
    ends = {}
    for chosen in (None, "wise_ft", "ema"):
        cls = chosen and get_part(chosen, None, "test")
        parts = (
            [cls(cls.Config(**{"decay": 0.5} if chosen == "ema" else {"alpha": 0.25}))]
            if cls
            else []
        )
        model, parameters, seen = copy.deepcopy(base), made(name), []
        stage = make_stage(
            model,
            tokenizer,
            parts=parts,
            parameters=parameters,
            folder=tmp_path,
            load_start=lambda of: start,
            on_step=lambda s, t, m=model, seen=seen: seen.append(copy.deepcopy(m.state_dict())),
        )
        parameters.begin(stage)
        for part in parts:
            part.begin(stage)
        method("sft").learn(stage)
        for part in parts:
            part.end(stage)
        parameters.end(stage)
        ends[chosen] = {n: weight.detach() for n, weight in model.named_parameters()}
    shares = [0.5**2, 0.5, 1.0]
    for weight, plain in ends[None].items():
        mixed = 0.75 * base.get_parameter(weight) + 0.25 * plain
        torch.testing.assert_close(ends["wise_ft"][weight], mixed)
        average = sum(s * state[weight] for s, state in zip(shares, seen, strict=True)) / sum(
            shares
        )
        torch.testing.assert_close(ends["ema"][weight], average, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "parts", "problem"),
    [
        ("lora", {"sfa": {}}, "with.sfa: cannot join parameters: lora: it averages weights"),
        ("osf", {"matched_norm": {}}, "parameters: osf: project() is of weights that are trained"),
        ("lora", {"ties": {}}, "parameters: lora: its stages begin at the base model"),
        ({"lora": {"adapter": "continued"}}, {"wise_ft": {}}, "lora: the stage ends with other w"),
        ("lora", {"wise_ft": {}, "agem": {}, "stm": {}}, None),
        ("lora", {"ties": {"begin": "merged"}}, None),
        ("freeze", {"ties": {}, "sfa": {}, "matched_norm": {}}, None),
    ],
)
def test_averages_join_what_they_can(order_file, parameters, parts, problem):
    path = order_file(methods={"sft": {"parameters": parameters, "with": parts}})
    if problem is None:
        read_order(path)
        return
    with pytest.raises(UserError) as error:
        read_order(path)
    assert problem in str(error.value)


def test_a_reference_run_begins_as_a_first_stage(tiny_model):
    """Of whatever skill: its adapter is new, and OSF keeps what it keeps in a first stage."""
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    numbers = {}
    for number in (1, 2):
        parameters = made("lora", rank=2, adapter="continued")
        if number == 2:
            first = make_stage(model, tokenizer, parameters=parameters)
            parameters.begin(first)
            parameters.end(first)
        stage = make_stage(
            model,
            tokenizer,
            index=2,
            number=number,
            parameters=parameters,
            load_start=lambda of: copy.deepcopy(tiny_model[0]),
        )
        before = dict(parameters.numbers)
        parameters.begin(stage)
        numbers[number] = before, dict(parameters.numbers)
        osf = made("osf", preserved=0.5, growth=0.25)
        osf.begin(make_stage(model, tokenizer, index=3, number=number, parameters=osf))
        weight = next(iter(osf.made.values())).weight
        values = next(v for name, v in osf.numbers.items() if "osf_S_low" in name)
        assert len(values) == round((0.5 if number == 1 else 0.25) * min(weight.shape))
    assert numbers[1][0] == {} and numbers[1][1]
    assert_same(*numbers[2])


@pytest.mark.parametrize("of", ["stage", "run"])
@pytest.mark.parametrize(
    ("chosen", "name", "part"),
    [
        ("lora", "sft", "anchor"),
        ("pissa", "sft", "anchor"),
        ("dora", "sft", "l2sp"),
        ("osf", "sft", "stm"),
        ("milora", "sft", "wise_ft"),
        ("lora", "gkd", None),
        ("lora", "sft", "task_arithmetic"),
    ],
)
def test_a_start_that_an_adapter_keeps_is_not_loaded(
    chosen, name, part, of, tiny_model, tmp_path, monkeypatch
):
    """It learns as with a copy of the model, which it needs where the start is another one."""
    starts = {"stage": tiny_model[0], "run": moved(tiny_model[0])}
    loaded = []

    def load(of):
        loaded.append(of)
        return copy.deepcopy(starts[of])

    def learned(index, folder):
        model, parameters = copy.deepcopy(tiny_model[0]), made(chosen)
        own = get_part(part, None, "test") if part else None
        takes = {field.name for field in fields(own.Config)} if own else set()
        options = {"of": of, "begin": "merged"}
        options = {key: value for key, value in options.items() if key in takes}
        parts = [own(own.Config(**options))] if own else []
        stage = make_stage(
            model,
            tiny_model[1],
            skill=Numbers(),
            index=index,
            later=1,
            parameters=parameters,
            parts=parts,
            load_start=load,
            folder=tmp_path / folder,
        )
        stage.folder.mkdir()
        parameters.begin(stage)
        for each in parts:
            each.begin(stage)
        method(name).learn(stage)
        for each in parts:
            each.end(stage)
        parameters.end(stage)
        return dict(model.state_dict())

    worn = learned(1, "worn")
    assert not loaded
    monkeypatch.setattr(EarlierWeights, "is_kept", lambda self, of: False)
    starts["run"] = tiny_model[0]
    copied = learned(1, "copied")
    assert loaded == ["run"]
    assert_same(worn, copied)
    monkeypatch.undo()
    loaded.clear()
    starts["run"] = moved(tiny_model[0])
    learned(2, "later")
    needs_run = of == "run" or part is None or part == "task_arithmetic"
    assert loaded == (["run"] if needs_run else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("chosen", "part"),
    [("lora", "anchor"), ("pissa", "anchor"), ("dora", "l2sp"), ("lora", "l2sp")],
)
def test_a_continued_adapter_makes_the_start_of_its_stage_again(
    chosen, part, dtype, tiny_model, tmp_path, monkeypatch
):
    """Of its numbers at that start; it learns as with a copy of the model, to the bit."""
    base = copy.deepcopy(tiny_model[0]).to(dtype)

    def learned(folder):
        model, parameters, loaded = copy.deepcopy(base), made(chosen, adapter="continued"), []
        own = get_part(part, None, "test")
        for index in (1, 2):
            starts = {"run": base, "stage": copy.deepcopy(model)}

            def load(of, starts=starts):
                loaded.append(of)
                return copy.deepcopy(starts[of])

            parts = [own(own.Config(of="stage"))]
            stage = make_stage(
                model,
                tiny_model[1],
                skill=Numbers(),
                index=index,
                later=2 - index,
                parameters=parameters,
                parts=parts,
                load_start=load,
                folder=tmp_path / f"{folder}-{index}",
            )
            stage.folder.mkdir()
            parameters.begin(stage)
            for each in parts:
                each.begin(stage)
            method("sft").learn(stage)
            with parameters.as_begun():
                assert_same(dict(model.state_dict()), dict(starts["stage"].state_dict()))
            for each in parts:
                each.end(stage)
            parameters.end(stage)
        return dict(model.state_dict()), loaded

    worn, loaded = learned("worn")
    assert loaded == ["run"]  # W_0 of the second stage
    monkeypatch.setattr(EarlierWeights, "is_kept", lambda self, of: False)
    copied, loaded = learned("copied")
    assert sorted(loaded) == ["run", "run", "stage"]
    assert_same(worn, copied)
    assert any(not torch.equal(weight, base.state_dict()[name]) for name, weight in worn.items())
