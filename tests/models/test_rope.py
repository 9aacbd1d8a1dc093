"""Rotary positions that depend on the longest row: rows of two sides never meet."""

import copy

import pytest
import torch

from benchmarks.families.trial import tiny_model
from harness.base.errors import UserError
from harness.evaluation.scoring_rows import PackedRow, batches
from harness.learning.packing import Row, micro_batches
from harness.models.rope import answer_side, border_of, side_of


@pytest.fixture(scope="module")
def long():
    """A model whose positions change beyond 64 tokens."""
    return tiny_model("phi3 longrope", torch.float32)


@pytest.fixture(scope="module")
def dynamic():
    """A model whose positions grow beyond 128 tokens."""
    return tiny_model("llama dynamic", torch.float32)


def border(name):
    return border_of(tiny_model(name, torch.float32).config)


def test_borders(long, dynamic):
    assert border_of(long.config) == (64, True)
    assert border_of(dynamic.config) == (128, False)
    assert border("llama") is None
    assert border("gemma3_text") is None  # one set for each kind of layer
    assert border("gpt2") is None
    mixed = copy.deepcopy(long.config)  # settings for each kind of layer, of which one changes
    mixed.rope_parameters = {
        "full_attention": mixed.rope_parameters,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert border_of(mixed) == (64, True)


def test_sides_of_rows():
    assert [side_of((64, True), n) for n in (1, 64, 65, 500)] == [0, 0, 1, 1]
    assert side_of(None, 500) == 0
    assert side_of((128, False), 128) == 0
    with pytest.raises(UserError, match=r"order: a row of 129 tokens: beyond 128 .* dynamic"):
        side_of((128, False), 129, "order")


def test_an_answer_may_not_cross():
    assert answer_side((64, True), 60, 5) == 0  # the last token is not read
    assert answer_side((64, True), 65, 5) == 1
    with pytest.raises(UserError, match="60 tokens with 6 new ones crosses"):
        answer_side((64, True), 60, 6)


def test_a_row_does_not_get_the_positions_of_the_row_beside_it(long):
    """What the split is for: without it the log-probabilities of the short row are others."""
    short = torch.arange(1, 21)[None]
    beside = torch.cat([short, torch.ones(1, 60, dtype=torch.long)], 1)
    with torch.no_grad():
        alone, padded = long(short).logits, long(beside).logits[:, :20]
    assert (alone - padded).abs().max() > 0.01


def test_training_and_scoring_split_rows(long):
    rows = [Row([1] * n, [2] * 5) for n in (70, 10, 60, 61, 80)]
    trees = list(micro_batches(long, rows, 10_000))
    members = [sorted(i for tree in batch for i in tree) for batch in trees]
    assert members == [[1, 2], [0, 3, 4]]
    packed = [PackedRow.of([1] * n) for n in (70, 10, 64, 65, 80)]
    lengths = [
        [len(row.tokens) for row in batch]
        for batch in batches(packed, 10_000, lambda tokens: side_of(border_of(long.config), tokens))
    ]
    assert lengths == [[80, 70, 65], [64, 10]]
