"""The engine's states and its calls to vLLM, on a stand-in that computes with transformers."""

import copy
import math
import os
import random
import sys

import numpy
import pytest
import torch

from harness.base.errors import UserError
from harness.sampling import vllm, vllm_setup
from harness.sampling.settings import VLLMConfig
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import Engine, VLLMSampler
from tests.sampling import fake_vllm

TEXTS = ["abc", "a longer question", "?"]


@pytest.fixture
def calls(monkeypatch):
    """The calls to the stand-in, which is in vLLM's place."""
    monkeypatch.setattr("harness.sampling.vllm_setup.version", lambda: "vllm 0")
    yield fake_vllm.install(monkeypatch)
    if Engine.running:
        Engine.running.close()


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model[0])


@pytest.fixture
def sampler(calls, model, tiny_model):
    return VLLMSampler(Engine(), model, tiny_model[1])


@pytest.fixture
def prompts(tiny_model):
    return [tiny_model[1](text)["input_ids"] for text in TEXTS]


def names(calls):
    """The names of the calls, without the requests."""
    return [name for name, _ in calls if name != "add_request"]


def change(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)


def test_answers_are_the_models(sampler, prompts, model, tiny_model):
    own = TransformersSampler(model, tiny_model[1])
    answers = sampler.sample(prompts, max_new_tokens=6, temperature=0)
    for [answer], [wanted] in zip(
        answers, own.sample(prompts, max_new_tokens=6, temperature=0), strict=True
    ):
        assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
        answer.logprobs = wanted.logprobs
        assert answer == wanted


def test_completions_are_in_the_order_of_the_prompts(sampler, prompts, calls):
    """The stand-in answers the last request first; each request has a seed of its own."""
    seen = []
    two = sampler.sample(prompts, max_new_tokens=3, n=2, seed=4, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6] and [len(group) for group in two] == [2] * 3
    requests = [arguments for name, arguments in calls if name == "add_request"][-6:]
    assert [r["prompt"]["prompt_token_ids"] for r in requests] == [p for p in prompts for _ in "ab"]
    assert len({r["params"]["seed"] for r in requests}) == 6
    assert sampler.sample(prompts, max_new_tokens=3, n=2, seed=4) == two
    ones = sampler.sample(prompts, max_new_tokens=3, seed=4)
    assert ones == [group[:1] for group in two]


def test_a_start_leaves_the_process_as_it_was(sampler, prompts, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "")
    set_num_threads = torch.set_num_threads
    states = [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()]
    sampler.sample(prompts, max_new_tokens=2)
    assert torch.set_num_threads is set_num_threads and "LD_PRELOAD" not in os.environ
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_weights_are_pushed_when_they_changed(sampler, prompts, calls, model):
    sampler.sample(prompts, max_new_tokens=2)
    start = ["LLM", "reload_weights", "head", "reset_prefix_cache"]
    assert names(calls) == start
    calls.clear()
    sampler.sample(prompts, max_new_tokens=2)
    assert names(calls) == ["reset_prefix_cache"]
    calls.clear()
    change(model)
    sampler.sample(prompts, max_new_tokens=2)
    assert names(calls) == start[1:]
    weights = dict(calls)["reload_weights"]["names"]
    assert weights == sorted(name for name, _ in model.named_parameters())


def test_it_sleeps_while_the_model_learns(sampler, prompts, calls, model, monkeypatch):
    """On a GPU: it wakes up with the model's weights, and is compared after its first sleeps."""
    monkeypatch.setattr(vllm, "COMPARED_WAKES", 2)
    before = sampler.sample(prompts, max_new_tokens=4, temperature=0)
    sampler.rest()
    assert "sleep" not in names(calls)  # a CPU's engine cannot
    sampler.engine._state.can_sleep = True
    for compares in (True, True, False):
        calls.clear()
        sampler.rest()
        sampler.rest()
        assert calls == [("sleep", {"level": 2})]
        calls.clear()
        assert sampler.sample(prompts, max_new_tokens=4, temperature=0) == before
        woken = ["wake_up", "reload_weights", "head", "wake_up", "reset_prefix_cache"]
        assert names(calls) == woken
        tags = [arguments["tags"] for name, arguments in calls if name == "wake_up"]
        assert tags == [["weights"], ["kv_cache"]]
        requests = [arguments for name, arguments in calls if name == "add_request"]
        assert len(requests) == len(prompts) + compares


def test_one_engine_runs_in_a_process(sampler, prompts, calls, model, tiny_model):
    first = sampler.engine
    with pytest.raises(RuntimeError, match="does not run"):
        first.llm  # noqa: B018
    wanted = sampler.sample(prompts, max_new_tokens=3)
    assert Engine.running is first
    other = VLLMSampler(Engine(VLLMConfig(max_model_len=40)), model, tiny_model[1])
    other.sample(prompts, max_new_tokens=3)
    assert Engine.running is other.engine and other.engine.limit == 40
    assert names(calls).count("shutdown") == names(calls).count("cleanup") == 1
    assert sampler.sample(prompts, max_new_tokens=3) == wanted
    assert Engine.running is first and first.limit == 64
    first.close()
    first.close()
    assert Engine.running is None and names(calls).count("shutdown") == 3


