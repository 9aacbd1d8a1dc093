"""Retention tasks with their data: loading them, and what their measurement depends on."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.evaluation.likelihoods import reference_text
from harness.evaluation.lm_eval_context import SEEDS, quiet, seeded
from harness.evaluation.lm_eval_tasks import RetentionTask, task_manager
from harness.models.chat import ChatInputs, encode, special_ids, thoughts_of

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerBase

NEW_TOKENS = 256  # of an answer, where a task says nothing; lm-eval's own default
GENERATED_TOKENS = 1024, 1024  # of a prompt and its answer, by which rows sampled at once go


def load_tasks(
    entry: RetentionTask, data: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """lm-eval's {"tasks": {name: Task}, "groups": {name: Group}} of one entry, configured by it.

    data: {suite: path}, as the order says. This may download data. Raises UserError where lm-eval
    cannot load the task: no network, data that differ, a missing package.
    """
    place = f"retention task {entry.task}"
    try:
        with quiet(), seeded():  # some tasks draw their documents
            loaded = task_manager(entry.task, data).load([entry.task])
    except (Exception, SystemExit) as error:  # task files are code and may raise anything
        raise UserError(
            place,
            f"lm-eval cannot load it ({error.__class__.__name__}: {error})",
            "its data must be in the local cache or the network be there",
        ) from error
    for task in loaded["tasks"].values():
        _configure(task, entry, place)
    return loaded


def _configure(task: Any, entry: RetentionTask, place: str) -> None:
    """Override the task's settings by the entry's, as lm-eval's ``simple_evaluate`` does."""
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
    if entry.reference and len(task.eval_docs):
        try:
            reference_text(task.eval_docs[0], entry.reference)
        except UserError as error:
            raise UserError(place, str(error)) from None


# --- protocols ---


def task_protocol(
    entry: RetentionTask,
    tasks: dict[str, Any],
    definitions: dict[str, Any],
    dtype: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    vllm: bool,
    chat: ChatInputs | None = None,
) -> dict[str, Any]:
    """Everything that the measurement of one entry depends on, the weights apart: JSON values.

    tasks: lm-eval's, by name; definitions: of ``task_definition``, by name; dtype: of the model, by
    name; limit: documents; vllm: whether vLLM scores; chat: what the chat template is given.
    """
    new_tokens = {
        task.config.generation_kwargs.get("max_gen_toks", NEW_TOKENS)
        for task in tasks.values()
        if task.OUTPUT_TYPE == "generate_until"
    }
    template = None
    further: dict[str, Any] = {}  # what only some models have
    if entry.chat_template:
        text = chat_template(tokenizer, entry)
        template = _digest(text)
        further |= (chat or ChatInputs()).protocol(text)
    if entry.reference:
        further["reference"] = entry.reference
    if new_tokens and (end := think_end_token(tokenizer)) is not None:
        further["think_end_token"] = end
    scorer = "vllm" if vllm else "log-softmax in float32"
    return {
        "task": entry.task,
        "metric": entry.metric,
        "num_fewshot": sorted({task.config.num_fewshot or 0 for task in tasks.values()}),
        "chat_template": template,
        "limit": smallest_limit(entry, limit),
        "max_gen_toks": sorted(new_tokens) or None,
        "seeds": SEEDS,
        "dtype": dtype,
        "scorer": f"lm_eval {importlib.metadata.version('lm_eval')}, {scorer}",
        "definitions": definitions,
        **further,
    }


def think_end_token(tokenizer: PreTrainedTokenizerBase) -> str | int | None:
    """lm-eval's ``think_end_token`` for the model: what follows it is the answer.

    It is the text of the closing tag, or its id where the text leaves special tokens out.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    thoughts = thoughts_of(tokenizer)
    if thoughts is None:
        return None
    special = special_ids(tokenizer)
    ids = [i for i in encode(tokenizer, thoughts.close) if i in special]
    return ids[-1] if ids else thoughts.close


def task_definition(task: Any) -> dict[str, str]:
    """{"version", "config", "data"} of one of lm-eval's tasks.

    config: SHA-256 of the configuration; data: of all documents, those of the shots included.
    """
    # The entry `metadata` holds paths of this machine.
    config = {key: value for key, value in task.dump_config().items() if key != "metadata"}
    data = hashlib.sha256()
    shots = [task.fewshot_docs()] if task.config.num_fewshot else []
    for documents in [task.eval_docs, *shots]:
        for document in documents or []:
            data.update(_canonical(document).encode())
    return {
        "version": str(task.VERSION),
        "config": _digest(_canonical(config)),
        "data": data.hexdigest(),
    }


def _canonical(value: Any) -> str:
    """Canonical JSON of ``value``; a function counts by its source, not by its address."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_source)


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return getattr(value, "__qualname__", None) or type(value).__qualname__


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def smallest_limit(entry: RetentionTask, limit: int | None) -> int | None:
    """Documents of one entry at most: the smaller of its own limit and ``limit``; None for all."""
    return min((x for x in (entry.limit, limit) if x is not None), default=None)


def chat_template(tokenizer: PreTrainedTokenizerBase, entry: RetentionTask) -> str:
    """The tokenizer's chat template. Raises UserError where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"retention task {entry.task}",
            "wants a chat template and the tokenizer has none",
            "set `chat_template: false` for this task or take a chat model",
        )
    return tokenizer.get_chat_template()


# --- requests ---


def sample_requests(
    task: Any,
    entry: RetentionTask,
    documents: int,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatInputs | None = None,
) -> list[Any]:
    """lm-eval's requests of the first ``documents`` documents of a task.

    chat: what the chat template is given. An evaluation of the task may go on meanwhile, whose
    progress asks for a forecast: its own requests stay.
    """
    task = copy.copy(task)
    apply = None
    if entry.chat_template:
        from lm_eval.models.huggingface import HFLM

        # lm-eval's own way, without a model: it leaves out the turns that a template refuses.
        variables = (chat or ChatInputs()).variables(tokenizer.get_chat_template())
        apply = partial(
            HFLM.apply_chat_template,
            SimpleNamespace(tokenizer=tokenizer, chat_template_args=variables),
        )
    with quiet(), seeded():
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
        task.build_all_requests(
            limit=documents,
            apply_chat_template=entry.chat_template,
            fewshot_as_multiturn=entry.chat_template,
            chat_template=apply,
        )
    return list(task.instances)
