"""The tables of a report: main results, gains, retention, cost, records used."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.report.continual import NO_REFERENCES, of_joint, of_single
from harness.report.crossing import OF_ORDERS, OF_RUNS, ORDERS
from harness.report.data import ReportData
from harness.report.entries import ArrayFunction
from harness.report.estimates import HOW, NO_INTERVAL, Estimate, IntervalSource
from harness.report.names import both_names, metric_name
from harness.report.power import power_note
from harness.report.table import Cell, Column, Row, Table, Unit
from harness.results.reader import AMOUNTS, COLUMNS

MEANINGS = {
    "ACC": "mean accuracy over all skills after the last stage (Lopez-Paz & Ranzato 2017)",
    "BWT": "backward transfer: mean over all but the last skill of final minus own-stage accuracy; "
    "negative = lost (Lopez-Paz & Ranzato 2017)",
    "FWT": "forward transfer: mean over all but the first skill of accuracy just before its own "
    "stage minus base accuracy (Lopez-Paz & Ranzato 2017, with the base model as the comparison)",
    "Forgetting": "mean over all but the last skill of its best accuracy after any earlier stage "
    "minus its final one; positive = lost (Chaudhry et al. 2018)",
    "LA": "learning accuracy: mean own-stage accuracy (Riemer et al. 2019)",
    "mean gain": "mean over skills of own-stage minus base accuracy",
    "Retention Δ": "mean over the retention tasks whose metric is a fraction of final minus base; "
    "positive = better",
    "own stage": "accuracy right after the stage that taught the skill",
    "intransigence": "mean over skills of the joint run's accuracy minus own-stage accuracy; "
    "positive = the sequence learns less (Chaudhry et al. 2018)",
    "plasticity loss": "mean over all but the first skill of what it gains alone from the base "
    "minus what its stage gains; positive = the sequence learns less",
}
# Columns that records_used leaves out: `folder` and `label` name the run, all records are final.
NOT_IN_RECORDS_USED = ("run", "method", "final", *AMOUNTS, "reference")


def measured(results: ReportData, kind: str, name: str) -> str:
    """How a skill or retention task is measured, in one line: split, metric, n, protocol."""
    protocol = results.protocol_of.get((kind, name))
    if kind == "skill":
        fields = results.protocols.get(protocol or "") or {}
        decoding = fields.get("decoding") if isinstance(fields, dict) else None
        how = f"split {results.split}, metric {both_names(results.metric[name])}"
        how += f", {decoding}" if decoding else ""
    else:
        task = results.retention.get(name) or results.continuous[name]
        better = "higher" if task.get("higher_is_better", True) else "lower"
        how = f"lm-eval, metric {both_names(task['metric'])}, {better} is better"
    n = results.n.get((kind, name), "?")
    return f"{name}: {how}, n = {n}, protocol {protocol or '?'}"


def interval_note(rows: list[Row]) -> str:
    """Which intervals the cells of a table have, and why some have none."""
    sources: list[tuple[str, set[IntervalSource | None]]] = []
    several = apart = False
    for label, cells in rows:
        estimates = [cell for cell in cells.values() if isinstance(cell, Estimate)]
        several |= any(ORDERS in each.spread.parts for each in estimates if each.spread)
        apart |= any(each.apart for each in estimates)
        of_row = {estimate.by for estimate in estimates if np.isfinite(estimate.value)}
        if of_row:
            sources.append((label, of_row))
    if not sources:
        return "Nothing was measured yet."
    used = [source for source in HOW if any(source in of_row for _, of_row in sources)]
    parts = [HOW[source] + _labels_with(source, sources) for source in used]
    intervals = [part for part, by in zip(parts, used, strict=True) if by not in NO_INTERVAL]
    gaps = [part for part, by in zip(parts, used, strict=True) if by in NO_INTERVAL]
    note = "No number has an interval."
    if intervals:
        note = f"± is half of a 95% interval {'; '.join(intervals)}."
        note += f" {OF_ORDERS}" if several else ""
        note += f" {OF_RUNS}" if apart else ""
    return note + (f" No ±: {'; '.join(gaps)}." if gaps else "")


def _labels_with(
    source: IntervalSource, sources: list[tuple[str, set[IntervalSource | None]]]
) -> str:
    """The rows that have an interval over seeds, where not all have one."""
    labels = [label for label, of_row in sources if source in of_row]
    over_seeds = (IntervalSource.BOTH, IntervalSource.SEEDS)
    if source not in over_seeds or len(labels) == len(sources):
        return ""
    return f" for {', '.join(labels)}"


# -- accuracies


def main_table(results: ReportData) -> Table:
    """ACC, BWT, forgetting, mean retention change, final and own-stage accuracy of each skill."""
    rows = [(row, _main_base(results, row)) for row in results.bases()]
    for label in results.series:
        rows.append((label, _main_cells(results, label)))
        if label in results.references:
            rows += _reference_rows(results, label)
    rows.append(_numbers_of_examples(results, "skill", list(results.skills)))
    note = (
        "Accuracies in per cent, differences in points; metric that counts of each skill, "
        f"split {results.split}. {interval_note(rows)} "
        "BWT, forgetting and retention Δ compare with earlier measurements of the same run."
    )
    if results.references:
        note += " Joint: all skills learned at once; single: each alone from the base model."
    if in_mean := results.in_mean:
        others = [task for task in results.retention if task not in in_mean]
        more = f"; {', '.join(others)} in other units: see the retention table." if others else "."
        note += f" Retention Δ is the mean over {', '.join(in_mean)}{more}"
    note += "".join(f" {series.selected}" for series in results.series.values() if series.selected)
    columns = _main_columns(results)
    note += f" {power_note(results, columns, rows)}"
    return Table("main", "Main results", note.rstrip(), columns, rows)


def _main_columns(results: ReportData) -> list[Column]:
    runs = "runs" if results.has_sequences else "seeds"
    columns = [
        Column("seeds", runs, unit="text", note="complete runs / expected"),
        Column("acc", "ACC", note=MEANINGS["ACC"]),
        Column("bwt", "BWT", signed=True, note=MEANINGS["BWT"]),
        Column("forgetting", "Forgetting", note=MEANINGS["Forgetting"]),
    ]
    if results.retention:
        note = f"{MEANINGS['Retention Δ']}; here {', '.join(results.in_mean) or 'none'}"
        columns.append(Column("retention", "Retention Δ", signed=True, note=note))
    for name in results.skills:
        how = measured(results, "skill", name)
        own = f"{MEANINGS['own stage']}. {how}"
        columns.append(Column(f"{name}/final", "final", name, note=f"after the last stage. {how}"))
        columns.append(Column(f"{name}/own", "own stage", name, note=own))
    return columns


def _main_base(results: ReportData, row: str) -> dict[str, Cell]:
    """The cells of a base model."""
    order = results.series[results.bases()[row]].order
    detail = "mean accuracy of the base model over all skills"
    cells: dict[str, Cell] = {"acc": results.base_estimate(order, row, detail=detail)}
    for name in results.skills:
        detail = measured(results, "skill", name)
        cells[f"{name}/final"] = results.base_estimate([name], row, detail=detail)
    return cells


def _main_cells(results: ReportData, label: str) -> dict[str, Cell]:
    """The cells of a method."""
    series = results.series[label]
    seeds = f"{results.complete(label)}/{len(series.expected)}"
    cells: dict[str, Cell] = {"seeds": seeds, **headline(results, label)}
    for i, name in enumerate(series.order):
        detail = measured(results, "skill", name)
        cells[f"{name}/final"] = results.estimate(label, _entry(-1, i), "S", detail)
        cells[f"{name}/own"] = results.estimate(label, _entry(i + 1, i), "S", detail)
    return cells


def _reference_rows(results: ReportData, label: str) -> Iterator[Row]:
    """All skills learned at once, and each alone, by a method that has references."""
    joint: dict[str, Cell] = {
        "acc": results.estimate(label, lambda extended: extended[..., -2, :].mean(-1), "R+")
    }
    if results.retention:

        def change(D: np.ndarray) -> np.ndarray:
            mean = results.retention_mean(D)
            return mean[..., -2] - mean[..., 0]

        joint["retention"] = results.estimate(label, change, "D+", difference=True)
    single: dict[str, Cell] = {}
    for i, name in enumerate(results.series[label].order):
        detail = measured(results, "skill", name)
        joint[f"{name}/final"] = results.estimate(label, _entry(-2, i), "S+", detail)
        single[f"{name}/own"] = results.estimate(label, _entry(-1, i), "S+", detail)
    yield f"{label} joint", joint
    yield f"{label} single", single


def headline(results: ReportData, label: str) -> dict[str, Estimate]:
    """``acc``, ``bwt``, ``forgetting`` and, where it was measured, ``retention`` (its change)."""
    found = {
        "acc": results.estimate(label, metrics.average_accuracy),
        "bwt": results.estimate(label, metrics.backward_transfer, difference=True),
        "forgetting": results.estimate(label, metrics.forgetting, difference=True),
    }
    if results.retention:
        change = retention_change(results)
        found["retention"] = results.estimate(label, change, "D", difference=True)
    return found


def retention_change(results: ReportData) -> ArrayFunction:
    """The function of D that gives the mean change since the base model."""

    def change(D: np.ndarray) -> np.ndarray:
        mean = results.retention_mean(D)
        return mean[..., -1] - mean[..., 0]

    return change


def mean_change(places: list[int], sign: int = 1) -> ArrayFunction:
    """The function of D that gives the change of the mean of some columns since the base model.

    sign: -1 where less is better.
    """

    def change(D: np.ndarray) -> np.ndarray:
        means = sign * D[..., places].mean(-1)
        return means[..., -1] - means[..., 0]

    return change


def _entry(stage: int, column: int) -> ArrayFunction:
    """The function that takes one entry of R or D."""
    return lambda array: array[..., stage, column]


def _numbers_of_examples(results: ReportData, kind: str, names: list[str]) -> Row:
    cells: dict[str, Cell] = {
        f"{name}/final": str(results.n.get((kind, name), "–")) for name in names
    }
    return "n (examples)", cells


def gain_table(results: ReportData) -> Table:
    """Own-stage accuracy over the base model's, with LA and FWT."""
    columns = [
        Column("la", "LA", note=MEANINGS["LA"]),
        Column("gain", "mean gain", signed=True, note=MEANINGS["mean gain"]),
        Column("fwt", "FWT", signed=True, note=MEANINGS["FWT"]),
    ]
    if results.references:
        for key in ("intransigence", "plasticity loss"):
            columns.append(Column(key, key, signed=True, note=MEANINGS[key]))
    for name in results.skills:
        how = measured(results, "skill", name)
        columns.append(Column(name, name, "own stage − base", signed=True, note=how))
    rows = [(label, _gain_cells(results, label)) for label in results.series]
    references = "" if results.references else f"{NO_REFERENCES} "
    note = (
        "Points of accuracy right after the stage that taught the skill, minus the base model's: "
        f"what earlier stages did to the skill is in it. {references}{interval_note(rows)} "
        f"{power_note(results, columns, rows)}"
    ).rstrip()
    return Table("own_stage", "Own-stage gains over the base model", note, columns, rows)


