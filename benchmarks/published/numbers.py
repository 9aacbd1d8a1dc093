"""Published numbers of a suite, and the same measures of results, for one table of both."""

import math
from pathlib import Path

import pandas as pd

from harness.base import metrics
from harness.base.errors import UserError
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.frontier import mean_gain
from harness.report.table import Cell, Column, Row, Table
from harness.report.tables import retention_change

FOLDER = Path(__file__).resolve().parent
KEYS = ["order", "model", "method", "source", "read"]
COLUMNS = [*KEYS[:3], "column", "value", "sd", *KEYS[3:], "note"]
READ = ("text", "second-hand")
FIRST = ("OP", "mean OP_t", "BWT", "BWT/T", "forgetting", "Gain", "Drop")  # before the tasks
SIGNED = ("BWT", "BWT/T", "Gain")
TRAININGS = {  # of one skill each, whose numbers stand under another name: {skill: suite, order}
    "countdown": ("retaining", "Countdown"),
    "retaining_countdown": ("retaining", "Countdown"),
    "ifeval_style": ("retaining", "IFEval"),
    "retaining_mmlu": ("retaining", "MMLU"),
}
NOTE = (
    "Published numbers of the suite, below those of this page. They were measured by other "
    "protocols: docs/reference/skills/{suite}.md lists the differences. "
    "python -m benchmarks.published {suite} prints each task, and what is said of single numbers."
)


def suites() -> list[str]:
    """The suites that have published numbers."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def published_numbers(suite: str) -> pd.DataFrame:
    """The rows of a suite's file. Raises UserError where it has other columns or values."""
    path = FOLDER / f"{suite}.csv"
    frame = pd.read_csv(path, dtype={name: str for name in COLUMNS if name not in ("value", "sd")})
    if list(frame.columns) != COLUMNS or not set(frame["read"]) <= set(READ):
        raise UserError(path, f"has other columns than {', '.join(COLUMNS)}")
    return frame.fillna({name: "" for name in COLUMNS if name not in ("value", "sd")})


def measures(results: ReportData, label: str) -> dict[str, Estimate]:
    """The measures of FIRST that a method has, as fractions with 95% intervals.

    OP: the mean of the tasks at the end; mean OP_t: that mean over all stages; BWT over T - 1
    tasks, BWT/T over T; Gain on what is learned, Drop of other abilities, since the base model.
    """
    found = {
        "OP": results.estimate(label, metrics.average_accuracy),
        "mean OP_t": results.estimate(label, metrics.anytime_accuracy),
        "BWT": results.estimate(label, metrics.backward_transfer, difference=True),
        "BWT/T": results.estimate(label, metrics.backward_transfer_trace, difference=True),
        "forgetting": results.estimate(label, metrics.forgetting, difference=True),
        "Gain": results.estimate(label, mean_gain, difference=True),
    }
    if results.retention:
        change = retention_change(results)
        found["Drop"] = results.estimate(label, lambda D: -change(D), "D", difference=True)
    return {name: number for name, number in found.items() if math.isfinite(number.value)}


def published_tables(results: ReportData) -> list[Table]:
    """The table of published numbers beside ``results``; none where all skills are of no suite.

    Of a suite that trains on one skill those of that training.
    """
    suite, training = _suite_of(results)
    if not suite:
        return []
    published = published_numbers(suite)
    if training:
        published = published[published["order"] == training]
    rows: list[Row] = []
    for label, series in results.series.items():
        rows.append((label, {"model": series.model, "source": "here", **measures(results, label)}))
    for key, numbers in published.groupby(KEYS, sort=False):
        order, model, method, source, read = map(str, key)
        values = zip(numbers["column"], numbers["value"], strict=True)
        cells: dict[str, Cell] = {name: value / 100 for name, value in values if name in FIRST}
        if cells:
            by = f"{source} ({read})" if read != READ[0] else source
            rows.append((method, {**cells, "model": model, "order": order, "source": by}))
    measured = [n for n in FIRST if any(n in cells for _, cells in rows)]
    columns = [
        Column("model", "model", unit="text"),
        Column("order", "order", unit="text"),
        *(Column(name, name, signed=name in SIGNED) for name in measured),
        Column("source", "source", unit="text", wraps=True),
    ]
    title = "Published numbers of the suite"
    return [Table("published", title, NOTE.format(suite=suite), columns, rows)]


def _suite_of(results: ReportData) -> tuple[str, str]:
    """(suite, training) of all skills, ("", "") where they are of none or of several."""
    trainings = {TRAININGS.get(name) for name in results.skills}
    if len(trainings) == 1 and (found := trainings.pop()):
        return found
    fitting = [s for s in suites() if all(name.startswith(f"{s}_") for name in results.skills)]
    return (fitting[0], "") if len(fitting) == 1 else ("", "")  # all of them without a skill
