"""Continuous measures of lm-eval's likelihood tasks, from the answers that the task scored anyway.

With l_c the summed log-likelihood of choice c in nats, as lm-eval gives it (over the tokens of the
choice, not divided by its length), R the right choices of a document and W the others:

* ``margin`` = max_{c in R} l_c - max_{c in W} l_c, in nats: above 0 exactly where ``acc`` is right
  (the margin of a multi-class classifier; Crammer & Singer 2001);
* ``probability`` = sum_{c in R} p_c with p the softmax of all l: of the right choices among the
  choices. Its log-odds are log sum_R exp l - log sum_W exp l, the margin itself for two choices;
* ``loglikelihood`` = l, in nats, of a document with a single continuation, which has no choices,
  or of the reference answer to a document whose answer is generated.

Higher is better in all three. They move where an accuracy stays as it is.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from harness.base.errors import UserError, did_you_mean

# Metrics of a single continuation that are its log-likelihood in another unit already.
OF_LIKELIHOOD = ("bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity")
UNLIKELY = -1e6  # nats; a softmax and a mean over the letters of a choice find it unlikely still

Scores = dict[str, float]


def scorer_of(
    task: Any, metric: str, higher_is_better: bool
) -> Callable[[Mapping[str, Any], Sequence[Any]], Scores | None] | None:
    """The function (document, its responses) -> its continuous measures, None for other tasks.

    task: one of lm-eval's; metric: the one that counts, without its filter. The function returns
    None where it is not known which choices are right, or no choice is wrong.
    """
    if task.OUTPUT_TYPE == "loglikelihood" and metric not in OF_LIKELIHOOD:
        return _single
    if task.OUTPUT_TYPE != "multiple_choice":
        return None

    own_scoring = _has_own_scoring(task)

    def score(document: Mapping[str, Any], responses: Sequence[Any]) -> Scores | None:
        values = [float(response[0]) for response in responses]
        if not own_scoring:
            values = values[: len(task.doc_to_choice(document))]  # no unconditional ones behind
            right = _stated(task, document, len(values))
        else:
            right = _probed(task, document, len(values), metric) if higher_is_better else set()
        return of_choices(values, right)

    return score


def of_choices(values: Sequence[float], right: Collection[int]) -> Scores | None:
    """{"margin", "probability"} of choices with log-likelihoods ``values`` in nats.

    right: indices of the right choices. None where no choice is right, or none is wrong. NaN where
    a log-likelihood is.
    """
    good = [value for index, value in enumerate(values) if index in right]
    bad = [value for index, value in enumerate(values) if index not in right]
    if not good or not bad:
        return None
    best = max(values)
    if not all(map(math.isfinite, values)):
        return {"margin": math.nan, "probability": math.nan}
    mass = math.fsum(math.exp(value - best) for value in good)
    rest = math.fsum(math.exp(value - best) for value in bad)
    return {"margin": max(good) - max(bad), "probability": mass / (mass + rest)}


def of_references(
    live: Any, task: Any, reference: str, chat: bool, samples: Sequence[Mapping[str, Any]]
) -> list[Scores | None]:
    """{"loglikelihood"} of the reference after the prompt of each sample, None where it is empty.

    live: an lm-eval model, which reads each prompt once more; reference: a field or a template;
    chat: whether the prompts are in the chat template. As in lm-eval's examples the task's
    delimiter is in between, but not in the chat template, nor before white space.
    """
    from lm_eval.api.instance import Instance

    delimiter = "" if chat else task.config.target_delimiter
    requests = {}
    for place, sample in enumerate(samples):
        text = reference_text(sample["doc"], reference)
        if text.strip():
            between = "" if text[0].isspace() else delimiter
            arguments = (sample["arguments"][0][0], between + text)
            requests[place] = Instance("loglikelihood", dict(sample["doc"]), arguments, 0)
    answers = dict(zip(requests, live.loglikelihood(list(requests.values())), strict=True))
    return [
        {"loglikelihood": float(answers[place][0])} if place in answers else None
        for place in range(len(samples))
    ]


def reference_text(document: Mapping[str, Any], reference: str) -> str:
    """The reference of a document: its field of this name, or lm-eval's template filled in.

    Raises UserError where there is no such field.
    """
    if "{{" in reference:
        from lm_eval.utils import apply_template

        try:
            return str(apply_template(reference, dict(document)))
        except Exception as error:  # a template is a program
            reason = f"fails on a document ({type(error).__name__}: {error})"
            raise UserError(f"`reference: {reference}`", reason) from error
    if reference not in document:
        raise UserError(
            f"`reference: {reference}`",
            "is no field of the documents",
            did_you_mean(reference, list(document)),
        )
    return str(document[reference] if document[reference] is not None else "")


def _single(document: Mapping[str, Any], responses: Sequence[Any]) -> Scores | None:
    """Of one continuation."""
    return {"loglikelihood": float(responses[0][0])} if len(responses) == 1 else None


def _has_own_scoring(task: Any) -> bool:
    """Whether code of the task, not lm-eval's ``process_results``, says what is right."""
    from lm_eval.api.task import ConfigurableTask

    overridden = type(task).process_results is not ConfigurableTask.process_results
    return overridden or task.config.process_results is not None


def _stated(task: Any, document: Mapping[str, Any], choices: int) -> set[int]:
    """Indices of the right choices, read as lm-eval's own ``process_results`` reads them."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(gold, str):
        texts = list(task.doc_to_choice(document))
        gold = texts.index(gold) if gold in texts else -1
    indices = gold if isinstance(gold, list) else [gold]
    return {index for index in indices if isinstance(index, int) and 0 <= index < choices}


def _probed(task: Any, document: Mapping[str, Any], choices: int, metric: str) -> set[int]:
    """Indices of the choices that a task with scoring of its own takes as right.

    Its own code is asked, with all the likelihood on one choice at a time: a right one gives 1, a
    wrong one 0. Empty for a metric of another kind.
    """
    right = set()
    for index in range(choices):
        answers = [(0.0 if i == index else UNLIKELY, i == index) for i in range(choices)]
        try:
            value = task.process_results(document, answers).get(metric)
        except Exception:  # task files are code and may raise anything
            return set()
        if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
            return set()
        if not (math.isclose(value, 1) or math.isclose(value, 0, abs_tol=1e-9)):
            return set()
        if math.isclose(value, 1):
            right.add(index)
    return right
