"""Deterministic mode: on where it is wanted, off around what PyTorch would refuse, then as before.

The mode is PyTorch's own; what it does to kernels only a GPU shows (benchmarks.gpu_check, repeat).
"""

import pytest
import torch

from harness.base.errors import UserError
from harness.models.repeatable import repeatable, row_cumsum

ELSEWHERE = torch.device("meta")  # a device that is not the CPU, on every machine


def mode():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("before", [(False, False), (True, True)])
def test_the_mode_is_strict_inside_and_as_before_outside(before):
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    try:
        outside = mode()
        with pytest.raises(ZeroDivisionError), repeatable(ELSEWHERE):
            assert mode() == (True, False, False)
            1 / 0  # noqa: B018
        assert mode() == outside
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_is_off_on_a_cpu_and_where_it_is_not_wanted():
    for device, wanted in ((torch.device("cpu"), True), (ELSEWHERE, False)):
        with repeatable(device, wanted):
            assert not torch.are_deterministic_algorithms_enabled()


def test_an_operator_without_such_a_kernel_is_one_line():
    """PyTorch refuses this one on a CPU as well."""
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    with pytest.raises(UserError) as caught, repeatable(ELSEWHERE):
        torch.nn.functional.max_unpool2d(pooled, places, 2)
    assert str(caught.value) == (
        "model.deterministic: max_unpooling2d_forward_out has no kernel here whose numbers repeat; "
        "set model.deterministic: false; a resumed run may then differ in the last digits"
    )
    with pytest.raises(RuntimeError, match="another reason"), repeatable(ELSEWHERE):
        raise RuntimeError("another reason")


@pytest.mark.parametrize("rows", [1, 3])
def test_cumulative_sums_are_those_of_pytorch(rows):
    numbers = torch.rand(rows, 7, dtype=torch.float64)
    assert torch.equal(row_cumsum(numbers), numbers.cumsum(-1))


def test_on_a_device_a_single_row_goes_through_the_kernel_for_several(monkeypatch):
    shapes = []
    cumsum = torch.Tensor.cumsum

    def watched(self, dim):
        assert not torch.are_deterministic_algorithms_enabled()  # strict mode refuses it on CUDA
        shapes.append(tuple(self.shape))
        return cumsum(self, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", watched)
    with repeatable(ELSEWHERE):
        for rows in (1, 3):
            assert row_cumsum(torch.rand(rows, 7, device=ELSEWHERE)).shape == (rows, 7)
        assert torch.are_deterministic_algorithms_enabled()
    assert shapes == [(2, 7), (3, 7)]
