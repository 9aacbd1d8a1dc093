"""vLLM's engine beside the trainer: start, push, sleep, wake, and the same answers twice."""

from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_check.bench import Bench, Skip, free_memory, seconds_of
from benchmarks.gpu_check.exact import logprobs
from benchmarks.gpu_check.material import make_model, make_rows, make_tokenizer, small_config
from harness.learning.packing import Row
from harness.sampling.sampler import Completion
from harness.sampling.settings import VLLMConfig, version
from harness.sampling.vllm import Engine, VLLMSampler
from harness.sampling.vllm_setup import is_invariant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Groups = list[list[Completion]]
PROMPTS, EACH, TOKENS = 16, 4, 24


def run(bench: Bench) -> None:
    """One engine through what a stage does to it."""
    if version() is None:
        raise Skip("vLLM is not installed")
    config = small_config(bench.tiny)
    if bench.tiny:  # vLLM's attention on a CPU wants heads of 32 numbers or more
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 32
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    model = make_model(config, dtype, bench.device)
    tokenizer = make_tokenizer(config.vocab_size)
    model.config.eos_token_id = tokenizer.eos_token_id
    bench.note("vLLM", version())
    engine = Engine(VLLMConfig(kv_cache_gib=0.05 if bench.tiny else 4))
    sampler = VLLMSampler(engine, model, tokenizer)
    try:
        bench.note("start, first push and comparison", seconds_of(sampler.ready, bench.device), "s")
        # Another one than a CPU's: what is tested on CPUs says nothing of it.
        is_v2 = engine.llm.llm_engine.vllm_config.use_v2_model_runner
        bench.note("vLLM's model runner", "V2" if is_v2 else "V1")
        _life(bench, model, sampler)
    finally:
        engine.close()


def _life(bench: Bench, model: "PreTrainedModel", sampler: VLLMSampler) -> None:
    prompts = [
        row.prompt
        for row in make_rows(model.config.vocab_size, [10 + 9 * i for i in range(PROMPTS)], 1)
    ]

    def sample() -> Groups:
        return sampler.sample(prompts, max_new_tokens=TOKENS, n=EACH, seed=1)

    first = sample()
    _compare(bench, "at the start", model, prompts, first)
    _same(bench, "the same call twice", first, sample())
    _alone(bench, sampler, prompts)
    if bench.device.type == "cuda":
        free = free_memory(bench.device)
        sampler.rest()
        given_back = free_memory(bench.device) - free
        bench.judge("sleep gives back", given_back, "GiB", "at least 3.5", given_back >= 3.5)
        bench.note("wake and push", seconds_of(sampler.ready, bench.device), "s")
        _same(bench, "after sleep", first, sample())
    else:
        bench.note("sleep", "not tried: the engine sleeps on a GPU alone")
    with torch.no_grad():  # as a step of training would
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    sampler.rest()
    bench.note("push of changed weights", seconds_of(sampler.ready, bench.device), "s")
    changed = sample()
    _compare(bench, "after a push", model, prompts, changed)
    moved = sum(a.token_ids != b.token_ids for a, b in _pairs(first, changed))
    bench.judge("answers that changed weights change", moved, "", "at least 1", moved > 0)


def _alone(bench: Bench, sampler: VLLMSampler, prompts: list[list[int]]) -> None:
    """Whether a likeliest answer depends on what is computed beside it."""

    def likeliest(some: list[list[int]]) -> Groups:
        return sampler.sample(some, max_new_tokens=TOKENS, temperature=0)

    together = likeliest(prompts)
    alone = [group for prompt in prompts for group in likeliest([prompt])]
    equal = sum(a.token_ids == b.token_ids for a, b in _pairs(together, alone))
    name = "together and alone, equal answers"
    if is_invariant(bench.device, deterministic=True):
        bench.judge(name, equal, f"of {PROMPTS}", str(PROMPTS), equal == PROMPTS)
    else:
        bench.note(f"{name} (vLLM has no batch-invariant mode here)", equal, f"of {PROMPTS}")


def _pairs(ours: Groups, theirs: Groups) -> list[tuple[Completion, Completion]]:
    return [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]


def _same(bench: Bench, name: str, first: Groups, second: Groups) -> None:
    equal = sum(a.token_ids == b.token_ids for a, b in _pairs(first, second))
    total = PROMPTS * EACH
    bench.judge(f"{name}, equal answers", equal, f"of {total}", str(total), equal == total)


def _compare(
    bench: Bench, name: str, model: "PreTrainedModel", prompts: list[list[int]], groups: Groups
) -> None:
    """The engine's log-probabilities against those that the trainer computes."""
    rows = [
        Row(prompt, answer.token_ids)
        for prompt, group in zip(prompts, groups, strict=True)
        for answer in group
    ]
    noted = torch.tensor(
        [value for group in groups for answer in group for value in answer.logprobs]
    )
    difference = (noted - logprobs(model, rows)).abs()
    limit = 1e-4 if model.dtype == torch.float32 else 0.02
    bench.at_most(
        f"{name}, engine and trainer, mean difference", difference.mean().item(), limit, "nats"
    )
    bench.note(f"{name}, engine and trainer, largest difference", difference.max().item(), "nats")
