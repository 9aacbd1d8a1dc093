"""Digests of tensors: by hand in Python's whole numbers, apart where contents or places differ."""

import copy
import hashlib

import numpy
import pytest
import torch

from harness.models import digest
from harness.models.checkpoint import (
    _canonical,
    _without_circumstances,
    has_fingerprint,
    model_fingerprint,
)
from harness.models.digest import digests

ALL = 2**64 - 1


def by_hand(tensor):
    """The digest of a tensor, from the formula, a word at a time."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    content += bytes(-len(content) % 8)
    sums = [0, 0]
    for place, word in enumerate(numpy.frombuffer(content, dtype="<u8").tolist()):
        for lane, (start, first, second) in enumerate(digest.LANES):
            mixed = word ^ ((place * digest.PLACE + start) & ALL)
            mixed = mixed * first & ALL
            mixed ^= mixed >> 32
            mixed = mixed * second & ALL
            mixed ^= mixed >> 29
            sums[lane] = (sums[lane] + mixed) & ALL
    return b"".join(each.to_bytes(8, "little") for each in sums)


TENSORS = {
    "float32": torch.linspace(-3, 3, 24).view(4, 6),
    "bfloat16": torch.linspace(-3, 3, 25).bfloat16(),  # 50 bytes: the last word is not full
    "strided": torch.arange(12.0).view(3, 4).t(),
    "a part": torch.arange(9, dtype=torch.uint8)[1:],  # begins inside a word
    "one": torch.tensor(2.5),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "large numbers": torch.tensor([2**63 - 1, -(2**63), -1, 0]),
}


@pytest.mark.parametrize("words", [1, 3, digest.WORDS])
def test_digests_are_those_of_the_formula(words, monkeypatch):
    monkeypatch.setattr(digest, "WORDS", words)
    found = digests(list(TENSORS.values()))
    assert found == [by_hand(tensor) for tensor in TENSORS.values()]
    assert all(len(each) == 16 for each in found) and digests([]) == []


def test_other_contents_and_other_places_have_other_digests():
    torch.manual_seed(0)
    start = torch.randn(40, 8)
    others = [start, start.clone(), start[:, [1, 0, *range(2, 8)]], start.flip(0), -start]
    for i in range(40):  # one entry, by its last bit, and two entries that change places
        other = start.clone()
        other.view(-1)[7 * i] = torch.nextafter(other.view(-1)[7 * i], torch.tensor(9.0))
        others.append(other)
        other = start.clone()
        other[i, 3], other[i, 5] = start[i, 5], start[i, 3]
        others.append(other)
    first, same, *different = digests(others)
    assert first == same and len({first, *different}) == 1 + len(different)
    for half in (slice(0, 8), slice(8, 16)):  # each half tells them apart by itself
        assert len({each[half] for each in (first, *different)}) == 1 + len(different)


def test_a_model_has_a_fingerprint_of_either_kind(tiny_model):
    model = copy.deepcopy(tiny_model[0])
    own, other = (model_fingerprint(model, by_digests=kind) for kind in (False, True))
    assert own == model_fingerprint(model) != other and len(other) == 32
    for known in (own, other):
        assert has_fingerprint(model, own, known[:16])
    assert not has_fingerprint(model, own, "") and not has_fingerprint(model, own, own)
    with torch.no_grad():
        model.lm_head.weight[3, 5] *= 1.01
    changed = model_fingerprint(model)
    assert not any(has_fingerprint(model, changed, known[:16]) for known in (own, other))
    # Names, dtypes and the config count as well.
    half = copy.deepcopy(model).bfloat16()
    scaled = copy.deepcopy(model)
    scaled.config.rms_norm_eps = 0.1
    kinds = [model_fingerprint(each, by_digests=True) for each in (model, half, scaled)]
    assert len(set(kinds)) == 3


def test_fingerprints_of_a_cpu_are_those_of_all_records(tiny_model):
    """The tiny model's, as it was before devices hashed anything."""
    model = tiny_model[0]
    plain = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        plain.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain.update(tensor.numpy().tobytes())
    plain.update(_canonical(_without_circumstances(model.config.to_diff_dict())))
    assert model_fingerprint(model) == plain.hexdigest()
