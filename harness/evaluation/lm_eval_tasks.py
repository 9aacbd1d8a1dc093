"""Retention tasks as lm-eval's task files define them, before any model or data set is loaded."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, ModuleType, NoneType
from typing import Any

from harness.base.errors import UserError, did_you_mean
from harness.base.files import ROOT
from harness.base.settings import option
from harness.evaluation.lm_eval_context import code_allowed, quiet

FOLDER = ROOT / "benchmarks" / "retention"
# Types of an item's values, and their name in a message. harness.base.settings would take a number
# that is written as a text, and its lines have another form.
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "metric": ((str,), "a text"),
    "higher_is_better": ((bool,), "true or false"),
    "chance": ((int, float, NoneType), "a number or null"),
    "chat_template": ((bool,), "true or false"),
    "coarse": ((bool,), "true or false"),
    "reference": ((str, NoneType), "a field of the documents, or a template"),
    "description": ((str,), "a text"),
}
LEAST = {"num_fewshot": 0, "limit": 1, "max_gen_toks": 1}  # of whole numbers, or null


@dataclass(frozen=True)
class RetentionTask:
    """One lm-eval task or group and how it counts."""

    task: str = option(help="name of an lm-eval task or group")
    metric: str = option(help="the one that counts, with its filter, as `acc,none`")
    higher_is_better: bool = option(True, "false for a loss, as bits per byte")
    chance: float | None = option(None, "the metric's value for guessing")
    num_fewshot: int | None = option(None, "examples in a prompt; lm-eval's own if left out", min=0)
    chat_template: bool = option(False, "whether prompts go through the model's chat template")
    limit: int | None = option(None, "documents, the first ones; all if left out", min=1)
    max_gen_toks: int | None = option(
        None, "new tokens of an answer; lm-eval's own if left out", min=1
    )
    coarse: bool = option(False, "too few items for small changes of accuracy, which tables say")
    reference: str | None = option(
        None, "field of a document with a good answer, whose log-likelihood is measured too"
    )
    description: str = option("", "words for the report")


def retention_tasks(item: object, place: str) -> list[RetentionTask]:
    """The RetentionTasks of one item of a suite: the name of a task, or a mapping with ``task``.

    There are several for a tag, and for a group without an aggregate: these stand for their tasks.
    Raises UserError for anything unknown or of the wrong type.
    """
    if isinstance(item, str):
        item = {"task": item}
    if not isinstance(item, dict) or not isinstance(item.get("task"), str):
        raise UserError(place, "must be the name of an lm-eval task or a mapping with `task`")
    check_keys(item, RetentionTask.__dataclass_fields__, place)
    name = item["task"]
    place = f"{place} ({name})"
    _check_values(item, place)
    children = _children(name, place)
    if children:
        return [
            task for child in children for task in retention_tasks({**item, "task": child}, place)
        ]
    _check_permissions(item, list(_configurations(name)), place)
    metric, higher_is_better = _metric_that_counts(name, item.get("metric"), place)
    values = {"higher_is_better": higher_is_better, **item, "metric": metric}
    return [RetentionTask(**values)]


def check_keys(mapping: Mapping[Any, Any], keys: Collection[str], place: str) -> None:
    """Raises UserError for the first key of ``mapping`` that is not one of ``keys``."""
    for key in mapping:
        if key not in keys:
            raise UserError(place, f"unknown key {key!r}", did_you_mean(key, keys))


def _check_values(item: dict[str, Any], place: str) -> None:
    """Raises UserError for a value of the wrong type, or a number that is too small."""
    for key, (types, name) in TYPES.items():
        if key not in item:
            continue
        value = item[key]
        wrong_bool = isinstance(value, bool) and bool not in types
        if wrong_bool or not isinstance(value, types):
            raise UserError(place, f"`{key}` must be {name}, not {value!r}")
    for key, least in LEAST.items():
        value = item.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(place, f"`{key}` must be a whole number from {least} on, not {value!r}")
    if not 0 <= (item.get("chance") or 0) < 1:
        problem = f"`chance` must be from 0 to below 1, not {item['chance']!r}"
        raise UserError(place, problem, "it is a share: 0.25 for four choices")


def _check_permissions(
    item: dict[str, Any], configurations: list[dict[str, Any]], place: str
) -> None:
    """Raises UserError where a task runs code that is not allowed, or takes no examples."""
    if any(config.get("unsafe_code") for config in configurations) and not code_allowed():
        raise UserError(
            place,
            "runs code that the model writes",
            "allow it with HF_ALLOW_CODE_EVAL=1 in the environment",
        )
    if item.get("num_fewshot") and any(c.get("num_fewshot") == 0 for c in configurations):
        raise UserError(place, "lm-eval fixes this task to no examples", "leave `num_fewshot` out")
    kinds = {config.get("output_type", "generate_until") for config in configurations}
    if item.get("reference") and kinds != {"generate_until"}:
        raise UserError(
            place,
            "`reference` is for tasks that generate an answer",
            "leave it out: likelihood tasks have their margin or log-likelihood anyway",
        )


def _children(name: str, place: str) -> list[str]:
    """The tasks that a tag, or a group without an aggregate, stands for; [] for any other task.

    Raises UserError for a name that lm-eval does not know.
    """
    index = _index(name)
    entry = index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, index, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise UserError(
            place, f"lm-eval has no task {name!r}", hint + "`lm_eval ls tasks` lists them"
        )
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP" or entry.cfg.get("aggregate_metric_list"):
        return []
    children = [_task_name(child) for child in _as_list(entry.cfg.get("task"))]
    if any(child not in index for child in children):
        raise UserError(
            place, "is a group without a common number", "name the tasks of it that you want"
        )
    return children


# --- metrics ---


def _metric_that_counts(name: str, metric: str | None, place: str) -> tuple[str, bool]:
    """(the metric with its filter, whether higher is better); the first one where none is named.

    Raises UserError for a metric that the task does not have.
    """
    metrics, complete = _metrics(name)
    if metric is None:
        if not metrics:
            raise UserError(
                place,
                "does not say its metrics in its file",
                "add `metric`, as in the head of lm-eval's table",
            )
        metric = next(iter(metrics))
    elif metric not in metrics:
        with_filters = [m for m in metrics if m.rpartition(",")[0] == metric]
        if len(with_filters) == 1:
            metric = with_filters[0]
        elif with_filters or complete:
            raise UserError(place, f"unknown metric {metric!r}", did_you_mean(metric, metrics))
    return metric, metrics.get(metric, True)


def _metrics(name: str) -> tuple[dict[str, bool], bool]:
    """({metric with filter: higher is better}, whether these are all) as the task's file says."""
    metrics: dict[str, bool] = {}
    complete = True
    for config in _configurations(name):
        metrics |= _metrics_of_file(config)
        complete = complete and not _decides_in_code(config)
    entry = _index(name)[name]
    if entry.kind.name == "GROUP":
        metrics = _group_metrics(_as_list(entry.cfg["aggregate_metric_list"]), metrics)
    return metrics, complete


