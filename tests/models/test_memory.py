"""Bytes by formulas, the passes that fit them, and what the allocator is told."""

import pytest
import torch

from harness.models import load, memory
from harness.models.memory import (
    ALLOCATOR,
    Bytes,
    Passes,
    averaged_bytes,
    fitting_passes,
    free_memory,
    recomputed_bytes,
    trained_bytes,
)

GIB, MIB = 2**30, 2**20
# Qwen2.5-7B: 6 MiB a token with all activations, 28 layers of width 3,584 in bfloat16
TOKEN, WEIGHTS = 6.0 * MIB, 7.6e9
RECOMPUTED = recomputed_bytes(TOKEN, 28, 3584, 2)


def test_layers_that_are_computed_again_keep_a_fifteenth():
    assert RECOMPUTED == 28 * 3584 * 2 + TOKEN / 28
    assert pytest.approx(0.41 * MIB, rel=0.02) == RECOMPUTED
    assert recomputed_bytes(100.0, 1, 64, 2) == 100.0  # one layer keeps what it always does


@pytest.mark.parametrize(
    "free, more, wanted",
    [
        # 8,192 tokens take 48 GiB, 2,048 take 12; a tenth stays free.
        (55, {}, Passes(8192)),
        (53, {}, Passes(4096)),
        (27, {}, Passes(4096)),
        (14, {}, Passes(2048)),
        (13, {}, Passes(8192, True)),  # 3.3 GiB
        (3, {}, Passes(4096, True)),
        (0.2, {}, Passes(256, True)),
        (0, {}, Passes(256, True)),  # what is tried where nothing may fit
        # the user's length stays, and asks for layers computed again where it does not fit
        (55, {"tokens": 8192}, Passes(8192)),
        (53, {"tokens": 8192}, Passes(8192, True)),
        (13, {"tokens": 1000}, Passes(1000)),
        (3, {"tokens": 16384}, Passes(16384, True)),
        # and so does the user's choice
        (1, {"recomputes": False}, Passes(256)),
        (13, {"recomputes": False}, Passes(1024)),
        (200, {"recomputes": True}, Passes(8192, True)),
        (0, {"tokens": 64, "recomputes": False}, Passes(64)),
    ],
)
def test_passes_fit_the_free_memory(free, more, wanted):
    assert fitting_passes(free * GIB, TOKEN, RECOMPUTED, **more) == wanted


def test_bytes_of_what_is_trained():
    """4 of gradients, 8 of moments; 4 of masters, or 2 that are not the model's."""

    def each(masters, size=2, on_gpu=True, made=False):
        found = trained_bytes(WEIGHTS, size, masters, on_gpu, made)
        return found.device / WEIGHTS, found.host / WEIGHTS

    assert each("device") == (16, 0)
    assert each("host_moments") == (6, 8)
    assert each("host") == (4, 10)
    assert [each(m, size=4) for m in ("device", "host_moments", "host")] == [
        (12, 0),
        (4, 8),
        (4, 8),
    ]
    assert [each(m, made=True) for m in ("device", "host")] == [(16, 0), (8, 8)]
    # A CPU's memory is one; ``host`` names the part that a GPU would not have.
    assert [each(m, on_gpu=False) for m in ("device", "host")] == [(16, 0), (0, 16)]
    assert each("host", size=4, on_gpu=False) == (12, 0)
    assert averaged_bytes(10, 2, "host", True) == Bytes(0, 20)
    assert averaged_bytes(10, 2, "device", True) == Bytes(20, 0)
    assert averaged_bytes(10, 4, "device", True) == Bytes(0, 0)
    assert averaged_bytes(10, 2, "device", False) == Bytes(40, 0)
    assert Bytes(1, 2) + Bytes(3, 4) == Bytes(4, 6)


def test_a_gpus_segments_grow_unless_the_user_says_otherwise(monkeypatch):
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert memory.allocator_settings() is None
    memory.let_segments_grow()
    assert memory.allocator_settings() == "expandable_segments:True"
    for name in ALLOCATOR:
        for other in ALLOCATOR:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:64")
        memory.let_segments_grow()
        assert memory.allocator_settings() == "max_split_size_mb:64"


def test_the_allocator_is_told_with_the_device(monkeypatch):
    """Before anything is on it; a CPU's process has nothing to be told."""
    told = []
    monkeypatch.setattr(load, "let_segments_grow", lambda: told.append("grow"))
    monkeypatch.setattr(load, "keep_freed_memory", lambda: told.append("keep"))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    monkeypatch.setattr(load, "allow_repeatable_products", lambda: None)
    load.prepare_device("cpu")
    load.prepare_device("cuda:0")
    assert told == ["keep", "grow"]


def test_the_hosts_free_memory_is_a_number():
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
