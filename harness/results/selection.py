"""The choice of a grid, by validation records alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.base import metrics
from harness.results.formats import OF_SEQUENCE, GridChoice, Record

RULE = "highest mean own-stage validation accuracy"


def grid_selection(about: Mapping[str, Any], records: Iterable[Record]) -> dict[str, GridChoice]:
    """The choice of every grid, by validation records alone: {label of the grid: choice}.

    A point of a grid is worth its mean own-stage validation accuracy: of each skill right after the
    stage that taught it, by the metric that counts, averaged over the skills, then over the runs.
    For one skill that is the paper's rule (arXiv 2601.19897, appendix). Only the ends of stages
    count, and nothing is selected before all points have run with all seeds and sequences.

    about: what results.json holds.
    """
    records = list(records)
    scores = _own_stage_scores(records, _counting_metrics(about["skills"], records))
    skills = [skill["name"] for skill in about["skills"]]
    choices: dict[str, GridChoice] = {}
    for label, method in about["methods"].items():
        grid = method.get("grid")
        if not grid:
            continue
        runs = {
            f"{seed}{OF_SEQUENCE}{name}" if name else str(seed): _mean(
                scores.get((label, seed, name), {}), skills
            )
            for seed in about["seeds"]
            for name in about.get("orders") or [""]
        }
        choice = choices.setdefault(grid["of"], {"rule": RULE, "selected": None, "points": []})
        choice["points"].append(
            {
                "label": label,
                "values": grid["values"],
                "validation": _mean(runs, list(runs)),
                "runs": runs,
            }
        )
    for choice in choices.values():
        choice["selected"] = metrics.select(
            {point["label"]: list(point["runs"].values()) for point in choice["points"]}
        )
    return choices


def _counting_metrics(
    skills: Iterable[Mapping[str, Any]], records: Iterable[Record]
) -> dict[str, str]:
    """The metric that counts of each skill: the judge's first one where a judge has spoken."""
    measured = {(record["name"], record["metric"]) for record in records}
    counting = {}
    for skill in skills:
        judged = skill.get("judge", {}).get("metrics", [None])[0]
        counting[skill["name"]] = judged if (skill["name"], judged) in measured else skill["metric"]
    return counting


def _own_stage_scores(
    records: Iterable[Record], counting: Mapping[str, str]
) -> dict[tuple[str, int, str], dict[str, float]]:
    """{(method, seed, sequence): {skill: validation score right after the stage that taught it}}.

    An answer that the judge gave no verdict on counts as wrong: else a point would gain by hard
    answers without a verdict.
    """
    scores: dict[tuple[str, int, str], dict[str, float]] = {}
    unjudged: dict[tuple[str, int, str, str], float] = {}  # share of the answers
    for record in records:
        if not _is_own_stage(record):
            continue
        if record["value"] is None:  # not finite
            continue
        run = record["method"], record["seed"], record.get("sequence") or ""
        skill = record["name"]
        if record["metric"] == counting.get(skill):
            scores.setdefault(run, {})[skill] = record["value"]
        elif record["metric"] == "judge_errors":
            unjudged[(*run, skill)] = record["value"]
    return {
        run: {skill: value * (1 - unjudged.get((*run, skill), 0.0)) for skill, value in of.items()}
        for run, of in scores.items()
    }


def _is_own_stage(record: Record) -> bool:
    return (
        record["final"]
        and record["kind"] == "skill"
        and record["split"] == "validation"
        and record["name"] == record["skill"]
    )


def _mean(values: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """Mean of the values of all ``names``, None while one is missing."""
    numbers: list[float] = []
    for name in names:
        value = values.get(name)
        if value is None:
            return None
        numbers.append(value)
    return sum(numbers) / len(numbers)
