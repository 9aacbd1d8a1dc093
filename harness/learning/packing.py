"""Rows to learn from, packed into micro-batches whose prompts are computed once.

Vocabulary of this file: a *row* is a prompt and a completion. A *tree* is a list of rows that are
computed as one sequence, because their prompts begin alike: the common beginning is the trunk, and
the rest of each prompt and each completion branch off it. A *micro-batch* is a list of trees that
go through the model together: one behind the other in one sequence where the model attends by
segments or by FlexAttention (segments.py, flex.py of harness/models), else padded beside each other
under a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.models.flex import ATTENTION as FLEX
from harness.models.flex import attends_by_flex, line_mask
from harness.models.forward import (
    attending,
    can_share_prompts,
    hidden_states,
    on_device,
    pad_right,
)
from harness.models.rope import border_of, side_of
from harness.models.segments import ATTENTION, Chain, Segments, can_take_segments
from harness.sampling.sampler import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Elements of one [tokens, vocabulary] tensor, by whether it is on a GPU: 64 and 512 MiB in float32.
# A GPU ends small chunks sooner than Python starts them.
VOCABULARY_CHUNK = {False: 2**24, True: 2**27}
# Longest sequence, in tokens, that rows of different prompts share under a mask. Every token of it
# is compared with all others, also with those that it may not see, so attention grows with it.
TREE = 512

Tree = list[int]  # indices of rows


@dataclass
class Row:
    """One sequence to learn from: the loss is on ``completion``, given ``prompt`` (token ids).

    limit: tokens of a sampled completion at most; the stage's where it is left out.
    """

    prompt: list[int]
    completion: list[int]
    limit: int | None = None


@dataclass
class Positions:
    """Which completion tokens a chunk of logits predicts: three int64 tensors [tokens].

    rows: index of the row; offsets: place in the row's completion, from 0; tokens: the token
    itself, which is the target of the logits. known: (row, offset) of each, where the host has
    them: a GPU waits at every number that is read from it.
    """

    rows: torch.Tensor
    offsets: torch.Tensor
    tokens: torch.Tensor
    known: list[tuple[int, int]] | None = None

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, offset) of each token, to look up what a method holds in lists."""
        if self.known is None:
            self.known = list(zip(self.rows.tolist(), self.offsets.tolist(), strict=True))
        return self.known

    def part(self, which: slice) -> Positions:
        """Those of some of the tokens."""
        known = None if self.known is None else self.known[which]
        return Positions(self.rows[which], self.offsets[which], self.tokens[which], known)


class TokenValues:
    """A number or a vector for each completion token of some rows: ``at`` looks up many at once.

    As a sequence it gives each row's values, [completion tokens, ...]. values: [all tokens, ...];
    lengths: tokens of the rows in the order in which ``values`` has them; order: index of each of
    these rows, if they do not come in their own; count: of all rows, where ``values`` lacks some.
    """

    def __init__(
        self,
        values: torch.Tensor,
        lengths: Sequence[int],
        order: Sequence[int] | None = None,
        count: int | None = None,
    ) -> None:
        self.values = values
        self._spans = [(0, 0)] * (len(lengths) if count is None else count)
        begin = 0
        for row, length in zip(order or range(len(lengths)), lengths, strict=True):
            self._spans[row] = (begin, begin + length)
            begin += length
        starts = [start for start, _ in self._spans]
        self._starts = on_device(torch.tensor(starts, dtype=torch.long), values.device)

    @classmethod
    def of_rows(
        cls, rows: Sequence[torch.Tensor] | Sequence[Sequence[float]], device: torch.device
    ) -> TokenValues:
        """From the values of each row: tensors [completion tokens], or lists of numbers."""
        lengths = [len(row) for row in rows]
        tensors = [row for row in rows if isinstance(row, torch.Tensor)]
        if tensors:
            return cls(torch.cat(tensors).to(device), lengths)
        flat = torch.tensor([float(value) for row in rows for value in row])
        return cls(on_device(flat, device), lengths)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, row: int) -> torch.Tensor:
        start, end = self._spans[row]
        return self.values[start:end]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.values[start:end] for start, end in self._spans)

    def at(self, positions: Positions) -> torch.Tensor:
        """The values [tokens, ...] at a chunk's positions."""
        return self.values[self._starts[positions.rows] + positions.offsets]