@pytest.mark.parametrize(
    "rollout_temperature, mode, possible",
    [
        (1.0, "raw_logprobs", {(0, 0.5), (1.0, 1.0), (1.0, 0.5)}),
        (0.6, "processed_logprobs", {(0, 0.5), (1.0, 1.0), (0.6, 1.0)}),
    ],
)
def test_logprobs_that_vllm_cannot_give_are_nan(
    calls, model, tiny_model, prompts, rollout_temperature, mode, possible
):
    sampler = VLLMSampler(Engine(None, rollout_temperature), model, tiny_model[1])
    for temperature, top_p in ((0, 0.5), (1.0, 1.0), (1.0, 0.5), (0.6, 1.0), (0.6, 0.5)):
        [[answer], *_] = sampler.sample(
            prompts, max_new_tokens=2, temperature=temperature, top_p=top_p
        )
        has_logprobs = (temperature, top_p) in possible
        assert all(math.isnan(value) is not has_logprobs for value in answer.logprobs)
    assert calls[0][1]["logprobs_mode"] == mode


def test_scores_and_continuations(sampler, prompts, model):
    engine = sampler.ready()
    with torch.no_grad():
        wanted = model(torch.tensor(prompts[1:2])).logits[0].log_softmax(-1)
    [(logprobs, greedy)] = engine.score([(prompts[1], 3)])
    targets = torch.tensor(prompts[1][3:])
    assert logprobs == pytest.approx(wanted[2:-1].gather(1, targets[:, None])[:, 0].tolist())
    assert greedy == (wanted[2:-1].argmax(-1) == targets).tolist()
    continuations = engine.generate(prompts, 4, ("x",), {3, 1}, model.generation_config)
    answers = sampler.sample(prompts, max_new_tokens=4, temperature=0)
    assert continuations == [answer.token_ids for [answer] in answers]


def test_an_interruption_leaves_no_request(sampler, prompts, calls):
    def stop(count):
        raise KeyboardInterrupt

    wanted = sampler.sample(prompts, max_new_tokens=3)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(prompts, max_new_tokens=3, progress=stop)
    assert ("abort_request", {"ids": ["0", "1", "2"]}) in calls
    assert sampler.sample(prompts, max_new_tokens=3) == wanted


class Deaf(fake_vllm.FakeLLM):
    """Takes no weights and keeps its own, whose seed is no other model's."""

    def __init__(self, calls, **settings):
        torch.manual_seed(7)
        super().__init__(calls, **settings)

    def collective_rpc(self, method, kwargs):
        pass


class Refusing(fake_vllm.FakeLLM):
    """Cannot be made."""

    def __init__(self, calls, **settings):
        try:
            raise ValueError("no room\nat all")
        except ValueError as error:
            raise RuntimeError("the engine failed") from error


