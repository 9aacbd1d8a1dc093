"""Completions from the live weights.

Rollouts and evaluations sample from the very model that is being trained: nothing is copied or
reloaded. Rows are sorted by length, and computed by the passes of buffers.py, or of graphs.py where
an order asks for these.

Models that these passes do not fit are sampled by transformers' ``generate`` (generate.py), with
the same draws. A check of the model's own log-probabilities chooses (ways.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

from harness.models import ranks
from harness.models.chat import stop_tokens
from harness.models.products import sampling_products
from harness.models.rope import answer_side, border_of
from harness.models.sharded import sharded
from harness.sampling.buffers import buffered
from harness.sampling.drawing import Answers, Decoding
from harness.sampling.generate import GENERATE_WAYS
from harness.sampling.graphs import graphed
from harness.sampling.rows import rows_of
from harness.sampling.sampler import Completion, Texts, evenly
from harness.sampling.ways import Way, find_way

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OWN_WAYS = BUFFERS, GRAPHS = "buffers", "graphs"  # ways of sampling of the harness's own


class TransformersSampler:
    """Samples from ``model`` with the weights that it has at the time of the call.

    The passes are those of ``way_of(model)``, which are checked against the model's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | None = None,
    ) -> None:
        """batch_size: completions sampled at once, by the device if left out (rows.py)."""
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.end, self.stops = stop_tokens(model, tokenizer)
        self.texts = Texts(tokenizer)

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
        Raises UserError where no way of sampling gives the model's own log-probabilities, or where
        a completion crosses the length at which the model's rotary positions change.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed, strings)
        way = WAYS[way_of(self.model)]
        completions: dict[tuple[int, int], Completion] = {}
        # ``generate`` serves models that are little tried: their products stay PyTorch's own.
        own = way in [WAYS[name] for name in OWN_WAYS]
        parts = sharded(self.model)
        with (
            sampling_products(self.model) if own else nullcontext(),
            parts.in_step() if parts else nullcontext(),
        ):
            for indices, turn in self._batches(prompts, n, way, max_new_tokens):
                completions |= self._batch(prompts, indices, turn, way, decoding)
                if progress:
                    progress(len(completions) * (ranks.count() if parts else 1))
        if parts:
            completions = {
                key: c for found in ranks.gathered(completions) for key, c in found.items()
            }
        return [[completions[i, k] for k in range(n)] for i in range(len(prompts))]

    def rest(self) -> None:
        """Do nothing: the sampler holds nothing beside the model, which the training needs."""

    def _batches(
        self, prompts: Sequence[list[int]], n: int, way: Way, max_new_tokens: int
    ) -> Iterator[tuple[list[int], range]]:
        """Yield (indices of prompts, indices of their completions), short prompts first.

        The prompts of a batch are on one side of the length at which rotary positions change, and
        of one length where the way takes no padding. Batches are of like size: a small one reads
        all weights for few rows as often as a large one. Ranks that share a model share the
        prompts, each with all of their lengths.
        """
        border = border_of(self.model.config)
        kinds = [
            (answer_side(border, len(prompt), max_new_tokens), 0 if way.pads else len(prompt))
            for prompt in prompts
        ]
        order = sorted(range(len(prompts)), key=lambda i: (kinds[i], len(prompts[i]), i))
        if sharded(self.model):
            order = order[ranks.index() :: ranks.count()]
        longest = max(map(len, prompts), default=0)
        rows = self.batch_size or rows_of(self.model, longest, max_new_tokens)
        per_batch = max(1, rows // n)
        for _, alike in groupby(order, key=kinds.__getitem__):
            for batch in evenly(list(alike), per_batch):
                # More completions of one prompt than a batch holds take several turns.
                for first in range(0, n, rows):
                    yield batch, range(first, min(n, first + rows))

    def _batch(
        self,
        prompts: Sequence[list[int]],
        indices: list[int],
        turn: range,
        way: Way,
        decoding: Decoding,
    ) -> dict[tuple[int, int], Completion]:
        """The completions ``turn`` of the prompts ``indices``, by (prompt, completion)."""
        keys = [(i, k) for i in indices for k in turn]
        answers = Answers(keys, decoding, self.stops, self.tokenizer, self.model.device)
        way.complete(self.model, [prompts[i] for i in indices], len(turn), answers)
        return {
            key: Completion(
                tokens,
                logprobs,
                tokens[-1] in self.stops,
                *self.texts.of(prompts[key[0]], tokens),
            )
            for key, tokens, logprobs in zip(keys, answers.tokens, answers.logprobs, strict=True)
        }


WAYS = {  # the fastest first
    GRAPHS: Way(graphed, pads=True),
    BUFFERS: Way(buffered, pads=True),
    **GENERATE_WAYS,
}


_WAY = "_way_of_sampling"  # attribute of a model with what way_of answered
_GRAPHS = "_decodes_by_graphs"  # and with whether GRAPHS is among the ways


def way_of(model: PreTrainedModel, place: str = "model") -> str:
    """The first of WAYS that gives the model's own log-probabilities; see ``find_way``.

    GRAPHS counts where ``allow_graphs`` has said so. The model is tried once. The answer stays with
    it and its copies, so that it cannot change with the weights. Raises UserError at ``place`` if
    there is none.
    """
    if not hasattr(model, _WAY):
        allowed = getattr(model, _GRAPHS, False)
        ways = {name: way for name, way in WAYS.items() if allowed or name != GRAPHS}
        keep_way(model, find_way(model, ways, place))
    return str(getattr(model, _WAY))


def allow_graphs(model: PreTrainedModel) -> None:
    """Let ``way_of`` take the passes of graphs.py for ``model`` and its copies."""
    setattr(model, _GRAPHS, True)


def keep_way(model: PreTrainedModel, way: str) -> None:
    """Give ``model`` the answer of ``way_of`` that an earlier start of its run got."""
    setattr(model, _WAY, way)
