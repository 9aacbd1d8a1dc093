"""Attention over a packed sequence, computed for each of its segments apart.

A packed sequence holds rows that begin alike: what they share is a segment, and what follows it in
each of them is another. Under a mask over the whole sequence every token would be compared with all
others and most of it thrown away. Here a segment is compared with what it sees alone: the segments
that it continues, and itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from harness.models.forward import attending, can_share_prompts, distinct_tokens, hidden_states

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

ATTENTION = "segments"  # its name in transformers' registry
# One more group of segments takes about as long as so many comparisons of a query with a key, by
# the heads of SmolLM2-135M (python -m benchmarks.speed.segments): operations of its own, and
# products of other lengths, which are made ready anew in every layer where there are many.
GROUP = 10_000

KEYS = 512  # of a segment, up to which query heads are joined and probabilities may be kept

Span = tuple[int, int]  # first token, and the one behind the last
Chain = list[Span]  # of a segment: what it continues, in order, and itself


@dataclass(frozen=True)
class SegmentBatch:
    """Segments that one call of attention computes, padded to the longest.

    queries: the span of each; keys: its chain; mask: [segments, 1, queries, keys], added to the
    scores.
    """

    queries: list[Chain]
    keys: list[Chain]
    mask: torch.Tensor


class Segments:
    """The segments of a packed sequence in groups, for the layers of one pass."""

    def __init__(self, chains: Sequence[Chain], dtype: torch.dtype, device: torch.device) -> None:
        """chains: of every segment, in the order of the sequence, which they cover.

        dtype: of the model's attention.
        """
        self.chains = chains
        self.device = device
        self.used = False  # by an attention so far
        self.groups = []
        places = torch.zeros(chains[-1][-1][1], dtype=torch.long, device=device)
        count = 0  # rows of the groups' outputs so far
        _, groups = min(map(_grouped, (chains, _merged(chains))), key=itemgetter(0))
        for keys in groups:
            queries = [chain[-1:] for chain in keys]
            longest = max(map(_tokens, queries))
            for chain in queries:
                start, end = chain[0]
                places[start:end] = torch.arange(count, count + end - start)
                count += longest
            self.groups.append(SegmentBatch(queries, keys, _mask(keys, longest, dtype, device)))
        self.places = places  # of each token among the groups' outputs

    def mask(self) -> torch.Tensor:
        """Which tokens see which: booleans [1, 1, tokens, tokens], for the model.

        It refers to the segments, so that an attention that knows them finds them.
        """
        length = self.chains[-1][-1][1]
        visible = torch.zeros(length, length, dtype=torch.bool)
        for chain in self.chains:
            first, last = chain[-1]
            for start, end in chain:
                visible[first:last, start:end] = True
        mask = visible.tril_().to(self.device)[None, None]
        mask.segments = self  # type: ignore[attr-defined]
        return mask


def _tokens(chain: Chain) -> int:
    return sum(end - start for start, end in chain)


def _merged(chains: Sequence[Chain]) -> list[Chain]:
    """``chains`` where a segment and the only one that continues it, right behind it, are one."""
    followers = Counter(tuple(chain[:-1]) for chain in chains)
    found: list[Chain] = []
    for chain in chains:
        before, (start, end) = chain[:-1], chain[-1]
        only = followers[tuple(before)] == 1
        if only and found and before == found[-1] and before[-1][1] == start:
            found[-1] = [*before[:-1], (before[-1][0], end)]
        else:
            found.append(chain)
    return found


def _grouped(chains: Sequence[Chain]) -> tuple[int, list[list[Chain]]]:
    """(Cost, groups) of the segments that have tokens of their own: by length, at the least cost.

    A group costs its comparisons, padded to its longest queries and keys, and GROUP beside.
    """
    members = [chain for chain in chains if _tokens(chain[-1:])]
    members.sort(key=lambda chain: (-_tokens(chain), -_tokens(chain[-1:])))
    keys = np.array([_tokens(chain) for chain in members])
    queries = np.array([_tokens(chain[-1:]) for chain in members])
    least = np.zeros(len(members) + 1, dtype=int)  # cost of the first segments, by their number
    begins = [0]  # of the last group of them
    for end in range(1, len(members) + 1):
        longest = np.maximum.accumulate(queries[end - 1 :: -1])[::-1]  # of the group from each on
        costs = least[:end] + GROUP + np.arange(end, 0, -1) * longest * keys[:end]
        begins.append(int(costs.argmin()))
        least[end] = costs.min()
    groups: list[list[Chain]] = []
    end = len(members)
    while end:
        groups.append(members[begins[end] : end])
        end = begins[end]
    return int(least[-1]), groups


def _mask(
    keys: Sequence[Chain], longest: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """0 where a segment's token may look, else -inf. Padding is behind every token."""
    before = torch.tensor([_tokens(chain[:-1]) for chain in keys], device=device)
    query = before[:, None] + torch.arange(longest, device=device)
    key = torch.arange(max(map(_tokens, keys)), device=device)
    hidden = key > query[:, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)[
        :, None
    ]


