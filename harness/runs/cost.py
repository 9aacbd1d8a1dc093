"""Time and memory that a model costs on this machine, by formulas over tokens and weights."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from harness.learning.moments import FLOAT32, MOMENT_BYTES
from harness.learning.options import TrainingConfig
from harness.learning.outlook import Work
from harness.learning.packing import VOCABULARY_CHUNK
from harness.learning.parametrisation import Size
from harness.models.forward import attending, hidden_states
from harness.models.memory import MICRO_BATCH_TOKENS, Passes
from harness.models.size import cache_bytes
from harness.runs.training_bytes import (
    Bytes,
    averaged_bytes,
    fitting_passes,
    recomputed_bytes,
    trained_bytes,
)
from harness.sampling.rows import RowBytes

GIB = 2**30
COPIED = 64 * 2**20  # bytes of the block whose copy measures the memory's speed
SIDE = 1536  # of the square matrices whose product measures the processor's speed


@dataclass(frozen=True)
class StepWork:
    """A step of a stage: ``prompts`` of ``work`` each.

    completion: tokens of a prompt that are learned, behind it; passes: forward passes that one of
    training costs; trained, masters, moments: what is moved, where that is, and AdamW's moments;
    limit: tokens of a micro-batch; recomputed: whether layers are computed again; at_once: answers
    that transformers samples at once; longest: tokens of the longest answer, where ``work`` has a
    mean.
    """

    prompts: float
    work: Work
    completion: float
    passes: int
    trained: Size
    masters: str
    limit: int
    at_once: int
    recomputed: bool = False
    longest: float | None = None
    moments: str = FLOAT32


class Machine:
    """Speed of this machine for a model, from half a second of measuring.

    flops: operations a second in ``dtype``; step: seconds to read all weights once, which a
    decoding step takes at least.
    """

    def __init__(self, parameters: int, dtype: torch.dtype, device: str | torch.device) -> None:
        """parameters: weights of the model."""
        self.parameters = parameters
        matrix = torch.randn(SIDE, SIDE, device=device).to(dtype)
        self.flops = self._best(lambda a: a @ a, matrix, 2 * SIDE**3)
        block = torch.zeros(COPIED, dtype=torch.uint8, device=device)
        bandwidth = self._best(lambda a: a.clone(), block, 2 * COPIED)
        self.step = parameters * dtype.itemsize / bandwidth

    @staticmethod
    def _best(
        work: Callable[[torch.Tensor], torch.Tensor], argument: torch.Tensor, amount: float
    ) -> float:
        """The highest rate of six tries; amount: what one try does."""
        rates = []
        for _ in range(6):
            start = time.perf_counter()
            work(argument)
            if argument.device.type != "cpu":  # A GPU goes on after the call has returned.
                torch.get_device_module(argument.device).synchronize(argument.device)
            rates.append(amount / (time.perf_counter() - start))
        return max(rates)

    @property
    def measured(self) -> str:
        """What was measured of it, in words."""
        return f"{self.flops / 1e9:.0f} GFLOP/s measured"

    def forward(self, tokens: float) -> float:
        """Seconds of a forward pass; a backward pass costs two of them."""
        return 2 * self.parameters * tokens / self.flops

    def sample(self, rows: float, length: float, batch: int, longest: float | None = None) -> float:
        """Seconds to decode ``rows`` answers of ``length`` tokens, ``batch`` at a time.

        A step of decoding reads the weights once, for all rows of the batch that go on. longest:
        tokens of a batch's longest answer, where ``length`` is a mean.
        """
        batches = -(-rows // batch) if rows else 0
        steps = batches * (length if longest is None else longest)
        return steps * self.step + self.forward(rows * length)

    def learning(self, step: StepWork) -> float:
        """Seconds of a step: products of all passes, and sampling."""
        work, prompts = step.work, step.prompts
        products = step.passes * self.forward(work.learned) + self.forward(work.scored + work.read)
        answers = self.sample(prompts * work.answers, work.sampled, step.at_once)
        return prompts * products + answers


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass: inputs and output, no weights."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def _counted(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _counted)


def activations(shape: PreTrainedModel, tokens: int = 8) -> float:
    """Bytes that a forward pass keeps for each token's backward pass, without the model's head.

    shape: the model on the meta device. Counted, not computed: what autograd saves, parameters
    apart, with fused attention. A model that takes no mask of our own is counted without one. 17
    values of a state's width a layer (arXiv 2205.05198, section 4.1: 34 bytes of 16 bits each)
    stand for one that computes nothing on the meta device.
    """
    storages: dict[int, torch.Tensor] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            # The reference keeps the storage alive, so that no other one gets its address.
            storages[base.untyped_storage()._cdata] = base
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    mask = ids.new_ones(1, 1, tokens, tokens).bool()
    with attending(shape, "counted"):
        for inputs in ({"position_ids": ids, "attention_mask": mask}, {}):
            storages.clear()
            # Families differ in what they take, so they may raise anything.
            with (
                suppress(Exception),
                torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            ):
                hidden_states(shape.train(), ids, **inputs)
                return sum(tensor.nbytes for tensor in storages.values()) / tokens
    config = shape.config.get_text_config()
    return float(17 * config.hidden_size * config.num_hidden_layers * shape.dtype.itemsize)


def repeated_bytes(config: PretrainedConfig, size: int) -> float:
    """Bytes of a token's keys and values that a pass under a mask keeps for every query head.

    transformers repeats them there, beside what ``activations`` counts. config: of the text model.
    """
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    return cache_bytes(config, size) * (all_heads / heads - 1)


@dataclass(frozen=True)
class EngineBytes:
    """Of vLLM's engine on a GPU: while it answers, and while the model learns."""

    awake: float = 0.0
    asleep: float = 0.0


