"""WiSE-FT over finished runs (arXiv 2109.01903): mixtures of first and last weights, measured.

    theta = (1 - alpha) theta_B + alpha theta_T

theta_B are the weights of the base model, theta_T those at the end of a run's last stage, as the
results folder keeps them. They are mixed in float32 and rounded to the model's dtype. For each
method the alpha counts whose mean validation score is the highest, over all skills, seeds and
sequences: no score of a test or of the retention suite selects.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from harness.base import metrics
from harness.base.console import Progress, padded
from harness.base.errors import UserError
from harness.base.files import refuse_links, write_sealed
from harness.base.sums import check_sums
from harness.evaluation.evaluator import Evaluator
from harness.models.checkpoint import file_fingerprint, model_fingerprint
from harness.results.formats import Evaluation
from harness.results.writer import BEFORE, ResultsWriter
from harness.runs.engines import (
    engine_for,
    evaluator_for,
    load_order_model,
    sampler_for,
    take_products,
)
from harness.runs.one_run import check_base_model, check_kept_weights, keep_abilities
from harness.runs.order import Order
from harness.runs.references import Run

FOLDER = "wise_ft"  # of the results folder: what is measured here
RULE = "highest mean validation score over skills, seeds and sequences"


def sweep(
    order: Order, folder: Path, alphas: Sequence[float], progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate each alpha of each run of ``order`` in the results folder; nothing is trained.

    Returns what ``wise_ft/wise_ft.json`` holds: ``rule``, ``selected`` ({method: alpha}), and
    ``rows`` of ``method``, ``seed``, ``sequence`` where there are several, ``alpha``, ``weights``
    (the fingerprint), ``validation`` (the mean over the skills), ``skills`` ({skill: {split:
    {metric: [value, standard error]}}}) and ``retention`` ({task: {metric: [value, standard
    error]}}).

    What is measured is kept: the same command goes on after a kill. Raises UserError where a run
    has no kept weights, or a skill no validation data.
    """
    refuse_links(folder)
    progress = progress or Progress()
    results = ResultsWriter(folder)
    _check(order, results)
    take_products(order, folder)
    results.check(order.about())
    base, tokenizer = load_order_model(order)
    check_base_model(results, base, file_fingerprint(base))
    evaluator = evaluator_for(order, Mixtures(folder / FOLDER, results))
    rows = []
    with engine_for(order) as engine:
        for run in _sequences(order):
            stage = results.stage(run.name, len(order.skills))
            model, _ = load_order_model(order, stage / "weights")
            check_kept_weights(results, stage, model, file_fingerprint(model))
            keep_abilities(results.run(run.name) / "model.json", model)
            sampler = sampler_for(order.evaluate, engine, model, tokenizer)
            for alpha, weights in mixtures(model, base, alphas):

                def show(
                    what: str, name: str = f"{run.name}, alpha {alpha:g}"
                ) -> Callable[..., None]:
                    return lambda *counts: progress.show(
                        f"{name}: evaluates {what} {' '.join(map(str, counts))}"
                    )

                found = {"method": run.label, "seed": run.seed, **run.mark}
                found |= {"alpha": alpha, "weights": weights}
                found |= _measured(order, evaluator, (model, tokenizer, sampler), weights, show)
                rows.append(found)
                progress.say(f"{run.name}, alpha {alpha:g}: validation {found['validation']:.3f}")
    swept = {"rule": RULE, "selected": selected(rows), "rows": rows}
    write_sealed(folder / FOLDER / "wise_ft.json", swept)
    return swept


class Mixtures(ResultsWriter):
    """What is measured of mixtures, apart from the runs; what these measured is found with them.

    The ends, alpha 0 and 1, are the base model and a run as they were measured.
    """

    def __init__(self, folder: Path, runs: ResultsWriter) -> None:
        super().__init__(folder)
        self.runs = runs

    def evaluation(self, key: str) -> Evaluation | None:
        return self.runs.evaluation(key) or super().evaluation(key)


