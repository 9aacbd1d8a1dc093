"""Which dtype and products a CPU takes: the choice, and that every way is the same product."""

import ast
import copy
import os
import subprocess
import sys

import pytest
import torch

import harness
from harness.base.errors import UserError
from harness.models import products
from harness.models.load import resolve_dtype
from harness.models.products import (
    PACKED,
    PIN,
    PLAIN,
    WEIGHTS_FIRST,
    Products,
    bfloat16_gain,
    fastest_products,
    fixed_products,
    keep_products,
    measured_products,
    products_of,
    sampling_products,
    time_products,
)
from harness.sampling.transformers import TransformersSampler


@pytest.fixture
def measuring(monkeypatch):
    """The environment does not pin the choice."""
    monkeypatch.delenv(PIN, raising=False)


def linears(*shapes, dtype=torch.float32, bias=False):
    model = torch.nn.ModuleList(torch.nn.Linear(i, o, bias=bias, dtype=dtype) for o, i in shapes)
    model.device, model.dtype = torch.device("cpu"), dtype
    return model


@pytest.mark.parametrize("way", [PLAIN, WEIGHTS_FIRST, PACKED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_is_the_same_product(way, dtype):
    """With and without a bias, for few rows and many, against float64. Modules end as before."""
    for bias in (False, True):
        model = linears((40, 24), dtype=dtype, bias=bias)
        keep_products(model, way)
        [linear] = model
        with torch.inference_mode(), sampling_products(model):
            assert ("forward" in vars(linear)) == (way != PLAIN)
            for shape in ((1, 24), (3, 1, 24), (2, 200, 24)):
                x = torch.randn(shape, dtype=dtype)
                wanted = x.double() @ linear.weight.double().t()
                wanted += linear.bias.double() if bias else 0
                out = linear(x)
                assert out.is_contiguous() and out.dtype == dtype and out.shape == wanted.shape
                assert (out - wanted).abs().max() <= 8 * torch.finfo(dtype).eps
        assert "forward" not in vars(linear)


def test_packed_weights_are_those_of_the_moment():
    model = linears((40, 24))
    keep_products(model, PACKED)
    x = torch.randn(2, 24)
    for _ in range(2):
        with torch.no_grad(), sampling_products(model):
            assert torch.allclose(model[0](x), x @ model[0].weight.t(), atol=1e-6)
        model[0].weight.data.mul_(3)  # as an optimizer step, without a version that counts


def test_other_layers_are_left_alone():
    class Own(torch.nn.Linear):
        pass

    model = linears((40, 24), (40, 24))
    model.append(Own(24, 40))
    model[1].forward = lambda x: x  # whoever did that wants it
    keep_products(model, WEIGHTS_FIRST)
    with sampling_products(model):
        assert ["forward" in vars(each) for each in model] == [True, True, False]
    assert ["forward" in vars(each) for each in model] == [False, True, False]


def test_another_device_is_left_alone():
    model = linears((40, 24))
    model.device = torch.device("cuda")
    keep_products(model, PACKED)
    with sampling_products(model):
        assert "forward" not in vars(model[0])


def test_the_plain_way_stays_unless_another_is_clearly_faster():
    assert fastest_products({PLAIN: 1.0, WEIGHTS_FIRST: 0.95, PACKED: 0.92}) == PLAIN
    assert fastest_products({PLAIN: 1.0, WEIGHTS_FIRST: 0.95, PACKED: 0.8}) == PACKED
    assert fastest_products({PLAIN: 1.0, WEIGHTS_FIRST: 0.7, PACKED: 0.8}) == WEIGHTS_FIRST
    assert fastest_products({PLAIN: 1.0}) == PLAIN


def test_seconds_are_of_the_model_s_own_products(monkeypatch):
    """Each shape is timed once and counts as often as the model has it."""
    timed = []

    def fastest(works):
        x = works[PLAIN].args[0]
        timed.append(tuple(x.shape))
        outputs = works[PLAIN]().shape[1]
        return {way: outputs * (1 + i) for i, way in enumerate(works)}

    monkeypatch.setattr(products, "_fastest", fastest)
    seconds = time_products(linears((1024, 512), (1024, 512), (512, 1024)))
    assert timed == [(16, 512), (16, 1024)]
    assert seconds[PLAIN] == 2 * 1024 + 512 and seconds[WEIGHTS_FIRST] == 2 * (2 * 1024 + 512)


def test_small_models_are_not_timed(measuring, monkeypatch):
    monkeypatch.setattr(products, "_fastest", lambda works: pytest.fail("is timed"))
    small = linears((64, 64))
    assert time_products(small) == {}
    assert measured_products(small, False).sampling == fixed_products(torch.float32)


@pytest.mark.parametrize("wrong", [RuntimeError("no such primitive"), 1.001])
def test_a_way_that_fails_or_computes_otherwise_is_left_out(wrong, monkeypatch):
    def packed(weight, bias, x):
        if isinstance(wrong, Exception):
            raise wrong
        return x @ weight.to_dense().t() * wrong

    monkeypatch.setattr(products, "_packed", packed)
    assert set(time_products(linears((1024, 1024)))) == {PLAIN, WEIGHTS_FIRST}


def test_time_is_the_processor_s_on_one_thread(monkeypatch):
    threads = torch.get_num_threads()
    seen = []
    products._fastest({"a": lambda: seen.append(torch.get_num_threads())})
    assert set(seen) == {1} and torch.get_num_threads() == threads
    clock = iter(range(1000))
    monkeypatch.setattr(products.time, "thread_time", lambda: next(clock))
    assert products._fastest({"a": bool, "b": bool}) == {"a": 1, "b": 1}


# ---- the dtype -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gain, dtype", [(1.49, torch.float32), (1.5, torch.bfloat16)])
def test_auto_is_bfloat16_where_it_is_clearly_faster(gain, dtype, measuring, monkeypatch):
    monkeypatch.setattr(products, "bfloat16_gain", lambda: gain)
    assert resolve_dtype("auto", "cpu") == dtype
    assert resolve_dtype("float32", "cpu") == torch.float32  # what is named is what it is
    assert resolve_dtype("bfloat16", "cpu") == torch.bfloat16


@pytest.mark.parametrize("has_units", [True, False])
def test_the_environment_pins_the_choice(has_units, monkeypatch):
    monkeypatch.setenv(PIN, "fixed")
    monkeypatch.setattr(products, "bfloat16_gain", lambda: pytest.fail("is measured"))
    monkeypatch.setattr(products, "time_products", lambda _: pytest.fail("is measured"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    assert (resolve_dtype("auto", "cpu") == torch.bfloat16) == has_units
    found = measured_products(linears((1024, 1024)), True)
    assert found == Products("float32", fixed_products(torch.float32)) and found.said() is None


def test_without_instructions_nothing_is_gained(monkeypatch):
    bfloat16_gain.cache_clear()
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    monkeypatch.setattr(products, "_fastest", lambda works: pytest.fail("is timed"))
    assert bfloat16_gain() == 0
    bfloat16_gain.cache_clear()


def test_gain_is_the_ratio_of_the_sums(monkeypatch):
    bfloat16_gain.cache_clear()
    monkeypatch.setattr(products, "has_bfloat16", lambda: True)
    pairs = iter([(3.0, 2.0), (6.0, 1.0)])

    def fastest(works):
        assert [work().dtype for work in works.values()] == [torch.float32, torch.bfloat16]
        return dict(zip(works, next(pairs), strict=True))

    monkeypatch.setattr(products, "_fastest", fastest)
    assert bfloat16_gain() == 3.0 and bfloat16_gain() == 3.0
    bfloat16_gain.cache_clear()


@pytest.mark.parametrize("capability, dtype, way", [
    ("AVX2", torch.float32, WEIGHTS_FIRST),
    ("AVX2", torch.bfloat16, PLAIN),
    ("AVX512", torch.float32, PLAIN),
])  # fmt: skip
def test_what_was_fixed_before(capability, dtype, way, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fixed_products(dtype) == way == products_of(linears((4, 4), dtype=dtype))


# ---- a model -------------------------------------------------------------------------------------


def test_answers_are_those_of_plain_products(tiny_model, monkeypatch):
    """Greedy answers and log-probabilities; a copy keeps the way."""
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    prompts = [[1, 2, 3, 4], [1, 2, 9], [7]]
    answers = {}
    for way in (PLAIN, WEIGHTS_FIRST, PACKED):
        keep_products(model, way)
        twin = copy.deepcopy(model)
        assert products_of(twin) == way
        groups = TransformersSampler(twin, tokenizer).sample(
            prompts, max_new_tokens=8, temperature=0
        )
        answers[way] = [answer for group in groups for answer in group]
    for way in (WEIGHTS_FIRST, PACKED):
        for mine, plain in zip(answers[way], answers[PLAIN], strict=True):
            assert mine.token_ids == plain.token_ids
            assert mine.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept, is_auto, problem", [
    (Products("float32", "sideways"), False, "products of an unknown kind ('sideways')"),
    (Products("float32", PACKED), False, "weights packed by oneDNN"),
    (Products("bfloat16", PLAIN), True, "bfloat16, which this processor does not compute"),
    (Products("bfloat16", PLAIN), False, None),  # the order names it: it may be slow
    (Products("float32", PLAIN), True, None),
])  # fmt: skip
def test_what_the_machine_cannot_compute_is_refused(kept, is_auto, problem, monkeypatch):
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    monkeypatch.setattr(products, "_can_pack", lambda: False)
    if problem is None:
        kept.check("results.json", is_auto)
        return
    with pytest.raises(UserError) as refused:
        kept.check("results.json", is_auto)
    line = str(refused.value)
    assert problem in line and "go on where it began, or give another folder with --out" in line
    assert "\n" not in line


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks, kept", [
    (["0.1 0.2 0.3 1/93 7"] * 3, {"GOMP_SPINCOUNT": "3000"}),
    (["9.1 0.2 0.3 2/93 7", "9.1 0.2 0.3 1/93 7"], {"GOMP_SPINCOUNT": "3000"}),  # it has ended
    (["0.1 0.2 0.3 2/93 7"] * 3, {"OMP_WAIT_POLICY": "passive"}),
    (["something else"], {"GOMP_SPINCOUNT": "3000"}),
    ([], {"GOMP_SPINCOUNT": "3000"}),
])  # fmt: skip
def test_threads_sleep_at_once_where_others_run(looks, kept):
    assert harness.waiting(iter(looks)) == kept


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "9"}, {}])
def test_the_environment_says_how_threads_wait_before_pytorch_loads(said):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = f"import sys, os, harness; print([os.environ.get(n) for n in {names}], end=' ')"
    code += "; print('torch' in sys.modules)"
    others = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", code], env=others | said, capture_output=True, text=True, check=True
    )
    kept, loaded = done.stdout.rsplit(maxsplit=1)
    assert loaded == "False"
    found = dict(zip(names, ast.literal_eval(kept), strict=True))
    assert {k: v for k, v in found.items() if v} == said if said else any(found.values())


@pytest.mark.parametrize("said", [{}, {"LRU_CACHE_CAPACITY": "7"}])
def test_few_made_products_are_kept(said):
    code = f"import os, harness; print([os.environ[n] for n in {harness.CACHES}])"
    others = {k: v for k, v in os.environ.items() if k not in harness.CACHES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=others | said, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == [said.get(n, "32") for n in harness.CACHES]
