"""The forecast of an order that runs: what --plan's cost model says of each run's stages."""

import torch

from harness.base.forecast import Expected, Forecast
from harness.models.load import load_tokenizer
from harness.results.writer import ResultsWriter
from harness.runs.estimate import estimate_order
from harness.runs.order import Order
from harness.runs.order_cost import OrderCost
from harness.runs.plan import model_shape
from harness.runs.references import Run


def forecast_of(order: Order, results: ResultsWriter) -> Forecast:
    """The work of all runs of ``order``; what ``results`` has on record is done.

    Where the model of costs fails, as by a plug-in's own ``work()``, all stages count alike.
    """
    place = f"{order.path}: model"
    model = order.model
    try:
        with torch.random.fork_rng():
            tokenizer, source = load_tokenizer(model.name, model.revision, place, model.template)
            shape = model_shape(order, source, place)
            cost = estimate_order(order, tokenizer, shape, results)
    except Exception:  # whoever plans the order, or runs it, is told
        forecast = Forecast({run.name: _alike(run) for run in order.runs()}, is_timed=False)
    else:
        forecast = Forecast(_runs(order, cost, results))
    for run in order.runs():
        forecast.over_before(run.name, _done(results, run))
    return forecast


def _done(results: ResultsWriter, run: Run) -> int:
    """Stages of a run that are on record, the base model's included."""
    stages = range(len(run.stages) + 1)
    return next((k for k in stages if not results.committed(run.name, k)), len(stages))


def _alike(run: Run) -> list[Expected]:
    return [Expected("", 0.0, 1.0), *(Expected(run.label, 1.0, 1.0) for _ in run.stages)]


def _runs(order: Order, cost: OrderCost, results: ResultsWriter) -> dict[str, list[Expected]]:
    """{run: its stages}; the base model is measured once for all runs, in the first."""
    pieces = _pieces(order, cost)
    by_place = {(stage.stem, stage.number): stage for stage in cost.stages}
    runs: dict[str, list[Expected]] = {}
    for run in order.runs():
        is_shared = runs or (not _done(results, run) and _has_base(results))
        stages = [Expected("", 0.0, 0.0 if is_shared else cost.base, pieces)]
        for number in range(1, len(run.stages) + 1):
            stage = by_place[run.stem, number]
            measuring = max(0.0, stage.seconds - stage.learning)
            stages.append(Expected(run.label, stage.learning, measuring, pieces, stage.is_measured))
        runs[run.name] = stages
    return runs


def _pieces(order: Order, cost: OrderCost) -> dict[str, float]:
    """{what is measured, as Measurements names it: seconds of each time}."""
    pieces = {"retention": cost.retention}
    if order.drift:
        of_skills = len(order.skills) if order.drifts else 0
        pieces["drift"] = cost.drift / max(1, ("general" in order.drift.along) + of_skills)
    for skill in order.skills:
        name, seconds = skill.name, cost.skills[skill.name]
        pieces |= {
            name: seconds.evaluation / len(order.splits(skill)),
            f"{name} pass@k": seconds.pass_at_k,
            f"{name} KL": seconds.kl,
            f"{name} teacher": seconds.teacher,
            f"{name} oracle": seconds.oracle / len(order.reported(skill)),
        }
    return pieces


def _has_base(results: ResultsWriter) -> bool:
    """Whether a run of the folder has measured the base model."""
    return any(results.folder.glob("runs/*/stage-0/stage.json"))
