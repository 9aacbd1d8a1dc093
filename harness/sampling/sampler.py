"""What every sampler is: the ``Sampler`` protocol, and the ``Completion`` that it returns.

The two samplers are harness.sampling.transformers.TransformersSampler, which samples from the model
in memory, and harness.sampling.vllm.VLLMSampler, which hands the weights to vLLM's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from harness.models.chat import opens_thought, special_ids, thoughts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Completion:
    """One answer of a model to one prompt.

    token_ids: the answer, with the token that ends the turn where the answer got so far.
    logprobs: the log-probability of every token, in nats, under the distribution at the temperature
    of the call, before top-p.
    finished: whether the last token ends the turn.
    text: the answer without special tokens and without thoughts, which graders, rewards and judges
    see; "" where a thought never ends. whole: the same with its thoughts.
    """

    token_ids: list[int]
    logprobs: list[float]
    finished: bool
    text: str
    whole: str = ""

    def __post_init__(self) -> None:
        self.whole = self.whole or self.text


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


class Texts:
    """Turns sampled tokens into the texts of a Completion: the one place that takes thoughts off.

    thoughts: the tags of the model's thoughts, None where its chat template knows none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.thoughts = thoughts_of(tokenizer)
        special = special_ids(tokenizer) if self.thoughts else ()
        self.special = [tokenizer.decode([i]) for i in special]

    def of(self, prompt: list[int], tokens: list[int]) -> tuple[str, str]:
        """(the answer, the answer with its thoughts) of the ``tokens`` behind ``prompt``."""
        whole = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if self.thoughts is None:
            return whole, whole
        # The tags may be special tokens themselves.
        answer = self.thoughts.answer(
            self.tokenizer.decode(tokens), opens_thought(self.tokenizer, prompt, self.thoughts)
        )
        for token in self.special:
            answer = answer.replace(token, "")
        return answer, whole


Tokens = TypeVar("Tokens", list[int], tuple[int, ...])
Member = TypeVar("Member")


def evenly(members: Sequence[Member], most: int) -> Iterator[list[Member]]:
    """Parts of ``members`` in their order, as few as ``most`` in each allows and of like size."""
    count = -(-len(members) // most)
    for i in range(count):
        yield list(members[-(-i * len(members) // count) : -(-(i + 1) * len(members) // count)])


def common_prefix(lists: Sequence[Tokens]) -> int:
    """Count the first tokens that all of ``lists`` have in common."""
    # In lexicographic order, no two lists differ earlier than the first and the last.
    first = min(lists)
    last = max(lists)
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return i
    return min(len(first), len(last))
