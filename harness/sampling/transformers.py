"""Completions from the live weights.

Rollouts and evaluations sample from the very model that is being trained: nothing is copied or
reloaded. Rows are sorted by length. A prompt that is sampled several times is read once, and so is
the beginning that all prompts of a batch have in common. Finished rows leave the batch, and keys
and values go into buffers that are allocated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from harness.base.seeds import seed_for
from harness.models.chat import stop_tokens
from harness.models.forward import PAD, can_share_prompts
from harness.models.repeatable import row_cumsum
from harness.sampling.sampler import Completion, Texts, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS_FIRST_ROWS = 256  # up to which a product takes the weights first


@dataclass(frozen=True)
class _Decoding:
    """How tokens are chosen, and when a completion ends; as the arguments of ``sample``."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    strings: Sequence[str]


class TransformersSampler:
    """Samples from ``model`` with the weights that it has at the time of the call."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 48
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.end, self.stops = stop_tokens(model, tokenizer)
        self.texts = Texts(tokenizer)

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
        strings: Sequence[str] = (),
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``n`` completions of each of ``prompts`` (lists of token ids), in their order.

        Temperature 0 is greedy. The draws of a completion depend on ``seed``, the index of its
        prompt and its index among the ``n`` alone, not on the batching. Each completion has its own
        stream of uniform numbers, inverted through the cumulative distribution in float64.
        strings: texts that end a completion as well, with the token that completes one.
        progress: called with the number of completions that are finished so far.
        """
        decoding = _Decoding(max_new_tokens, temperature, top_p, seed, strings)
        completions: dict[tuple[int, int], Completion] = {}
        with _sampling_mode(self.model):
            for indices, turn in self._batches(prompts, n):
                completions |= self._batch(prompts, indices, turn, decoding)
                if progress:
                    progress(len(completions))
        return [[completions[i, k] for k in range(n)] for i in range(len(prompts))]

    def rest(self) -> None:
        """Do nothing: the sampler holds nothing beside the model, which the training needs."""

    def _batches(self, prompts: Sequence[list[int]], n: int) -> Iterator[tuple[list[int], range]]:
        """Yield (indices of prompts, indices of their completions), short prompts first."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        per_batch = max(1, self.batch_size // n)
        for start in range(0, len(order), per_batch):
            # More completions of one prompt than a batch holds take several turns.
            for first in range(0, n, self.batch_size):
                turn = range(first, min(n, first + self.batch_size))
                yield order[start : start + per_batch], turn

    def _batch(
        self, prompts: Sequence[list[int]], indices: list[int], turn: range, decoding: _Decoding
    ) -> dict[tuple[int, int], Completion]:
        """The completions ``turn`` of the prompts ``indices``, by (prompt, completion)."""
        keys = [(i, k) for i in indices for k in turn]
        rows = _Rows(self.model, [prompts[i] for i in indices], decoding.max_new_tokens)
        answers = self._decode(rows, rows.prefill(len(turn)), keys, decoding)
        return {
            key: Completion(
                tokens,
                logprobs,
                tokens[-1] in self.stops,
                *self.texts.of(prompts[key[0]], tokens),
            )
            for key, (tokens, logprobs) in zip(keys, answers, strict=True)
        }

    def _decode(
        self,
        rows: _Rows,
        logits: torch.Tensor,
        keys: list[tuple[int, int]],
        decoding: _Decoding,
    ) -> list[tuple[list[int], list[float]]]:
        """(tokens, log-probabilities) of the answer of every row, which ``keys`` name.

        logits: of every first token, [rows, vocabulary].
        """
        draws = None
        if decoding.temperature:
            draws = _uniforms(keys, decoding.max_new_tokens, decoding.seed).to(logits.device)
        stops = torch.tensor(sorted(self.stops), device=logits.device)
        answers: list[tuple[list[int], list[float]]] = [([], []) for _ in keys]
        live = list(range(len(keys)))
        for t in range(decoding.max_new_tokens):
            uniforms = None if draws is None else draws[:, t]
            next_tokens, next_logprobs = _pick(
                logits, decoding.temperature, decoding.top_p, uniforms
            )
            # A GPU waits at every read, so there is one for all three; float64 holds each exactly.
            ended = torch.isin(next_tokens, stops)
            picked = torch.stack([next_tokens.double(), next_logprobs.double(), ended.double()])
            token_ids, token_logprobs, flags = picked.tolist()
            ends = [bool(flag) for flag in flags]
            for row, token, logprob in zip(live, token_ids, token_logprobs, strict=True):
                tokens, logprobs = answers[row]
                tokens.append(int(token))
                logprobs.append(logprob)
            if decoding.strings:
                ends = [
                    end or self._completes_string(answers[row][0], decoding.strings)
                    for end, row in zip(ends, live, strict=True)
                ]
            if t == decoding.max_new_tokens - 1 or all(ends):
                break
            if any(ends):
                remaining = [j for j, end in enumerate(ends) if not end]
                live = [live[j] for j in remaining]
                indices = torch.tensor(remaining, device=logits.device)
                next_tokens = next_tokens[indices]
                draws = None if draws is None else draws[indices]
                rows.select(indices)
            logits = rows.read(next_tokens[:, None])
        return answers

    def _completes_string(self, tokens: list[int], strings: Sequence[str]) -> bool:
        """Whether the last token completes one of ``strings``; every token is at least a byte."""
        longest = max(len(string.encode()) for string in strings)
        tail = self.tokenizer.decode(tokens[-1 - longest :])
        return any(string in tail for string in strings)


class _Rows:
    """The rows of a batch, as far as the model has read them.

    The columns of a row are the beginning that all prompts share, padding, the rest of the prompt,
    and the completion. Padding is masked and takes no position.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int
    ) -> None:
        device = model.device
        shortest = min(map(len, prompts))
        longest = max(map(len, prompts))
        shared = 0
        if len(prompts) > 1 and can_share_prompts(model):
            # One token of every prompt is left, whose logits begin the answer.
            shared = min(common_prefix(prompts), shortest - 1)
        paddings = [longest - len(prompt) for prompt in prompts]
        room = longest + max_new_tokens
        self.model = model
        self.beginning = prompts[0][:shared]
        self.remainders = [
            [PAD] * padding + prompt[shared:]
            for padding, prompt in zip(paddings, prompts, strict=True)
        ]
        self.padding = torch.tensor(paddings, device=device)
        # Shape [rows, columns]; None without a shared beginning and without padding.
        self.mask: torch.Tensor | None = None
        if any(paddings) or shared:
            columns = torch.arange(room, device=device)[None]
            unpadded = (columns < shared) | (columns >= shared + self.padding[:, None])
            self.mask = unpadded.long()
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [_LayerBuffer(room) for _ in range(layers)]
        self.cache = Cache(layers=self.layers)
        self.length = 0  # columns that have been read

    def prefill(self, completions: int) -> torch.Tensor:
        """Read the prompts, and make a row of each of their ``completions``.

        Returns the logits [rows, vocabulary] of the first tokens.
        """
        device = self.model.device
        if self.beginning:
            beginning = torch.tensor([self.beginning], device=device)
            self._forward(beginning, self.padding.new_zeros(1), None)
            self._select_buffers(self.padding.new_zeros(len(self.remainders)))
        logits = self.read(torch.tensor(self.remainders, device=device))
        if completions > 1:
            prompts = torch.arange(len(self.remainders), device=device)
            rows = prompts.repeat_interleave(completions)
            self.select(rows)
            logits = logits[rows]
        return logits

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read the next tokens [rows, columns]; the logits [rows, vocabulary] that follow them."""
        return self._forward(tokens, self.padding, self.mask)

    def select(self, rows: torch.Tensor) -> None:
        """Let ``rows`` (indices, each as often as is wanted) take the place of the present rows."""
        self._select_buffers(rows)
        self.padding = self.padding[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]

    def _select_buffers(self, rows: torch.Tensor) -> None:
        for layer in self.layers:
            layer.select(rows)

    def _forward(
        self, tokens: torch.Tensor, padding: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        start = self.length
        self.length += tokens.shape[1]
        columns = torch.arange(start, self.length, device=tokens.device)[None]
        out = self.model(
            input_ids=tokens,
            position_ids=(columns - padding[:, None]).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            attention_mask=None if mask is None else mask[:, : self.length],
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


class _LayerBuffer(CacheLayerMixin):
    """Keys and values of a layer, [rows, heads, tokens, width], with room for every token."""

    is_sliding = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room  # tokens
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.room, width)
        self.values = value_states.new_empty(rows, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: torch.Tensor) -> None:
        self.keys = self.keys[rows]
        self.values = self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def _uniforms(keys: Sequence[tuple[int, int]], count: int, seed: int) -> torch.Tensor:
    """Uniform numbers [keys, count] in float64; each (prompt, completion) has its own stream."""
    out = torch.empty(len(keys), count, dtype=torch.float64)
    for row, (i, k) in enumerate(keys):
        generator = torch.Generator().manual_seed(seed_for(seed, i, k))
        out[row].uniform_(generator=generator)
    return out


def _pick(
    logits: torch.Tensor, temperature: float, top_p: float, draws: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(next tokens [rows], their log-probabilities [rows]) from float32 logits [rows, vocabulary].

    draws: uniform numbers [rows] in float64; None for the likeliest tokens (temperature 0).
    """
    if draws is None:
        tokens = logits.argmax(-1)
        return tokens, torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
    logprobs = torch.log_softmax(logits / temperature, -1)
    probs = logprobs.double().exp()
    if top_p < 1:
        ordered, places = probs.sort(-1, descending=True)
        outside = row_cumsum(ordered) - ordered >= top_p  # The token that crosses top_p is inside.
        probs = probs.scatter(-1, places, ordered.masked_fill(outside, 0.0))
    cumulative = row_cumsum(probs)
    target = draws.to(logits.device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


@contextmanager
def _sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """The model in eval mode, with the attention and the products below; afterwards as before."""
    was_training = model.training
    attention = model.config._attn_implementation
    model.eval()
    if attention == "sdpa":
        model.config._attn_implementation = "grouped_sdpa"
    try:
        with _weights_first(model):
            yield
    finally:
        model.train(was_training)
        model.config._attn_implementation = attention


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention, without a copy of keys and values in a decoding step.

    A decoding step takes the query heads that share keys as the queries of one head. The sums are
    the same, but keys and values [rows, key heads, tokens, width] are read where they are.
    transformers would first repeat them for every query head, which costs more than the attention
    itself.
    """
    rows, heads, length, width = query.shape
    if length > 1 or heads == key.shape[1]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    query = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling
    )
    # A GPU's kernel may return another memory layout, which a view would not take.
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register("grouped_sdpa", _grouped_attention)
AttentionMaskInterface.register("grouped_sdpa", sdpa_mask)


@contextmanager
def _weights_first(model: PreTrainedModel) -> Iterator[None]:
    """Compute products of few rows with a large weight as W x^T rather than x W^T.

    The sums are the same, and a processor without AVX-512 is faster (docs/explanation/speed.md).
    The order depends on processor, dtype and number of rows alone, never on a timing: a resumed run
    computes as before.
    """
    linears: list[torch.nn.Linear] = []
    if (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    ):
        linears = [
            module
            for module in model.modules()
            if type(module) is torch.nn.Linear and "forward" not in vars(module)
        ]
    for linear in linears:
        linear.forward = partial(_weights_first_product, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _weights_first_product(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > WEIGHTS_FIRST_ROWS:
        return torch.nn.functional.linear(x, linear.weight, linear.bias)
    out = (linear.weight @ rows.t()).t().contiguous()
    if linear.bias is not None:
        out = out + linear.bias
    return out.view(*x.shape[:-1], -1)
