"""Item scores of evaluations, joined where they are of the same items."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.results.folders import Json

AGREEMENT = 1e-6  # between the mean of the item scores and the value on record

ItemScores = dict[str, tuple[float, float]]  # {item id: (score times weight, weight)}


class Joint(NamedTuple):
    """Item scores of several evaluations of the same items.

    scores: score times weight, and weight, [items, members, 2], None without a member; members:
    places of the evaluations that are in it.
    """

    scores: np.ndarray | None
    members: list[int]


def item_scores(evaluation: Json, metric: str) -> ItemScores | None:
    """The scores of an evaluation's items, None where it holds none.

    An item weighs 1 if it has no ``weight``; that is the number of instructions in its prompt, for
    example. An item of bits per byte weighs its bytes. These are its log-likelihood (the
    ``response``) over its score, up to a factor. Metrics beside the one that counts (``scores``)
    are plain means.
    """
    bits_per_byte = metric.partition(",")[0] == "bits_per_byte"
    scores = {}
    try:
        for item in evaluation.get("items") or []:
            by_metric = item.get("scores") or {}
            score = float(by_metric[metric] if metric in by_metric else item["score"])
            if metric in by_metric and "score" in item:
                weight = 1.0
            elif bits_per_byte and "response" in item:
                weight = -float(item["response"]) / score
            else:
                weight = float(item.get("weight", 1))
            scores[str(item["id"])] = score * weight, weight
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return scores or None


def join_items(evaluations: Sequence[tuple[ItemScores | None, float]]) -> Joint:
    """Joins evaluations, each given as its item scores and its value.

    Left out are evaluations without items, with other items than the first one, and with items
    whose (weighted) mean is not the value.
    """
    ids: list[str] | None = None
    tables, members = [], []
    for place, (items, value) in enumerate(evaluations):
        if not items or (ids is not None and set(ids) != set(items)):
            continue
        table = np.array([items[item] for item in ids or items])
        if abs(table[:, 0].sum() / table[:, 1].sum() - value) < AGREEMENT:
            ids = ids or list(items)
            tables.append(table)
            members.append(place)
    return Joint(np.stack(tables, 1) if tables else None, members)
