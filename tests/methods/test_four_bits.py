"""LoRA on a base of 4 bits: rounding by the paper's table, trainings by PEFT on rounded weights."""

import copy
import importlib.util

import peft
import pytest
import torch

from harness.base.errors import UserError
from harness.models import ranks
from harness.runs.reading import read_order
from methods.parameters.lora import _rounded, _unrounded
from tests.learning.test_training import make_stage
from tests.methods import test_parameters
from tests.methods.test_parameters import (  # noqa: F401  (fixtures)
    PLAIN,
    any_model,
    biased,
    gpt2,
    loss_of,
    made,
    near,
    two_stages,
)
from tests.methods.test_parts import assert_same

bitsandbytes = pytest.importorskip("bitsandbytes")

# Dettmers et al. 2023 (arXiv 2305.14314), appendix E
NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
    "-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 "
    "0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 "
    "0.7229568362236023 1.0"
)
OPTIONS = {"rank": 4, "adapter": "continued", "base": "nf4"}


def rounded(weight):
    """A loop over blocks of 64 weights: the nearest of the 16 values, times the largest weight."""
    values = torch.tensor([float(value) for value in NF4.split()], dtype=torch.float64)
    numbers = weight.detach().double().flatten()
    for block in numbers.split(64):  # views
        largest = block.abs().max()
        for i, number in enumerate(block):
            block[i] = values[(values - number / largest).abs().argmin()] * largest
    return numbers.view(weight.shape).float()


def test_a_run_begins_on_the_rounded_weights(any_model, tiny_model):  # noqa: F811
    parameters = made("lora", **OPTIONS)
    before = copy.deepcopy(any_model)
    stage = make_stage(any_model, tiny_model[1], parameters=parameters, sampler=None)
    parameters.begin(stage)
    names = parameters.trained(any_model)
    for name, weight in any_model.named_parameters():
        wanted = before.get_parameter(name)
        if name in names:
            turned = parameters.made[name].turned
            wanted = rounded(wanted.T).T if turned else rounded(wanted)
            assert not torch.equal(weight, before.get_parameter(name))
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-7)
    size = parameters.size(before)
    held = [tensor for fixed in parameters.fixed.values() for tensor in fixed.values()]
    assert size.made and size.again == 0
    assert 4 * size.beside == sum(t.numel() * t.element_size() for t in held)
    assert size.kept == size.beside + size.numbers
    assert all(each.base.numel() == 0 for each in parameters.made.values())


@pytest.mark.parametrize("shape", [(4, 32), (64, 96), (10, 100), (3, 5), (1, 449), (128, 64)])
def test_weights_of_any_shape_are_rounded(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = _unrounded(_rounded(weight), shape)
    torch.testing.assert_close(found, rounded(weight), rtol=1e-6, atol=1e-7)


def test_a_layer_of_4_bits_has_these_weights():
    """bitsandbytes' own layer, of a width that its kernel takes."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False)
    layer.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), False, quant_type="nf4", compress_statistics=False
    )
    state = layer.to("cpu").weight.quant_state
    wide = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
    torch.testing.assert_close(_unrounded(_rounded(weight), (64, 128)), wide, rtol=1e-6, atol=1e-7)


def test_steps_are_those_of_peft_on_rounded_weights(biased, tiny_model):  # noqa: F811
    model, plain = copy.deepcopy(biased), copy.deepcopy(biased)
    parameters = made("lora", **OPTIONS)
    with torch.no_grad():
        for name in parameters.trained(plain):
            plain.get_parameter(name).copy_(rounded(plain.get_parameter(name)))
    stage = make_stage(model, tiny_model[1], parameters=parameters, sampler=None)
    parameters.begin(stage)
    config = peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=8)
    oracle, own = test_parameters.with_layers(plain, config, parameters.numbers)
    test_parameters.learn_as_peft(stage, oracle, own)
    parameters.end(stage)
    merged = dict(oracle.merge_and_unload().named_parameters())
    for name, weight in model.named_parameters():
        assert near(weight, merged[name], 2e-4)


@pytest.mark.parametrize("cut", [None, (1, 2), (2, 2)])
def test_a_run_of_two_stages_keeps_one_base(tiny_model, tmp_path, monkeypatch, cut):
    """Cut off or not: the change has one low rank, and no start is loaded."""
    monkeypatch.setitem(test_parameters.KINDS, "nf4", ("lora", OPTIONS))
    base, tokenizer = tiny_model
    loaded = []
    monkeypatch.setattr(
        test_parameters,
        "make_stage",
        lambda *a, load_start, **o: make_stage(*a, load_start=loaded.append, **o),
    )
    whole, log = two_stages("sft", "nf4", base, tokenizer, tmp_path / "whole")
    if cut:
        again, log_again = two_stages("sft", "nf4", base, tokenizer, tmp_path / "cut", cut)
        assert_same(dict(again.state_dict()), dict(whole.state_dict()))
        assert log_again == log
    assert loaded == []
    name = "model.layers.0.mlp.up_proj.weight"
    change = whole.get_parameter(name).detach() - rounded(base.get_parameter(name))
    assert int(torch.linalg.matrix_rank(change.double(), atol=1e-5)) == 4


def test_what_cannot_be_is_said_in_one_line(order_file, tiny_model, monkeypatch):
    path = order_file(methods={"sft": {"parameters": {"lora": {"base": "nf4"}}}})
    with pytest.raises(UserError, match="round a merged adapter away; write adapter: continued"):
        read_order(path)
    parameters = made("lora", **OPTIONS)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(UserError, match="base: nf4 is of whole weights"):
        parameters.trained(tiny_model[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"nf4 needs bitsandbytes.*requirements-4bit.txt"):
        parameters.trained(tiny_model[0])