# ---- which rows go together ------------------------------------------------------------------


def micro_batches(
    model: PreTrainedModel, rows: Sequence[Row], limit: int, members: Sequence[int] | None = None
) -> Iterator[list[Tree]]:
    """Trees in micro-batches of at most ``limit`` tokens, padding included where there is any.

    members: indices of the rows that are taken; all of them if left out.

    Yields lists of trees, the longest first; every row is in one tree. A tree that is longer than
    ``limit`` is a micro-batch of its own.

    Rows with one prompt always share it. Different prompts share their common beginning (a system
    turn, worked examples) where it is at least a fifth of a row; under a mask such a tree ends at
    TREE tokens. Rows on two sides of the length at which rotary positions change go apart.
    """
    border = border_of(model.config)
    sides: dict[int, list[int]] = {}
    for i in range(len(rows)) if members is None else members:
        side = side_of(border, len(rows[i].prompt) + len(rows[i].completion) - 1)
        sides.setdefault(side, []).append(i)
    for side in sorted(sides):
        yield from _micro_batches(model, rows, sides[side], limit)


def _micro_batches(
    model: PreTrainedModel, rows: Sequence[Row], members: list[int], limit: int
) -> Iterator[list[Tree]]:
    """``micro_batches`` of the rows ``members``."""
    trees = [[i] for i in members]
    in_line = _in_line(model)
    if can_share_prompts(model):
        chosen = [rows[i] for i in members]
        longest = limit if in_line else min(TREE, limit)
        trees = [[members[i] for i in tree] for tree in _trees(chosen, limit, longest)]
    lengths = [_tree_tokens(rows, tree) for tree in trees]
    longest_first = sorted(range(len(trees)), key=lambda i: (-lengths[i], trees[i][0]))
    batch: list[Tree] = []
    filled = 0  # tokens of the batch
    for i in longest_first:
        padded = lengths[i] if in_line or not batch else filled // len(batch)
        if batch and filled + padded > limit:
            yield batch
            batch = []
            filled, padded = 0, lengths[i]
        batch.append(trees[i])
        filled += padded
    if batch:
        yield batch


def _in_line(model: PreTrainedModel) -> bool:
    """Whether the trees of a micro-batch stand behind each other, without padding."""
    return can_share_prompts(model) and (attends_by_flex(model) or can_take_segments(model))


def _trees(rows: Sequence[Row], limit: int, longest: int) -> list[Tree]:
    """The rows in trees of one prompt each, or of several prompts where that saves enough.

    limit, longest: tokens of a tree of one prompt, and of several.
    """
    trees, prompts = _trees_of_one_prompt(rows, limit)
    if len(prompts) < 2:
        return trees
    shared = common_prefix(prompts)
    lengths = [_tree_tokens(rows, tree) for tree in trees]
    if 5 * shared * len(trees) < sum(lengths):
        return trees
    capacity = max(1, longest - shared)
    return _merge_evenly(trees, [length - shared for length in lengths], capacity)


def _trees_of_one_prompt(
    rows: Sequence[Row], limit: int
) -> tuple[list[Tree], list[tuple[int, ...]]]:
    """Trees of at most ``limit`` tokens whose rows have one prompt, and the different prompts."""
    trees: list[Tree] = []
    latest: dict[tuple[int, ...], Tree] = {}  # the tree of each prompt that still has room
    for i, row in enumerate(rows):
        prompt = tuple(row.prompt)
        tree = latest.get(prompt)
        if tree is not None and _tree_tokens(rows, [*tree, i]) <= limit:
            tree.append(i)
        else:
            latest[prompt] = [i]
            trees.append(latest[prompt])
    return trees, list(latest)


