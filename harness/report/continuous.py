"""The table of continuous retention: margin and probability of the right choice, log-likelihoods.

They come from the same answers as the accuracy of a task and move where it does not, so that they
tell small changes apart. None of them is a share of right answers: the main table leaves them out.
"""

from collections.abc import Sequence

from harness.report.comparisons import pairs
from harness.report.data import ReportData
from harness.report.estimates import ArrayFunction, Estimate
from harness.report.power import Told, middle, told_note
from harness.report.table import Cell, Column, Row, Table
from harness.report.tables import interval_note, mean_change, measured
from harness.results.formats import CONTINUOUS

UNITS = {"margin": "nats", "loglikelihood": "nats"}  # of a metric; a probability has none
MEANINGS = {
    "margin": "log-likelihood of the right choice minus that of the best wrong one, in nats",
    "probability": "of the right choice among the choices, not normalised by length",
    "loglikelihood": "of the right continuation, in nats",
}


def continuous_table(results: ReportData) -> Table:
    """One row a task and metric, and one for the mean over the tasks of a metric."""
    rows: list[Row] = []
    metrics = [m for m in CONTINUOUS if _tasks(results, m)]
    for metric in metrics:
        tasks = _tasks(results, metric)
        unit = f" ({UNITS[metric]})" if metric in UNITS else ""
        if len(tasks) > 1:
            rows.append((f"{metric}, mean of {len(tasks)} tasks{unit}", _cells(results, tasks)))
        for task in tasks:
            name = results.continuous[task]["of"]
            rows.append((f"{metric}, {name}{unit}", _cells(results, [task])))
    meanings = "; ".join(f"{metric}: {MEANINGS[metric]}" for metric in metrics)
    note = (
        f"{meanings}. Higher is better. After the last stage, and the change Δ from the base "
        f"model; of two methods what the first has over the second, on the same seeds and "
        f"questions. No per cent. {interval_note(rows)} {_told(results, rows)}"
    ).rstrip()
    columns = [Column(row, row, unit="own") for row in results.bases()]
    for label in results.series:
        columns.append(Column(f"{label}/final", "final", label, "own"))
        columns.append(Column(f"{label}/delta", "Δ", label, "own", signed=True))
    for first, second in pairs(list(results.series)):
        columns.append(Column(f"{first} − {second}", f"{first} − {second}", "", "own", signed=True))
    title = "Retention, continuous: the same answers by their likelihoods"
    return Table("retention_continuous", title, note, columns, rows, stub="measured")


def _told(results: ReportData, rows: Sequence[Row]) -> str:
    """The smallest changes that would be told, of the means or of a metric's only task."""
    told = []
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row[0].partition(",")[0], row)
    for metric, (name, cells) in first.items():
        changes = [cells.get(f"{label}/delta") for label in results.series]
        way = middle([change for change in changes if isinstance(change, Estimate)])
        if way is not None:
            variation, seeds = way
            told.append(Told(name, f"{variation.detectable(seeds):.3f}", metric, *way, True))
    return told_note(results, told)


def _tasks(results: ReportData, metric: str) -> list[str]:
    """Entries of ``results.continuous`` that have this metric."""
    return [task for task, entry in results.continuous.items() if entry["metric"] == metric]


def _cells(results: ReportData, tasks: Sequence[str]) -> dict[str, Cell]:
    """Means over ``tasks``: the base model's, and each method's final one with its change."""
    detail = "; ".join(measured(results, "retention", task) for task in tasks)
    cells: dict[str, Cell] = {
        row: results.base_estimate(tasks, row, "D", detail) for row in results.bases()
    }
    order = [*results.retention, *results.continuous]  # the columns of D
    places = [order.index(task) for task in tasks]
    for label in results.series:
        final, change = _final(places), mean_change(places)
        cells[f"{label}/final"] = results.estimate(label, final, "D", detail)
        cells[f"{label}/delta"] = results.estimate(label, change, "D", detail, difference=True)
    for first, second in pairs(list(results.series)):
        methods = ((first, _final(places)), (second, _final(places)))
        cells[f"{first} − {second}"] = results.compare(*methods, "D", detail)
    return cells


def _final(places: list[int]) -> ArrayFunction:
    return lambda D: D[..., -1, places].mean(-1)
