"""Margin, probability and log-likelihood of lm-eval's tasks: closed forms and a naive model."""

import json
import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.task import ConfigurableTask

from harness.base.errors import UserError
from harness.evaluation.likelihoods import of_choices, of_references, scorer_of
from harness.evaluation.retention import run_suite
from harness.evaluation.suite import FOLDER, load_suite
from harness.results.items import item_scores


def test_margin_and_probability_in_closed_form():
    # p = 0.5, 0.3, 0.2 of three choices, times e^-700: the exponentials alone would be 0
    lls = [math.log(p) - 700 for p in (0.5, 0.3, 0.2)]
    one = of_choices(lls, {0})
    assert one == {
        "margin": pytest.approx(math.log(5 / 3)),
        "probability": pytest.approx(0.5),
    }
    assert of_choices(lls, {2})["margin"] == pytest.approx(math.log(0.2 / 0.5))
    two = of_choices(lls, {1, 2})  # the best right one against the best wrong one; their sum
    assert two["margin"] == pytest.approx(math.log(0.3 / 0.5))
    assert two["probability"] == pytest.approx(0.5)
    # the log-odds of the probability are the margin where there are two choices
    pair = of_choices([-3.0, -1.25], {0})
    assert pair["margin"] == -1.75
    assert math.log(pair["probability"] / (1 - pair["probability"])) == pytest.approx(-1.75)


@pytest.mark.parametrize(
    ("values", "right"), [([-1.0, -2.0], set()), ([-1.0, -2.0], {0, 1}), ([-1.0], {0})]
)
def test_no_measure_without_a_right_and_a_wrong_choice(values, right):
    assert of_choices(values, right) is None


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_likelihood_that_is_not_finite_gives_no_number(broken):
    scores = of_choices([-1.0, broken], {0})
    assert all(math.isnan(value) for value in scores.values())


class Choices(ConfigurableTask):
    """A multiple-choice task without lm-eval's loading."""

    def __init__(self, gold, *, scoring=None, multiple_input=False, extra=0):
        self._config = SimpleNamespace(process_results=scoring)
        self.gold, self.multiple_input, self.extra = gold, multiple_input, extra

    OUTPUT_TYPE = "multiple_choice"

    def doc_to_choice(self, doc):
        return ["a", "bb", "ccc"]

    def doc_to_target(self, doc):
        return "bb" if self.multiple_input else self.gold

    def doc_to_text(self, doc):
        return self.gold

    def process_results(self, doc, results):
        return self._config.process_results(doc, results)


class Stated(Choices):
    process_results = ConfigurableTask.process_results


ANSWERS = [(-1.0, True), (-3.0, False), (-2.0, False)]


@pytest.mark.parametrize(
    ("gold", "margin"),
    [(0, 1.0), (1, -2.0), ("ccc", -1.0), ([1, 2], -1.0), ([0, 2], 2.0), (7, None), ("x", None)],
)
def test_the_right_choice_is_read_as_lm_eval_reads_it(gold, margin):
    scores = scorer_of(Stated(gold), "acc", True)({}, ANSWERS)
    assert (scores and scores["margin"]) == margin


def test_the_answer_among_contexts_and_unconditional_likelihoods():
    # Winogrande: the right one is in doc_to_text; acc_mutual_info: three more likelihoods behind
    assert scorer_of(Stated(2, multiple_input=True), "acc", True)({}, ANSWERS)["margin"] == -1.0
    scores = scorer_of(Stated(0), "acc_mutual_info", True)({}, [*ANSWERS, *ANSWERS[::-1]])
    assert scores["margin"] == 1.0


def mc2(doc, results):
    """TruthfulQA's scoring: the share of the right ones, two of three."""
    p = np.exp([ll for ll, _ in results])
    return {"acc": (p / p.sum())[[1, 2]].sum()}


def test_scoring_of_its_own_says_what_is_right():
    scores = scorer_of(Choices(0, scoring=mc2), "acc", True)({}, ANSWERS)  # not choice 0
    p = np.exp([-1.0, -3.0, -2.0])
    assert scores["margin"] == -1.0
    assert scores["probability"] == pytest.approx(p[1:].sum() / p.sum())
    # as does a method of a class
    assert Choices.process_results is not ConfigurableTask.process_results


def test_no_measure_where_scoring_says_nothing_of_right_and_wrong():
    def stereotype(doc, results):
        return {"share": 1.0 if results[0][0] > results[1][0] else 0.0, "gap": -3.5}

    lower = scorer_of(Choices(0, scoring=stereotype), "share", False)
    assert lower({}, ANSWERS) is None  # lower is better: what scores 1 is not right
    assert scorer_of(Choices(0, scoring=stereotype), "gap", True)({}, ANSWERS) is None
    assert scorer_of(Choices(0, scoring=stereotype), "missing", True)({}, ANSWERS) is None


def test_tasks_without_choices():
    single = SimpleNamespace(OUTPUT_TYPE="loglikelihood")
    assert scorer_of(single, "acc", True)({}, [(-4.5, False)]) == {"loglikelihood": -4.5}
    assert scorer_of(single, "acc", True)({}, [(-4.5, False), (-1.0, True)]) is None
    assert scorer_of(single, "bits_per_byte", False) is None  # it is that already
    for kind in ("generate_until", "loglikelihood_rolling"):
        assert scorer_of(SimpleNamespace(OUTPUT_TYPE=kind), "acc", True) is None


