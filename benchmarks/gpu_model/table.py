"""The paper's Tool Use run of SDFT on cards of several sizes, by the cost model of --plan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from harness.learning.moments import EIGHT_BITS, FLOAT32, MOMENTS
from harness.learning.options import MASTERS
from harness.learning.outlook import Work
from harness.learning.parametrisation import Parametrisation, Size
from harness.models.memory import Passes
from harness.runs.cards import CARDS, Card
from harness.runs.cost import GIB, EngineBytes, Memory, StepWork
from harness.runs.gpu_cost import GPU, Sampling, Terms
from harness.sampling.rows import GPU_MOST, SHARE
from harness.sampling.settings import VLLMConfig
from methods.parameters.lora import LoRA, LoRAConfig
from methods.sdft import SDFTConfig

# Qwen2.5's shapes, by their config.json: width, MLP, layers, heads, key heads, tied, vocabulary.
SHAPES = {
    "3B": (2048, 11008, 36, 16, 2, True, 151936),
    "7B": (3584, 18944, 28, 28, 4, False, 152064),
    "14B": (5120, 13824, 48, 40, 8, False, 152064),
}
LARGE = {"72B": (8192, 29568, 80, 64, 8, False, 152064)}  # on several GPUs alone (ranks.py)
CARDS_SHOWN = ("RTX 4090", "L40S", "H100 80GB", "H200 141GB")
PROMPTS, BATCH = 4046, 32  # the paper's training examples of Tool Use, and of a step
PROMPT, TEACHER_PROMPT, ANSWER = 600, 750, 1024  # tokens
MEAN = 250  # tokens of an answer, where the longest of a step has ANSWER
CONTEXT = 0.6  # GiB of the driver and libraries: an estimate
RANK = 16
HOST = 128  # GiB that a usual host has
SAMPLERS = {  # what samples: whether it is vLLM, batch-invariant, by graphs
    "transformers": (False, False, False),
    "transformers, graphs": (False, False, True),
    "vLLM": (True, True, False),
    "vLLM, not invariant": (True, False, False),
}


@dataclass(frozen=True)
class Choice:
    """What a user chooses: trained: ``all`` or ``LoRA``; where masters are; what samples; AdamW's
    moments.
    """

    trained: str
    masters: str
    vllm: bool
    invariant: bool = True
    graphs: bool = False
    moments: str = FLOAT32


@dataclass(frozen=True)
class Fit:
    """A choice that fits a card: passes; GiB on the GPU and of the host; terms of a step."""

    choice: Choice
    passes: Passes
    gpu: float
    host: float
    terms: Terms
    short: Terms

    @property
    def hours(self) -> float:
        """Of the run, where every answer is as long as it may be."""
        return hours(self.terms)

    @property
    def short_hours(self) -> float:
        """Of the run, where the mean answer has MEAN tokens and the longest of a step ANSWER."""
        return hours(self.short)


def hours(terms: Terms) -> float:
    """Of all steps of the run."""
    return -(-PROMPTS // BATCH) * sum(terms) / 3600


@cache
def shape_of(name: str) -> PreTrainedModel:
    """A Qwen2.5 in bfloat16 on the meta device."""
    width, inner, layers, heads, key_heads, tied, vocabulary = (SHAPES | LARGE)[name]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
    )
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    return model


@cache
def memory_of(name: str) -> Memory:
    """Memory of a model on a GPU; none is needed."""
    return Memory(shape_of(name), torch.bfloat16, "cuda")


@cache
def trained_by(name: str, trained: str) -> tuple[Size, int]:
    """What is trained of a model, and the forward passes that a pass of training costs."""
    parameters = LoRA(LoRAConfig(rank=RANK)) if trained == "LoRA" else Parametrisation()
    return parameters.size(shape_of(name)), parameters.passes


def work_of_run(answer: float) -> Work:
    """SDFT's, with answers of so many tokens in the mean."""
    return Work(
        learned=PROMPT + answer,
        scored=TEACHER_PROMPT + answer,
        read=PROMPT,
        answers=1,
        sampled=answer,
        copies=1,
        averaged=True,
    )


def kv_cache_gib(memory: Memory) -> int:
    """The order's ``vllm.kv_cache_gib`` with which all answers of a step are computed at once."""
    return math.ceil(BATCH * (PROMPT + ANSWER) * memory.cache_token / GIB)


