"""What each figure and table of arXiv 2601.19897 shows, taken from the records of results folders.

One function an experiment; each yields the numbers of benchmarks.paper.form. A number that has no
record is left out.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from benchmarks.paper.estimates import (
    Learner,
    all_models,
    difference,
    estimate,
    skill_records,
    task_records,
    trained_models,
)
from benchmarks.paper.form import Number
from benchmarks.paper.training import spending, stage_curve, training_curves
from harness.base import metrics
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.results.formats import ORACLE

# Option ``teacher_context`` of SDFT: the column of figure 7
CONTEXTS = {"demonstration": "answer only", "source": "text only", "both": "text and answer"}
# lm-eval's name of a task: the column of table 5
TASK_COLUMNS = {"truthfulqa_mc1": "truthfulqa", "humaneval_sandboxed": "humaneval"}
DIVERGENCES = (
    "kl_forward_token",
    "kl_reverse_token",
    "kl_forward_sequence",
    "kl_reverse_sequence",
)


def _number(
    panel: str,
    series: str,
    x: str | float,
    estimate: Estimate | None,
    unit: str,
    note: str = "",
) -> Iterator[Number]:
    """The number of an estimate; none where nothing was measured."""
    if estimate is not None:
        yield {
            "panel": panel,
            "series": series,
            "x": x,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "unit": unit,
            "note": "; ".join(filter(None, [estimate.how, note])),
            "records": estimate.records,
        }


def _accuracy(results: ReportData, model: Learner) -> Estimate | None:
    """Per cent of the metric that counts of the model's skill, after its stage."""
    return estimate(skill_records(results, model, results.metric[model.skill]), 100)


def skill_learning(results: ReportData) -> Iterator[Number]:
    """Table 5 and figure 4: the accuracy on the task learned, and the prior capabilities.

    These are every benchmark of the retention suite and the mean of those that may be averaged.
    """
    for model in all_models(results):
        metric = results.metric[model.skill]
        new_task = _accuracy(results, model)
        yield from _number(model.skill, model.series, "new_task", new_task, "%", metric)
        for task in results.retention:
            yield from _benchmark(results, model, task)
        yield from _prior_average(results, model)


def _benchmark(results: ReportData, model: Learner, task: str) -> Iterator[Number]:
    entry = results.retention[task]
    fraction = results.tasks_in_mean[task]
    score = estimate(task_records(results, model, task), 100 if fraction else 1)
    unit = "%" if fraction else entry["metric"].split(",")[0]
    note = entry["metric"]
    if not entry.get("higher_is_better", True):
        note += ", lower is better"
    x = TASK_COLUMNS.get(task, task)
    yield from _number(model.skill, model.series, x, score, unit, note)


def _prior_average(results: ReportData, model: Learner) -> Iterator[Number]:
    tasks = results.in_mean
    if tasks:
        records = pd.concat([task_records(results, model, task) for task in tasks])
        mean = estimate(records, 100, tasks=len(tasks))
        note = "mean of " + ", ".join(tasks)
        yield from _number(model.skill, model.series, "prior_avg", mean, "%", note)


def knowledge(results: ReportData) -> Iterator[Number]:
    """Table 1: strict, lenient and out-of-distribution accuracy on new knowledge.

    Its row of oracle retrieval is the base model with the source of each question in its prompt; it
    is there where the order asks for it (``evaluate.oracle``).
    """
    for model in all_models(results):
        for x, metric, split in _knowledge_columns(results, model.skill):
            accuracy = estimate(skill_records(results, model, metric, split), 100)
            yield from _number(model.skill, model.series, x, accuracy, "%", metric)
            if model.label is None:
                accuracy = estimate(skill_records(results, model, ORACLE + metric, split), 100)
                yield from _number(model.skill, "oracle_rag", x, accuracy, "%", ORACLE + metric)


