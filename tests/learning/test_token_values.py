"""Values of completion tokens: found by positions as by lists, and chunks by the device."""

import pytest
import torch

from harness.learning.packing import (
    Positions,
    Row,
    TokenValues,
    chunks,
    completion_states,
    micro_batches,
)

LENGTHS = [3, 1, 4, 2]


def positions_of(places, known=True):
    rows, offsets = torch.tensor(places).T
    return Positions(rows, offsets, torch.zeros_like(rows), places if known else None)


def test_values_are_found_by_row_and_offset():
    """In the rows' order and in another, as micro-batches come."""
    by_row = [torch.randn(length, 5) for length in LENGTHS]
    order = [2, 0, 3, 1]
    for values in (
        TokenValues.of_rows(by_row, torch.device("cpu")),
        TokenValues(torch.cat([by_row[i] for i in order]), [LENGTHS[i] for i in order], order),
    ):
        places = [(2, 3), (0, 0), (1, 0), (0, 2), (3, 1), (2, 3)]
        wanted = torch.stack([by_row[row][offset] for row, offset in places])
        assert torch.equal(values.at(positions_of(places)), wanted)
        assert len(values) == 4
        for row, each in enumerate(values):
            assert torch.equal(each, by_row[row]) and torch.equal(values[row], by_row[row])


def test_lists_of_numbers_are_float32():
    lists = [[0.1 * i + j for i in range(length)] for j, length in enumerate(LENGTHS)]
    values = TokenValues.of_rows(lists, torch.device("cpu"))
    places = [(j, i) for j, length in enumerate(LENGTHS) for i in range(length)]
    assert torch.equal(
        values.at(positions_of(places)), torch.tensor([v for each in lists for v in each])
    )
    assert len(TokenValues.of_rows([], torch.device("cpu"))) == 0


def test_places_are_those_of_the_tensors_and_of_every_part():
    places = [(0, 0), (0, 1), (2, 0), (1, 0)]
    for known in (True, False):
        positions = positions_of(places, known)
        assert positions.part(slice(1, 3)).places == places[1:3]
        assert positions.places == places
        part = positions.part(slice(2, 4))
        assert part.rows.tolist() == [2, 1] and part.offsets.tolist() == [0, 0]


def test_a_micro_batch_knows_its_places(tiny_model):
    rows = [Row([5, 6, 7], [8, 9]), Row([5, 6, 7], [10]), Row([5, 11], [12, 13, 14])]
    seen = []
    for batch in micro_batches(tiny_model[0], rows, 64):
        _, positions = completion_states(tiny_model[0], rows, batch)
        assert positions.known == list(
            zip(positions.rows.tolist(), positions.offsets.tolist(), strict=True)
        )
        for (row, offset), token in zip(positions.places, positions.tokens.tolist(), strict=True):
            assert rows[row].completion[offset] == token
        seen += positions.places
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    "device, vocabulary, size",
    [
        ("cpu", 151_936, 110),
        ("cuda", 151_936, 883),
        ("cuda:1", 49_152, 2730),
        ("cpu", 2**30, 1),
        ("cuda", 2**30, 1),
    ],
)
def test_chunks_go_by_the_device(device, vocabulary, size):
    found = chunks(3 * size + 1, vocabulary, torch.device(device))
    lengths = [part.stop - part.start for part in found]
    assert lengths == [size, size, size, 1] and found[-1].stop == 3 * size + 1
