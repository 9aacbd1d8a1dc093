"""One method's numbers as JSON for other tools: a row of a leaderboard, and lm-eval's results.

A row has means over all runs with 95% intervals, as the report has them, and the hash of every
measurement: numbers of two rows compare only where these are the same. A file in lm-eval's form is
of one run's last model, as lm-eval itself would have measured it.
"""

import datetime
import hashlib
import json
import math
import re
from typing import Any

import pandas as pd

from harness.base import metrics
from harness.report.data import ReportData
from harness.report.entries import ArrayFunction
from harness.report.estimates import Estimate
from harness.report.measurements import RunId
from harness.report.tables import headline
from harness.results.folders import Json

FORM = 1  # of a row; another number where a key changes its meaning
SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}


def leaderboard_row(results: ReportData, label: str) -> Json:
    """The row of a method: what it is, its numbers, and all that they depend on."""
    series = results.series[label]
    folder, there = series.members[0]
    head = results.heads[folder]
    entry = head["methods"][there]
    measured = {"skills": _skills(results, label), "retention": _retention(results, label)}
    row = {
        "form": FORM,
        "results": results.names[folder],
        "results_version": head["version"],
        "label": label,
        **{key: entry[key] for key in ("method", "config", "with", "parameters") if key in entry},
        "model": head.get("model"),
        "order": list(series.order),
        "orders": {name: list(of) for name, of in series.orders.items()},
        "budget": head.get("budget"),
        "runs": [run.text for run in results.runs[label]],
        "numbers": _numbers(results, label),
        **measured,
    }
    return {**row, "comparable": _comparable(row)}


def _numbers(results: ReportData, label: str) -> Json:
    names = {"retention": "retention_change"}
    found = headline(results, label)
    return {names.get(name, name): number(estimate) for name, estimate in found.items()}


def _skills(results: ReportData, label: str) -> Json:
    found = {}
    for i, name in enumerate(results.series[label].order):
        final = results.estimate(label, _entry(-1, i), "S")
        own = results.estimate(label, _entry(i + 1, i), "S")
        found[name] = {
            "metric": results.metric[name],
            "split": results.split,
            **_of_measurement(results, "skill", name),
            "final": number(final),
            "own_stage": number(own),
        }
    return found


def _retention(results: ReportData, label: str) -> Json:
    found = {}
    for i, (task, entry) in enumerate(results.retention.items()):
        better = entry.get("higher_is_better", True)
        final = results.estimate(label, _entry(-1, i), "D")
        delta = results.estimate(label, _change(i, better), "D", difference=True)
        found[task] = {
            "metric": entry["metric"],
            "higher_is_better": better,
            **_of_measurement(results, "retention", task),
            "final": number(final),
            "change": number(delta),
        }
    return found


def _entry(stage: int, column: int) -> ArrayFunction:
    """The function that takes one entry of an array."""
    return lambda array: array[..., stage, column]


def _change(column: int, higher_is_better: bool) -> ArrayFunction:
    """The function of D that gives a task's change since the base model, positive where better."""
    return lambda D: metrics.retention_delta(
        D[..., 0, column], D[..., -1, column], higher_is_better
    )


def _of_measurement(results: ReportData, kind: str, name: str) -> Json:
    return {
        "n": results.n.get((kind, name)),
        "protocol": results.protocol_of.get((kind, name)),
    }


def number(estimate: Estimate) -> Json | None:
    """An estimate as JSON, in the metric's own unit; None where nothing was measured."""
    if not math.isfinite(estimate.value):
        return None
    bounds = {"low": estimate.low, "high": estimate.high}
    ends = {key: end if math.isfinite(end) else None for key, end in bounds.items()}
    return {"value": estimate.value, **ends, "how": estimate.how}