class Memory:
    """Peak memory of a stage in GiB.

    Weights, gradients, optimizer, copies, and the larger of one micro-batch and the rollouts;
    without the runtime of Python and its libraries, and without what an allocator loses to
    fragments.
    """

    def __init__(
        self,
        shape: PreTrainedModel,
        dtype: torch.dtype,
        device: str | torch.device,
        repeats: bool = True,
    ) -> None:
        """shape: the model on the meta device; repeats: whether a GPU's passes under a mask keep
        keys and values for every query head, as all but FlexAttention do.
        """
        config = shape.config.get_text_config()
        self.parameters = sum(p.numel() for p in shape.parameters())
        self.size = dtype.itemsize
        self.device = torch.device(device)
        self.on_gpu = self.device.type != "cpu"
        # Bytes of a token in a micro-batch, and of one in the sampler's cache.
        self.token = activations(shape)
        if self.on_gpu and repeats:
            self.token += repeated_bytes(config, dtype.itemsize)
        self.recomputed = recomputed_bytes(
            self.token, config.num_hidden_layers, config.hidden_size, dtype.itemsize
        )
        self.cache_token = cache_bytes(config, dtype.itemsize)
        self.row = RowBytes.of(config, dtype.itemsize)
        self.vocabulary = config.vocab_size
        self.head = self.vocabulary * config.hidden_size

    def of(
        self,
        config: TrainingConfig,
        work: Work,
        length: float,
        cached_tokens: float,
        rows: float = math.inf,
        packed: bool = False,
        trained: Size | None = None,
        passes: Passes | None = None,
        engine: EngineBytes | None = None,
    ) -> tuple[float, float]:
        """(GiB on the model's device, GiB of host memory that training keeps) of a method.

        length: tokens of its rows; cached_tokens: those whose keys and values are in memory while
        answers are sampled, for learning or evaluation; rows: that a step learns from, as many as
        fill a micro-batch if left out; packed: whether the sampler has the weights a second time;
        trained: all weights if left out; passes: as the run would find them, the longest ones if
        left out; engine: vLLM's on this GPU.
        """
        trained = trained or Size(self.parameters, self.parameters)
        engine = engine or EngineBytes()
        held = self._held(config, work, trained)
        passes = passes or Passes(
            config.micro_batch_tokens or MICRO_BATCH_TOKENS[self.on_gpu], bool(config.recomputes)
        )
        tokens = max(length, min(passes.tokens, rows * length))
        token = self.recomputed if passes.recomputed else self.token
        micro_batch = tokens * token + self.head_bytes(work, trained, tokens) + engine.asleep
        sampling = cached_tokens * self.cache_token + packed * self.parameters * self.size
        sampling += engine.awake
        if self.on_gpu:  # Gradients end with their step, before the next answers are sampled.
            sampling -= 4 * trained.numbers
        on_device = self._models(work, trained) + max(micro_batch, sampling) + held.device
        return on_device / GIB, held.host / GIB

    def passes(
        self, free: float, config: TrainingConfig, work: Work, trained: Size, layered: bool
    ) -> Passes:
        """The passes of a method on a GPU that has ``free`` bytes beside the model that learns.

        layered: whether the model's layers can be computed again.
        """
        room = free + self.parameters * self.size - self._models(work, trained)
        room -= self._held(config, work, trained).device + self.head_bytes(work, trained, math.inf)
        wanted = config.recomputes if layered else False
        limit = config.micro_batch_tokens
        return fitting_passes(max(0.0, room), self.token, self.recomputed, limit, wanted)

    def _models(self, work: Work, trained: Size) -> float:
        """Bytes of the model, of copies, and of weights that are kept a second time."""
        copies = work.loaded(trained.keeps_start) + (0 if trained.made else work.copies)
        return self.size * (self.parameters * (1.0 + copies) + trained.again)

    def _held(self, config: TrainingConfig, work: Work, trained: Size) -> Bytes:
        """Masters, gradients and moments, averages, and what parts hold."""
        made = trained.made  # of other numbers, which are what teachers average
        masters, on_gpu = config.masters, self.on_gpu
        moments = MOMENT_BYTES[config.moments]
        held = trained_bytes(trained.numbers, self.size, masters, on_gpu, made, moments)
        in_host = masters == "host" and (on_gpu or self.size < 4)
        parts, copies = float(work.held), 0.0
        if made:
            copies = 4.0 * trained.numbers * work.copies + 4 * trained.beside
        elif work.averaged:
            held += averaged_bytes(self.parameters, self.size, masters, on_gpu)
        if in_host and not on_gpu:
            return held + Bytes(host=parts + copies)
        return held + Bytes(copies) + (Bytes(host=parts) if in_host else Bytes(parts))

    def rows_at_once(self, prompt: float, answer: float) -> int:
        """Answers sampled at once, of so many tokens to prompts of so many, if nobody says it."""
        return self.row.rows_at_once(self.device, prompt, answer)

    def untrained(self, cached_tokens: float, packed: bool) -> float:
        """GiB of a method that trains nothing: weights and the sampler's, as in ``of``."""
        weights = self.parameters * self.size * (1 + packed)
        return (weights + cached_tokens * self.cache_token) / GIB

    def head_bytes(self, work: Work, trained: Size, tokens: float) -> float:
        """Bytes of one chunk of logits of a micro-batch, and of the head's gradient."""
        # Logits, log-probabilities and a gradient; as much again where a second model has logits.
        tensors = 6 if work.scored else 3
        logits = tensors * 4 * min(VOCABULARY_CHUNK[self.on_gpu], tokens * self.vocabulary)
        # A chunk's gradient of the head goes into a float32 sum, on a GPU that of the step; in
        # another dtype by way of a tensor of its own, when most of the chunk's logits are gone.
        is_bfloat16 = self.size < 4
        head_sum = 4 * self.head * (is_bfloat16 and not trained.made and not self.on_gpu)
        return head_sum + max(logits, self.size * self.head * is_bfloat16)
