"""Retention: what a model could do before it learned, measured by lm-eval's tasks on the model in
memory.

A suite names lm-eval tasks or groups, each with the ONE metric that counts. It is read and checked
from lm-eval's task files alone, before any model or data set is loaded; what a measurement depends
on (its protocol) is known before the model runs, so that no evaluation is done twice. The numbers
are those of lm-eval's own command on the saved checkpoint.
"""

import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.base.files import ROOT

FOLDER = ROOT / "benchmarks" / "retention"
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's defaults


@dataclass(frozen=True)
class RetentionTask:
    """One lm-eval task or group and how it counts.

    metric: lm-eval's name with its filter ("acc,none"); chance: the metric's value for guessing,
    None where there is none; num_fewshot, limit (documents), max_gen_toks (new tokens): None leaves
    lm-eval's own.
    """

    task: str
    metric: str
    higher_is_better: bool = True
    chance: float | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    limit: int | None = None
    max_gen_toks: int | None = None
    description: str = ""


@dataclass
class Suite:
    """A retention suite: ``tasks``, a list of RetentionTask with different names."""

    tasks: list
    _loaded: dict = field(default_factory=dict, repr=False)
    _definitions: dict = field(default_factory=dict, repr=False)

    def summary(self):
        """For results.json: a dict a task, in the suite's order, of all that the order says of it."""
        return [
            {
                "name": t.task,
                "metric": t.metric,
                "higher_is_better": t.higher_is_better,
                "chance": t.chance,
                "num_fewshot": t.num_fewshot,
                "chat_template": t.chat_template,
                "limit": t.limit,
                "max_gen_toks": t.max_gen_toks,
                "description": t.description,
            }
            for t in self.tasks
        ]

    def load(self, entry):
        """lm-eval's {"tasks": {name: Task}, "groups": {name: Group}} of one entry, loaded once
        (this may download data).

        Raises UserError where lm-eval cannot load the task: no network, data that differ, a missing
        package.
        """
        if entry.task not in self._loaded:
            place = f"retention task {entry.task}"
            try:
                with quiet(), seeded():  # some tasks draw their documents
                    loaded = _manager(entry.task).load([entry.task])
            except (
                Exception,
                SystemExit,
            ) as error:  # task files are code: anything may come out of them
                raise UserError(
                    place,
                    f"lm-eval cannot load it ({error.__class__.__name__}: {error})",
                    "its data must be in the local cache or the network be there",
                ) from error
            for task in loaded["tasks"].values():
                _configure(task, entry, place)
            self._loaded[entry.task] = loaded
        return self._loaded[entry.task]

    def work(self, tokenizer, sample=8):
        """What one measurement costs, from the requests of the first ``sample`` documents of each
        task: (tokens of forward passes, {new tokens at most: answers generated}). A context counts
        once for all of its choices.

        Loads the data, no model. Raises UserError where a task's data are not to be had, or a chat
        template.
        """
        read, generated = 0.0, Counter()

        def tokens(text):
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        def chat(history, add_generation_prompt=True):
            return tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        for entry in self.tasks:
            if entry.chat_template:
                _chat_template(tokenizer, entry)
            for task in self.load(entry)["tasks"].values():
                documents = min(len(task.eval_docs), entry.limit or len(task.eval_docs))
                with quiet(), seeded():
                    task.set_fewshot_seed(seed=SEEDS["fewshot"])
                    task.build_all_requests(
                        limit=min(sample, documents),
                        apply_chat_template=entry.chat_template,
                        fewshot_as_multiturn=entry.chat_template,
                        chat_template=chat if entry.chat_template else None,
                    )
                requests, task._instances = task.instances, None
                times = documents / min(sample, documents)  # as many as the sample has
                read += times * sum(
                    map(tokens, {(r.doc_id, r.args[0]): r.args[0] for r in requests}.values())
                )
                for request in requests:
                    if request.request_type == "loglikelihood":
                        read += times * tokens(request.args[1])
                    elif request.request_type == "generate_until":
                        generated[request.args[1].get("max_gen_toks", 256)] += (
                            times * request.repeats
                        )
        return read, generated

    def protocols(self, dtype, tokenizer, limit=None, vllm=False):
        """{task name: everything its measurement depends on, JSON values}; loads the data, no
        model.

        dtype: of the model, torch's or its name; tokenizer: its chat template counts; limit: as in
        :func:`run_suite`; vllm: whether vLLM scores.
        """
        return {
            entry.task: self._protocol(
                entry, str(dtype).removeprefix("torch."), tokenizer, limit, vllm
            )
            for entry in self.tasks
        }

    def _protocol(self, entry, dtype, tokenizer, limit, vllm):
        tasks = self.load(entry)["tasks"]
        if entry.task not in self._definitions:  # of all documents: once
            self._definitions[entry.task] = {
                name: _definition(task) for name, task in sorted(tasks.items())
            }
        lengths = {
            t.config.generation_kwargs.get("max_gen_toks", 256)
            for t in tasks.values()
            if t.OUTPUT_TYPE == "generate_until"
        }
        return {
            "task": entry.task,
            "metric": entry.metric,
            "num_fewshot": sorted({t.config.num_fewshot or 0 for t in tasks.values()}),
            "chat_template": _digest(_chat_template(tokenizer, entry))
            if entry.chat_template
            else None,
            "limit": smallest_limit(entry, limit),
            "max_gen_toks": sorted(lengths) or None,
            "seeds": SEEDS,
            "dtype": dtype,
            "scorer": f"lm_eval {importlib.metadata.version('lm_eval')}, {'vllm' if vllm else 'log-softmax in float32'}",
            "definitions": self._definitions[entry.task],
        }


