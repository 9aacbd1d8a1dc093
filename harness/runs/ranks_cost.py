"""Memory and time of one large run on the GPUs of several ranks: a model, which no GPU has run.

On top of the cost of one GPU (gpu_cost.py), with each rank's share of rows and weights, come the
bytes that ranks send: a pass forward and backward makes every weight whole twice in the model's
dtype and adds its gradients up in float32, a pass without gradients makes it whole once. So does
each token that is sampled, where a GPU has no room to keep the model whole meanwhile. What is sent
goes on while the GPU computes, so a pass takes the longer of the two.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from harness.base.errors import UserError
from harness.learning.options import TrainingConfig
from harness.learning.outlook import Work
from harness.learning.parametrisation import Size
from harness.models.memory import Passes
from harness.models.recompute import can_recompute
from harness.runs.cards import CARDS, Card
from harness.runs.cost import GIB, Memory, StepWork
from harness.runs.gpu_cost import GPU, Sampling, Terms
from harness.runs.training_bytes import fitting_passes

# Bytes a second that a GPU sends to others of its machine: NVLink of an A100 and an H100 or H200
# in one direction (NVIDIA's datasheets: 600 and 900 GB/s in both); the others have PCIe.
NVLINK = {"A100 80GB": 300e9, "H100 80GB": 450e9, "H200 141GB": 450e9}
BY_SIZE = {24: "RTX 4090", 48: "L40S", 80: "H100 80GB", 141: "H200 141GB"}  # GB and a card
MACHINE = 8  # GPUs of a machine
NETWORK = 50e9  # bytes a second a GPU to other machines: 400 Gb/s each, as a DGX H100 has
REACHED = 0.8  # share of these that collectives reach: an estimate
# Seconds of a sum over the ranks of a copy, two in a layer and token: an estimate
SUM = 15e-6
CONTEXT = 1.5  # GiB of CUDA's context, NCCL's buffers and libraries: an estimate
# Bytes of a trained weight on the rank that has it: float32 master, gradient, AdamW's two moments.
TRAINED, MASTER, MOMENTS = 16.0, 4.0, 8.0


@dataclass(frozen=True)
class Fleet:
    """So many GPUs of one kind, a rank each."""

    count: int
    card: Card

    @property
    def sent(self) -> float:
        """Bytes a second that each GPU sends or gets in a collective of all."""
        within = NVLINK.get(self.card.name, self.card.link)
        return REACHED * min(within, NETWORK if self.count > MACHINE else math.inf)

    def __str__(self) -> str:
        return f"{self.count} x {self.card.name}"


def fleet_of(text: str) -> Fleet:
    """What ``8x80`` means: 8 GPUs of 80 GB. Raises UserError for a kind that is not known."""
    match = re.fullmatch(r"([1-9]\d{0,4})x(\d{1,4})", text.strip().lower())
    card = BY_SIZE.get(int(match[2])) if match else None
    if not match or card is None:
        problem = f"{text[:40]!r} is no number of GPUs x GB of each"
        raise UserError("--gpus", problem, f"as 8x80, with {', '.join(map(str, BY_SIZE))} GB")
    return Fleet(int(match[1]), CARDS[card])


@dataclass(frozen=True)
class RankShare:
    """What a rank takes. gib: on its GPU, context included; passes: None where nothing fits; terms:
    seconds of a step; sent: seconds of it that the GPU waits for others; efficiency: the step's
    time on one GPU without limit of memory, over the ranks' time for it.
    """

    gib: float
    passes: Passes | None
    terms: Terms
    sent: float
    efficiency: float


class PartsMemory:
    """Memory of a rank of ``count``, beside that of one GPU that has all."""

    def __init__(self, shape: PreTrainedModel, memory: Memory, count: int) -> None:
        """shape: the model on the meta device."""
        self.memory, self.count = memory, count
        self.layers = max(1, shape.config.get_text_config().num_hidden_layers)
        self.layered = can_recompute(shape)

    @property
    def model(self) -> float:
        """Bytes of a rank's part of the model's weights, the masters."""
        return MASTER * self.memory.parameters / self.count

    def held(self, work: Work, trained: Size, masters: str) -> float:
        """Bytes that a rank has all the time of a step, beside activations and logits."""
        memory = self.memory
        each = TRAINED - MOMENTS * (masters != "device")  # of a trained number
        copies = work.loaded(trained.keeps_start) + (0 if trained.made else work.copies)
        parts = memory.parameters * MASTER * (1 + copies) + MASTER * trained.again
        if trained.made:  # numbers that every rank has whole
            everywhere = each * trained.numbers + MASTER * trained.numbers * work.copies
        else:
            parts, everywhere = parts + (each - MASTER) * trained.numbers, 0.0
        layer = (memory.parameters - memory.head) / self.layers
        # Two layers whole, the one that computes and the next; gradients of one, in the model's
        # dtype and in float32 on their way. The embedding whole, and the head of each model.
        whole = layer * (2 * memory.size + (memory.size + 4) * (not trained.made))
        heads = memory.size * memory.head * (2 + bool(work.scored)) + 4 * memory.head
        return parts / self.count + everywhere + whole + heads

    def passes(self, room: float, config: TrainingConfig, work: Work, trained: Size) -> Passes:
        """The passes of a rank that has ``room`` bytes for all of training, the model included."""
        memory, wanted = self.memory, config.recomputes if self.layered else False
        room -= self.held(work, trained, config.masters) + memory.head_bytes(
            work, trained, math.inf
        )
        tokens = config.micro_batch_tokens
        return fitting_passes(max(0.0, room), memory.token, memory.recomputed, tokens, wanted)

    def keeps_whole(self, fleet: Fleet, work: Work, trained: Size, masters: str) -> bool:
        """Whether answers are sampled from a model that is whole on each GPU."""
        whole = self.memory.parameters * self.memory.size
        return self.held(work, trained, masters) + 2 * whole <= (fleet.card.gib - CONTEXT) * GIB

    def peak(
        self,
        work: Work,
        trained: Size,
        masters: str,
        passes: Passes,
        tokens: float,
        cached_tokens: float,
        copy: float,
    ) -> float:
        """Bytes; copy: those of an engine's weights, while it samples; tokens: of a pass;
        cached_tokens: of the rank's answers while they are sampled.
        """
        memory = self.memory
        token = memory.recomputed if passes.recomputed else memory.token
        learning = tokens * token + memory.head_bytes(work, trained, tokens)
        sampling = cached_tokens * memory.cache_token + memory.size * memory.head + copy
        return self.held(work, trained, masters) + max(learning, sampling)


class RanksCost:
    """The cost of a model on a Fleet."""

    def __init__(
        self, shape: PreTrainedModel, dtype: torch.dtype, fleet: Fleet, of_copy: int = 0
    ) -> None:
        """shape: the model on the meta device; of_copy: ranks that hold one copy of vLLM's weights,
        0 where transformers samples.
        """
        self.fleet, self.of_copy = fleet, of_copy
        self.memory = Memory(shape, dtype, "cuda")
        self.parts = PartsMemory(shape, self.memory, fleet.count)
        self.gpu = GPU(shape, fleet.card.speeds, Sampling(vllm=of_copy > 0))

    def share(
        self,
        config: TrainingConfig,
        work: Work,
        trained: Size,
        step: StepWork,
        cached_tokens: float,
    ) -> RankShare:
        """What a rank takes of a step of all ranks.

        step: of all of them, its ``limit`` is found here; cached_tokens: whose keys and values are
        in memory on all ranks while answers are sampled.
        """
        count, gib = self.fleet.count, self.fleet.card.gib - CONTEXT
        passes = self.parts.passes(gib * GIB, config, work, trained)
        rows = max(1.0, step.prompts * max(1, work.answers) / count)
        tokens = max(work.learned, min(passes.tokens, rows * work.learned))
        cached = cached_tokens / count
        copy = 0.0
        if self.of_copy and work.answers:
            copy = self.memory.size * self.memory.parameters / self.of_copy
        peak = self.parts.peak(work, trained, config.masters, passes, tokens, cached, copy) / GIB
        own = replace(
            step,
            prompts=step.prompts / count,
            limit=passes.tokens,
            recomputed=passes.recomputed,
            trained=trained if trained.made else Size(trained.numbers // count, trained.weights),
        )
        terms, sent = self._terms(own, work, trained)
        alone = sum(self.gpu.terms(replace(step, limit=passes.tokens, recomputed=False)))
        return RankShare(
            peak + CONTEXT,
            passes if peak <= gib else None,
            terms,
            sent,
            alone / count / sum(terms),
        )

    def _terms(self, step: StepWork, work: Work, trained: Size) -> tuple[Terms, float]:
        """(Seconds of a rank's step, those of them that it waits for what is sent)."""
        terms = self.gpu.terms(step)
        away = (self.fleet.count - 1) / self.fleet.count
        bytes_once = self.memory.size * self.memory.parameters * away
        backward = bytes_once + 4 * away * self.memory.parameters * (not trained.made)
        passes = math.ceil(step.prompts * work.learned / step.limit)
        scoring = math.ceil(step.prompts * work.scored / (2 * step.limit)) if work.scored else 0
        learning = (passes * (bytes_once + backward) + scoring * bytes_once) / self.fleet.sent
        # An engine gets the model once. Without one it is whole for all tokens of a step's answers
        # where there is room.
        tokens = (step.longest or work.sampled) if work.answers else 0.0
        where = self.fleet, work, trained, step.masters
        once = self.of_copy or self.parts.keeps_whole(*where)
        decoding = (min(tokens, 1.0) if once else tokens) * bytes_once / self.fleet.sent
        compute = max(terms.compute, learning)
        if self.of_copy and tokens:
            together = replace(step, prompts=step.prompts * self.of_copy)
            sums = 2 * self.parts.layers * tokens * SUM * (self.of_copy > 1)
            waited = decoding + sums
            decode = self.gpu.terms(together).decode / self.of_copy + waited
        else:
            decode = max(terms.decode, decoding)
            waited = decode - terms.decode
        return terms._replace(compute=compute, decode=decode), compute - terms.compute + waited
