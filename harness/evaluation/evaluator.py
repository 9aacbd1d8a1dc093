"""Evaluation of skills and of the retention suite on the live model, keyed by content.

A protocol is a hash of the measurement alone: task and template, limits, decoding, data, dtype,
scorer. The key of an evaluation joins it with the fingerprint of the weights: the same model is
never evaluated twice for the same thing.
"""

import hashlib
import time

from harness.base import metrics
from harness.base.metrics import mean_and_stderr
from harness.base.seeds import seed_for
from harness.evaluation.kl import sequence_kl
from harness.evaluation.protocol import protocol_hash, scorer_hash
from harness.evaluation.retention import run_suite
from harness.learning.packing import Row
from harness.models.chat import chat_tokens
from harness.models.checkpoint import model_fingerprint
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import examples_fingerprint
from harness.skills.templates import ORACLE_TEMPLATE, TEACHER_TEMPLATES


def sample_of(examples, count):
    """The first ``count`` examples (skills put them in a representative order), or all."""
    return examples if count is None else examples[:count]


class Evaluator:
    """Evaluates skills and retention for one order; asks the results folder for what was measured
    before.
    """

    def __init__(self, results, suite, settings, limits, templates):
        """suite: a retention suite or None; settings: the order's ``evaluate``; limits: new tokens
        by skill; templates: teacher templates by skill.
        """
        self.results, self.suite, self.settings = results, suite, settings
        self.limits, self.templates = limits, templates
        self.seconds = {"evaluation": 0.0, "retention": 0.0}

    def skill_protocol(self, skill, split, dtype, chat_template, teacher=False, oracle=False):
        """What an evaluation of one split of a skill depends on, the weights apart: a dict of JSON
        values, to be hashed and put on record.

        skill: a Skill; dtype: of the model, by name; chat_template: its text; teacher, oracle: as
        in ``skill``. Of the examples and the template it holds hashes, of each grader one of its
        source.
        """
        examples = sample_of(skill.examples(split), self.settings.examples)
        meaning = {
            "kind": "skill",
            "name": skill.name,
            "split": split,
            "examples": len(examples),
            "data": examples_fingerprint(examples),
            "chat_template": hashlib.sha256(chat_template.encode()).hexdigest()[:12],
            "decoding": "greedy"
            if not self.settings.temperature
            else f"temperature {self.settings.temperature}, top-p {self.settings.top_p}, seed {self.settings.seed}",
            "max_new_tokens": self.limits[skill.name],
            "dtype": dtype,
            "scorer": {name: scorer_hash(f) for name, f in skill.metrics.items()},
        }
        if self.settings.engine != "transformers":
            meaning["engine"] = self.settings.engine
        if teacher:
            template = self.templates[skill.name] or skill.teacher_template
            meaning["teacher_template"] = (
                TEACHER_TEMPLATES[template] if isinstance(template, str) else template
            )
        if oracle:
            meaning["oracle_template"] = ORACLE_TEMPLATE
        return meaning

    def skill(
        self,
        model,
        tokenizer,
        sampler,
        weights,
        skill,
        split,
        progress=None,
        teacher=False,
        oracle=False,
    ):
        """Evaluate one split of a skill; with ``teacher`` under the demonstration-conditioned
        prompt, with ``oracle`` with each question's source before it.

        Returns (key, protocol, evaluation); the evaluation is as docs/results.md says.
        """
        meaning = self.skill_protocol(
            skill, split, _name(model.dtype), tokenizer.get_chat_template(), teacher, oracle
        )
        protocol = protocol_hash(meaning)
        key = f"{weights[:16]}-{protocol}"
        self.results.protocol(protocol, meaning)
        if found := self.results.evaluation(key):
            return key, protocol, found
        start = time.perf_counter()
        examples = sample_of(skill.examples(split), self.settings.examples)
        asked = [e.prompt for e in examples]
        if teacher or oracle:
            asked = [
                skill.teacher_prompt(e, ORACLE_TEMPLATE if oracle else self.templates[skill.name])
                for e in examples
            ]
        answers = sampler.sample(
            [chat_tokens(tokenizer, messages) for messages in asked],
            max_new_tokens=self.limits[skill.name],
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=seed_for(self.settings.seed, "evaluation"),
            progress=progress,
        )
        items = [
            {
                "id": e.id,
                "prompt": _text(messages),
                "completion": a.text,
                "tokens": len(a.token_ids),
                "finished": a.finished,
                "reference": e.reference,
                "scores": {
                    name: float(f(a.text, e.reference)) for name, f in skill.metrics.items()
                },
            }
            for e, messages, (a,) in zip(examples, asked, answers)
        ]
        values = {
            name: mean_and_stderr([item["scores"][name] for item in items])
            for name in skill.metrics
        }
        values["response_tokens"] = mean_and_stderr([item["tokens"] for item in items])
        evaluation = {
            "protocol": protocol,
            "kind": "skill",
            "name": skill.name,
            "split": split,
            "n": len(items),
            "metrics": values,
            "items": items,
        }
        self.results.save_evaluation(key, evaluation)
        self.seconds["evaluation"] += time.perf_counter() - start
        return key, protocol, evaluation

    def pass_at_k(self, model, tokenizer, sampler, weights, skill, progress=None):
        """pass@k of a skill on the split that counts, for k = 1, 2, 4, ... and the number of
        samples; see metrics.pass_at_k.

        An answer is right if the metric that counts is 1. Standard errors are over prompts. Returns
        as ``skill`` does; the items hold every answer and how many were right, from which any other
        k follows.
        """
        how, split = self.settings.pass_at_k, self.settings.split
        examples = sample_of(skill.examples(split), how.prompts)
        meaning = {
            **self.skill_protocol(skill, split, _name(model.dtype), tokenizer.get_chat_template()),
            "measure": "pass@k",
            "examples": len(examples),
            "data": examples_fingerprint(examples),
            "samples": how.samples,
            "right": f"{skill.metric} is 1",
            "decoding": f"temperature {how.temperature}, top-p {how.top_p}, seed {self.settings.seed}",
        }

        def measure():
            answers = sampler.sample(
                [chat_tokens(tokenizer, e.prompt) for e in examples],
                n=how.samples,
                max_new_tokens=self.limits[skill.name],
                temperature=how.temperature,
                top_p=how.top_p,
                seed=seed_for(self.settings.seed, "pass@k"),
                progress=progress,
            )
            ks = sorted({2**i for i in range(how.samples.bit_length())} | {how.samples})
            items = []
            for e, group in zip(examples, answers):
                scores = [float(skill.grade(a.text, e.reference)) for a in group]
                right = sum(score == 1 for score in scores)
                items.append(
                    {
                        "id": e.id,
                        "prompt": _text(e.prompt),
                        "reference": e.reference,
                        "right": right,
                        "samples": how.samples,
                        "completions": [
                            {
                                "completion": a.text,
                                "tokens": len(a.token_ids),
                                "finished": a.finished,
                                "score": score,
                            }
                            for a, score in zip(group, scores)
                        ],
                        "scores": {
                            f"pass@{k}": float(metrics.pass_at_k(how.samples, right, k)) for k in ks
                        },
                    }
                )
            return {
                "n": len(items),
                "items": items,
                "sampled_tokens": sum(len(a.token_ids) for group in answers for a in group),
                "metrics": {
                    f"pass@{k}": mean_and_stderr([i["scores"][f"pass@{k}"] for i in items])
                    for k in ks
                },
            }

        return self._once(weights, meaning, measure, "pass_at_k")

    def kl(self, model, base, tokenizer, skill, split, progress=None, teacher=False):
        """KL divergence between ``model`` and the base policy ``base`` on the first prompts of a
        split, in nats.

        Forward is KL(base || model), along answers sampled from the base; reverse is KL(model ||
        base), along the model's own answers; one answer a prompt, temperature 1, no top-p. At every
        position the divergence is that of the two next-token distributions over the full
        vocabulary, given the sampled prefix; summed over an answer, its mean is the KL of answers
        cut at the limit (chain rule), with less variance than their log-ratio. ``_sequence``: mean
        sum of an answer; ``_token``: mean over all tokens. Standard errors are over answers.

        With ``teacher`` the model reads the teacher's prompt and the metrics are named
        ``teacher_kl_...``. Returns as ``skill``.
        """
        examples = sample_of(skill.examples(split), self.settings.kl.prompts)
        common = self.skill_protocol(
            skill, split, _name(model.dtype), tokenizer.get_chat_template(), teacher
        )
        # two models at once: by transformers
        common = {
            **{k: v for k, v in common.items() if k not in ("scorer", "engine")},
            "examples": len(examples),
            "data": examples_fingerprint(examples),
            "decoding": f"temperature 1, top-p 1, seed {self.settings.seed}",
        }
        weights, base_weights = model_fingerprint(model), model_fingerprint(base)
        question = [chat_tokens(tokenizer, e.prompt) for e in examples]
        shown = question
        if teacher:
            shown = [
                chat_tokens(tokenizer, skill.teacher_prompt(e, self.templates[skill.name]))
                for e in examples
            ]

        def answers(policy, whose, prompts, meaning):
            """Token ids of one sampled answer a prompt; kept, so that the base answers once for all
            methods and seeds.
            """

            def draw():
                sampler = TransformersSampler(policy, tokenizer, self.settings.batch_size)
                drawn = sampler.sample(
                    prompts,
                    max_new_tokens=self.limits[skill.name],
                    seed=seed_for(self.settings.seed, "kl"),
                    progress=progress,
                )
                return {
                    "n": len(drawn),
                    "metrics": {},
                    "items": [
                        {
                            "id": e.id,
                            "prompt": _text(e.prompt),
                            "completion": a.text,
                            "finished": a.finished,
                            "token_ids": a.token_ids,
                        }
                        for e, (a,) in zip(examples, drawn)
                    ],
                }

            return [
                item["token_ids"]
                for item in self._once(whose, {**meaning, "measure": "samples"}, draw)[2]["items"]
            ]

        def measure():
            plain = {k: v for k, v in common.items() if k != "teacher_template"}
            prefix, values, items, sampled = (
                "teacher_" if teacher else "",
                {},
                [{"id": e.id} for e in examples],
                0,
            )
            for direction, policy, whose, prompts, meaning, other, others in (
                ("forward", base, base_weights, question, plain, model, shown),
                ("reverse", model, weights, shown, common, base, question),
            ):
                drawn = answers(policy, whose, prompts, meaning)
                totals = sequence_kl(
                    policy,
                    [Row(p, a) for p, a in zip(prompts, drawn)],
                    other,
                    [Row(p, a) for p, a in zip(others, drawn)],
                )
                lengths = [len(a) for a in drawn]
                sampled += sum(lengths)
                values[f"{prefix}kl_{direction}_sequence"] = mean_and_stderr(totals)
                values[f"{prefix}kl_{direction}_token"] = metrics.ratio_and_stderr(totals, lengths)
                for item, total, length in zip(items, totals, lengths):
                    item.update({direction: total, f"{direction}_tokens": length})
            read = 2 * sum(map(len, question)) + 2 * sum(map(len, shown))
            return {
                "n": len(items),
                "base": base_weights,
                "metrics": values,
                "items": items,
                "sampled_tokens": sampled,
                "scored_tokens": 2 * sampled + read,
            }

        return self._once(weights, {**common, "measure": "KL to the base policy"}, measure, "kl")

    def _once(self, weights, meaning, measure, clock=None):
        """(key, protocol, evaluation) of what ``measure()`` returns, made now or before; its
        seconds go to ``clock``.
        """
        protocol = protocol_hash(meaning)
        key = f"{weights[:16]}-{protocol}"
        self.results.protocol(protocol, meaning)
        found = self.results.evaluation(key)
        if found is None:
            start = time.perf_counter()
            found = {
                "protocol": protocol,
                "kind": "skill",
                "name": meaning["name"],
                "split": meaning["split"],
                **measure(),
            }
            self.results.save_evaluation(key, found)
            if clock:
                self.seconds[clock] = self.seconds.get(clock, 0.0) + time.perf_counter() - start
        return key, protocol, found

    def retention(self, model, tokenizer, weights, progress=None, sampler=None):
        """Evaluate the retention suite; ``sampler`` is that of the skills, asked where its engine
        is vLLM. Yields (key, protocol, evaluation), one a task.
        """
        start = time.perf_counter()
        sampler = sampler if self.settings.engine == "vllm" else None
        meanings = self.suite.protocols(model.dtype, tokenizer, vllm=sampler is not None)
        keys = {
            name: (f"{weights[:16]}-{protocol_hash(meaning)}", protocol_hash(meaning))
            for name, meaning in meanings.items()
        }
        evaluations = {name: self.results.evaluation(key) for name, (key, _) in keys.items()}
        missing = [name for name, found in evaluations.items() if found is None]
        for name in missing:
            self.results.protocol(keys[name][1], meanings[name])

        def done(found):  # each task is kept at once: a kill costs the one that runs
            key, protocol = keys[found["name"]]
            evaluations[found["name"]] = {
                "protocol": protocol,
                "kind": "retention",
                "name": found["name"],
                "split": "test",
                "n": found["n"],
                "metrics": {found["metric"]: [found["value"], found["stderr"]]},
                "items": found["items"],
            }
            self.results.save_evaluation(key, evaluations[found["name"]])

        if missing:
            run_suite(
                self.suite,
                model,
                tokenizer,
                only=missing,
                progress=progress,
                vllm=sampler,
                done=done,
            )
        self.seconds["retention"] += time.perf_counter() - start
        for name, (key, protocol) in keys.items():
            yield key, protocol, evaluations[name]


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _text(messages):
    return "\n".join(f"[{m['role']}] {m['content']}" for m in messages)
