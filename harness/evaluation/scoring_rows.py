"""Rows that a model reads to score continuations: contexts are shared, positions are explicit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

SHARED_ROOM = 512  # tokens of continuations behind one context: the mask grows with the square

# lm-eval's form of a request: (unused, the context's tokens, the continuation's tokens).
Request = tuple[object, list[int], list[int]]


@dataclass
class PackedRow:
    """One sequence of a batch.

    segments: 0 for the context, else the number of the continuation that a token belongs to; read:
    [(index of a request, the positions whose logits predict its continuation)].
    """

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    read: list[tuple[int, list[int]]] = field(default_factory=list)

    @classmethod
    def of(cls, tokens: list[int]) -> "PackedRow":
        """A row of one plain sequence, which nothing is read from yet."""
        return cls(list(tokens), list(range(len(tokens))), [0] * len(tokens))


def plain_rows(
    requests: Sequence[Request], indices: Iterable[int], max_length: int
) -> list[PackedRow]:
    """One row for every different input of the requests number ``indices``.

    Choices of one token each differ in their last token alone, which is only predicted: they share
    one row. Inputs are cut on the left to ``max_length``.
    """
    rows: dict[tuple[int, ...], PackedRow] = {}
    for index in indices:
        _, context, continuation = requests[index]
        tokens = (context + continuation)[-(max_length + 1) : -1]
        row = rows.setdefault(tuple(tokens), PackedRow.of(tokens))
        row.read.append((index, list(range(len(tokens) - len(continuation), len(tokens)))))
    return list(rows.values())


def shared_rows(
    context: list[int], requests: Sequence[Request], indices: Iterable[int]
) -> list[PackedRow]:
    """Rows of the context, read once, and the continuations of several requests behind it.

    Each continuation sees the context and itself alone.
    """
    rows: list[PackedRow] = []
    for index in indices:
        rest = requests[index][2][:-1]  # the last token is only predicted
        if not rows or len(rows[-1].tokens) + len(rest) > len(context) + SHARED_ROOM:
            rows.append(PackedRow.of(context))
        row = rows[-1]
        start = len(row.tokens)
        row.read.append((index, [len(context) - 1, *range(start, start + len(rest))]))
        row.tokens.extend(rest)
        row.positions.extend(range(len(context), len(context) + len(rest)))
        row.segments.extend([len(row.read)] * len(rest))
    return rows


def batches(
    rows: Iterable[PackedRow], limit: int, side: Callable[[int], int] = lambda tokens: 0
) -> Iterator[list[PackedRow]]:
    """Groups of rows of like length with at most ``limit`` tokens, padding included.

    A row that is longer is a batch of its own. side: of a number of tokens; rows of two sides are
    in two batches.
    """
    batch: list[PackedRow] = []
    last = 0
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        own = side(len(row.tokens))
        # The longest comes first: it sets the padding of its batch.
        if batch and ((len(batch) + 1) * len(batch[0].tokens) > limit or own != last):
            yield batch
            batch = []
        batch.append(row)
        last = own
    if batch:
        yield batch
