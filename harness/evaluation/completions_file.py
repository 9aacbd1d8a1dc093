"""Grades completions made anywhere, with the code that grades a run's own."""

import os
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_jsonl
from harness.base.thoughts import THINK
from harness.sampling.sampler import Completion
from harness.skills.skill import Skill


def grade(skill: Skill, path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of the JSONL file ``path`` with ``score`` and ``scores`` added.

    score: the metric that counts; scores: {metric: value}; all values are in [0, 1]. Raises
    UserError that names the first row that cannot be graded. Thoughts in ``<think>`` tags are no
    part of an answer.
    """
    rows = []
    for number, row in read_jsonl(path):
        place = f"{path}, row {number}"
        if not isinstance(row.get("completion"), str):
            raise UserError(
                f"{place}: completion", "must be a text", "the answer that is to be graded"
            )
        scores = _scores(skill, row, place)
        rows.append({**row, "score": scores[skill.metric], "scores": scores})
    if not rows:
        raise UserError(path, "has no rows", "give one JSON object a line")
    return rows


def _scores(skill: Skill, row: dict[str, Any], place: str) -> dict[str, float]:
    """{metric: value} of one row. Raises UserError where there is nothing to compare with."""
    reference = skill.reference(row, place)
    text = row["completion"]
    completion = Completion([], [], True, THINK.answer(text), text)
    try:
        return {metric: skill.score(metric, completion, reference) for metric in skill.metrics}
    except UserError as error:  # a reference of another skill may break its grader in any way
        raise UserError(
            f"{place}: reference",
            f"cannot be compared ({error})",
            f"it must read as in the skill {skill.name}",
        ) from error