def _comparable(row: Json) -> str:
    """Twelve digits that rows share whose numbers may be ranked.

    They are of the base model, the sequence of skills, the budget and every measurement's protocol.
    """
    protocols = {
        kind: {name: (each["metric"], each["protocol"]) for name, each in row[kind].items()}
        for kind in ("skills", "retention")
    }
    model = row["model"]
    if isinstance(model, dict):  # older results have its name alone
        model = {key: value for key, value in model.items() if key != "device"}
    shared = [row["results_version"], model, row["order"], row["orders"], row["budget"], protocols]
    text = json.dumps(shared, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---- lm-eval's form ------------------------------------------------------------------------------


def lm_eval_results(results: ReportData, label: str, run: RunId, made: Json, path: str) -> Json:
    """The last model of a run as lm-eval's results file has it (lm_eval.result_schema).

    Skills are tasks like the others. made: the run's run.json; path: of the model. The version of a
    task is the hash of its protocol, which lm-eval's tables then show.
    """
    records = _last_records(results, label, run)
    tasks: dict[str, Json] = {}
    kinds = ("group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    form: dict[str, Json] = {kind: {} for kind in kinds}
    for record in records.to_dict("records"):
        name = _task_name(results, record)
        count = _count(record["n"])
        task = tasks.setdefault(name, {"name": name, "alias": name, "sample_len": count})
        metric, _, kept = str(record["metric"]).partition(",")
        stderr = record["stderr"]
        task[f"{metric},{kept or 'none'}"] = record["value"]
        task[f"{metric}_stderr,{kept or 'none'}"] = stderr if math.isfinite(stderr) else "N/A"
        entry = results.retention.get(name) or {}
        protocol = results.protocols.get(record["protocol"]) or {}
        shots = protocol.get("num_fewshot") if isinstance(protocol, dict) else None
        form["versions"][name] = record["protocol"]
        form["n-shot"][name] = next(
            (n for n in (shots if isinstance(shots, list) else ()) if isinstance(n, int)), 0
        )
        form["n-samples"][name] = {"original": count, "effective": count}
        form["configs"][name] = {
            "task": name,
            "output_type": "generate_until" if record["kind"] == "skill" else None,
            "description": entry.get("description") or "",
            "metadata": {"protocol": record["protocol"], "split": record["split"]},
        }
        better = form["higher_is_better"].setdefault(name, {})
        if (is_better := _more_is_better(results, record)) is not None:
            better[metric] = is_better
        form["group_subtasks"][name] = []
    packages = made.get("packages") or {}
    model = {
        "model": "hf",
        "model_args": {"pretrained": path, "dtype": _dtype(made)},
        "model_dtype": f"torch.{_dtype(made)}",
        "batch_size": None,
        "device": made.get("device"),
        "limit": None,
        "gen_kwargs": None,
        **SEEDS,
    }
    return {
        "results": tasks,
        **form,
        "config": model,
        "git_hash": made.get("git"),
        "date": measured_at(made).timestamp(),
        "transformers_version": packages.get("transformers"),
        "lm_eval_version": packages.get("lm_eval"),
        "model_source": "hf",
        "model_name": path,
        "model_name_sanitized": sanitized(path),
        "task_hashes": {},
    }


def _count(n: float) -> int | None:
    """A number of items; None where a foreign record has none."""
    return int(n) if math.isfinite(n) else None


def _last_records(results: ReportData, label: str, run: RunId) -> pd.DataFrame:
    """The records of a run's last stage."""
    records = results.records
    last = len(results.series[label].order)
    mine = (records["label"] == label) & (records["folder"] == run.folder)
    mine &= (records["seed"] == run.seed) & (records["sequence"] == run.sequence)
    mine &= records["final"] & (records["stage"] == last) & records["value"].notna()
    return records[mine & records["kind"].isin(["skill", "retention"])].astype(
        {"name": str, "metric": str, "split": str, "kind": str, "protocol": str}
    )


def _task_name(results: ReportData, record: dict[Any, Any]) -> str:
    """The name of a task: that of a skill's further split has the split behind it."""
    is_main = record["kind"] == "retention" or record["split"] == results.split
    return str(record["name"]) if is_main else f"{record['name']}_{record['split']}"


def _more_is_better(results: ReportData, record: dict[Any, Any]) -> bool | None:
    """Whether more of a record's metric is better; None of what is no yardstick, as a length."""
    name, metric = record["name"], record["metric"]
    if record["kind"] == "skill":
        return True if metric == results.metric.get(name) else None
    entries = [entry for entry in results.continuous.values() if entry["of"] == name]
    for entry in (results.retention.get(name, {}), *entries):
        if entry.get("metric") == metric:
            return bool(entry.get("higher_is_better", True))
    return None


def _dtype(made: Json) -> str:
    return str(made.get("dtype") or "float32").removeprefix("torch.")


def measured_at(made: Json) -> datetime.datetime:
    """When a run was started, by its run.json; 1970 where that does not say."""
    try:
        started = datetime.datetime.fromisoformat(str(made.get("started")))
        started.timestamp()
        return started
    except (ValueError, OverflowError):
        return datetime.datetime.fromtimestamp(0, datetime.UTC)


def sanitized(name: str) -> str:
    """A model's name as lm-eval writes it into paths."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def lm_eval_file(made: Json, path: str) -> str:
    """The path that lm-eval would give the results: MODEL/results_DATE.json."""
    date = measured_at(made).strftime("%Y-%m-%dT%H-%M-%S.%f")
    return f"{sanitized(path)}/results_{date}.json"
