"""The entries that a number is made of, and their derivatives."""

import numpy as np
import pytest

from harness.base import metrics
from harness.report.entries import _gradient


@pytest.fixture
def R():
    return np.random.default_rng(0).random((4, 3))


def test_the_derivative_of_a_mean_is_its_weights(R):
    weights = np.zeros((4, 3))
    weights[-1] = 1 / 3
    np.testing.assert_allclose(_gradient(metrics.average_accuracy, R), weights, atol=1e-8)
    weights = np.zeros((4, 3))
    weights[[-1, -1], [0, 1]] = 0.5
    weights[[1, 2], [0, 1]] = -0.5
    np.testing.assert_allclose(_gradient(metrics.backward_transfer, R), weights, atol=1e-8)


def test_a_maximum_has_the_derivative_of_the_largest_and_shares_it_in_a_tie(R):
    R[1:3, 0] = 0.9, 0.2
    R[1:3, 1] = 0.7, 0.7
    weights = np.zeros((4, 3))
    weights[1:3, 0] = 0.5, 0
    weights[1:3, 1] = 0.25, 0.25
    weights[-1, :2] = -0.5
    np.testing.assert_allclose(_gradient(metrics.forgetting, R), weights, atol=1e-8)


def test_what_is_not_on_record_is_not_needed(R):
    R[1, 2] = np.nan
    weights = np.zeros((4, 3))
    weights[2, 1] = 1
    np.testing.assert_allclose(_gradient(lambda R: R[..., 2, 1], R), weights, atol=1e-8)
    assert not _gradient(lambda R: R[..., 0, 0] - R[..., 0, 0], R).any()


def test_fifty_skills_take_little_memory():
    R = np.random.default_rng(0).random((51, 50))
    gradient = _gradient(metrics.backward_transfer, R)
    assert np.count_nonzero(gradient) == 2 * 49
    assert (gradient * R).sum() == pytest.approx(metrics.backward_transfer(R))
