"""The table of training diagnostics: the mean of every quantity that a method logs."""

import pandas as pd

from harness.report.data import ReportData
from harness.report.pictures.training import quantities_of
from harness.report.table import Cell, Column, Row, Table


def training_table(results: ReportData) -> Table:
    """One row a method: the mean over the steps of a seed's runs, and of these over the seeds."""
    steps = results.training
    # A learning rate is no result, and too small a number to be read here.
    names = [] if steps.empty else [n for n in quantities_of(steps) if n != "learning_rate"]
    rows: list[Row] = []
    for label in results.series if names else ():
        mine = steps[steps["label"] == label]
        means = mine.groupby("seed")[names].mean().mean()
        cells: dict[str, Cell] = {n: float(means[n]) for n in names if pd.notna(means[n])}
        if cells:
            rows.append((label, cells))
    note = (
        "From training.jsonl: the mean over the steps of all stages (of long ones over 400, evenly "
        "spaced), then over seeds. A method without a number has no such quantity, and the loss of "
        "one method is no yardstick for another's."
    )
    columns = [Column(name, name.replace("_", " "), unit="own") for name in names]
    return Table("training", "Training diagnostics", note, columns, rows)
