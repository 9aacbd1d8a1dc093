"""What every sampler is: the ``Sampler`` protocol, and the ``Completion`` that it returns.

The two samplers are harness.sampling.transformers.TransformersSampler, which samples from the model
in memory, and harness.sampling.vllm.VLLMSampler, which hands the weights to vLLM's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Completion:
    """One answer of a model to one prompt.

    token_ids: the answer, with the token that ends the turn where the answer got so far.
    logprobs: the log-probability of every token, in nats, under the distribution at the temperature
    of the call, before top-p.
    finished: whether the last token ends the turn.
    text: the answer without special tokens.
    """

    token_ids: list[int]
    logprobs: list[float]
    finished: bool
    text: str


@runtime_checkable
class Sampler(Protocol):
    """Samples completions from ``model`` with the weights that it has at the time of the call.

    model, tokenizer: what is sampled from, and what turns tokens into text.
    end: the id of the token that closes a demonstration.
    stops: the ids of all tokens that end a completion.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end: int
    stops: set[int]

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``n`` completions of each of ``prompts`` (lists of token ids), in their order.

        Temperature 0 is greedy. The draws of a completion depend on ``seed``, the index of its
        prompt and its index among the ``n`` alone, not on the batching.
        progress: called with the number of completions that are finished so far.
        """
        ...

    def rest(self) -> None:
        """Give back what the sampler needs only while it samples; training follows."""
        ...


Tokens = TypeVar("Tokens", list[int], tuple[int, ...])


def common_prefix(lists: Sequence[Tokens]) -> int:
    """Count the first tokens that all of ``lists`` have in common."""
    # In lexicographic order, no two lists differ earlier than the first and the last.
    first = min(lists)
    last = max(lists)
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return i
    return min(len(first), len(last))
