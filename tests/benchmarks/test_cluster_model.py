"""The simulation of 324 runs: near its bound, and the bound is one."""

import pytest

from benchmarks.cluster_model.__main__ import LOADING, MEASURED, MOST, bound, measured, simulate


@pytest.mark.parametrize("times", [1.0, 6.0])
def test_time_is_near_its_bound(times):
    runs, base = measured(MEASURED, times)
    assert len(runs) == 324
    for gpus in (64, 128):
        found = simulate(runs, base, gpus, seed=0, loading=LOADING * times)
        assert 1 <= found.time / bound(runs, base, gpus) <= MOST


def test_one_gpu_without_failures_works_as_long_as_all_takes():
    runs, base = [300.0, 200.0, 100.0], [30.0, 10.0]
    found = simulate(runs, base, 1, seed=0, loading=0.0)
    assert found.failed == 0
    assert found.time == pytest.approx(640) == bound(runs, base, 1)
    # Two of them: the base model takes 30 seconds, and nothing is idle before the end
    assert simulate(runs, base, 2, seed=0, loading=0.0).time == pytest.approx(330)
