"""Rows to learn from, packed into micro-batches whose prompts are computed once."""

from dataclasses import dataclass

import torch

from harness.models.forward import can_share_prompts, hidden_states, pad_right
from harness.sampling.sampler import common_prefix

VOCABULARY_CHUNK = 2**24  # elements of one [tokens, vocabulary] tensor: 64 MiB in float32
# tokens of one sequence that different prompts share: attention to tokens that it may not see grows
# with it
TREE = 512


@dataclass
class Row:
    """One sequence to learn from: the loss is on ``completion``, given ``prompt`` (both lists of
    token ids).
    """

    prompt: list
    completion: list


@dataclass
class Positions:
    """Where a chunk's completion tokens stand: rows (index of the row), offsets (place in the
    completion, from 0) and tokens (the token itself), int64 tensors [tokens].
    """

    rows: torch.Tensor
    offsets: torch.Tensor
    tokens: torch.Tensor


def micro_batches(model, rows, limit):
    """Indices of ``rows`` in trees, rows that are computed as one sequence since their prompts
    begin alike, and trees of similar length in groups of at most ``limit`` tokens with their
    padding (a tree that is longer stands alone): yields lists of lists.

    Rows with one prompt always share it. Different prompts share their common beginning (a system
    turn, worked examples) where it is at least a fifth of a row; such a sequence ends at TREE
    tokens, since each token is held against all of them.
    """

    def length(tree):
        return _computed(rows, tree)

    trees, latest, share = [], {}, can_share_prompts(model)
    for i, row in enumerate(rows):
        tree = latest.get(tuple(row.prompt)) if share else None
        if tree and length([*tree, i]) <= limit:
            tree.append(i)
        else:
            trees.append([i])
            latest[tuple(row.prompt)] = trees[-1]
    if share and len(latest) > 1:
        beginning, whole = common_prefix(list(latest)), sum(map(length, trees))
        if 5 * beginning * len(trees) >= whole:
            trees = _even(
                trees,
                [length(tree) - beginning for tree in trees],
                max(1, min(TREE, limit) - beginning),
            )
    group = []
    for tree in sorted(trees, key=lambda tree: (-length(tree), tree[0])):
        if group and length(group[0]) * (len(group) + 1) > limit:
            yield group
            group = []
        group.append(tree)
    if group:
        yield group


def _even(parts, sizes, room):
    """``parts`` (lists) joined to as few lists as it takes for their sizes to fit into ``room``,
    all about equally full.
    """
    # the longest first, each where most room is
    order = sorted(range(len(parts)), key=lambda i: (-sizes[i], i))
    for count in range(-(-sum(sizes) // room), len(parts) + 1):
        joined, filled = [[] for _ in range(count)], [0] * count
        for i in order:
            place = filled.index(min(filled))
            joined[place] += parts[i]
            filled[place] += sizes[i]
        if max(filled) <= room:
            return joined
    return parts


def completion_states(model, rows, group):
    """Hidden states that predict the completions of a micro-batch: [completion tokens, width], and
    their Positions.

    What the prompts of a tree have in common is computed once; the rest of each prompt follows, and
    after it its completions, each token at the position that it would have in a row of its own,
    seeing what it would see there.
    """
    sequences, positions, segments, parents, places = [], [], [], [], []
    for number, tree in enumerate(group):
        shared = common_prefix([rows[i].prompt for i in tree])
        sequence, position = rows[tree[0]].prompt[:shared], list(range(shared))
        # of each token: the part it belongs to, and the part that one follows
        segment, parent = [0] * shared, [0] * shared

        def add(tokens, first, after):
            own = segment[-1] + 1 if segment else 1
            sequence.extend(tokens)
            position.extend(range(first, first + len(tokens)))
            segment.extend([own] * len(tokens))
            parent.extend([after] * len(tokens))
            return own if tokens else after

        prompt = None
        for i in tree:
            if rows[i].prompt != prompt:  # rows of one prompt stand side by side
                prompt = rows[i].prompt
                part = add(prompt[shared:], shared, 0)
                last = len(sequence) - 1 if len(prompt) > shared else shared - 1
            tokens, start = rows[i].completion, len(sequence)
            places += [
                (number, last if t == 0 else start + t - 1, i, t, token)
                for t, token in enumerate(tokens)
            ]
            add(tokens[:-1], len(prompt), part)
        for all_of, one in zip(
            (sequences, positions, segments, parents), (sequence, position, segment, parent)
        ):
            all_of.append(one)
    device = model.device
    ids = pad_right(sequences, device)
    if all(len(tree) == 1 for tree in group):
        states = hidden_states(model, ids)
    else:
        segment, parent = (
            pad_right(segments, device, -1)[:, None, :],
            pad_right(parents, device, -1)[:, :, None],
        )
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
        sees = causal & ((segment == segment.mT) | (segment == parent) | (segment == 0))
        states = hidden_states(
            model, ids, position_ids=pad_right(positions, device), attention_mask=sees[:, None]
        )
    tree, at, row, offset, token = torch.tensor(places, device=device).T
    return states[tree, at], Positions(row, offset, token)


def _computed(rows, tree):
    """Tokens of a tree's sequence: what the prompts share, the rest of each prompt, and all but the
    last of each completion.
    """
    shared = common_prefix([rows[i].prompt for i in tree])
    own = {tuple(rows[i].prompt): len(rows[i].prompt) - shared for i in tree}
    return shared + sum(own.values()) + sum(len(rows[i].completion) - 1 for i in tree)


def computed_tokens(rows, group):
    return sum(_computed(rows, tree) + len(tree) for tree in group)


def chunks(count, vocabulary):
    """Slices over ``count`` tokens such that a [tokens, vocabulary] tensor stays within
    VOCABULARY_CHUNK elements.
    """
    size = max(1, VOCABULARY_CHUNK // vocabulary)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
