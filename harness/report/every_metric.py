"""The table of every metric on record, also of those that do not count."""

from harness.report.continual import NO_REFERENCES, continual_rows
from harness.report.data import ReportData
from harness.report.table import Cell, Column, Row, Table
from harness.report.tables import interval_note


def every_metric(results: ReportData) -> Table:
    """Every metric and split on record, base and final, one row each."""
    records = results.records[results.records["final"] & results.records["label"].notna()]
    lengths = {label: len(series.order) for label, series in results.series.items()}
    last_stage = records["label"].astype(object).map(lengths)
    keys = ["kind", "name", "split", "metric"]
    cells: dict[tuple[str, ...], dict[str, Cell]] = {}
    one_base = len(results.bases()) == 1
    base = records[(records["stage"] == 0) & records["value"].notna()]
    for _, of_base in base.groupby(keys, observed=True, sort=False):
        first = of_base.iloc[:1]  # one base model, not one a seed
        *key, label = map(str, first[[*keys, "label"]].iloc[0])
        cells[tuple(key)] = {"base": results.of_records(label, first)} if one_base else {}
    final = records[records["stage"] == last_stage]
    for _, of_label in final.groupby([*keys, "label"], observed=True, sort=False):
        *key, label = map(str, of_label[[*keys, "label"]].iloc[0])
        cells.setdefault(tuple(key), {})[label] = results.of_records(label, of_label)
    columns = [
        Column("split", "split", unit="text"),
        Column("metric", "metric", unit="text"),
        Column("base", "base", unit="own"),
    ]
    columns += [Column(label, label, unit="own") for label in results.series]
    rows: list[Row] = [
        (name, {"split": split, "metric": metric, **of_row})
        for (_, name, split, metric), of_row in cells.items()
    ]
    rows += continual_rows(results)
    references = "" if results.references else f"{NO_REFERENCES} "
    note = (
        "Base model and after the last stage, in the metric's own unit; then measures of the whole "
        f"run, by the formulas of docs/reference/metrics.md. {references}"
        f"{interval_note([(label, _of_label(rows, label)) for label in ('base', *lengths)])}"
    )
    return Table("every_metric", "Every metric on record", note, columns, rows, stub="measured")


def _of_label(rows: list[Row], label: str) -> dict[str, Cell]:
    """The cells of one column, as a row: intervals differ by method."""
    cells = (of_row.get(label) for _, of_row in rows)
    return {str(place): cell for place, cell in enumerate(cells) if cell is not None}
