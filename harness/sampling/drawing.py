"""How the tokens of completions are drawn, whatever computes their logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from harness.base.seeds import seed_for
from harness.models.forward import on_device
from harness.models.repeatable import row_cumsum

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and when a completion ends; as the arguments of ``sample``."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    strings: Sequence[str]


class Growing(Protocol):
    """Rows that take a token at a time: what a way of sampling completes.

    live: the rows that have not ended; limit: the most tokens that any takes.
    """

    live: list[int]
    limit: int

    def add(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Give every live row its next token.

        logits: float32 [live rows, vocabulary]. Returns the tokens, and which of these rows go on,
        as indices. They alone are live from now on.
        """
        ...


class Answers:
    """The completions of a batch, drawn token by token.

    tokens, logprobs: of each row so far; live, limit: as in ``Growing``.
    """

    def __init__(
        self,
        keys: Sequence[tuple[int, int]],
        decoding: Decoding,
        stops: Collection[int],
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        """keys: (prompt, completion) of each row; stops: tokens that end a completion."""
        self.tokens: list[list[int]] = [[] for _ in keys]
        self.logprobs: list[list[float]] = [[] for _ in keys]
        self.live = list(range(len(keys)))
        self.limit = decoding.max_new_tokens
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._stops = on_device(torch.tensor(sorted(stops)), device)
        self._draws: torch.Tensor | None = None
        if decoding.temperature:
            drawn = uniforms(keys, decoding.max_new_tokens, decoding.seed)
            self._draws = on_device(drawn, device)

    def add(self, logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Draw the next token of every live row; see ``Growing.add``."""
        decoding = self._decoding
        t = len(self.tokens[self.live[0]])
        draws = None if self._draws is None else self._draws[:, t]
        next_tokens, next_logprobs = pick(logits, decoding.temperature, decoding.top_p, draws)
        # A GPU waits at every read, so there is one for all three; float64 holds each exactly.
        ended = torch.isin(next_tokens, self._stops)
        picked = torch.stack([next_tokens.double(), next_logprobs.double(), ended.double()])
        token_ids, token_logprobs, flags = picked.tolist()
        going_on = []
        for j, row in enumerate(self.live):
            self.tokens[row].append(int(token_ids[j]))
            self.logprobs[row].append(token_logprobs[j])
            if not flags[j] and not self._completes_string(self.tokens[row]):
                going_on.append(j)
        if t == decoding.max_new_tokens - 1:
            going_on = []
        if len(going_on) < len(self.live):
            self.live = [self.live[j] for j in going_on]
            if self._draws is not None:
                rows = torch.tensor(going_on, dtype=torch.long)
                self._draws = self._draws[on_device(rows, logits.device)]
        return next_tokens, going_on

    def _completes_string(self, tokens: list[int]) -> bool:
        """Whether the last token completes one of the strings; every token is at least a byte."""
        strings = self._decoding.strings
        if not strings:
            return False
        longest = max(len(string.encode()) for string in strings)
        tail = self._tokenizer.decode(tokens[-1 - longest :])
        return any(string in tail for string in strings)


def uniforms(keys: Sequence[tuple[int, int]], count: int, seed: int) -> torch.Tensor:
    """Uniform numbers [keys, count] in float64; each (prompt, completion) has its own stream."""
    out = torch.empty(len(keys), count, dtype=torch.float64)
    for row, (i, k) in enumerate(keys):
        generator = torch.Generator().manual_seed(seed_for(seed, i, k))
        out[row].uniform_(generator=generator)
    return out


def pick(
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
