"""From a number of the page to the evaluations behind it: addresses within the viewer."""

from collections.abc import Callable
from urllib.parse import urlencode

from harness.report.comparisons import pairs
from harness.report.data import ReportData
from harness.report.table import Column
from harness.report.viewer import addresses, run_key
from harness.results.formats import JOINT, SINGLE

VIEWER = "viewer/index.html"
# Tables with a method a column, and one with numbers that rest on no answers.
BY_COLUMN = ("every_metric", "retention_continuous")
WITHOUT = ("cost",)
# What the end of a column's key says; a stage is a number, or "own" or "end" of the run.
STAGES = {"final": {"s": "end"}, "own": {"s": "own"}, "delta": {"s": "end", "vs": "0"}}

Address = dict[str, str]
Link = Callable[[str, Column], str]  # (row, column) -> link, "" without one


def answer_link(method: str, seed: int, sequence: str, skill: str, item: str) -> str:
    """The link to one answer of a run after its last stage."""
    run = run_key(seed, sequence)
    return _link({"n": skill, "s": "end", "m": method, "r": run, "i": item})


def stage_link(results: ReportData, method: str, skill: str) -> str:
    """The start of the link to what a method answered on a skill; the number of a stage ends it."""
    found = {"n": _names(results, False)[skill], **_methods(results)[method]}
    if results.has_sequences:
        found["r"] = run_key(results.runs[method][0].seed, results.runs[method][0].sequence)
    return f"{_link(found)}&s="


def links(results: ReportData, table: str) -> Link:
    """The links of a table's cells: to the evaluation, or where there are several to all."""
    methods = _methods(results)
    names = {of_retention: _names(results, of_retention) for of_retention in (False, True)}
    gain = {"s": "own", "vs": "0"} if table == "own_stage" else {"s": "end"}

    def link(row: str, column: Column) -> str:
        first, _, ending = column.key.rpartition("/")
        if ending not in STAGES:
            first, ending = column.key, ""
        method, name = (first, row) if table in BY_COLUMN else (row, first)
        if table in WITHOUT or method not in methods:
            return ""
        named = names[table.startswith("retention") or ending == "delta"]
        found: Address = {}
        if name in named:
            found = {"n": named[name], **STAGES.get(ending, gain)}
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


def _names(results: ReportData, of_retention: bool) -> dict[str, str]:
    """By what tables name a skill or task; of_retention: a name of both is the task's."""
    found = addresses(results)
    kinds = ("skill", "retention") if of_retention else ("retention", "skill")
    names = {name: found[of, name] for kind in kinds for of, name in found if of == kind}
    for entry in results.continuous.values():
        of, metric = entry["of"], entry["metric"]
        unit = " (nats)" if metric != "probability" else ""
        names[f"{metric}, {of}{unit}"] = found["retention", of]
    return names
