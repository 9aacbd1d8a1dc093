"""Bytes of training by formulas, and the passes that fit what is free."""

import pytest

from harness.learning.moments import MOMENT_BYTES
from harness.models.memory import Passes
from harness.runs.training_bytes import (
    Bytes,
    averaged_bytes,
    fitting_passes,
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


def test_bytes_of_moments_in_8_bits():
    """2.03 for the 8 of both moments, wherever these are."""
    usual, less = 8.0, MOMENT_BYTES["8bit"]
    assert less == 2 + 8 / 256
    for masters in ("device", "host_moments", "host"):
        for on_gpu in (True, False):
            for made in (True, False):
                of = (WEIGHTS, 2, masters, on_gpu, made)
                before, now = trained_bytes(*of), trained_bytes(*of, less)
                spared = before.device + before.host - now.device - now.host
                assert spared == pytest.approx((usual - less) * WEIGHTS)
                in_host = masters != "device" and (on_gpu or masters == "host")
                assert (before.device == now.device) == in_host
