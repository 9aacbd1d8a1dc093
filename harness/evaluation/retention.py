"""Measures a retention suite on the model in memory, by lm-eval."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError, did_you_mean
from harness.base.metrics import mean_and_stderr
from harness.evaluation.likelihoods import of_references, scorer_of
from harness.evaluation.lm_eval_context import SEEDS, code_allowed, quiet, seeded
from harness.evaluation.lm_eval_tasks import RetentionTask
from harness.evaluation.loaded_tasks import smallest_limit
from harness.evaluation.suite import Suite
from harness.results.questions import AskedQuestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.chat import ChatInputs
    from harness.sampling.vllm import VLLMSampler

# Documents; with more of them a metric without a standard error of lm-eval's has none.
JACKKNIFE_LIMIT = 2000


def run_suite(
    suite: Suite,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    only: Collection[str] | None = None,
    batch_tokens: int | None = None,
    limit: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
    vllm: VLLMSampler | None = None,
    done: Callable[[dict[str, Any]], object] | None = None,
    chat: ChatInputs | None = None,
) -> list[dict[str, Any]]:
    """Measure the live ``model`` on ``suite``.

    The model, the tokenizer and all random states are left as they were. only: names of the tasks
    to run (all of them by default); batch_tokens: padded tokens of a forward pass (None: by the
    device); limit: at most so many documents a task (a task's own smaller limit stays); progress:
    ``f(task name, requests done, requests in all)``; vllm: the model's VLLMSampler, where vLLM is
    to score and to generate; done: ``f(result)``, called with the result of each task at once;
    chat: what the chat template is given.

    Returns one dict a task: name, metric, value and stderr (lm-eval's unit; stderr None where there
    is none), n (documents), higher_is_better, items ([{"id", "score", "response"}]: response is the
    text, or the log-likelihoods in nats), questions (of the items, as results/questions.py keeps
    them), protocol, continuous ({metric: (value, stderr)}, see likelihoods.py: means over the
    items, each of which then holds them as "scores"; {} for other tasks). A group is one result,
    with the items of all its subtasks.
    """
    from harness.evaluation.lm_eval_model import EngineModel, LiveModel, unchanged

    protocols = suite.protocols(model.dtype, tokenizer, limit, vllm=vllm is not None, chat=chat)
    results = []
    with unchanged(model, tokenizer), quiet():
        if vllm is None:
            live = LiveModel(model, tokenizer, batch_tokens=batch_tokens, chat=chat)
        else:
            live = EngineModel(vllm, chat)
        for entry in suite.tasks:
            if only is not None and entry.task not in only:
                continue
            live.place = f"retention task {entry.task}"
            if progress:
                live.progress = partial(progress, entry.task)
            with seeded():
                result = _evaluate(live, entry, suite.load(entry), smallest_limit(entry, limit))
            result["protocol"] = protocols[entry.task]
            results.append(result)
            if done:
                done(result)
    return results


def kept_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation on record has of a result of ``run_suite``."""
    continuous = {metric: list(pair) for metric, pair in result["continuous"].items()}
    return {
        "n": result["n"],
        "metrics": {result["metric"]: [result["value"], result["stderr"]], **continuous},
        "items": result["items"],
    }


def _evaluate(
    live: Any, entry: RetentionTask, loaded: dict[str, Any], limit: int | None
) -> dict[str, Any]:
    """The result of one entry; live: an lm-eval model; loaded: what ``Suite.load`` returns."""
    output = _lm_eval(live, entry, loaded, limit)
    row = output["results"][entry.task]
    if entry.metric not in row:
        metrics = [key for key in row if "," in key and "_stderr," not in key]
        raise UserError(
            f"retention task {entry.task}",
            f"has no metric {entry.metric!r}",
            did_you_mean(entry.metric, metrics),
        )
    metric, _, filter_name = entry.metric.rpartition(",")
    is_group = bool(loaded.get("groups"))
    items = []
    questions: list[AskedQuestion] = []
    values = []
    continuous = []
    for name, samples in output["samples"].items():
        task = loaded["tasks"][name]
        aggregate = task.aggregation().get(metric)
        prefix = f"{name}/" if is_group else ""
        counted = [s for s in samples if s["filter"] == filter_name and metric in s]
        items += [_item(sample, metric, aggregate, prefix) for sample in counted]
        questions += [_question(sample, prefix) for sample in counted]
        values += [sample[metric] for sample in counted]
        continuous += _continuous(live, entry, task, metric, counted)
    stderr = _number(row.get(f"{metric}_stderr,{filter_name}"))
    if stderr is None and not is_group:
        stderr = jackknife(aggregate, values)
    return {
        "name": entry.task,
        "metric": entry.metric,
        "value": float(row[entry.metric]),
        "stderr": stderr,
        "n": int(row["sample_len"]),
        "higher_is_better": entry.higher_is_better,
        "items": items,
        "questions": questions,
        "continuous": _with_scores(items, continuous),
    }


def _continuous(
    live: Any, entry: RetentionTask, task: Any, metric: str, samples: list[dict[str, Any]]
) -> list[dict[str, float] | None]:
    """The continuous measures of each of lm-eval's samples of one task, None where it has none."""
    if entry.reference:
        return of_references(live, task, entry.reference, entry.chat_template, samples)
    score = scorer_of(task, metric, entry.higher_is_better)
    return [score(s["doc"], s["filtered_resps"]) if score else None for s in samples]


def _with_scores(
    items: list[dict[str, Any]], scores: Sequence[Mapping[str, float] | None]
) -> dict[str, tuple[float, float | None]]:
    """{metric: (mean, standard error)} of continuous scores, which each item gets as "scores".

    {} unless every item has the same metrics: a mean over some of the items is another quantity.
    """
    found = [of_item for of_item in scores if of_item is not None]
    if not found or len(found) < len(items) or any(f.keys() != found[0].keys() for f in found):
        return {}
    for item, of_item in zip(items, found, strict=True):
        item["scores"] = dict(of_item)
    columns = {metric: [of_item[metric] for of_item in found] for metric in found[0]}
    return {
        metric: mean_and_stderr(column) if all(map(math.isfinite, column)) else (math.nan, None)
        for metric, column in columns.items()
    }


def _lm_eval(
    live: Any, entry: RetentionTask, loaded: dict[str, Any], limit: int | None
) -> dict[str, Any]:
    """lm-eval's own output for one entry, with its samples."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS["fewshot"])  # every evaluation moves the generator on
    output = evaluate(
        live,
        loaded,
        limit=limit,
        bootstrap_iters=1000,
        log_samples=True,
        apply_chat_template=entry.chat_template,
        fewshot_as_multiturn=entry.chat_template,
        confirm_run_unsafe_code=code_allowed(),
    )
    for task in loaded["tasks"].values():
        # Requests and answers of all documents: the next evaluation builds its own.
        task._instances = None
    return output


def _item(
    sample: dict[str, Any], metric: str, aggregate: Callable[[list[Any]], Any], prefix: str
) -> dict[str, Any]:
    """One document; prefix: of its id, the subtask of a group."""
    value = sample[metric]
    is_number = isinstance(value, (bool, int, float))
    item = {
        "id": f"{prefix}{sample['doc_id']}",
        "score": float(value) if is_number else _number(aggregate([value])),
        "response": _response(sample["filtered_resps"]),
    }
    if isinstance(value, list):  # IFEval: one value for each instruction of a prompt
        item["weight"] = len(value)
    return item


def _question(sample: dict[str, Any], prefix: str) -> AskedQuestion:
    """What one document asked; prefix: as for ``_item``.

    Choices may differ in what stands before them. What all share is the prompt then.
    """
    arguments = [(str(first), rest) for first, *rest in sample["arguments"]]
    requests = [(text, "".join(r for r in rest if isinstance(r, str))) for text, rest in arguments]
    # Behind the choices may stand the same without a prompt, for a metric of mutual information.
    requests = [request for request in requests if request[0]] or requests
    prompt = os.path.commonprefix([text for text, _ in requests])  # noqa: RUF071  of letters
    if any(text != prompt for text, _ in requests):
        prompt = prompt[: prompt.rfind(" ") + 1]
    question: AskedQuestion = {"id": f"{prefix}{sample['doc_id']}", "prompt": prompt}
    texts = [text[len(prompt) :] + continuation for text, continuation in requests]
    if len(texts) > 1:
        question["choices"] = texts
    target = sample["target"]
    right = [
        texts[one] if type(one) is int and len(texts) > 1 and 0 <= one < len(texts) else one
        for one in (target if isinstance(target, list) else [target])
        if one is not None
    ]
    reference = "\n".join(str(one) for one in right if len(texts) == 1 or isinstance(one, str))
    if len(texts) == 1 and texts[0]:  # a continuation whose likelihood is measured
        reference = texts[0]
    if reference and reference != prompt:
        question["reference"] = reference
    return question


def jackknife(aggregate: Callable[[list[Any]], Any] | None, values: list[Any]) -> float | None:
    """Standard error of ``aggregate(values)``: one document at a time is left out.

    (Quenouille, Tukey); for a mean, it is the usual one. It serves the metrics that lm-eval gives
    no error, ratios such as bits per byte. None below 2 and above JACKKNIFE_LIMIT documents.
    """
    n = len(values)
    if aggregate is None or not 2 <= n <= JACKKNIFE_LIMIT:
        return None
    estimates = [float(aggregate(values[:i] + values[i + 1 :])) for i in range(n)]
    centre = sum(estimates) / n
    return math.sqrt((n - 1) / n * sum((estimate - centre) ** 2 for estimate in estimates))


def _response(responses: list[Any]) -> Any:
    """What the model answered: a text, or one log-likelihood a choice."""
    values = [r[0] if isinstance(r, (tuple, list)) else r for r in responses]
    return values[0] if len(values) == 1 else values


def _number(value: Any) -> float | None:
    """A float, or None for lm-eval's "N/A"."""
    return None if value is None or isinstance(value, str) else float(value)
