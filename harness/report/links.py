"""From a cell of a table to the evaluations behind it: addresses within the viewer."""

from collections.abc import Callable
from urllib.parse import urlencode

from harness.report.comparisons import pairs
from harness.report.data import ReportData
from harness.report.table import Column
from harness.report.viewer import run_key
from harness.results.formats import JOINT, SINGLE

VIEWER = "viewer/index.html"
# Tables with a method a column, and one with numbers that rest on no answers.
BY_COLUMN = ("every_metric", "retention_continuous")
WITHOUT = ("cost",)
# What the end of a column's key says; a stage is a number, or "own" or "end" of the run.
STAGES = {"final": {"s": "end"}, "own": {"s": "own"}, "delta": {"s": "end", "vs": "0"}}

Address = dict[str, str]
Link = Callable[[str, Column], str]  # (row, column) -> link, "" without one


def address(method: str, run: str = "", name: str = "", stage: str = "") -> str:
    """The link from the page to an evaluation."""
    given = {"m": method, "r": run, "n": name, "s": stage}
    return _link({key: value for key, value in given.items() if value})


def links(results: ReportData, table: str) -> Link:
    """The links of a table's cells: to the evaluation, or where there are several to all."""
    methods, names = _methods(results), _names(results)
    gain = {"s": "own", "vs": "0"} if table == "own_stage" else {"s": "end"}

    def link(row: str, column: Column) -> str:
        first, _, ending = column.key.partition("/")
        method, name = (first, row) if table in BY_COLUMN else (row, first)
        if table in WITHOUT or method not in methods:
            return ""
        found: Address = {}
        if name in names:
            found = {"n": names[name], **STAGES.get(ending, gain)}
        return _link({**found, **methods[method]})

    return link


def _link(found: Address) -> str:
    return f"{VIEWER}#{urlencode(found, errors='replace')}"


def _methods(results: ReportData) -> dict[str, Address]:
    """By what tables name a method, a base model or a pair."""
    found: dict[str, Address] = {}
    for label, series in results.series.items():
        found[label] = {"m": label}
        for name in series.orders:
            keys = [run_key(r.seed, r.sequence) for r in results.runs[label] if r.sequence == name]
            found[f"{label}, {name}"] = {"m": label, "r": keys[0]} if keys else {"m": label}
        if label in results.references:
            for reference in (JOINT, SINGLE):
                found[f"{label} {reference}"] = {"m": f"{label} {reference}"}
    for row, label in results.bases().items():
        found[row] = {"m": label, "s": "0"}
        found.setdefault("base", found[row])
        found.setdefault("n (examples)", found[row])
    for later, earlier in pairs(list(results.series)):
        found[f"{later} − {earlier}"] = {"m": later, "vm": earlier, "vs": "end"}
    return found


def _names(results: ReportData) -> dict[str, str]:
    """By what tables name a skill or task."""
    names = {name: name for name in (*results.skills, *results.retention)}
    for entry in results.continuous.values():
        of, metric = entry["of"], entry["metric"]
        unit = " (nats)" if metric != "probability" else ""
        names[f"{metric}, {of}{unit}"] = of
    return names