def _knowledge_columns(results: ReportData, skill: str) -> list[tuple[str, str, str | None]]:
    """(x, metric, split) of the columns of table 1: a judge's grades where it has given some."""
    records = results.records
    on_record = set(records.loc[records["name"] == skill, "metric"].astype(str))
    prefix = "judged_" if "judged_strict" in on_record else ""
    counting = results.metric[skill]
    columns: list[tuple[str, str, str | None]] = [
        (grade, prefix + grade, None)
        for grade in ("strict", "lenient")
        if prefix + grade in on_record
    ]
    return [*(columns or [(counting, counting, None)]), ("ood", counting, "ood")]


def reasoning(results: ReportData) -> Iterator[Number]:
    """Table 2: accuracy and mean length of the answers of a reasoning model."""
    for model in all_models(results):
        metric = results.metric[model.skill]
        accuracy = _accuracy(results, model)
        yield from _number(model.skill, model.series, "accuracy", accuracy, "%", metric)
        tokens = estimate(skill_records(results, model, "response_tokens"))
        yield from _number(
            model.skill, model.series, "response_tokens", tokens, "tokens", "response_tokens"
        )


def in_context(results: ReportData) -> Iterator[Number]:
    """Figure 2 right and section 3.2: the demonstration-conditioned teacher and trained models.

    Of the teacher the accuracy, beside the base model's on the same split, and its distance to the
    base policy; of each trained model its distance to the base policy.
    """
    for model in all_models(results):
        if model.label is None:
            yield from _teacher_accuracy(results, model)
            for kl in DIVERGENCES:
                records = _teacher_records(results, model.skill, f"teacher_{kl}")
                note = f"split {_split(records)}"
                yield from _number(model.skill, "teacher", kl, estimate(records), "nats", note)
        else:
            for kl in DIVERGENCES:
                distance = estimate(skill_records(results, model, kl))
                yield from _number(model.skill, model.label, kl, distance, "nats")


def _teacher_accuracy(results: ReportData, base: Learner) -> Iterator[Number]:
    records = _teacher_records(results, base.skill, "teacher_accuracy")
    teacher = estimate(records, 100)
    if teacher is not None:
        grader = results.grader[base.skill]  # a judge has not seen the teacher's answers
        split = _split(records)
        alone = estimate(skill_records(results, base, grader, split), 100)
        note = f"{grader}, split {split}"
        yield from _number(base.skill, "base", "accuracy", alone, "%", note)
        yield from _number(base.skill, "teacher", "accuracy", teacher, "%", note)


def _teacher_records(results: ReportData, skill: str, metric: str) -> pd.DataFrame:
    """The record of the teacher before training, on whichever split it was measured.

    Its prompts need demonstrations, which a test split may lack.
    """
    table = results.records
    measured = (table["name"] == skill) & (table["metric"] == metric) & (table["stage"] == 0)
    return table[measured].head(1)


def _split(records: pd.DataFrame) -> str | None:
    return str(records["split"].iloc[0]) if len(records) else None


def model_size(results: ReportData) -> Iterator[Number]:
    """Figure 5 left: the accuracy of SDFT minus that of SFT on the new task, in points."""
    if "sft" not in results.series:
        return
    for model in trained_models(results):
        if model.label == "sdft":
            metric = results.metric[model.skill]
            sdft = skill_records(results, model, metric)
            sft = skill_records(results, model._replace(label="sft"), metric)
            gap = difference(results, sdft, sft, 100)
            name = model_name(results.heads[0])
            yield from _number(model.skill, "sdft - sft", name, gap, "points", metric)


def pass_at_k(results: ReportData) -> Iterator[Number]:
    """Figure 5 right: pass@k for every k on record."""
    on_record = results.records["metric"].astype(str).unique()
    matches = [re.fullmatch(r"pass@(\d+)", metric) for metric in on_record]
    ks = sorted(int(match[1]) for match in matches if match)
    for model in all_models(results):
        grader = results.grader[model.skill]  # a judge has not seen these answers
        for k in ks:
            solved = estimate(skill_records(results, model, f"pass@{k}"), 100)
            yield from _number(model.skill, model.series, k, solved, "%", grader)


