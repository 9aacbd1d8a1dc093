"""Item scores of evaluations, and which of them are joined."""

import numpy as np
import pytest

from harness.results.items import item_scores, join_items


@pytest.mark.parametrize(
    ("items", "metric", "scores"),
    [
        ([{"id": 1, "score": 0.5}], "acc,none", {"1": (0.5, 1.0)}),
        ([{"id": "a", "scores": {"exact": 1}}], "exact", {"a": (1.0, 1.0)}),
        ([{"id": "a", "score": 0.5, "weight": 2}], "inst_acc", {"a": (1.0, 2.0)}),
        ([{"id": 1, "score": 2.0, "response": -8.0}], "bits_per_byte,none", {"1": (8.0, 4.0)}),
        ([{"id": 1, "score": 0.0, "response": -8.0}], "bits_per_byte,none", None),
        ([{"id": "a", "scores": {"other": 1}}], "exact", None),
        ([{"score": 1}], "acc", None),
        ([], "acc", None),
        (None, "acc", None),
    ],
)
def test_items_have_scores_and_weights(items, metric, scores):
    assert item_scores({"items": items}, metric) == scores


def test_evaluations_are_joined_where_items_and_values_agree():
    first = {"a": (1.0, 1.0), "b": (0.0, 1.0)}
    other_order = {"b": (2.0, 2.0), "a": (0.0, 1.0)}
    joint = join_items(
        [
            (None, 0.5),  # no items
            (first, 0.4),  # whose mean is not the value
            (first, 0.5),
            ({"a": (1.0, 1.0)}, 1.0),  # other items than the first
            (other_order, 2 / 3),
        ]
    )
    assert joint.members == [2, 4]
    np.testing.assert_array_equal(joint.scores[:, 0], [[1, 1], [0, 1]])
    np.testing.assert_array_equal(joint.scores[:, 1], [[0, 1], [2, 2]])
    assert join_items([(None, 0.5)]).scores is None