def _metrics_of_file(config: dict[str, Any]) -> dict[str, bool]:
    """{metric with filter: higher is better} of one task file, lm-eval's defaults included."""
    filters = [f["name"] for f in config.get("filter_list") or [{"name": "none"}]]
    entries = config.get("metric_list")
    if entries is None and "class" not in config:
        output_type = config.get("output_type", "generate_until")
        defaults = _registry().DEFAULT_METRIC_REGISTRY.get(output_type, [])
        entries = [{"metric": metric} for metric in defaults]
    metrics: dict[str, bool] = {}
    for entry in entries or []:
        metric = entry["metric"]
        if "/" in str(metric):
            continue
        higher_is_better = entry.get("higher_is_better")
        if higher_is_better is None:
            higher_is_better = _registry().HIGHER_IS_BETTER_REGISTRY.get(metric, True)
        metrics |= {f"{metric},{filter_name}": higher_is_better for filter_name in filters}
    return metrics


def _decides_in_code(config: dict[str, Any]) -> bool:
    """Whether Python decides at run time which metrics a task has."""
    entries = config.get("metric_list") or []
    return "class" in config or any("/" in str(entry["metric"]) for entry in entries)


def _group_metrics(aggregates: list[dict[str, Any]], metrics: dict[str, bool]) -> dict[str, bool]:
    """{metric with filter: higher is better} of a group; metrics: those of its tasks."""
    group = {}
    for aggregate in aggregates:
        name = aggregate["metric"]
        filters = aggregate.get("filter_list") or [
            metric.rpartition(",")[2] for metric in metrics if metric.startswith(name + ",")
        ]
        for filter_name in _as_list(filters):
            metric = f"{name},{filter_name}"
            group[metric] = metrics.get(metric, True)
    return group


# --- lm-eval's files ---


def _configurations(name: str) -> Iterator[dict[str, Any]]:
    """Configurations of the tasks under ``name``, as their files have them."""
    index = _index(name)
    entry = index[name]
    if entry.kind.name == "TAG":
        for child in sorted(entry.tags):
            yield from _configurations(child)
        return
    if entry.kind.name != "GROUP":
        yield entry.cfg
        return
    pending = _as_list(entry.cfg.get("task"))
    for child in pending:  # which grows by the lists inside it
        if isinstance(child, dict) and isinstance(child.get("task"), list):
            pending += child["task"]
            continue
        changes = {}
        if isinstance(child, dict):
            changes = {key: value for key, value in child.items() if key != "task"}
        if _task_name(child) in index:
            for config in _configurations(_task_name(child)):
                yield {**config, **changes}
        elif isinstance(child, dict):
            yield child


def _task_name(child: str | dict[str, Any]) -> Any:
    """The name of a child of a group, which is a name or a configuration."""
    return child if isinstance(child, str) else child.get("task") or child.get("group")


def _as_list(value: Any) -> list[Any]:
    """The items of a value that may be missing, one item or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def task_manager(name: str, data: Mapping[str, str] = MappingProxyType({})) -> Any:
    """lm-eval's TaskManager that knows ``name``.

    The project's own files are read at once; lm-eval's 14,000 take some seconds and are read where
    they are needed. data: {suite: path}, which lm-eval hands to the functions of task files among
    the tasks' metadata: these are in no protocol.
    """
    paths = tuple(data.items())
    own = _indexed(False, paths)
    return own if name in own.task_index else _indexed(True, paths)


@cache
def _indexed(builtin: bool, paths: tuple[tuple[str, str], ...]) -> Any:
    with quiet():
        from lm_eval.tasks import TaskManager

        metadata = {"data": dict(paths)} if paths else None
        return TaskManager(include_path=str(FOLDER), include_defaults=builtin, metadata=metadata)


def _index(name: str) -> dict[str, Any]:
    """lm-eval's entries by name, with at least the files that may hold ``name``."""
    return task_manager(name).task_index


@cache
def _registry() -> ModuleType:
    import lm_eval.api.metrics  # fills the registry
    import lm_eval.api.registry

    return lm_eval.api.registry
