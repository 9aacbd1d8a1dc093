"""Evaluation of skills and of the retention suite on the live model, keyed by content.

A protocol is a hash of the measurement alone: task and template, limits, decoding, data, dtype, scorer. The key of an
evaluation joins it with the fingerprint of the weights: the same model is never evaluated twice for the same thing.
"""

import hashlib
import inspect
import json
import math
import statistics
import time

from harness import models
from harness.retention import run_suite
from harness.sampler import seed_for
from harness.skills import fingerprint


def protocol_hash(meaning):
    """Twelve hexadecimal digits that stand for a measurement."""
    text = json.dumps(meaning, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def mean_and_stderr(values):
    """Mean, and the standard error of the mean over examples (sample standard deviation over root n; None for n = 1)."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def sample_of(examples, count):
    """The first ``count`` examples (skills put them in a representative order), or all."""
    return examples if count is None else examples[:count]


class Evaluator:
    """Evaluates skills and retention for one order; asks the results folder for what was measured before."""

    def __init__(self, results, skills, suite, settings, limits, templates):
        """skills: in the order's sequence; suite: a retention suite or None; settings: the order's ``evaluate``; limits: new
        tokens by skill; templates: teacher templates by skill."""
        self.results, self.skills, self.suite, self.settings = results, skills, suite, settings
        self.limits, self.templates = limits, templates
        self.seconds = {"evaluation": 0.0, "retention": 0.0}

    def skill_protocol(self, skill, split, dtype, chat_template, teacher=False):
        examples = sample_of(skill.examples(split), self.settings.examples)
        meaning = {
            "kind": "skill", "name": skill.name, "split": split, "examples": len(examples), "data": fingerprint(examples),
            "chat_template": hashlib.sha256(chat_template.encode()).hexdigest()[:12],
            "decoding": "greedy" if not self.settings.temperature else
            f"temperature {self.settings.temperature}, top-p {self.settings.top_p}, seed {self.settings.seed}",
            "max_new_tokens": self.limits[skill.name], "dtype": dtype,
            "scorer": {name: scorer_hash(f) for name, f in skill.metrics.items()},
        }
        if teacher:
            meaning["teacher_template"] = self.templates[skill.name] or skill.teacher_template
        return meaning

    def skill(self, model, tokenizer, sampler, weights, skill, split, progress=None, teacher=False):
        """Evaluate one split of a skill; with ``teacher`` under the demonstration-conditioned prompt.

        Returns (key, protocol, evaluation); the evaluation is as docs/results.md says.
        """
        meaning = self.skill_protocol(skill, split, str(model.dtype).removeprefix("torch."), tokenizer.chat_template, teacher)
        protocol = protocol_hash(meaning)
        key = f"{weights[:16]}-{protocol}"
        self.results.protocol(protocol, meaning)
        if found := self.results.evaluation(key):
            return key, protocol, found
        start = time.perf_counter()
        examples = sample_of(skill.examples(split), self.settings.examples)
        asked = [skill.teacher_prompt(e, self.templates[skill.name]) if teacher else e.prompt for e in examples]
        answers = sampler.sample([models.chat_tokens(tokenizer, messages) for messages in asked],
                                 max_new_tokens=self.limits[skill.name], temperature=self.settings.temperature,
                                 top_p=self.settings.top_p, seed=seed_for(self.settings.seed, "evaluation"), progress=progress)
        items = [{"id": e.id, "prompt": "\n".join(f"[{m['role']}] {m['content']}" for m in messages), "completion": a.text,
                  "tokens": len(a.token_ids), "finished": a.finished, "reference": e.reference,
                  "scores": {name: float(f(a.text, e.reference)) for name, f in skill.metrics.items()}}
                 for e, messages, (a,) in zip(examples, asked, answers)]
        metrics = {name: mean_and_stderr([item["scores"][name] for item in items]) for name in skill.metrics}
        metrics["response_tokens"] = mean_and_stderr([item["tokens"] for item in items])
        evaluation = {"protocol": protocol, "kind": "skill", "name": skill.name, "split": split, "n": len(items),
                      "metrics": metrics, "items": items}
        self.results.save_evaluation(key, evaluation)
        self.seconds["evaluation"] += time.perf_counter() - start
        return key, protocol, evaluation

    def retention(self, model, tokenizer, weights, progress=None):
        """Evaluate the retention suite. Yields (key, protocol, evaluation), one a task."""
        start = time.perf_counter()
        meanings = self.suite.protocols(model.dtype, tokenizer)
        keys = {name: (f"{weights[:16]}-{protocol_hash(meaning)}", protocol_hash(meaning)) for name, meaning in meanings.items()}
        missing = [name for name, (key, _) in keys.items() if self.results.evaluation(key) is None]
        for name in missing:
            self.results.protocol(keys[name][1], meanings[name])
        for found in run_suite(self.suite, model, tokenizer, only=missing, progress=progress) if missing else ():
            key, protocol = keys[found["name"]]
            self.results.save_evaluation(key, {
                "protocol": protocol, "kind": "retention", "name": found["name"], "split": "test", "n": found["n"],
                "metrics": {found["metric"]: [found["value"], found["stderr"]]}, "items": found["items"]})
        self.seconds["retention"] += time.perf_counter() - start
        for key, protocol in keys.values():
            yield key, protocol, self.results.evaluation(key)


def scorer_hash(function):
    """Eight digits of the source of the module that scores, so that a changed grader is another protocol."""
    module = inspect.getmodule(inspect.unwrap(function))
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:8]