class _Take(torch.autograd.Function):
    """Tokens [1, heads, tokens, width] as the rows [chains, heads, longest, width], zero-padded.

    A token of several chains gets the sum of their gradients, added in float32.
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, chains: list[Chain]) -> torch.Tensor:
        ctx.chains = chains
        ctx.shape = tokens.shape
        _, heads, _, width = tokens.shape
        rows = tokens.new_zeros(len(chains), heads, max(map(_tokens, chains)), width)
        for row, chain in zip(rows, chains, strict=True):
            at = 0
            for start, end in chain:
                row[:, at : at + end - start] = tokens[0, :, start:end]
                at += end - start
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.new_zeros(ctx.shape, dtype=torch.float32)
        for row, chain in zip(grad, ctx.chains, strict=True):
            at = 0
            for start, end in chain:
                total[0, :, start:end] += row[:, at : at + end - start]
                at += end - start
        return total.to(grad.dtype), None


class _ByProducts(torch.autograd.Function):
    """Attention by matrix products: scores, softmax in float32, mean of the values.

    query [rows, heads, queries, width], key and value [rows, heads, keys, width], mask [rows, 1,
    queries, keys]. On processors with bfloat16 instructions it is faster than PyTorch's
    fused attention with its gradient. It keeps the probabilities.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        scores = (query @ key.mT).mul_(scale).add_(mask)
        probs = scores.softmax(-1)  # inside in float32
        ctx.save_for_backward(query, key, value, probs)
        ctx.scale = scale
        return probs @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, probs = ctx.saved_tensors
        of_probs = grad @ value.mT
        of_scores = torch._softmax_backward_data(of_probs, probs, -1, probs.dtype).mul_(ctx.scale)
        return of_scores @ key, of_scores.mT @ query, probs.mT @ grad, None, None


def _joined(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None,
) -> torch.Tensor:
    """Attention [rows, queries, heads, width]. Query heads that share keys are one long head.

    The sums are the same. Repeated for every query head, keys and values would be copied, and their
    gradients added again: in float32 that took as long as the attention.
    """
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    mask = mask.repeat(1, 1, heads // shared, 1)
    query = query.reshape(rows, shared, -1, width)
    if query.dtype == torch.float32:
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale
        )
    else:
        output = _ByProducts.apply(query, key, value, mask, scale or width**-0.5)
    return output.reshape(rows, heads, length, -1).transpose(1, 2)


def _segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention, by segments where the mask is that of ``Segments``."""
    segments: Segments | None = getattr(attention_mask, "segments", None)
    if segments is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    segments.used = True
    outputs = []
    for group in segments.groups:
        q, k, v = (
            _Take.apply(tokens, chains)
            for tokens, chains in ((query, group.queries), (key, group.keys), (value, group.keys))
        )
        if dropout or k.shape[2] > KEYS:
            output, _ = sdpa_attention_forward(
                module, q, k, v, group.mask, scaling=scaling, dropout=dropout, **kwargs
            )
        else:
            output = _joined(q, k, v, group.mask, scaling)
        outputs.append(output.flatten(0, 1))  # [rows x queries, heads, width]
    return torch.cat(outputs)[segments.places][None], None


AttentionInterface.register(ATTENTION, _segment_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# ---- whether a model takes it --------------------------------------------------------------------

_TAKES = "_takes_segments"  # attribute of a model with what can_take_segments answered
TRIAL: list[Chain] = [[(0, 3)], [(0, 3), (3, 6)], [(0, 3), (6, 8)]]  # a beginning and two rows


def can_take_segments(model: PreTrainedModel) -> bool:
    """Whether the model, on a CPU, gives the same states by segments as under one mask.

    It is tried on a few tokens, once. The answer stays with it and with its copies, so that it
    cannot change with the weights.
    """
    if not hasattr(model, _TAKES):
        plain = model.config._attn_implementation == "sdpa" and model.device.type == "cpu"
        keep_segments(model, plain and can_share_prompts(model) and _takes(model))
    return bool(getattr(model, _TAKES))


def keep_segments(model: PreTrainedModel, answer: bool) -> None:
    """Give ``model`` the answer of ``can_take_segments`` that an earlier start of its run got."""
    setattr(model, _TAKES, answer)


def _takes(model: PreTrainedModel) -> bool:
    segments = Segments(TRIAL, model.dtype, model.device)
    try:
        return agrees(model, ATTENTION, segments.mask()) and segments.used
    except Exception:  # A model that takes no other attention may raise anything.
        return False


@torch.no_grad()
def agrees(model: PreTrainedModel, attention: str, mask: torch.Tensor | BlockMask) -> bool:
    """Whether the tokens of TRIAL have the states of the model's own attention by another one.

    mask: of TRIAL, as ``attention`` takes it. Whatever the model raises is not caught.
    """
    if distinct_tokens(model, 8) is None:
        return False
    was_training = model.training
    model.eval()  # Dropout would move the states.
    try:
        plain = Segments(TRIAL, model.dtype, model.device).mask()
        wanted = trial_states(model, str(model.config._attn_implementation), plain)
        states = trial_states(model, attention, mask)
    finally:
        model.train(was_training)
    # Another mask moves the states by about their size, rounding by far less.
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((states - wanted).norm() <= tolerance * wanted.norm())


def trial_states(
    model: PreTrainedModel, attention: str, mask: torch.Tensor | BlockMask
) -> torch.Tensor:
    """States [1, tokens, width] of TRIAL's tokens by ``attention``."""
    device = model.device
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4]], device=device)
    ids = torch.tensor([distinct_tokens(model, 8)], device=device)
    with attending(model, attention):
        return hidden_states(model, ids, position_ids=positions, attention_mask=mask)
