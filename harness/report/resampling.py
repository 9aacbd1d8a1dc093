"""Bootstrap over examples: item scores, resampled jointly over the stages of a run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from harness.base import metrics
from harness.report.measurements import Arrays
from harness.results.folders import Json

DRAWS = 2000  # of a bootstrap
# Item scores of one run are read from at most so many evaluations; beyond it stderr stands in.
MOST_FILES = 400
AGREEMENT = 1e-6  # between the mean of the item scores and the value on record

ItemScores = dict[str, tuple[float, float]]  # {item id: (score times weight, weight)}


class Joint(NamedTuple):
    """Item scores of several evaluations of the same items.

    scores: score times weight, and weight, [items, members, 2], None without a member; members:
    places of the evaluations that are in it.
    """

    scores: np.ndarray | None
    members: list[int]


class Draws(NamedTuple):
    """Bootstrap draws of a run's array.

    values: [DRAWS, T + 1, columns], NaN where there is neither a score nor an error; joint: which
    entries [T + 1, columns] come from resampled items, the same resample at every stage.
    """

    values: np.ndarray
    joint: np.ndarray


def item_scores(evaluation: Json, metric: str) -> ItemScores | None:
    """The scores of an evaluation's items, None where it holds none.

    An item weighs 1 if it has no ``weight``; that is the number of instructions in its prompt, for
    example. An item of bits per byte weighs its bytes. These are its log-likelihood (the
    ``response``) over its score, up to a factor.
    """
    bits_per_byte = metric.partition(",")[0] == "bits_per_byte"
    scores = {}
    try:
        for item in evaluation.get("items") or []:
            score = float(item["score"] if "score" in item else item["scores"][metric])
            if bits_per_byte and "response" in item:
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


def draw(
    arrays: Arrays, run: int, column_metrics: list[str], evaluation: Callable[[str | None], Json]
) -> Draws:
    """Draws of one run's array.

    column_metrics: the metric that counts of each column; evaluation: reads one by its key. The
    items of a column are resampled once for all its stages. An evaluation without item scores is
    drawn from Normal(value, stderr), independently of all others.
    """
    values = arrays.values[run]
    stderr = arrays.stderr[run]
    keys = arrays.keys[run]
    drawn = np.full((DRAWS, *values.shape), np.nan)
    joint = np.zeros(values.shape, bool)
    readable = sum(isinstance(key, str) for key in keys.ravel()) <= MOST_FILES
    for i, metric in enumerate(column_metrics):
        generator = np.random.default_rng([len(column_metrics), i])
        stages = np.flatnonzero(np.isfinite(values[:, i]))
        scores, members = join_items(
            [
                (item_scores(evaluation(keys[k, i]), metric), values[k, i])
                for k in stages
                if readable
            ]
        )
        joint[stages[members], i] = True
        for k in stages[~joint[stages, i]]:
            if np.isfinite(stderr[k, i]):
                drawn[:, k, i] = values[k, i] + stderr[k, i] * generator.standard_normal(DRAWS)
        if scores is not None:
            means = metrics.bootstrap_means(scores, DRAWS, seed=i)
            drawn[:, joint[:, i], i] = means[..., 0] / means[..., 1]
    return Draws(drawn, joint)
