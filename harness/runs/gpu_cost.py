"""Seconds of a step on a GPU, term by term: a model, which no run on a GPU has confirmed yet.

A term is what the GPU computes or copies, or the time that Python takes to start its kernels where
that is longer. Kernels are counted on the strict device; formulas of bytes and operations are
stated beside them; what is neither is marked as an estimate. Not in it: what Python waits for, 18
times a step of SDFT and twice a token on the strict device, whose cost only a GPU shows; the price
of deterministic training, which ``gpu_check`` measures; and what else the GPU is doing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel

from harness.learning.halves import PIECE
from harness.learning.moments import EIGHT_BITS, FLOAT32, MOMENT_BYTES
from harness.learning.packing import VOCABULARY_CHUNK
from harness.models.memory import MICRO_BATCH_TOKENS
from harness.models.size import cache_bytes, product_weights
from harness.runs.cards import PLAIN_LAUNCH, Speeds, kernels_of_token
from harness.runs.cost import Machine, StepWork

# Kernels of a layer of Qwen2, counted on the strict device (tests/benchmarks/test_gpu_model.py): of
# a pass without gradients, of one forward and backward, and of what is computed again.
READ_LAYER, LEARNED_LAYER, AGAIN_LAYER = 26, 152, 36
# Of a chunk of SDFT's logits, and of each tensor of a step: update and average, streamed or not.
CHUNK = 41
UPDATE, STREAMED_UPDATE, EIGHT_BIT_UPDATE, AVERAGE = 12, 22, 93, 35
# Times that a chunk's float32 logits are read or written: an estimate, about half of its kernels.
CHUNK_PASSES = 20
# Bytes of a weight that AdamW and an average read and write on the GPU: gradient, its norm, master
# twice, moments twice each; two averages and a master. Counted in harness/learning.
UPDATED_BYTES, AVERAGED_BYTES = 40, 20
# And of making float32 moments of 8 bits and back: about 60 operations on float32 numbers of
# harness/learning/moments.py, an estimate.
EIGHT_BIT_BYTES = 510
# vLLM: seconds of a token beside reading weights and cache, and of waking up and taking weights;
# how much longer batch-invariant kernels take. Estimates: 4.5 ms a token of a 7B on an H200 in all;
# 26 and 42 seconds for the same requests in "Defeating Nondeterminism in LLM Inference" (Thinking
# Machines, 2025).
VLLM_TOKEN, VLLM_WAKE, INVARIANT = 0.5e-3, 1.0, 1.6
# Seconds of a small kernel on the GPU itself, which a CUDA graph starts at once: an estimate.
SMALL = 3e-6
SAVED = 1 / 50  # share of the time that checkpoints may take (harness/runs/checkpoints.py)


@dataclass(frozen=True)
class Sampling:
    """What samples: vLLM or transformers; seats: answers that vLLM computes at once; invariant:
    whether it works batch-invariantly; graphs: whether transformers' layers are a CUDA graph.
    """

    vllm: bool = False
    seats: int = 256
    invariant: bool = False
    graphs: bool = False


class Terms(NamedTuple):
    """Seconds of a step by what takes them."""

    decode: float
    compute: float
    head: float
    update: float
    checkpoints: float


class GPU(Machine):
    """The speed of a GPU for a model, as ``Machine``."""

    def __init__(self, shape: PreTrainedModel, speeds: Speeds, sampling: Sampling) -> None:
        """shape: the model on the meta device."""
        config = shape.config.get_text_config()
        self.parameters = sum(p.numel() for p in shape.parameters())
        self.speeds, self.sampling = speeds, sampling
        self.flops = speeds.product
        self.size = shape.dtype.itemsize
        self.products = product_weights(shape)
        head = shape.get_output_embeddings()
        self.head_weights = 0 if head is None else head.weight.numel()
        self.layers = config.num_hidden_layers
        self.width = config.hidden_size
        self.vocabulary = config.vocab_size
        self.cached = cache_bytes(config, self.size)
        self.tensors = [p.numel() for p in shape.parameters()]
        self.step = self.token_seconds(1)

    @property
    def measured(self) -> str:
        speeds = self.speeds
        return (
            f"{speeds.product / 1e12:.3g} TFLOP/s in a training pass, {speeds.launch * 1e6:.3g} us "
            f"a kernel and {speeds.link / 1e9:.3g} GB/s from the host measured; a model of its "
            "speed that no GPU has confirmed"
        )

    def forward(self, tokens: float) -> float:
        """Of all products, the head's included; as many passes as the longest ones make."""
        launches = math.ceil(tokens / MICRO_BATCH_TOKENS[True]) * READ_LAYER * self.layers
        return max(2 * self.products * tokens / self.flops, launches * self.speeds.launch)

    def sample(self, rows: float, length: float, batch: int, longest: float | None = None) -> float:
        """As ``Machine.sample``; vLLM has seats of its own. Reading the prompts is not counted."""
        if not rows:
            return 0.0
        batch = self.sampling.seats if self.sampling.vllm else batch
        steps = -(-rows // batch) * (length if longest is None else longest)
        at_once = min(rows, batch)
        return steps * self.token_seconds(at_once, at_once * length / 2) + (
            VLLM_WAKE if self.sampling.vllm else 0.0
        )

    def token_seconds(self, rows: float, cached: float = 0.0) -> float:
        """Seconds of a token of ``rows`` answers; cached: tokens whose keys and values are read.

        Weights and cache are read once, or products are computed, whichever takes longer. Python
        starts every kernel, with a graph those around the layers alone.
        """
        read = (self.products * self.size + cached * self.cached) / self.speeds.copy
        computed = max(read, 2 * self.products * rows / self.speeds.product)
        if self.sampling.vllm:
            return (computed + VLLM_TOKEN) * (INVARIANT if self.sampling.invariant else 1.0)
        launches = kernels_of_token(0 if self.sampling.graphs else self.layers) * self.speeds.launch
        small = (kernels_of_token(self.layers) if self.sampling.graphs else 0) * SMALL
        return max(computed + small, launches)

    def learning(self, step: StepWork) -> float:
        return sum(self.terms(step))

    def terms(self, step: StepWork) -> Terms:
        """Seconds of one step."""
        decode = self._decode(step)
        compute, head = self._compute(step), self._head(step)
        update = self._update(step)
        seconds = decode + compute + head + update
        return Terms(decode, compute, head, update, seconds * SAVED)

    def _decode(self, step: StepWork) -> float:
        """Prompts are read, then answers grow until the longest has ended."""
        work = step.work
        rows = step.prompts * work.answers
        if not rows:
            return 0.0
        read = self._products(step.prompts * work.read, work.read)
        batch = self.sampling.seats if self.sampling.vllm else step.at_once
        at_once = min(rows, batch)
        cached = at_once * (work.read + work.sampled / 2)
        longest = step.longest or work.sampled
        seconds = -(-rows // batch) * longest * self.token_seconds(at_once, cached)
        return read + seconds + (VLLM_WAKE if self.sampling.vllm else 0.0)

    def _products(self, tokens: float, length: float, completion: float = 0.0) -> float:
        """Seconds of a forward pass's products: 2 a weight of the layers and token, attention's 2
        of each token with the half of its row, the head's on completions alone.
        """
        body = 2 * (self.products - self.head_weights) + 2 * length * self.width * self.layers
        return (body * tokens + 2 * self.head_weights * completion) / self.flops

    def _compute(self, step: StepWork) -> float:
        """Passes forward and backward of the student, forward of teachers and others."""
        work, limit, launch = step.work, step.limit, self.speeds.launch
        learned, scored = step.prompts * work.learned, step.prompts * work.scored
        completion = step.prompts * step.completion
        passes = step.passes + step.recomputed
        student = passes * self._products(learned, work.learned)
        student += step.passes * 2 * self.head_weights * completion / self.flops
        kernels = LEARNED_LAYER + AGAIN_LAYER * step.recomputed
        seconds = max(student, math.ceil(learned / limit) * kernels * self.layers * launch)
        if scored:
            other = self._products(scored, work.scored, completion)
            # A pass without gradients has twice as many tokens.
            launches = math.ceil(scored / (2 * limit)) * READ_LAYER * self.layers
            seconds += max(other, launches * launch)
        return seconds

    def _head(self, step: StepWork) -> float:
        """Chunks of logits: launches, or their own traffic and that of the head's gradient.

        A chunk writes and reads a gradient of the head in the model's dtype, and adds it to a
        float32 sum.
        """
        tokens = step.prompts * step.completion
        if not tokens:
            return 0.0
        chunk = max(1, VOCABULARY_CHUNK[True] // self.vocabulary)
        micro_batches = math.ceil(step.prompts * step.work.learned / step.limit)
        count = max(math.ceil(tokens / chunk), min(micro_batches, math.ceil(tokens)))
        logits = CHUNK_PASSES * 4 * self.vocabulary * tokens
        logits *= 2 if step.work.scored else 1
        gradients = count * self.head_weights * (2 * self.size + 8)
        return max(count * CHUNK * PLAIN_LAUNCH, (logits + gradients) / self.speeds.copy)

    def _update(self, step: StepWork) -> float:
        """AdamW and the average: bytes over PCIe and in memory one after the other, or launches."""
        numbers, speeds = step.trained.numbers, self.speeds
        averaged = self.parameters if step.work.averaged and not step.trained.made else 0
        over_link = link_bytes(numbers, averaged, step.masters, self.size, step.moments)
        in_memory = numbers * UPDATED_BYTES + averaged * AVERAGED_BYTES
        pieces = sum(math.ceil(count / PIECE) for count in self.tensors)
        each = UPDATE if step.masters == "device" else STREAMED_UPDATE
        if step.moments == EIGHT_BITS:
            in_memory += numbers * EIGHT_BIT_BYTES
            each = EIGHT_BIT_UPDATE
        kernels = pieces * (each + AVERAGE * bool(averaged))
        copied = over_link / speeds.link + in_memory / speeds.copy
        return max(copied, kernels * PLAIN_LAUNCH)


def link_bytes(
    numbers: float, averaged: float, masters: str, size: int, moments: str = FLOAT32
) -> float:
    """Bytes that a step moves over PCIe, both ways: one after the other in the device's stream.

    host_moments: AdamW's two moments there and back. host: lower halves of the masters as well, and
    where a teacher averages its own there and back and the masters' there once more.
    """
    if masters == "device":
        return 0.0
    moved = 2 * MOMENT_BYTES[moments] * numbers
    if masters == "host" and size < 4:
        moved += 4.0 * numbers + 6.0 * averaged
    return moved
