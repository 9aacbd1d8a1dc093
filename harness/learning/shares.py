"""Which rank computes which rows, in equally many passes on every rank.

Rows are cut in their order into one share for each rank, of like many completion tokens: the shares
depend on the completions alone, so that a teacher's states are on the rank that learns from them,
and rows of one prompt mostly stay together. Each rank knows all shares, and so how many passes the
others make: where it has fewer it adds empty ones, since a layer is made whole by all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from harness.learning.packing import (
    Positions,
    Row,
    Tree,
    completion_states,
    computed_tokens,
    micro_batches,
)
from harness.models import ranks
from harness.models.sharded import sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMPTY = [Row([0], [0])]  # what an empty pass computes


def shares(rows: Sequence[Row], count: int) -> list[list[int]]:
    """The indices of the rows of each of ``count`` ranks; some may have none."""
    total = sum(len(row.completion) for row in rows)
    found: list[list[int]] = [[] for _ in range(count)]
    before = 0  # tokens of the rows so far
    for i, row in enumerate(rows):
        middle = before + len(row.completion) / 2
        found[min(count - 1, int(middle * count / max(1, total)))].append(i)
        before += len(row.completion)
    return found


def own_rows(model: PreTrainedModel, rows: Sequence[Row]) -> list[int]:
    """Indices of the rows that this rank computes: all of them where the model is whole."""
    if sharded(model) is None:
        return list(range(len(rows)))
    return shares(rows, ranks.count())[ranks.index()]


def passes(
    model: PreTrainedModel, rows: Sequence[Row], limit: int
) -> Iterator[tuple[list[Tree] | None, int]]:
    """(micro-batch of this rank, tokens of this pass on all ranks); None for an empty pass.

    limit: tokens of a micro-batch, see ``micro_batches``.
    """
    if sharded(model) is None:
        for batch in micro_batches(model, rows, limit):
            yield batch, computed_tokens(rows, batch)
        return
    batches = [
        list(micro_batches(model, rows, limit, members)) for members in shares(rows, ranks.count())
    ]
    for turn in range(max(map(len, batches))):
        in_turn = [batch[turn] if turn < len(batch) else None for batch in batches]
        tokens = sum(computed_tokens(rows, batch) for batch in in_turn if batch)
        yield in_turn[ranks.index()], tokens


def mean_of_all(values: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The mean of the entries of ``values`` [any length], and of those of the other ranks."""
    if ranks.count() == 1:
        return torch.cat(list(values)).float().mean()
    total = sum((v.double().sum() for v in values), torch.zeros((), dtype=torch.float64).to(device))
    count = sum(v.numel() for v in values)
    total, number = ranks.summed(torch.stack([total, total.new_tensor(count)]))
    return total / number


def states_of(
    model: PreTrainedModel, rows: Sequence[Row], batch: list[Tree] | None
) -> tuple[torch.Tensor, Positions | None]:
    """``completion_states`` of a micro-batch; an empty pass has states and no Positions."""
    if batch is None:
        return completion_states(model, EMPTY, [[0]])[0], None
    return completion_states(model, rows, batch)