def teacher_context(results: ReportData) -> Iterator[Number]:
    """Figure 7: the accuracy on new knowledge by what the teacher is shown."""
    for model in trained_models(results):
        series = results.series[model.series]
        x = CONTEXTS.get(series.config.get("teacher_context", ""), model.series)
        note = f"{results.metric[model.skill]}, {model.label}"
        yield from _number(model.skill, series.method, x, _accuracy(results, model), "%", note)


def teacher_weights(results: ReportData) -> Iterator[Number]:
    """Figure 8: the accuracy along training, by how the teacher's weights follow the student's."""
    for model in trained_models(results):
        metric = results.metric[model.skill]
        for point in stage_curve(results, model):
            yield from _number(model.skill, model.series, point.step, point.accuracy, "%", metric)


def generations(results: ReportData) -> list[Number]:
    """Figure 6: the accuracy by the number of answers that were sampled to learn from.

    An on-policy method samples new answers for every prompt (options ``rollouts``, ``group_size``);
    its points lie along training. A method with a fixed set of teacher samples (option
    ``generations``, at most one a prompt drawn) has one point a run, at the size of the set: the
    accuracy after the whole stage. A method that samples nothing has no place on the axis.
    """
    rows: list[Number] = []
    for model in trained_models(results):
        series = results.series[model.series]
        metric = results.metric[model.skill]
        spent = spending(results, model)
        answers_a_prompt = series.config.get("rollouts") or series.config.get("group_size")
        if "generations" in series.config and spent.known:
            size = int(min(series.config["generations"] or spent.prompts, spent.prompts))
            accuracy = _accuracy(results, model)
            rows += _number(model.skill, series.method, size, accuracy, "%", metric)
        elif answers_a_prompt:
            for point in stage_curve(results, model):
                answers = int(point.prompts * answers_a_prompt)
                rows += _number(model.skill, model.series, answers, point.accuracy, "%", metric)
    return sorted(rows, key=lambda row: row["x"])


def sequence(results: ReportData) -> Iterator[Number]:
    """Figure 3: the normalised accuracy of every skill along the whole sequence.

    0 is the base model, 1 the highest point of any method's mean curve on that skill.
    """
    training = training_curves(results)
    if training.curves.empty:
        return
    for skill in results.skills:
        curves = training.curves[training.curves["name"] == skill]
        best = curves["value"].max()
        for label in results.series:
            curve = curves[curves["label"] == label].sort_values("x")
            yield from _normalised(skill, label, curve, training.axis.edges[0], best)


def _normalised(
    skill: str, label: str, curve: pd.DataFrame, start: float, best: float
) -> Iterator[Number]:
    """The points of one curve, scaled so that its first is 0 and ``best`` is 1."""
    at_start = curve.loc[curve["x"] == start, "value"]
    base = at_start.iloc[0] if len(at_start) else math.nan
    if not best > base:  # also where the base is not on record
        return
    note = f"base {base:.4g}, best {best:.4g}"
    for point in curve.to_dict("records"):
        bounds = [point["value"], point["low"], point["high"]]
        value, low, high = map(float, metrics.normalised(bounds, base, best))
        accuracy = Estimate(value, low, high, f"seeds: {point['seeds']}")
        yield from _number(skill, label, point["x"], accuracy, "normalised", note)


def unjudged(results: ReportData) -> list[str]:
    """Skills that the paper's judge grades and that a program graded here.

    Their metric is another one, which panels and captions name.
    """
    return [
        skill
        for skill, entry in results.skills.items()
        if entry.get("judge") and results.metric[skill] not in entry["judge"]["metrics"]
    ]


def model_name(head: dict[str, Any]) -> str:
    """The short name of the model of a results.json."""
    model = head.get("model") or {}
    name = str(model.get("name", model) if isinstance(model, dict) else model)
    if name == "embedded":
        return "SmolLM2-135M-Instruct"
    return name.rstrip("/").rsplit("/", 1)[-1]
