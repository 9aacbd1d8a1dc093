"""What every sampler gives: completions."""

from dataclasses import dataclass


def common_prefix(lists):
    """How many first tokens all of ``lists`` have in common."""
    first, last = min(lists), max(lists)  # in the order of a dictionary these two differ first
    return next(
        (i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last))
    )


@dataclass
class Completion:
    """token_ids: the answer with its end-of-turn token, if it got so far; finished: whether it did;
    logprobs: of every token, in nats, under the distribution at the given temperature before top-p;
    text: without special tokens.
    """

    token_ids: list
    logprobs: list
    finished: bool
    text: str