def load_suite(spec, place="retention"):
    """The suite ``spec``: the name of a file in benchmarks/retention, or a list as it stands in an
    order file.

    An item of the list is a mapping with RetentionTask's fields, or a text: that lm-eval task with
    its first metric. Reads lm-eval's task files only. Raises UserError for anything unknown or of
    the wrong kind.
    """
    if isinstance(spec, str):
        names = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        if spec not in names:
            raise UserError(
                place,
                f"unknown retention suite {spec!r}",
                did_you_mean(spec, names)
                + "; a single lm-eval task is a list of one: ["
                + spec
                + "]",
            )
        path = FOLDER / f"{spec}.yaml"
        place = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(place, f"is not YAML ({error})") from None
        if not isinstance(data, dict) or not isinstance(data.get("tasks"), list):
            raise UserError(place, "must be a mapping with `description` and a list `tasks`")
        _known(data, ("description", "tasks"), place)
        items = data["tasks"]
    elif isinstance(spec, list):
        items = spec
    else:
        raise UserError(place, f"a retention suite is a name or a list of tasks, not {spec!r}")
    if not items:
        raise UserError(
            place,
            "the list of retention tasks is empty",
            "name at least one or leave the retention suite out",
        )
    tasks = [
        task
        for number, item in enumerate(items, 1)
        for task in _entries(item, f"{place}, task {number}")
    ]
    for task in tasks:
        if sum(t.task == task.task for t in tasks) > 1:
            raise UserError(
                place,
                f"task {task.task!r} is there more than once",
                "one record stands for one task",
            )
    return Suite(tasks)


