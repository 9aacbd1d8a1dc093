"""What a plug-in did in the committed table of benchmarks/orders/methods.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.base import metrics
from harness.base.files import ROOT
from harness.report.continual import over_known_runs
from harness.report.cost_table import SECONDS
from harness.report.data import ReportData
from harness.report.estimates import Estimate
from harness.report.table import Cell, Column, Table
from harness.report.tables import interval_note, retention_change

ORDER = ROOT / "benchmarks" / "orders" / "methods.yaml"
FOLDER = ROOT / "results" / "measured" / "methods"
PLAIN = "sft"  # the row that all others are compared with
COLUMNS = [
    Column("acc", "ACC"),
    Column("bwt", "BWT", signed=True),
    Column("retention", "retention Δ", signed=True),
    Column("time", f"time / {PLAIN}", unit="own"),
]
MEANINGS = (
    "ACC: skills after the last stage, per cent. BWT: what later stages took. Retention Δ: change "
    f"of prior capabilities. Time: seconds of learning, {PLAIN} is 1."
)


def plugs(entry: dict[str, Any], label: str) -> set[tuple[str, str]]:
    """(kind, name) of the plug-ins whose row an entry of ``methods`` is.

    entry: of an order or of results.json. A row with a part or a parametrisation is theirs, and the
    method's own where it has neither.
    """
    trained = entry.get("parameters") or {}
    joined = [("parts", str(name)) for name in entry.get("with") or {}]
    joined += [("parameters", str(n)) for n in ([trained] if isinstance(trained, str) else trained)]
    return set(joined) or {("methods", str(entry.get("method") or label)), ("parameters", "all")}


class Measured:
    """The table, from the order and from a results folder, which may not be there yet."""

    def __init__(self, folder: Path = FOLDER, order: Path = ORDER) -> None:
        self.folder = folder
        self.rows_asked = yaml.safe_load(order.read_text(encoding="utf-8"))["methods"]

    @cached_property
    def results(self) -> ReportData | None:
        """The results, None without any."""
        return ReportData([self.folder]) if self.folder.is_dir() else None

    def labels(self, kind: str, name: str) -> list[str]:
        """Labels of the order that are rows of a plug-in, those of all weights but SFT left out."""
        if (kind, name) == ("parameters", "all"):
            return [PLAIN]
        return [
            label
            for label, entry in self.rows_asked.items()
            if (kind, name) in plugs(entry or {}, label)
        ]

    def complete(self, labels: Sequence[str]) -> list[str]:
        """Those of ``labels`` that have a whole run on record."""
        data = self.results
        return [e for e in labels if data and e in data.series and data.complete(e)]

    def example(self, kind: str, name: str) -> str:
        """The order's first row of a plug-in, or one with its defaults, as YAML."""
        labels = self.labels(kind, name) if name != "all" else []
        for label in sorted(labels, key=lambda label: not label.endswith(name))[:1]:
            return _row(label, self.rows_asked[label])
        options = {"methods": {}, "parts": {"with": {name: {}}}, "parameters": {"parameters": name}}
        own = options[kind]
        return _row(f"{PLAIN}_{name}", {"method": PLAIN, **own}) if own else _row(name, {})

    def did(self, kind: str, name: str) -> str:
        """The table of a plug-in, or how to measure it."""
        labels = self.labels(kind, name)
        if not labels:
            return "[methods.yaml](../../../benchmarks/orders/methods.yaml) has no row of it."
        mine = self.complete(labels)
        if not mine or not self.complete([PLAIN]):
            asked = " ".join(dict.fromkeys([PLAIN, *labels]))
            command = f"python run_sequence.py {ORDER.relative_to(ROOT)} --method {asked}"
            out = FOLDER.relative_to(ROOT)
            return f"Not measured yet: `{command} --out {out}`, then `python docs/generate.py`."
        shown = [PLAIN, *self.complete(self.bases(mine)), *mine]
        rows = [(label, self.cells[label]) for label in dict.fromkeys(shown)]
        columns = [c for c in COLUMNS if any(c.key in cells for _, cells in rows)]
        text = Table("did", "", "", columns, rows, stub="row").markdown().split("\n\n")[1]
        return f"{MEANINGS}\n\n{text}\n\n{interval_note(rows)}"

    def bases(self, labels: Sequence[str]) -> list[str]:
        """The rows of the same methods alone."""
        methods = {str((self.rows_asked[label] or {}).get("method") or label) for label in labels}
        return [
            label
            for label, entry in self.rows_asked.items()
            if any(("methods", method) in plugs(entry or {}, label) for method in methods)
        ]

    @cached_property
    def cells(self) -> dict[str, dict[str, Cell]]:
        """The numbers of each row: SFT's is on every page."""
        return {label: self._cells(label) for label in self.complete(list(self.rows_asked))}

    def _cells(self, label: str) -> dict[str, Cell]:
        data = self.results
        assert data is not None
        cells: dict[str, Cell] = {
            "acc": data.estimate(label, metrics.average_accuracy),
            "bwt": data.estimate(label, metrics.backward_transfer, difference=True),
            "time": self.time(label),
        }
        if any(data.tasks_in_mean.values()):
            change = retention_change(data)
            cells["retention"] = data.estimate(label, change, "D", difference=True)
        return cells

    def time(self, label: str) -> Estimate | str:
        """Seconds of learning over those of PLAIN with the same seed; runs of both alone count."""
        data = self.results
        assert data is not None
        own, plain = self.seconds(label), self.seconds(PLAIN)
        ratios = [
            own[run] / plain[run] if plain.get(run) and run in own else float("nan")
            for run in (run[:2] for run in data.runs[label])  # of one sequence
        ]
        return over_known_runs(data, label, ratios)

    @cached_property
    def stages(self) -> pd.DataFrame:
        """One row a finished stage."""
        assert self.results is not None
        return self.results.stages()

    def seconds(self, label: str) -> dict[tuple[int, int], float]:
        """{(folder, seed): seconds of training and sampling} of the whole runs of a label."""
        assert self.results is not None
        stages = self.stages
        mine = stages[(stages["label"] == label) & (stages["stage"] > 0)]
        parts = [c for c in (SECONDS + "training", SECONDS + "sampling") if c in mine]
        count = len(self.results.series[label].order)
        return {
            (int(folder), int(seed)): float(of_run[parts].sum().sum())
            for (folder, seed), of_run in mine.groupby(["folder", "seed"])
            if len(of_run) == count
        }


def _row(label: str, entry: dict[str, Any] | None) -> str:
    """A row of an order's methods."""
    line = yaml.safe_dump(entry or {}, default_flow_style=True, sort_keys=False, width=1000)
    return f"methods:\n  {label}: {line.strip()}"