def naive(model, tokenizer, context: str, continuation: str) -> float:
    """log p(continuation | context), one full pass and float64."""
    whole = tokenizer(context + continuation).input_ids
    start = len(tokenizer(context).input_ids) if context else 0
    if not context:
        whole, start = [tokenizer.eos_token_id, *whole], 1
    logits = model(torch.tensor([whole])).logits[0].double()
    logp = logits.log_softmax(-1)
    return sum(logp[i - 1, whole[i]].item() for i in range(start, len(whole)))


def test_the_numbers_of_a_suite_are_those_of_a_naive_model(tiny):
    """Four choices, pairs without a context, one continuation; scores and means, in float64."""
    tasks = [
        {"task": "embedded_facts", "metric": "acc"},
        {"task": "embedded_minimal_pairs", "metric": "acc"},
        {"task": "embedded_code", "metric": "bits_per_byte"},
    ]
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    live = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    suite = load_suite(tasks)
    facts, pairs, code = run_suite(suite, live, tokenizer, limit=5)
    assert code["continuous"] == {} and "scores" not in code["items"][0]
    for result, context, delimiter in ((facts, "text", " "), (pairs, None, "")):
        (task,) = suite.load(load_suite([result["name"]]).tasks[0])["tasks"].values()
        scores = []
        for item, doc in zip(result["items"], task.eval_docs, strict=False):
            text = doc[context] if context else ""
            with torch.no_grad():
                lls = [naive(model, tokenizer, text, delimiter + c) for c in doc["choices"]]
            wrong = [ll for i, ll in enumerate(lls) if i != doc["answer"]]
            margin = lls[doc["answer"]] - max(wrong)
            p = torch.tensor(lls, dtype=torch.float64).softmax(0)[doc["answer"]].item()
            assert item["scores"]["margin"] == pytest.approx(margin, abs=2e-4)
            assert item["scores"]["probability"] == pytest.approx(p, abs=1e-4)
            assert item["score"] == (item["scores"]["margin"] > 0)
            scores.append(item["scores"])
        for metric, (value, stderr) in result["continuous"].items():
            column = [of_item[metric] for of_item in scores]
            assert len(column) == 5
            assert value == statistics.fmean(column)
            assert stderr == pytest.approx(statistics.stdev(column) / 5**0.5)


def test_a_reference_is_scored_after_the_prompt(tiny):
    """The chat template's prompt and the answer; the generated score and its weights stay."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    live = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    task = {
        "task": "embedded_following",
        "metric": "inst_level_loose_acc",
        "chat_template": True,
        "max_gen_toks": 3,
    }
    plain, with_field, with_template = (
        run_suite(load_suite([task | more]), live, tokenizer, limit=2)[0]
        for more in ({}, {"reference": "answer"}, {"reference": "{{answer}}"})
    )
    assert plain["continuous"] == {} and "reference" not in plain["protocol"]
    assert with_field["protocol"] == {**plain["protocol"], "reference": "answer"}
    assert with_template["continuous"] == with_field["continuous"]
    values = []
    rows = (FOLDER / "tasks/data/following.jsonl").read_text().splitlines()[:2]
    for item, row in zip(with_field["items"], map(json.loads, rows), strict=True):
        chat = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        context = tokenizer(text, add_special_tokens=False).input_ids
        answer = tokenizer(row["answer"], add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        logp = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
        assert item["scores"]["loglikelihood"] == pytest.approx(logp, rel=1e-5)
        values.append(item["scores"]["loglikelihood"])
    assert with_field["continuous"]["loglikelihood"][0] == statistics.fmean(values)
    for a, b in zip(plain["items"], with_field["items"], strict=True):
        assert a == {key: value for key, value in b.items() if key != "scores"}
    evaluation = {"items": [item | {"weight": 7} for item in with_field["items"]]}
    found = item_scores(evaluation, "loglikelihood")  # a plain mean, whatever the weights
    assert list(found.values()) == [(value, 1.0) for value in values]


def test_the_delimiter_before_a_reference():
    class Live:
        def loglikelihood(self, requests):
            self.seen = [request.args for request in requests]
            return [(-1.0, False) for _ in requests]

    task = SimpleNamespace(config=SimpleNamespace(target_delimiter=" "))
    texts = ["four", "    return 4", "", None]
    samples = [{"doc": {"a": text}, "arguments": [("2+2=", {})]} for text in texts]
    live = Live()
    scores = of_references(live, task, "a", False, samples)
    assert live.seen == [("2+2=", " four"), ("2+2=", "    return 4")]
    assert scores == [{"loglikelihood": -1.0}] * 2 + [None] * 2
    of_references(live, task, "a", True, samples)
    assert live.seen[0] == ("2+2=", "four")


def test_a_reference_that_is_not_there_is_refused():
    following = {"task": "embedded_following", "metric": "inst_level_loose_acc"}
    suite = load_suite([following | {"reference": "anser"}])
    with pytest.raises(UserError, match=r"embedded_following.*anser.*did you mean 'answer'"):
        suite.load(suite.tasks[0])
    for template in ("{{ bad", "{{ 1 / 0 }}"):
        suite = load_suite([following | {"reference": template}])
        with pytest.raises(UserError, match=r"embedded_following.*fails on a document \(") as error:
            suite.load(suite.tasks[0])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="`reference` is for tasks that generate"):
        load_suite([{"task": "embedded_facts", "metric": "acc", "reference": "answer"}])
    with pytest.raises(UserError, match="`reference` must be a field"):
        load_suite([following | {"reference": 3}])


def test_a_broken_model_has_no_margin(tiny):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    (result,) = run_suite(load_suite([{"task": "embedded_facts"}]), model, tokenizer, limit=2)
    assert all(
        math.isnan(value) and stderr is None for value, stderr in result["continuous"].values()
    )