def _entries(item, place):
    """RetentionTasks of one item; more than one for a tag, or a group without an aggregate, which
    stand for their tasks.
    """
    if isinstance(item, str):
        item = {"task": item}
    if not isinstance(item, dict) or not isinstance(item.get("task"), str):
        raise UserError(place, "must be the name of an lm-eval task or a mapping with `task`")
    _known(item, RetentionTask.__dataclass_fields__, place)
    name, place = item["task"], f"{place} ({item['task']})"
    for key, kinds, what in (
        ("metric", str, "a text"),
        ("higher_is_better", bool, "true or false"),
        ("chance", (int, float, type(None)), "a number or null"),
        ("chat_template", bool, "true or false"),
        ("description", str, "a text"),
    ):
        if key in item and (
            not isinstance(item[key], kinds) or (key == "chance" and isinstance(item[key], bool))
        ):
            raise UserError(place, f"`{key}` must be {what}, not {item[key]!r}")
    for key, least in (("num_fewshot", 0), ("limit", 1), ("max_gen_toks", 1)):
        value = item.get(key)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < least
        ):
            raise UserError(place, f"`{key}` must be a whole number from {least} on, not {value!r}")
    entry = _index(name).get(name)
    if entry is None:
        import difflib

        near = difflib.get_close_matches(name, _index(name), n=3)
        raise UserError(
            place,
            f"lm-eval has no task {name!r}",
            (f"did you mean {' or '.join(map(repr, near))}? " if near else "")
            + "`lm_eval ls tasks` lists them",
        )
    children = sorted(entry.tags) if entry.kind.name == "TAG" else []
    if entry.kind.name == "GROUP" and not entry.cfg.get("aggregate_metric_list"):
        children = [
            c if isinstance(c, str) else c.get("task") or c.get("group")
            for c in _listed(entry.cfg.get("task"))
        ]
        if any(child not in _index(name) for child in children):
            raise UserError(
                place, "is a group without a common number", "name the tasks of it that you want"
            )
    if children:
        return [task for child in children for task in _entries(item | {"task": child}, place)]
    leaves = list(_leaves(name))
    if any(cfg.get("unsafe_code") for cfg in leaves) and not code_allowed():
        raise UserError(
            place,
            "runs code that the model writes",
            "allow it with HF_ALLOW_CODE_EVAL=1 in the environment",
        )
    if item.get("num_fewshot") and any(cfg.get("num_fewshot") == 0 for cfg in leaves):
        raise UserError(place, "lm-eval fixes this task to no examples", "leave `num_fewshot` out")
    metrics, complete = _metrics(name)
    metric = item.get("metric")
    if metric is None:
        if not metrics:
            raise UserError(
                place,
                "does not say its metrics in its file",
                "add `metric`, as in the head of lm-eval's table",
            )
        metric = next(iter(metrics))
    elif metric not in metrics:
        filters = [m for m in metrics if m.rpartition(",")[0] == metric]
        if len(filters) == 1:
            metric = filters[0]
        elif filters or complete:
            raise UserError(place, f"unknown metric {metric!r}", did_you_mean(metric, metrics))
    values = {"higher_is_better": metrics.get(metric, True)} | item | {"metric": metric}
    return [RetentionTask(**values)]


def _metrics(name):
    """({metric with filter: higher is better}, whether these are all of them) as the task's or
    group's file says.
    """
    found, complete = {}, True
    for cfg in _leaves(name):
        filters = [f["name"] for f in cfg.get("filter_list") or [{"name": "none"}]]
        listed = cfg.get("metric_list")
        # Python decides, at run time
        if "class" in cfg or any("/" in str(m["metric"]) for m in listed or []):
            complete = False
        if listed is None and "class" not in cfg:
            listed = [
                {"metric": m}
                for m in _registry().DEFAULT_METRIC_REGISTRY.get(
                    cfg.get("output_type", "generate_until"), []
                )
            ]
        for metric in listed or []:
            if "/" not in str(metric["metric"]):
                better = metric.get("higher_is_better")
                if better is None:
                    better = _registry().HIGHER_IS_BETTER_REGISTRY.get(metric["metric"], True)
                found |= {f"{metric['metric']},{f}": better for f in filters}
    entry = _index(name)[name]
    if entry.kind.name == "GROUP":
        aggregates, better = _listed(entry.cfg["aggregate_metric_list"]), found
        found = {}
        for aggregate in aggregates:
            filters = aggregate.get("filter_list") or [
                m.rpartition(",")[2] for m in better if m.startswith(aggregate["metric"] + ",")
            ]
            found |= {
                f"{aggregate['metric']},{f}": better.get(f"{aggregate['metric']},{f}", True)
                for f in _listed(filters)
            }
    return found, complete