def _merge_evenly(trees: list[Tree], sizes: list[int], capacity: int) -> list[Tree]:
    """``trees`` merged into as few as keep to ``capacity``, all about equally full.

    Returns ``trees`` as they are where even single ones are larger.
    """
    largest_first = sorted(range(len(trees)), key=lambda i: (-sizes[i], i))
    fewest = -(-sum(sizes) // capacity)
    for count in range(fewest, len(trees) + 1):
        merged: list[Tree] = [[] for _ in range(count)]
        filled = [0] * count
        for i in largest_first:
            emptiest = filled.index(min(filled))
            merged[emptiest] += trees[i]
            filled[emptiest] += sizes[i]
        if max(filled) <= capacity:
            return merged
    return trees


def _tree_tokens(rows: Sequence[Row], tree: Tree) -> int:
    """Length of a tree's sequence: the beginning that its prompts share, the rest of each prompt,
    and all but the last token of each completion.
    """
    shared = common_prefix([rows[i].prompt for i in tree])
    rests = {tuple(rows[i].prompt): len(rows[i].prompt) - shared for i in tree}
    return shared + sum(rests.values()) + sum(len(rows[i].completion) - 1 for i in tree)


def computed_tokens(rows: Sequence[Row], batch: list[Tree]) -> int:
    """Tokens of a micro-batch that the model reads or predicts, without padding."""
    return sum(_tree_tokens(rows, tree) + len(tree) for tree in batch)


# ---- a micro-batch through the model -------------------------------------------------------------


@dataclass
class _Segment:
    """A run of tokens in a tree's sequence: the trunk, the rest of a prompt, or a completion.

    position: of the first token, the same as in a row of its own; parent: index of the segment
    that it continues, 0 for the trunk.
    """

    tokens: list[int]
    position: int
    parent: int


@dataclass
class _Readout:
    """Where the states that predict one row's completion are.

    sequence: index in the micro-batch; indices: in that sequence, one for each completion token.
    """

    row: int
    completion: list[int]
    sequence: int
    indices: list[int]


def completion_states(
    model: PreTrainedModel, rows: Sequence[Row], batch: list[Tree]
) -> tuple[torch.Tensor, Positions]:
    """Hidden states [completion tokens, width] that predict a micro-batch's completions, and
    their Positions.

    The beginning that the prompts of a tree share is computed once. The rest of each prompt
    follows, and after it its completions. Each token has the position that it would have in a row
    of its own, and sees what it would see there. The last token of a completion predicts nothing
    and is left out.
    """
    sequences: list[list[_Segment]] = []
    readouts: list[_Readout] = []
    for number, tree in enumerate(batch):
        segments, tree_readouts = _lay_out(rows, tree, number)
        sequences.append(segments)
        readouts += tree_readouts
    device = model.device
    columns = _columns(readouts)
    sequence, index, row, offset, token = on_device(torch.tensor(columns), device)
    positions = Positions(row, offset, token, list(zip(columns[2], columns[3], strict=True)))
    if _in_line(model):
        states, starts = _states_in_line(model, sequences)
        return states[starts[sequence] + index], positions
    input_ids = pad_right([_tokens(segments) for segments in sequences], device)
    if all(len(tree) == 1 for tree in batch):
        states = hidden_states(model, input_ids)
    else:
        states = hidden_states(
            model,
            input_ids,
            position_ids=pad_right([_position_ids(segments) for segments in sequences], device),
            attention_mask=_attention_mask(sequences, input_ids.shape[1], device),
        )
    return states[sequence, index], positions


def _states_in_line(
    model: PreTrainedModel, sequences: list[list[_Segment]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Hidden states [tokens, width] of the sequences, one behind the other, where each begins)."""
    chains: list[Chain] = []
    starts: list[int] = []
    length = 0
    for segments in sequences:
        starts.append(length)
        spans: list[tuple[int, int]] = []
        for k, segment in enumerate(segments):
            spans.append((length, length + len(segment.tokens)))
            length = spans[-1][1]
            # The trunk continues nothing, the rest of a prompt the trunk, a completion both.
            chains.append([spans[i] for i in sorted({0, segment.parent, k})])
    device = model.device
    tokens = [[t for each in sequences for t in _tokens(each)]]
    places = [[p for each in sequences for p in _position_ids(each)]]
    by_flex = attends_by_flex(model)
    mask = line_mask(chains, device) if by_flex else Segments(chains, model.dtype, device).mask()
    with attending(model, FLEX if by_flex else ATTENTION):
        states = hidden_states(
            model,
            on_device(torch.tensor(tokens), device),
            position_ids=on_device(torch.tensor(places), device),
            attention_mask=mask,
        )
    return states[0], on_device(torch.tensor(starts), device)


def _lay_out(
    rows: Sequence[Row], tree: Tree, sequence: int
) -> tuple[list[_Segment], list[_Readout]]:
    """Segments of a tree's sequence, the trunk first, and where its completions are predicted."""
    shared = common_prefix([rows[i].prompt for i in tree])
    prompt = rows[tree[0]].prompt[:shared]
    segments = [_Segment(prompt, position=0, parent=0)]
    readouts = []
    length = shared
    parent = 0
    prompt_end = shared - 1
    for i in tree:
        completion = rows[i].completion
        if rows[i].prompt != prompt:  # rows of one prompt are neighbours
            prompt = rows[i].prompt
            parent = 0
            prompt_end = shared - 1
            if len(prompt) > shared:
                parent = len(segments)
                segments.append(_Segment(prompt[shared:], position=shared, parent=0))
                length += len(prompt) - shared
                prompt_end = length - 1
        inputs = completion[:-1]
        indices = [prompt_end, *range(length, length + len(inputs))]
        readouts.append(_Readout(i, completion, sequence, indices))
        segments.append(_Segment(inputs, position=len(prompt), parent=parent))
        length += len(inputs)
    return segments, readouts


def _tokens(segments: list[_Segment]) -> list[int]:
    return [token for segment in segments for token in segment.tokens]


def _position_ids(segments: list[_Segment]) -> list[int]:
    position_ids: list[int] = []
    for segment in segments:
        position_ids.extend(range(segment.position, segment.position + len(segment.tokens)))
    return position_ids


def _attention_mask(
    sequences: list[list[_Segment]], length: int, device: torch.device
) -> torch.Tensor:
    """Which tokens see which: booleans [sequences, 1, length, length].

    A token sees those before it in its own segment, in the segment that this one continues, and in
    the trunk.
    """
    own: list[list[int]] = []
    parents: list[list[int]] = []
    for segments in sequences:
        own.append([k for k, segment in enumerate(segments) for _ in segment.tokens])
        parents.append([segment.parent for segment in segments for _ in segment.tokens])
    key = pad_right(own, device, -1)[:, None, :]
    query = key.mT
    parent = pad_right(parents, device, -1)[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    visible = causal & ((key == query) | (key == parent) | (key == 0))
    return visible[:, None]


def _columns(readouts: list[_Readout]) -> list[list[int]]:
    """Of each completion token: sequence, index in it, row, offset in the completion, token."""
    return [
        [readout.sequence for readout in readouts for _ in readout.indices],
        [index for readout in readouts for index in readout.indices],
        [readout.row for readout in readouts for _ in readout.indices],
        [offset for readout in readouts for offset in range(len(readout.indices))],
        [token for readout in readouts for token in readout.completion],
    ]


def chunks(count: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Slices over ``count`` tokens such that a [tokens, vocabulary] tensor on ``device`` stays
    within VOCABULARY_CHUNK elements.
    """
    size = max(1, VOCABULARY_CHUNK[device.type != "cpu"] // vocabulary)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
