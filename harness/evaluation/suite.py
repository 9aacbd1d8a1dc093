"""Retention: what a model could do before it learned, measured by lm-eval's tasks.

A suite names lm-eval tasks or groups, each with the ONE metric that counts. It is read and checked
from lm-eval's task files alone, before any model or data set is loaded. What a measurement depends
on (its protocol) is known before the model runs, so that no evaluation is done twice. The numbers
are those of lm-eval's own command on the saved checkpoint.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from harness.base.errors import UserError, did_you_mean
from harness.evaluation.likelihoods import reference_text, scorer_of
from harness.evaluation.lm_eval_tasks import FOLDER, RetentionTask, check_keys, retention_tasks
from harness.evaluation.loaded_tasks import (
    NEW_TOKENS,
    chat_template,
    load_tasks,
    sample_requests,
    task_definition,
    task_protocol,
)

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerBase

    from harness.models.chat import ChatInputs


@dataclass
class Suite:
    """A retention suite: ``tasks``, a list of RetentionTask with different names."""

    tasks: list[RetentionTask]
    _loaded: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _definitions: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def summary(self) -> list[dict[str, Any]]:
        """For results.json: a dict a task, in the suite's order, of all that the order says."""
        rows = []
        for task in self.tasks:
            row = asdict(task)
            rows.append({"name": row.pop("task"), **row})
        return rows

    def load(self, entry: RetentionTask) -> dict[str, Any]:
        """What ``load_tasks`` returns for one entry, loaded once."""
        if entry.task not in self._loaded:
            self._loaded[entry.task] = load_tasks(entry)
        return self._loaded[entry.task]

    def with_margins(self) -> int:
        """How many tasks give continuous measures beside their metric (see likelihoods.py).

        Loads the data, no model.
        """
        return sum(
            any(
                scorer_of(task, entry.metric.rpartition(",")[0], entry.higher_is_better)
                for task in self.load(entry)["tasks"].values()
            )
            for entry in self.tasks
        )

    def work(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sample: int = 8,
        chat: ChatInputs | None = None,
    ) -> tuple[float, Counter[int]]:
        """What one measurement costs, from the first ``sample`` documents of each task.

        Returns (tokens of forward passes, {new tokens at most: answers generated}). A context
        counts once for all of its choices. Loads the data, no model. Raises UserError where a
        task's data cannot be loaded, or a chat template is missing.
        """
        read = 0.0
        generated: Counter[int] = Counter()

        def tokens(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        for entry in self.tasks:
            if entry.chat_template:
                chat_template(tokenizer, entry)
            for task in self.load(entry)["tasks"].values():
                documents = min(len(task.eval_docs), entry.limit or len(task.eval_docs))
                sampled = min(sample, documents)
                requests = sample_requests(task, entry, sampled, tokenizer, chat)
                times = documents / sampled
                contexts = {(r.doc_id, r.args[0]) for r in requests}
                read += times * sum(tokens(context) for _, context in contexts)
                for request in requests:
                    if request.request_type == "loglikelihood":
                        read += times * tokens(request.args[1])
                    elif request.request_type == "generate_until":
                        new_tokens = request.args[1].get("max_gen_toks", NEW_TOKENS)
                        generated[new_tokens] += times * request.repeats
                        if entry.reference:
                            text = reference_text(request.doc, entry.reference)
                            read += times * tokens(request.args[0] + text)
        return read, generated

    def protocols(
        self,
        dtype: object,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None = None,
        vllm: bool = False,
        chat: ChatInputs | None = None,
    ) -> dict[str, dict[str, Any]]:
        """{task name: everything that its measurement depends on}, JSON values.

        Loads the data, no model. dtype: of the model, torch's or its name; tokenizer: its chat
        template counts; limit, chat: as in ``run_suite``; vllm: whether vLLM scores.
        """
        dtype = str(dtype).removeprefix("torch.")
        protocols = {}
        for entry in self.tasks:
            tasks = self.load(entry)["tasks"]
            if entry.task not in self._definitions:  # it reads all documents: once
                self._definitions[entry.task] = {
                    name: task_definition(task) for name, task in sorted(tasks.items())
                }
            protocols[entry.task] = task_protocol(
                entry, tasks, self._definitions[entry.task], dtype, tokenizer, limit, vllm, chat
            )
        return protocols


def load_suite(spec: object, place: str = "retention") -> Suite:
    """The suite ``spec``: the name of a file in benchmarks/retention, or a list as in an order.

    An item of the list is a mapping with RetentionTask's fields, or a text: that lm-eval task with
    its first metric. Reads lm-eval's task files only. Raises UserError for anything unknown or of
    the wrong type.
    """
    if isinstance(spec, str):
        items, place = _suite_file(spec, place)
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
    tasks = []
    for number, item in enumerate(items, 1):
        tasks += retention_tasks(item, f"{place}, task {number}")
    for name, count in Counter(task.task for task in tasks).items():
        if count > 1:
            raise UserError(
                place, f"task {name!r} is there more than once", "one record stands for one task"
            )
    return Suite(tasks)


def _suite_file(name: str, place: str) -> tuple[list[Any], str]:
    """(the items, the place for messages) of the suite ``name`` in benchmarks/retention."""
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in names:
        raise UserError(
            place,
            f"unknown retention suite {name!r}",
            f"{did_you_mean(name, names)}; a single lm-eval task is a list of one: [{name}]",
        )
    path = FOLDER / f"{name}.yaml"
    place = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(place, f"is not YAML ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), list):
        raise UserError(place, "must be a mapping with `description` and a list `tasks`")
    check_keys(data, ("description", "tasks"), place)
    return data["tasks"], place
