"""Rows of sampling: completions of one batch, ours beside generate."""

from typing import Any

from benchmarks.speed import peers
from benchmarks.speed.steps import check_same_work, choose
from benchmarks.speed.timing import Result, Settings, alternate, faster, probe, stated, timed
from harness.models.chat import chat_tokens
from harness.sampling.settings import version
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import Engine, VLLMSampler


def sampling(settings: Settings) -> list[Result]:
    """Completions of one batch."""
    sampler = TransformersSampler(*settings.load())
    return [beside_generate(settings, sampler, "sampling", 3)]


def sampling_vllm(settings: Settings) -> list[Result]:
    """The same by vLLM, where it is installed; and what it takes to give it new weights."""
    if version() is None:
        settings.say("vLLM is not installed: no row for it")
        return []
    engine = Engine()
    try:
        sampler = VLLMSampler(engine, *settings.load())
        result = beside_generate(settings, sampler, "sampling by vLLM", 1.5)
        engine.rest()
        push, _ = timed(sampler.ready)
    finally:
        engine.close()
    result.notes.append(
        f"{version()}, without compilation; new weights come into it in {push:.2f} s, "
        "not counted here"
    )
    result.details["push"] = push
    return [result]


def beside_generate(settings: Settings, sampler: Any, work: str, wanted: float) -> Result:
    """Completions of one batch by ``sampler`` and by generate."""
    examples, tokenizer = choose(settings, settings.prompts)
    prompts = [chat_tokens(tokenizer, example.prompt) for example in examples]
    tokens = len(prompts) * settings.tokens
    sampler.stops = {-1}  # no token ends an answer
    loaded = {dtype: peers.load(settings.folder, dtype) for dtype in settings.dtypes}

    def ours() -> float:
        seconds, groups = timed(lambda: sampler.sample(prompts, max_new_tokens=settings.tokens))
        check_same_work(tokens, {sum(len(c.token_ids) for group in groups for c in group)})
        return seconds

    def theirs(candidate: tuple[str, str]) -> float:
        dtype, cache = candidate
        seconds, answers = timed(
            lambda: peers.generate(
                *loaded[dtype],
                [example.prompt for example in examples],
                settings.tokens,
                len(examples),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                min_new_tokens=settings.tokens,
                cache_implementation=cache,
                disable_compile=True,
            )
        )
        check_same_work(tokens, {sum(map(len, answers))})
        return seconds

    tried = probe([(dtype, "dynamic") for dtype in settings.dtypes], theirs, settings.say)
    dtype, _ = min(tried, key=tried.__getitem__)
    tried |= probe([(dtype, "static")], theirs, settings.say)
    best = min(tried, key=tried.__getitem__)
    mine, others = alternate(ours, lambda: theirs(best), settings.repeats, settings.say)
    return faster(
        f"{work}, batch {len(prompts)}, {settings.tokens} new tokens",
        mine,
        others,
        wanted,
        [
            f"ours in {settings.our_dtype}, model.generate in {best[0]} with a {best[1]} cache "
            f"(tried: {stated(tried)})",
            "no side stops early; the prompts are those of the SDFT step",
        ],
    )