def _leaves(name):
    """Configurations of the tasks under ``name``, as written in their files."""
    entry = _index(name)[name]
    if entry.kind.name == "GROUP":
        pending = _listed(entry.cfg.get("task"))
        for child in pending:
            if isinstance(child, dict) and isinstance(child.get("task"), list):
                pending += child["task"]
                continue
            known = child if isinstance(child, str) else child.get("task") or child.get("group")
            if known in _index(name):
                for cfg in _leaves(known):
                    yield cfg | (
                        {k: v for k, v in child.items() if k != "task"}
                        if isinstance(child, dict)
                        else {}
                    )
            elif isinstance(child, dict):
                yield child
    elif entry.kind.name == "TAG":
        for child in sorted(entry.tags):
            yield from _leaves(child)
    else:
        yield entry.cfg


def _listed(value):
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _known(mapping, keys, place):
    for key in mapping:
        if key not in keys:
            raise UserError(place, f"unknown key {key!r}", did_you_mean(key, keys))


@cache
def _indexed(builtin):
    with quiet():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(FOLDER), include_defaults=builtin)


def _manager(name):
    """lm-eval's TaskManager that knows ``name``: our own files at once, lm-eval's 14,000 (some
    seconds) where needed.
    """
    own = _indexed(builtin=False)
    return own if name in own.task_index else _indexed(builtin=True)


def _index(name):
    return _manager(name).task_index


@cache
def _registry():
    import lm_eval.api.metrics  # fills the registry
    import lm_eval.api.registry

    return lm_eval.api.registry


def _configure(task, entry, place):
    """The overrides of lm-eval's ``simple_evaluate``."""
    if entry.max_gen_toks and task.get_config("output_type") == "generate_until":
        task.set_config(
            key="generation_kwargs", value={"max_gen_toks": entry.max_gen_toks}, update=True
        )
    own = task.get_config("num_fewshot")
    if entry.num_fewshot is not None:
        if own == 0 and entry.num_fewshot:
            raise UserError(
                place, f"lm-eval fixes {task.task_name} to no examples", "leave `num_fewshot` out"
            )
        task.set_config(key="num_fewshot", value=entry.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _definition(task):
    """{"version", "config", "data"}: the latter SHA-256 of the configuration and of the documents
    (shots included).
    """
    # it holds this machine's paths
    config = {k: v for k, v in task.dump_config().items() if k != "metadata"}
    data = hashlib.sha256()
    for docs in [task.eval_docs] + ([task.fewshot_docs()] if task.config.num_fewshot else []):
        for doc in docs or []:
            data.update(_canonical(doc).encode())
    return {
        "version": str(task.VERSION),
        "config": _digest(_canonical(config)),
        "data": data.hexdigest(),
    }


def _canonical(value):
    def source(x):  # a function counts by what it does, not by its address
        try:
            return inspect.getsource(x)
        except (TypeError, OSError):
            return getattr(x, "__qualname__", None) or type(x).__qualname__

    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=source)


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def smallest_limit(entry, limit):
    return min((x for x in (entry.limit, limit) if x is not None), default=None)


def code_allowed():
    return os.environ.get("HF_ALLOW_CODE_EVAL") == "1"


def _chat_template(tokenizer, entry):
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"retention task {entry.task}",
            "wants a chat template and the tokenizer has none",
            "set `chat_template: false` for this task or take a chat model",
        )
    return tokenizer.get_chat_template()


@contextmanager
def seeded():
    """lm-eval's seeds inside; Python's, NumPy's and torch's random states as before afterwards."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["numpy"])
        torch.manual_seed(SEEDS["torch"])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def quiet():
    """No progress bars and no advice from lm-eval; its bootstrap in this process (a pool would copy
    the model).
    """
    import lm_eval.api.task as api

    loggers = [
        logging.getLogger(name)
        for name in (
            "lm_eval",
            *(n for n in logging.Logger.manager.loggerDict if n.startswith("lm_eval")),
        )
    ]
    levels, bars, pool = [x.level for x in loggers], api.tqdm, os.environ.get("DISABLE_MULTIPROC")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    api.tqdm = partial(bars, disable=True)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        api.tqdm = bars
        if pool is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = pool