def _check(order: Order, results: ResultsWriter) -> None:
    """Raises UserError where there is nothing to mix, or nothing that selects."""
    for skill in order.skills:
        if "validation" not in skill.splits:
            raise UserError(f"skill {skill.name}", "has no validation data, which select an alpha")
    for spec in order.methods.values():
        if not spec.cls.trains:
            raise UserError(
                spec.place,
                f"{spec.method} trains no weights, so there are none to mix",
                "name others with --method",
            )
    for run in _sequences(order):
        stage = results.stage(run.name, len(order.skills))
        if not (stage / "weights").is_dir():
            raise UserError(
                stage / "weights",
                "is not there: the run is not over, or keeps no weights",
                "run it to its end with `checkpoints: {keep: last}`, or name others with --method, "
                "--seed and --sequence",
            )
        check_sums(stage, "weights", BEFORE)


def _sequences(order: Order) -> list[Run]:
    """The runs that are swept: a reference run has not learned the order's stages."""
    return [run for run in order.runs() if not run.reference]


@torch.no_grad()
def mixtures(
    model: PreTrainedModel, base: PreTrainedModel, alphas: Sequence[float]
) -> Iterator[tuple[float, str]]:
    """(alpha, fingerprint of the weights), while ``model`` has each mixture with ``base``."""
    ends = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for alpha in alphas:
        for name, weight in model.named_parameters():
            start = base.get_parameter(name).to(weight.device)
            weight.copy_(start.float().lerp(ends[name].float(), alpha))
        yield alpha, model_fingerprint(model)


def _measured(
    order: Order,
    evaluator: Evaluator,
    subject: tuple[Any, Any, Any],
    weights: str,
    show: Callable[[str], Callable[..., None]],
) -> dict[str, Any]:
    """The measurements of a model; subject: (model, tokenizer, sampler)."""
    skills: dict[str, dict[str, Any]] = {}
    for skill in order.skills:
        skills[skill.name] = {}
        for split in dict.fromkeys(["validation", *order.reported(skill)]):
            line = show(f"{skill.name} {split}")
            _, _, evaluation = evaluator.skill(*subject, weights, skill, split, line)
            skills[skill.name][split] = evaluation["metrics"]
    scores = [skills[s.name]["validation"][s.metric][0] for s in order.skills]
    retention: dict[str, Any] = {}
    if order.suite is not None:
        model, tokenizer, sampler = subject
        line = show("retention")
        for _, _, evaluation in evaluator.retention(model, tokenizer, weights, line, sampler):
            retention[evaluation["name"]] = evaluation["metrics"]
    return {
        "validation": sum(scores) / len(scores),
        "skills": skills,
        "retention": retention,
    }


def selected(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The alpha of each method with the highest mean validation score over its runs."""
    points: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        of_method = points.setdefault(row["method"], {})
        of_method.setdefault(row["alpha"], []).append(row["validation"])
    return {method: metrics.select(of_method) for method, of_method in points.items()}


def table(order: Order, swept: Mapping[str, Any]) -> str:
    """Means over the runs, a line for each method and alpha; the chosen ones have a star.

    The mean of retention is that of the report: over tasks whose metric is an accuracy.
    """
    split = order.evaluate.split
    tasks = {
        task.task: task.metric
        for task in (order.suite.tasks if order.suite else [])
        if metrics.in_unit_interval(
            task.metric,
            [row["retention"][task.task][task.metric][0] for row in swept["rows"]],
            task.higher_is_better,
        )
    }
    lines = [["method", "alpha", "validation", split, "retention", ""]]
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in swept["rows"]:
        groups.setdefault((row["method"], row["alpha"]), []).append(row)
    for (method, alpha), rows in groups.items():
        scores = [row["skills"][s.name][split][s.metric][0] for row in rows for s in order.skills]
        kept = [row["retention"][task][metric][0] for row in rows for task, metric in tasks.items()]
        numbers = [[row["validation"] for row in rows], scores, kept]
        means = [f"{sum(each) / len(each):.3f}" if each else "–" for each in numbers]
        star = "*" if swept["selected"][method] == alpha else ""
        lines.append([method, f"{alpha:g}", *means, star])
    return "\n".join(padded(lines, range(len(lines[0]))))
