"""FlexAttention over a packed sequence: the states and gradients of attention under a mask."""

import copy

import pytest
import torch
import torch.nn.attention.flex_attention as theirs
import yaml
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_mask
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from benchmarks.gpu_check.exact import objectives
from benchmarks.gpu_check.material import (
    make_model,
    make_rows,
    make_stage,
    make_tokenizer,
    small_config,
)
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.learning.halves import gradient_of
from harness.learning.trainer import Trainer, TrainingConfig
from harness.models import flex
from harness.models.flex import attend_by_flex, attends_by_flex, check_flex, keep_flex, line_mask
from harness.models.forward import attending, hidden_states
from harness.models.recompute import recomputing
from harness.models.segments import Segments
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.models.test_segments import CHAINS, TOKENS, positions

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
}
SHAPES = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),  # three query heads share a key's
    "qwen": Qwen2Config(**SMALL, num_key_value_heads=6, use_sliding_window=False),
}


def model_of(config, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(config, key, value)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def long_chains():
    """Two trees with segments of several blocks of 128, one of them at the border of a block."""
    chains, at = [], 0
    for lengths in ((300, 128, 17, 260), (1, 5)):
        trunk = (at, at + lengths[0])
        chains.append([trunk])
        at = trunk[1]
        for length in lengths[1:]:
            chains.append([trunk, (at, at + length)])
            at += length
    return chains


@pytest.mark.parametrize("chains", [CHAINS, long_chains()])
def test_the_mask_is_that_of_the_segments(chains):
    length = chains[-1][-1][1]
    seen = create_mask(line_mask(chains, CPU).mask_mod, 1, 1, length, length, device="cpu")
    assert torch.equal(seen, Segments(chains, torch.float32, CPU).mask())


def passed(model, attention, mask):
    """(states [tokens, width], gradients of all weights) of a line of tokens."""
    ids = torch.arange(TOKENS) * 7 % 60
    weight = torch.linspace(1, 2, TOKENS)[:, None] * torch.linspace(-1, 1, 48)
    with attending(model, attention):
        states = hidden_states(
            model, ids[None], position_ids=positions()[None], attention_mask=mask
        )[0]
    model.zero_grad()
    (states * weight).sum().backward()
    return states.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted, dtype):
    """To float32's rounding; in bfloat16 in the mean, as both round all along."""
    pairs = [(found[0], wanted[0]), *((found[1][n], grad) for n, grad in wanted[1].items())]
    assert len(pairs) > 10
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for got, want in pairs:
        assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_states_and_gradients_are_those_under_a_mask(name, dtype, again):
    """Also where the backward pass computes layers again, outside of ``attending``."""
    model = model_of(SHAPES[name], dtype)
    wanted = passed(model, "sdpa", Segments(CHAINS, dtype, CPU).mask())
    with recomputing(model, again, dropout=False):
        found = passed(model, flex.ATTENTION, line_mask(CHAINS, CPU))
    assert_same(found, wanted, dtype)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A CPU makes the call that a GPU would get, its graph and the graph of its gradient.

    The code that a compiler makes of the graphs is left out, and PyTorch's refusal to train on a
    CPU: it has the products that a GPU's kernels are to compute.
    """
    monkeypatch.setattr(theirs, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex, "BACKEND", "aot_eager")
    monkeypatch.setattr(flex._OnCPU, "apply", flex._on_gpu)


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_gpu_is_to_compute(name, as_on_a_gpu):
    model = model_of(SHAPES[name])
    wanted = passed(model, "sdpa", Segments(CHAINS, torch.float32, CPU).mask())
    assert_same(passed(model, flex.ATTENTION, line_mask(CHAINS, CPU)), wanted, torch.float32)


def test_lines_of_all_lengths_share_their_kernels(as_on_a_gpu):
    """With a gradient or without, up to one block of 128 tokens or longer: four."""
    torch._dynamo.reset()
    counters.clear()
    for i, length in enumerate((130, 400, 129, 700, 90, 256, 5, 513, 128, 333, 200)):
        inputs = [torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)]
        mask = line_mask([[(0, length // 2)], [(0, length // 2), (length // 2, length)]], CPU)
        with torch.set_grad_enabled(i % 3 > 0):
            flex._on_gpu(*inputs, mask, None)
    assert counters["stats"]["unique_graphs"] <= 6


# ---- where it goes -------------------------------------------------------------------------------

REFUSED = {
    "window": (
        Qwen2Config(
            **SMALL,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=0,
        ),
        "some of its layers attend to a window, or take no mask",
    ),
    "cap": (
        Gemma2Config(
            **SMALL, num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 2
        ),
        "its attention has softcap",
    ),
    "dropout": (
        LlamaConfig(**SMALL, num_key_value_heads=2, attention_dropout=0.1),
        "its attention has dropout",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_attend_as_the_model(name, dtype):
    model = model_of(SHAPES[name], dtype)
    assert not attends_by_flex(model)
    attend_by_flex(model, "model: attention")
    assert attends_by_flex(copy.deepcopy(model)) and not model.training


@pytest.mark.parametrize("why", REFUSED)
def test_other_attention_is_refused(why):
    config, reason = REFUSED[why]
    model = model_of(config)
    with pytest.raises(UserError) as caught:
        attend_by_flex(model, "order.yaml: model: attention")
    assert str(caught.value) == (
        f"order.yaml: model: attention: {type(model).__name__} cannot attend by FlexAttention: "
        f"{reason}; leave attention out"
    )
    assert not attends_by_flex(model) and not model.training


def test_other_devices_are_refused(monkeypatch):
    check_flex("cpu", "model: attention")
    with pytest.raises(UserError, match="does not run on the device xla; leave attention out"):
        check_flex("xla", "model: attention")
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="want Triton, which is not installed; pip install triton"):
        check_flex("cuda:1", "model: attention")
    check_flex("cpu", "model: attention")


# ---- whole steps ---------------------------------------------------------------------------------


def step_of(model, tokenizer, backward):
    """(loss, gradients of all weights) of a step."""
    trainer = Trainer(make_stage(model, tokenizer), TrainingConfig(micro_batch_tokens=200))
    loss = backward(trainer)
    gradients = {name: gradient_of(master).clone() for name, master in trainer.holders.items()}
    for master in trainer.masters.values():
        master.grad = None
    trainer.close()
    return loss, gradients


@pytest.mark.parametrize("objective", ["SFT", "SDFT full", "GRPO"])
def test_whole_steps(objective):
    """By segments or by FlexAttention: several micro-batches, prompts that begin alike."""
    config = small_config(tiny=True)
    model, tokenizer = make_model(config, torch.float32, CPU), make_tokenizer(config.vocab_size)
    rows = make_rows(config.vocab_size, [9, 40, 17], 12, each=3)
    backward, found = objectives(rows)[objective], {}
    for by_flex in (False, True):
        keep_flex(model, by_flex)
        found[by_flex] = step_of(model, tokenizer, backward)
    (loss, usual), (other, gradients) = found[False], found[True]
    assert other == pytest.approx(loss, rel=1e-5, abs=1e-7)
    for name, gradient in usual.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_an_order_chooses_it_and_it_is_on_record(order_file, tmp_path, monkeypatch):
    real, calls = flex._OnCPU.apply, []
    monkeypatch.setattr(flex._OnCPU, "apply", lambda *inputs: calls.append(1) or real(*inputs))
    path = order_file(
        methods={"sft": {}},
        evaluate={"examples": 1},
        budget={"prompts": 4, "batch_size": 4},
    )
    order = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**order, "skills": order["skills"][:1]}))
    assert "attention" not in read_order(path).about()["model"]
    run_order(read_order(path, ["model.attention=flex"]), tmp_path / "out")
    assert read_json(tmp_path / "out" / "results.json")["model"]["attention"] == "flex"
    assert calls
    with pytest.raises(UserError, match="`model` was "):
        run_order(read_order(path), tmp_path / "out")