def _gain_cells(results: ReportData, label: str) -> dict[str, Cell]:
    def mean_gain(R: np.ndarray) -> np.ndarray:
        return metrics.own_stage_gain(R).mean(-1)

    cells: dict[str, Cell] = {
        "la": results.estimate(label, metrics.learning_accuracy),
        "gain": results.estimate(label, mean_gain, difference=True),
        "fwt": results.estimate(label, metrics.forward_transfer, difference=True),
    }
    against = {
        "intransigence": of_joint(metrics.intransigence),
        "plasticity loss": of_single(metrics.plasticity_loss),
    }
    for key, function in against.items() if results.references else ():
        cells[key] = results.estimate(label, function, "R+", difference=True)
    for i, name in enumerate(results.series[label].order):
        cells[name] = results.estimate(
            label,
            _own_stage_gain(i),
            "S",
            detail=measured(results, "skill", name),
            difference=True,
        )
    return cells


def _own_stage_gain(i: int) -> ArrayFunction:
    return lambda R: R[..., i + 1, i] - R[..., 0, i]


# -- retention


def retention_table(results: ReportData) -> Table:
    """Every retention task: final value and change from the base, positive = better."""
    columns = []
    for task, entry in results.retention.items():
        unit: Unit = "%" if results.tasks_in_mean[task] else "own"
        chance = entry.get("chance")
        note = measured(results, "retention", task)
        note += f", chance {chance}" if chance is not None else ""
        lower = "" if entry.get("higher_is_better", True) else ", lower is better"
        coarse = ", coarse" if entry.get("coarse") else ""
        group, shown = (
            f"{task} ({metric}{lower}{coarse})"
            for metric in (entry["metric"], metric_name(entry["metric"]))
        )
        columns.append(Column(f"{task}/final", "final", group, unit, note=note, shown=shown))
        columns.append(Column(f"{task}/delta", "Δ", group, unit, True, note=note, shown=shown))
    rows = [(row, _retention_base(results, row)) for row in results.bases()]
    rows += [(label, _retention_cells(results, label)) for label in results.series]
    rows.append(_numbers_of_examples(results, "retention", list(results.retention)))
    note = (
        "After the last stage, and the change Δ from the base model. Δ is positive where the model "
        "became better, also where lower is better. Fractions in per cent, other metrics in "
        f"lm-eval's own unit. {coarse_note(results)}{interval_note(rows)} "
        f"{power_note(results, columns, rows)}"
    ).rstrip()
    return Table("retention", "Retention: what the model could do before", note, columns, rows)


