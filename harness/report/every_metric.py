"""The table of every metric on record, also of those that do not count."""

from collections.abc import Iterator

from harness.report.continual import NO_REFERENCES, continual_rows
from harness.report.data import ReportData
from harness.report.table import Cell, Column, Row, Table
from harness.report.tables import interval_note

Key = tuple[str, str, str, str]  # kind, name, split, metric


def every_metric(results: ReportData) -> Table:
    """Every metric and split on record, base and final, one row each.

    A method has a column over all its runs and, of several sequences of skills, one of each.
    """
    views = [("", results), *((f", {n}", of) for n, of in results.of_sequences.items())]
    columns = [
        Column("split", "split", unit="text"),
        Column("metric", "metric", unit="text"),
        Column("base", "base", unit="own"),
    ]
    merged: dict[Key, dict[str, Cell]] = {}
    labels = ["base"]
    for ending, view in views:
        labels += [label + ending for label in view.series]
        for key, cells in _rows(view):
            own = {label + ending: cells[label] for label in cells if label in view.series}
            base = {"base": cells["base"]} if "base" in cells and not ending else {}
            merged.setdefault(key, {}).update({**base, **own})
    columns += [Column(label, label, unit="own") for label in labels[1:]]
    rows: list[Row] = [
        (name, {"split": split, "metric": metric, **cells})
        for (_, name, split, metric), cells in merged.items()
    ]
    references = "" if results.references else f"{NO_REFERENCES} "
    note = (
        "Base model and after the last stage, in the metric's own unit; then measures of the whole "
        f"run, by the formulas of docs/reference/metrics.md. {references}{_sequences(results)}"
        f"{interval_note([(label, _of_label(rows, label)) for label in labels])}"
    )
    return Table("every_metric", "Every metric on record", note, columns, rows, stub="measured")


def _rows(results: ReportData) -> Iterator[tuple[Key, dict[str, Cell]]]:
    """What is on record of the base model and after the last stage; then measures of runs."""
    records = results.records[results.records["final"] & results.records["label"].notna()]
    lengths = {label: len(series.order) for label, series in results.series.items()}
    last_stage = records["label"].astype(object).map(lengths)
    keys = ["kind", "name", "split", "metric"]
    cells: dict[Key, dict[str, Cell]] = {}
    one_base = len(results.bases()) == 1
    base = records[(records["stage"] == 0) & records["value"].notna()]
    for _, of_base in base.groupby(keys, observed=True, sort=False):
        first = of_base.iloc[:1]  # one base model, not one a run
        kind, name, split, metric, label = map(str, first[[*keys, "label"]].iloc[0])
        cells[kind, name, split, metric] = (
            {"base": results.of_records(label, first)} if one_base else {}
        )
    final = records[records["stage"] == last_stage]
    for _, of_label in final.groupby([*keys, "label"], observed=True, sort=False):
        kind, name, split, metric, label = map(str, of_label[[*keys, "label"]].iloc[0])
        of_row = cells.setdefault((kind, name, split, metric), {})
        of_row[label] = results.of_records(label, of_label)
    yield from cells.items()
    for name, of_run in continual_rows(results):
        yield ("run", name, str(of_run["split"]), str(of_run["metric"])), of_run


def _sequences(results: ReportData) -> str:
    """What the columns of single sequences are."""
    orders = {name: of for series in results.series.values() for name, of in series.orders.items()}
    if not orders:
        return ""
    named = "; ".join(f"{name} is {', '.join(of)}" for name, of in orders.items())
    return (
        "A method's first column is over all sequences: each measure is computed inside a run, "
        f"and then averaged. Those behind it are of one sequence each: {named}. "
    )


def _of_label(rows: list[Row], label: str) -> dict[str, Cell]:
    """The cells of one column, as a row: intervals differ by method."""
    cells = (of_row.get(label) for _, of_row in rows)
    return {str(place): cell for place, cell in enumerate(cells) if cell is not None}
