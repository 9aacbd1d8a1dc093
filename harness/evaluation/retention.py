"""Measures a retention suite on the model in memory, by lm-eval."""

import math
from functools import partial

from harness.base.errors import UserError, did_you_mean
from harness.evaluation.suite import SEEDS, code_allowed, quiet, seeded, smallest_limit

JACKKNIFE_LIMIT = 2000  # documents; above, a metric without a standard error of lm-eval's has none


def run_suite(
    suite,
    model,
    tokenizer,
    *,
    only=None,
    batch_tokens=None,
    limit=None,
    progress=None,
    vllm=None,
    done=None,
):
    """Measure the live ``model`` on ``suite``; the model, the tokenizer and all random states are
    left as they were.

    only: names of the tasks to run (all of them by default); batch_tokens: padded tokens of a
    forward pass (None: by the device); limit: at most so many documents a task (a task's own
    smaller limit stays); progress: ``f(task name, requests done, requests in all)``; vllm: the
    model's VLLMSampler, where vLLM is to score and to generate; done: ``f(result)``, called with
    each task's as soon as it is there. Returns one dict a task: name, metric, value and stderr
    (lm-eval's unit; stderr None where there is none), n (documents), higher_is_better, items
    ([{"id", "score", "response"}]: response is the text, or the log-likelihoods in nats), protocol.
    A group is one result, with the items of all its subtasks.
    """
    from harness.evaluation.lm_eval_model import EngineModel, LiveModel, unchanged

    protocols = suite.protocols(model.dtype, tokenizer, limit, vllm=vllm is not None)
    results = []
    with unchanged(model, tokenizer), quiet():
        live = (
            LiveModel(model, tokenizer, batch_tokens=batch_tokens)
            if vllm is None
            else EngineModel(vllm)
        )
        for entry in suite.tasks:
            if only is None or entry.task in only:
                live.place = f"retention task {entry.task}"
                if progress:
                    live.progress = partial(progress, entry.task)
                with seeded():
                    result = _evaluate(live, entry, suite.load(entry), smallest_limit(entry, limit))
                results.append(result | {"protocol": protocols[entry.task]})
                if done:
                    done(results[-1])
    return results


def _evaluate(live, entry, loaded, limit):
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS["fewshot"])  # the generator moves on with every evaluation
    found = evaluate(
        live,
        loaded,
        limit=limit,
        bootstrap_iters=1000,
        log_samples=True,
        apply_chat_template=entry.chat_template,
        fewshot_as_multiturn=entry.chat_template,
        confirm_run_unsafe_code=code_allowed(),
    )
    metric, _, kind = entry.metric.rpartition(",")
    row = found["results"][entry.task]
    if entry.metric not in row:
        keys = [k for k in row if "," in k and "_stderr," not in k]
        raise UserError(
            f"retention task {entry.task}",
            f"has no metric {entry.metric!r}",
            did_you_mean(entry.metric, keys),
        )
    items, values = [], []
    for name, samples in found["samples"].items():
        aggregate = loaded["tasks"][name].aggregation().get(metric)
        for sample in samples:
            if sample["filter"] == kind and metric in sample:
                value = sample[metric]
                values.append(value)
                items.append(
                    {
                        "id": f"{name}/{sample['doc_id']}"
                        if loaded.get("groups")
                        else str(sample["doc_id"]),
                        "score": float(value)
                        if isinstance(value, (bool, int, float))
                        else _number(aggregate([value])),
                        "response": _response(sample["filtered_resps"]),
                        # IFEval: the instructions of a prompt
                        **({"weight": len(value)} if isinstance(value, list) else {}),
                    }
                )
    for task in loaded["tasks"].values():
        # requests and answers of all documents; the next evaluation builds its own
        task._instances = None
    stderr = _number(row.get(f"{metric}_stderr,{kind}"))
    if stderr is None and not loaded.get("groups"):
        stderr = jackknife(aggregate, values)
    return {
        "name": entry.task,
        "metric": entry.metric,
        "value": float(row[entry.metric]),
        "stderr": stderr,
        "n": int(row["sample_len"]),
        "higher_is_better": entry.higher_is_better,
        "items": items,
    }


def jackknife(aggregate, values):
    """Standard error of ``aggregate(values)`` by leaving out one document at a time (Quenouille,
    Tukey); for a mean, the usual.

    For the metrics that lm-eval gives no error (ratios such as bits per byte). None below 2 and
    above 2000 documents.
    """
    n = len(values)
    if aggregate is None or not 2 <= n <= JACKKNIFE_LIMIT:
        return None
    left = [float(aggregate(values[:i] + values[i + 1 :])) for i in range(n)]
    centre = sum(left) / n
    return math.sqrt((n - 1) / n * sum((x - centre) ** 2 for x in left))


def _response(responses):
    """What the model said: a text, or one log-likelihood a choice."""
    values = [r[0] if isinstance(r, (tuple, list)) else r for r in responses]
    return values[0] if len(values) == 1 else values


def _number(value):
    """A float, or None for lm-eval's "N/A"."""
    return None if value is None or isinstance(value, str) else float(value)
