"""The table of costs: prompts, tokens, seconds a part, memory of a run."""

from collections.abc import Container, Iterator

import numpy as np
import pandas as pd

from harness.report.data import ReportData
from harness.report.table import Cell, Column, Row, Table

# Columns of ReportData.stages that are summed over stages, and those whose largest counts
COUNTS = ("steps", "prompts", "tokens", "flops")
LARGEST = ("peak_memory_gib", "kept_bytes", "gold_rows")
MEASURING = ("evaluation", "retention", "drift")  # parts of a run that only measure
SECONDS = "seconds_"  # begins the columns of ReportData.stages with seconds of one part


def cost_table(results: ReportData) -> Table:
    """What a run costs: prompts, tokens, seconds per part, peak memory; mean over runs.

    Stage 0 does not count in a method's row: the first run measures the base model for all runs,
    and a later run only holds what memory another one left. The base model has a row of its own.
    """
    stages = results.stages()
    parts: list[str] = []
    if len(stages):
        stages = stages[stages["stage"] > 0]
        parts = [c.removeprefix(SECONDS) for c in stages.columns if c.startswith(SECONDS)]
    devices = _devices(results)
    rows = list(_base_cost_rows(results, parts))
    for label in results.series:
        mine = stages[stages["label"] == label] if len(stages) else stages
        if not mine.empty:
            names = ", ".join(sorted(devices.get(label, {"?"})))
            cells = _run_cost(mine, len(results.series[label].order))
            rows.append((label, {**cells, "device": names}))
    return Table(
        "cost",
        "Cost of a run",
        "Mean over complete runs, summed over the stages in stage.json (over what is there where "
        "no run is complete). The base model is measured once for all runs of a folder. An "
        "evaluation found in the cache costs no seconds. Compare seconds only on one device. FLOPs "
        "of learning: 6 N a token of a training pass (with adapters 4 N and 6 of their numbers), "
        "2 N one that is scored or sampled; N are weights that multiply.",
        _cost_columns(parts, set(stages.columns)),
        rows,
    )


def _cost_columns(parts: list[str], on_record: Container[str]) -> list[Column]:
    columns = [
        Column("runs", "runs", unit="text"),
        Column("stages", "stages", unit="text"),
        Column("steps", "steps", unit="count"),
        Column("prompts", "prompts", unit="count"),
        Column("tokens", "tokens", unit="count"),
    ]
    columns += [Column(SECONDS + part, part, "seconds", "seconds") for part in parts]
    if parts:
        columns.append(Column("total", "total", "seconds", "seconds"))
    columns.append(Column("peak_memory_gib", "peak GiB", unit="GiB", note="largest of all stages"))
    further = (
        Column(
            "flops",
            "TFLOPs",
            unit="count",
            note="6 N a learned token, 2 N any other",
        ),
        Column("kept_bytes", "kept MiB", unit="MiB", note="between stages, largest of all"),
        Column("gold_rows", "gold rows kept", unit="count", note="largest of all stages"),
    )
    columns += [column for column in further if column.key in on_record]
    return [*columns, Column("device", "device", unit="text")]


def _devices(results: ReportData) -> dict[str, set[str]]:
    """{label: the devices of its runs}."""
    labels = {member: s.label for s in results.series.values() for member in s.members}
    devices: dict[str, set[str]] = {}
    for run in results.provenance():
        label = labels.get((run["folder"], run.get("label", "")))
        if label is not None:
            devices.setdefault(label, set()).add(str(run.get("device", "?")))
    return devices


def _base_cost_rows(results: ReportData, parts: list[str]) -> Iterator[Row]:
    """What measuring each base model costs; mean over folders."""
    for row, folders in results.base_costs().items():
        means = {
            part: float(np.mean([seconds.get(part, 0.0) for seconds in folders])) for part in parts
        }
        cells: dict[str, Cell] = {SECONDS + part: s for part, s in means.items() if s}
        if cells:
            yield row, {**cells, "total": sum(means.values())}


def _run_cost(stages: pd.DataFrame, length: int) -> dict[str, Cell]:
    """Mean cost of the complete runs of a label, or of all its runs where none is complete.

    stages: one row a stage; length: the number of stages of a complete run.
    """
    runs = stages.groupby(["folder", "seed", "sequence"])
    summed = [c for c in stages.columns if c in COUNTS or c.startswith(SECONDS)]
    count = runs.size()
    complete = count.index[count == length]
    sums = runs[summed].sum()
    if len(complete):
        sums = sums.loc[complete]
    means = dict(zip(summed, sums.mean().astype(float).tolist(), strict=True))
    seconds = [value for column, value in means.items() if column.startswith(SECONDS)]
    cells: dict[str, Cell] = {
        **means,
        "runs": str(len(sums)),
        "stages": str(length) if len(complete) else f"{count.max()} of {length}",
        "total": float(sum(seconds)),
    }
    cells |= {name: float(stages[name].max()) for name in LARGEST if name in stages}
    for name, unit in (("flops", 1e12), ("kept_bytes", 2**20)):
        if isinstance(amount := cells.get(name), float):
            cells[name] = amount / unit
    return cells
