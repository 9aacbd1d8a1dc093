"""The engine's states and its calls to vLLM, on a stand-in that computes with transformers."""

import copy
import math
import os
import random

import numpy
import pytest
import torch

from harness.base.errors import UserError
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


def test_it_sleeps_while_the_model_learns(sampler, prompts, calls, model):
    """On a GPU: it wakes up with the model's weights, and is compared after its first sleep."""
    before = sampler.sample(prompts, max_new_tokens=4, temperature=0)
    sampler.rest()
    assert "sleep" not in names(calls)  # a CPU's engine cannot
    sampler.engine._state.can_sleep = True
    for compares in (True, False):
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


def test_without_vllm_the_remedy_is_named(sampler, prompts, monkeypatch):
    monkeypatch.setattr("harness.sampling.vllm_setup.version", lambda: None)
    with pytest.raises(UserError, match="vLLM is not installed; pip install -r requirements-vllm"):
        sampler.sample(prompts, max_new_tokens=3)
