"""A small stand-in for vLLM: it computes with transformers and notes how it is called.

It knows what harness.sampling.vllm uses, so that the engine's states are tested where vLLM is not
installed. Whether the real vLLM takes these calls is what tests/sampling/test_vllm_sampler.py asks.
"""

import os
import random
import sys
import types
from types import SimpleNamespace

import numpy
import torch
from transformers import AutoConfig, AutoModelForCausalLM

NAMES = (
    "vllm",
    "vllm.platforms",
    "vllm.distributed",
    "vllm.distributed.parallel_state",
    "vllm.model_executor",
    "vllm.model_executor.layers",
    "vllm.model_executor.layers.vocab_parallel_embedding",
    "vllm.model_executor.determinism",
)


class SamplingParams(SimpleNamespace):
    pass


class ParallelLMHead(torch.nn.Module):
    """A head that counts how often its weights are prepared."""

    def __init__(self, calls):
        super().__init__()
        self.quant_method = SimpleNamespace(
            process_weights_after_loading=lambda layer: calls.append(("head", {}))
        )


class FakeLLM:
    """vLLM's LLM. calls: a list that gets (name, arguments) of every call."""

    def __init__(self, calls, **settings):
        self.calls = calls
        self.note("LLM", **settings)
        config = AutoConfig.from_pretrained(settings["model"])
        self.model = AutoModelForCausalLM.from_config(config).eval()
        self.head = torch.nn.ModuleList([ParallelLMHead(calls)])
        limit = settings["max_model_len"]
        self.llm_engine = FakeEngine(self, limit if limit > 0 else 64)
        # What a start of vLLM does to the process.
        torch.set_num_threads = lambda count: None
        os.environ["LD_PRELOAD"] = "libtcmalloc.so"
        random.seed(1)
        numpy.random.seed(1)
        torch.manual_seed(1)

    def note(self, name, **arguments):
        self.calls.append((name, arguments))

    def reset_prefix_cache(self):
        self.note("reset_prefix_cache")

    def sleep(self, level):
        self.note("sleep", level=level)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.zero_()

    def wake_up(self, tags):
        self.note("wake_up", tags=tags)

    def collective_rpc(self, method, kwargs):
        weights = dict(kwargs["weights_iterator"])
        self.note(method, names=sorted(weights))
        self.model.load_state_dict(weights, strict=False)

    def apply_model(self, function):
        function(self.head)


class FakeEngine:
    """vLLM's LLMEngine, which answers one request a step, the last one first."""

    def __init__(self, llm, limit):
        self.llm = llm
        self.model_config = SimpleNamespace(max_model_len=limit)
        self.engine_core = SimpleNamespace(shutdown=lambda: llm.note("shutdown"))
        self.requests = {}

    def add_request(self, request_id, prompt, params):
        self.llm.note("add_request", id=request_id, prompt=prompt, params=vars(params))
        self.requests[request_id] = (prompt["prompt_token_ids"], params)

    def has_unfinished_requests(self):
        return bool(self.requests)

    def abort_request(self, request_ids):
        self.llm.note("abort_request", ids=request_ids)
        self.requests.clear()

    def step(self):
        unfinished = SimpleNamespace(request_id="0", finished=False)
        request_id, (prompt, params) = self.requests.popitem()
        return [unfinished, self.answer(request_id, prompt, params)]

    @torch.no_grad()
    def answer(self, request_id, prompt, params):
        generator = torch.Generator().manual_seed(getattr(params, "seed", 0))
        tokens, logprobs = list(prompt), []
        while len(tokens) < len(prompt) + params.max_tokens:
            logits = self.llm.model(torch.tensor([tokens])).logits[0, -1]
            chosen = (
                torch.multinomial((logits / params.temperature).softmax(-1), 1, generator=generator)
                if params.temperature
                else logits.argmax()
            ).item()
            tokens.append(chosen)
            logprobs.append({chosen: entry(logits, chosen)})
            if chosen in getattr(params, "stop_token_ids", ()):
                break
        scores = self.llm.model(torch.tensor([prompt])).logits[0, :-1]
        return SimpleNamespace(
            request_id=request_id,
            finished=True,
            outputs=[SimpleNamespace(token_ids=tuple(tokens[len(prompt) :]), logprobs=logprobs)],
            prompt_logprobs=[
                None,
                *({t: entry(row, t)} for row, t in zip(scores, prompt[1:], strict=True)),
            ],
        )


class BatchInvariant:
    """vLLM's module of its batch-invariant mode; ``used`` counts how often it was switched on."""

    def __init__(self):
        self.used = 0
        self._batch_invariant_LIB = None
        self._batch_invariant_MODE = False

    def enable_batch_invariant_mode(self):
        if self._batch_invariant_MODE:
            return
        self.used += 1
        self._batch_invariant_MODE = True
        self._batch_invariant_LIB = torch.library.Library("aten", "IMPL")
        self._batch_invariant_LIB.impl("aten::bmm", own_bmm, "CPU", allow_override=True)
        torch.bmm = own_bmm
        products = torch.backends.cuda.matmul
        products.allow_fp16_reduced_precision_reduction = (False, False)
        products.allow_bf16_reduced_precision_reduction = (False, False)
        products.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"


def own_bmm(a, b, **kwargs):
    """A product that nobody else computes so, and that counts how often it does."""
    own_bmm.calls += 1
    return (a[:, :, :, None] * b[:, None]).sum(2)


own_bmm.calls = 0


def entry(logits, token):
    return SimpleNamespace(
        logprob=logits.log_softmax(-1)[token].item(),
        rank=1 + (logits > logits[token]).sum().item(),
    )


def install(monkeypatch, llm=FakeLLM):
    """Put the stand-in in vLLM's place for a test; returns the list of calls.

    llm: a class in place of FakeLLM.
    """
    calls = []
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    platform = type("CpuPlatform", (), {"device_type": "cpu"})()
    sys.modules["vllm"].LLM = lambda **settings: llm(calls, **settings)
    sys.modules["vllm"].SamplingParams = SamplingParams
    sys.modules["vllm.platforms"].current_platform = platform
    sys.modules[NAMES[3]].cleanup_dist_env_and_memory = lambda: calls.append(("cleanup", {}))
    sys.modules[NAMES[6]].ParallelLMHead = ParallelLMHead
    sys.modules[NAMES[7]].batch_invariant = BatchInvariant()
    return calls