def coarse_note(results: ReportData) -> str:
    """What a coarse task is, where there is one."""
    if not any(entry.get("coarse") for entry in results.retention.values()):
        return ""
    return "Coarse: too few items for small changes; its margin or other tasks show them. "


def _retention_base(results: ReportData, row: str) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for task in results.retention:
        detail = measured(results, "retention", task)
        cells[f"{task}/final"] = results.base_estimate([task], row, "D", detail)
    return cells


def _retention_cells(results: ReportData, label: str) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for i, (task, entry) in enumerate(results.retention.items()):
        detail = measured(results, "retention", task)
        delta = _retention_delta(i, entry.get("higher_is_better", True))
        cells[f"{task}/final"] = results.estimate(label, _entry(-1, i), "D", detail)
        cells[f"{task}/delta"] = results.estimate(label, delta, "D", detail, difference=True)
    return cells


def _retention_delta(i: int, higher_is_better: bool) -> ArrayFunction:
    return lambda D: metrics.retention_delta(D[..., 0, i], D[..., -1, i], higher_is_better)


# -- records


def records_used(results: ReportData) -> pd.DataFrame:
    """The records behind the tables: final ones of the metrics that count."""
    parts = (results.skill_records, results.retention_records)
    used = pd.concat([records[records["final"]] for records in parts])
    task_of = {name: entry["of"] for name, entry in results.continuous.items()}
    used = used.assign(
        folder=used["folder"].map(dict(enumerate(results.names))),
        name=used["name"].astype(object).replace(task_of),
    )
    without = (*NOT_IN_RECORDS_USED, *(() if results.has_sequences else ("sequence",)))
    columns = [column for column in COLUMNS if column not in without]
    return used[["folder", "label", *columns]]