@pytest.mark.parametrize(
    "llm, words",
    [
        (Deaf, "vLLM's LlamaForCausalLM is not this model: log-probabilities differ by"),
        (Refusing, r"vLLM cannot run LlamaForCausalLM here \(no room\); change the section vllm"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(sampler, prompts, monkeypatch, llm, words):
    fake_vllm.install(monkeypatch, llm)
    with pytest.raises(UserError, match=words):
        sampler.sample(prompts, max_new_tokens=3)


def test_a_prompt_that_is_too_long_is_refused(sampler):
    words = "a prompt of 62 tokens and an answer of up to 3 are longer than 64 tokens"
    with pytest.raises(UserError, match=words):
        sampler.sample([[65] * 62], max_new_tokens=3)


def test_a_wake_that_brings_other_weights_is_refused(sampler, prompts, monkeypatch):
    """Not at the first wake alone: later ones may go wrong as well."""
    sampler.sample(prompts, max_new_tokens=2)
    sampler.engine._state.can_sleep = True
    sampler.rest()
    sampler.sample(prompts, max_new_tokens=2)
    sampler.rest()  # the stand-in forgets its weights, as a sleeping engine does
    monkeypatch.setattr(fake_vllm.FakeLLM, "collective_rpc", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="is not this model: log-probabilities differ by"):
        sampler.sample(prompts, max_new_tokens=2)


def test_what_a_batch_holds_is_an_option(calls, model, tiny_model, prompts):
    for config, wanted in (
        (None, (256, None)),
        (VLLMConfig(max_num_seqs=3, max_num_batched_tokens=70), (3, 70)),
    ):
        engine = Engine(config)
        VLLMSampler(engine, model, tiny_model[1]).sample(prompts, max_new_tokens=2)
        settings = dict(calls)["LLM"]
        assert (settings["max_num_seqs"], settings["max_num_batched_tokens"]) == wanted
        engine.close()
        calls.clear()
    assert VLLMConfig().batched_tokens(on_gpu=True) == 8192
    assert VLLMConfig(max_num_seqs=9000).batched_tokens(on_gpu=True) == 9000
    with pytest.raises(ValueError, match="max_num_batched_tokens must be at least max_num_seqs, 9"):
        VLLMConfig(max_num_seqs=9, max_num_batched_tokens=8)


def test_what_a_sleeping_engine_keeps():
    """Counts of tokens, 33 bits for each answer and token, beside graphs and workspaces."""
    counts = 256 * 152_064 * 33 // 8
    assert VLLMConfig().asleep(152_064) == 2**30 + counts
    assert VLLMConfig(enforce_eager=True).asleep(152_064) == 2**28 + counts
    assert VLLMConfig(max_num_seqs=1024).asleep(152_064) == 2**30 + 4 * counts


# ---- answers that do not depend on what is beside them ------------------------------------------


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of a capability, (9, 0) until it is set, and an environment that says nothing."""
    capability = [9, 0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: tuple(capability))
    for key in (vllm_setup.INVARIANT, *vllm_setup.INVARIANT_PRODUCTS):
        monkeypatch.delenv(key, raising=False)
    return capability


def test_the_invariant_mode_is_where_vllm_has_it(hopper, monkeypatch):
    for capability, has in (((9, 0), True), ((10, 0), True), ((8, 9), False), ((8, 0), False)):
        hopper[:] = capability
        assert vllm_setup.is_invariant("cuda", True) is has
        assert not vllm_setup.is_invariant("cuda", False)
    for said, has in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(vllm_setup.INVARIANT, said)
        assert vllm_setup.is_invariant("cuda:0", not has) is has
        assert not vllm_setup.is_invariant("cpu", True)


def test_its_settings_come_before_the_first_product(hopper, monkeypatch):
    vllm_setup.prepare_invariant("cuda", False)
    vllm_setup.prepare_invariant("cpu", True)
    names = (vllm_setup.INVARIANT, *vllm_setup.INVARIANT_PRODUCTS)
    assert not any(name in os.environ for name in names)
    for name in names:
        monkeypatch.setenv(name, "")  # so that all of them are taken back at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "0")  # of the user
    vllm_setup.prepare_invariant("cuda", True)
    assert [os.environ[name] for name in names] == ["1", ":16:8", "0"]


def process_settings():
    products = torch.backends.cuda.matmul
    return (
        torch.bmm,
        torch.backends.cuda.preferred_blas_library(),
        products.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        products.allow_fp16_reduced_precision_reduction,
        products.allow_fp16_reduced_precision_reduction_split_k,
        products.allow_bf16_reduced_precision_reduction_split_k,
    )


def test_the_invariant_kernels_are_the_engines_alone(calls):
    """The training of the process computes by PyTorch's own, before and after."""
    a, b = torch.rand(2, 3, 4), torch.rand(2, 4, 5)
    wanted, before = a @ b, process_settings()
    with vllm_setup.invariant_kernels(wanted=False):
        assert process_settings() == before and torch.equal(a @ b, wanted)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), vllm_setup.invariant_kernels():
            calls = fake_vllm.own_bmm.calls
            torch.testing.assert_close(a @ b, wanted)
            assert fake_vllm.own_bmm.calls == calls + 1 and torch.bmm is fake_vllm.own_bmm
            assert process_settings()[4:] == (False, False, False)
            1 / 0  # noqa: B018
        assert process_settings() == before and torch.equal(a @ b, wanted)
        assert fake_vllm.own_bmm.calls == calls + 1


def test_every_use_of_the_engine_has_them(sampler, prompts, monkeypatch):
    monkeypatch.setattr(vllm, "is_invariant", lambda device, deterministic: deterministic)
    used = sys.modules["vllm.model_executor.determinism"].batch_invariant
    sampler.sample(prompts, max_new_tokens=2)
    first = used.used
    assert first == 3  # the start, the comparison, the answers
    sampler.sample(prompts, max_new_tokens=2)
    assert used.used == first + 1 and not used._batch_invariant_MODE
    Engine.running.close()
    sampler.engine = Engine(deterministic=False)
    sampler.sample(prompts, max_new_tokens=2)
    assert used.used == first + 1


def test_without_vllm_the_remedy_is_named(sampler, prompts, monkeypatch):
    monkeypatch.setattr("harness.sampling.vllm_setup.version", lambda: None)
    with pytest.raises(UserError, match="vLLM is not installed; pip install -r requirements-vllm"):
        sampler.sample(prompts, max_new_tokens=3)