def fit(card: Card, name: str, choice: Choice) -> Fit | None:
    """What a choice takes on a card, None where it does not fit."""
    memory, work = memory_of(name), work_of_run(ANSWER)
    trained, products = trained_by(name, choice.trained)
    config = SDFTConfig(masters=choice.masters, moments=choice.moments)
    weights = memory.parameters * memory.size
    engine, cached, at_once = EngineBytes(), 0.0, BATCH
    if choice.vllm:
        asleep = VLLMConfig().asleep(memory.vocabulary)
        engine = EngineBytes(weights + kv_cache_gib(memory) * GIB + asleep, asleep)
    else:
        room = SHARE * card.gib * GIB / memory.row.total(PROMPT, ANSWER)
        at_once = max(1, min(GPU_MOST, BATCH, int(room)))
        cached = at_once * (PROMPT + ANSWER)
    free = (card.gib - CONTEXT) * GIB - weights - engine.asleep
    passes = memory.passes(free, config, work, trained, layered=True)
    gpu, host = memory.of(
        *(config, work, PROMPT + ANSWER, cached, BATCH),
        trained=trained,
        passes=passes,
        engine=engine,
    )
    if gpu + CONTEXT > card.gib:
        return None
    sampling = Sampling(choice.vllm, VLLMConfig().max_num_seqs, choice.invariant, choice.graphs)
    gpu_cost = GPU(shape_of(name), card.speeds, sampling)
    step = StepWork(
        prompts=PROMPTS / -(-PROMPTS // BATCH),
        work=work,
        completion=ANSWER,
        passes=products,
        trained=trained,
        masters=choice.masters,
        limit=passes.tokens,
        at_once=at_once,
        recomputed=passes.recomputed,
        longest=ANSWER,
        moments=choice.moments,
    )
    short = replace(step, work=work_of_run(MEAN), completion=MEAN)
    terms = gpu_cost.terms(step), gpu_cost.terms(short)
    return Fit(choice, passes, gpu + CONTEXT, host, *terms)


def best(card: Card, name: str, trained: str, vllm: bool) -> Fit | None:
    """The fastest place of masters that fits; of those within a usual host where there is one."""
    fits = [fit(card, name, Choice(trained, masters, vllm)) for masters in MASTERS]
    found = [each for each in fits if each]
    usual = [each for each in found if each.host <= HOST]
    return min(usual or found, key=lambda each: each.hours, default=None)


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| card | model | trains | `masters` | a pass, tokens | GPU, GiB | host, GiB "
        "| vLLM, h | without, h |\n",
        "|---|---|---|---|---:|---:|---:|---:|---:|\n",
    ]
    for card in CARDS_SHOWN:
        for name in SHAPES:
            lines += _rows(CARDS[card], name)
    return "".join(lines)


def _rows(card: Card, name: str) -> Iterator[str]:
    for trained in ("all", "LoRA"):
        by_vllm, alone = (best(card, name, trained, vllm) for vllm in (True, False))
        shown = by_vllm or alone
        label = trained if trained == "all" else f"LoRA, rank {RANK}"
        if shown is None:
            yield f"| {card.name} | {name} | {label} | does not fit | | | | | |\n"
            continue
        again = ", again" if shown.passes.recomputed else ""
        host = f"{shown.host:.0f}" if shown.host else "0"
        yield (
            f"| {card.name} | {name} | {label} | `{shown.choice.masters}` "
            f"| {shown.passes.tokens:,}{again} | {shown.gpu:.1f} | {host} "
            f"| {_range(by_vllm)} | {_range(alone)} |\n"
        )


def _range(fit: Fit | None) -> str:
    """Hours of short and of the longest answers."""
    return f"{fit.short_hours:.2f} to {fit.hours:.2f}" if fit else "does not fit"


def terms() -> str:
    """Seconds of a step of the 7B, term by term, every answer of ANSWER tokens.

    Moments in 8 bits are shown where vLLM samples.
    """
    heads = ["card", "`masters`, `moments`", "samples", *Terms._fields, "step", "run, h"]
    lines = [f"| {' | '.join(heads)} |\n", "|---|---|---|" + "---:|" * 7 + "\n"]
    for card in ("H100 80GB", "H200 141GB"):
        for what, settings in SAMPLERS.items():
            for moments, masters in itertools.product(MOMENTS, MASTERS):
                if moments == EIGHT_BITS and what != "vLLM":
                    continue
                choice = Choice("all", masters, *settings, moments=moments)
                found = fit(CARDS[card], "7B", choice)
                if found is None:
                    continue
                cells = [f"{seconds:.1f}" for seconds in (*found.terms, sum(found.terms))]
                place = f"`{masters}`" + ("" if moments == FLOAT32 else f", `{moments}`")
                row = [card, place, what, *cells, f"{found.hours:.2f}"]
                lines.append(f"| {' | '.join(row)} |\n")
    return "".join(lines)
