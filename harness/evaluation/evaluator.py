"""Evaluation of skills and of the retention suite on the live model, keyed by content.

A protocol is a hash of the measurement alone: task and template, limits, decoding, data, dtype,
scorer. The key of an evaluation joins it with the fingerprint of the weights: the same model is
never evaluated twice for the same thing.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.thoughts import Thoughts
from harness.evaluation import drift
from harness.evaluation.kept import check_kept_evaluation
from harness.evaluation.kl import Policy, Tokens, evaluate_kl, kl_protocol, sample_answers
from harness.evaluation.own_prompts import OwnPrompts, Questions, own_prompts
from harness.evaluation.pass_at_k import evaluate_pass_at_k, pass_at_k_protocol
from harness.evaluation.protocol import evaluation_key, protocol_hash, scorer_hash
from harness.evaluation.retention import kept_values, run_suite
from harness.evaluation.settings import KL, Drift, Evaluate, PassAtK
from harness.evaluation.skills import Messages, decoding, evaluate_skill, sample_of
from harness.evaluation.subject import Sampler, Subject, dtype_name
from harness.evaluation.suite import Suite
from harness.models.chat import ChatInputs, chat_tokens, thoughts_of
from harness.models.checkpoint import model_fingerprint, reading_and_ending
from harness.results.formats import Evaluation
from harness.results.writer import ResultsWriter
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import VLLMSampler
from harness.skills.skill import Example, Skill, examples_fingerprint
from harness.skills.templates import ORACLE_TEMPLATE, TEACHER_TEMPLATES

Template = str | Messages | None  # a name of TEACHER_TEMPLATES, messages, or the skill's own


class Measurement(NamedTuple):
    """One evaluation on record; docs/reference/results.md says what it holds."""

    key: str
    protocol: str
    evaluation: Mapping[str, Any]


class Evaluator:
    """Evaluates skills and retention for one order.

    It asks the results folder first: what was measured before is not measured again. ``seconds``
    sums what the measurements took: evaluation, retention, and further ones by name. questions:
    ``Method.questions`` of the run's method. waits: is told who measures what this needs.
    """

    questions: Questions | None = None

    def __init__(
        self,
        results: ResultsWriter,
        suite: Suite | None,
        settings: Evaluate,
        limits: dict[str, int],
        templates: dict[str, Template],
        chat: ChatInputs | None = None,
        teacher_chat: ChatInputs | None = None,
    ) -> None:
        """settings: the order's ``evaluate``; limits: new tokens by skill; templates: of the
        teacher, by skill; chat, teacher_chat: what the chat template is given, and the teacher's.
        """
        self.results = results
        self.suite = suite
        self.settings = settings
        self.limits = limits
        self.templates = templates
        self.chat = chat or ChatInputs()
        self.teacher_chat = teacher_chat or ChatInputs()
        self.seconds = {"evaluation": 0.0, "retention": 0.0}
        self.waits: Callable[[str], object] = lambda holder: None

    def skill_protocol(
        self,
        skill: Skill,
        split: str,
        dtype: str,
        chat_template: str,
        reading: Mapping[str, Any],
        teacher: bool = False,
        oracle: bool = False,
        thoughts: Thoughts | None = None,
    ) -> dict[str, Any]:
        """What an evaluation of one split of a skill depends on, the weights apart: JSON values.

        dtype: of the model, by name; chat_template: its text; reading: what ``reading_and_ending``
        says of tokenizer and generation config; teacher, oracle: as in ``skill``; thoughts: the
        tags of what is taken off before answers are graded. The examples and the chat template
        stand in it as hashes, each grader as a hash of its source.
        """
        settings = self.settings
        examples = sample_of(skill.examples(split), settings.examples)
        meaning: dict[str, Any] = {
            "kind": "skill",
            "name": skill.name,
            "split": split,
            "examples": len(examples),
            "data": examples_fingerprint(examples),
            "chat_template": hashlib.sha256(chat_template.encode()).hexdigest()[:12],
            "decoding": (
                decoding(settings.temperature, settings.top_p, settings.seed)
                if settings.temperature
                else "greedy"
            ),
            "max_new_tokens": self.limits[skill.name],
            "dtype": dtype,
            "scorer": {name: scorer_hash(grader) for name, grader in skill.metrics.items()},
            **(self.teacher_chat if teacher else self.chat).protocol(chat_template),
            **reading,
        }
        if thoughts:
            meaning["thoughts"] = f"{thoughts.open}...{thoughts.close} taken off"
        if settings.engine != "transformers":
            meaning["engine"] = settings.engine
        if teacher:
            template = self.templates[skill.name] or skill.teacher_template
            if isinstance(template, str):
                template = TEACHER_TEMPLATES[template]
            meaning["teacher_template"] = template
        if oracle:
            meaning["oracle_template"] = ORACLE_TEMPLATE
        return meaning

    def protocol_of(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        skill: Skill,
        split: str,
        teacher: bool = False,
        oracle: bool = False,
    ) -> dict[str, Any]:
        """``skill_protocol`` of a model and its tokenizer."""
        return self.skill_protocol(
            skill,
            split,
            dtype_name(model.dtype),
            tokenizer.get_chat_template(),
            reading_and_ending(model, tokenizer),
            teacher,
            oracle,
            thoughts_of(tokenizer),
        )

    def skill(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        weights: str,
        skill: Skill,
        split: str,
        progress: Callable[..., object] | None = None,
        teacher: bool = False,
        oracle: bool = False,
    ) -> Measurement:
        """Evaluate one split of a skill.

        weights: the model's fingerprint; teacher: under the demonstration-conditioned prompt;
        oracle: with each question's source before it.
        """
        chat = self.teacher_chat if teacher else self.chat
        subject = Subject(model, tokenizer, sampler, weights, chat)
        meaning = self.protocol_of(model, tokenizer, skill, split, teacher, oracle)
        examples = sample_of(skill.examples(split), self.settings.examples)

        limit = self.limits[skill.name]
        own = None if teacher or oracle else self._own(subject, skill, examples)

        def measure() -> dict[str, Any]:
            prompts = [example.prompt for example in (own.examples if own else examples)]
            if teacher or oracle:
                template = ORACLE_TEMPLATE if oracle else self.templates[skill.name]
                prompts = [skill.teacher_prompt(example, template) for example in examples]
            evaluation = evaluate_skill(
                subject, skill, examples, prompts, self.settings, limit, progress
            )
            return own.counted(subject, evaluation) if own else evaluation

        return self._measure_once(weights, meaning, examples, measure, "evaluation", own)

    def pass_at_k(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        weights: str,
        skill: Skill,
        progress: Callable[..., object] | None = None,
    ) -> Measurement:
        """pass@k of a skill on the split that counts, as ``evaluate_pass_at_k`` says.

        weights: the model's fingerprint.
        """
        subject = Subject(model, tokenizer, sampler, weights, self.chat)
        settings = cast(PassAtK, self.settings.pass_at_k)  # an order makes it of the mapping
        split = self.settings.split
        seed = self.settings.seed
        examples = sample_of(skill.examples(split), settings.prompts)
        meaning = pass_at_k_protocol(
            self.protocol_of(model, tokenizer, skill, split),
            skill,
            examples,
            settings,
            seed,
        )
        own = self._own(subject, skill, examples)

        def measure() -> dict[str, Any]:
            limit = self.limits[skill.name]
            shown = own.examples if own else examples
            return evaluate_pass_at_k(subject, skill, shown, settings, seed, limit, progress)

        return self._measure_once(weights, meaning, examples, measure, "pass_at_k", own)

    def kl(
        self,
        model: PreTrainedModel,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        skill: Skill,
        split: str,
        progress: Callable[..., object] | None = None,
        teacher: bool = False,
    ) -> Measurement:
        """KL divergence between ``model`` and the base policy ``base`` on the prompts of a split.

        harness.evaluation.kl says what it is. With ``teacher`` the model reads the teacher's
        prompt and the metrics are named ``teacher_kl_...``.
        """
        settings = self.settings
        examples = sample_of(skill.examples(split), cast(KL, settings.kl).prompts)
        dtype, chat_template = dtype_name(model.dtype), tokenizer.get_chat_template()
        reading = reading_and_ending(model, tokenizer)
        meaning, without_teacher = (
            kl_protocol(
                self.skill_protocol(skill, split, dtype, chat_template, reading, shown),
                examples,
                settings.seed,
            )
            for shown in (teacher, False)
        )
        questions = [chat_tokens(tokenizer, e.prompt, inputs=self.chat) for e in examples]
        prompts, own = questions, None
        if teacher:
            template = self.templates[skill.name]
            shown = [skill.teacher_prompt(example, template) for example in examples]
            prompts = [chat_tokens(tokenizer, m, inputs=self.teacher_chat) for m in shown]
        elif own := self._own(self._subject(model, tokenizer), skill, examples):
            prompts = [chat_tokens(tokenizer, e.prompt, inputs=self.chat) for e in own.examples]
        policy = Policy(model, model_fingerprint(model), prompts, meaning)
        base_policy = Policy(base, model_fingerprint(base), questions, without_teacher)

        def answers_of(sampled: Policy) -> list[Tokens]:
            """One answer a prompt, kept: the base answers once for all methods and seeds."""
            limit = self.limits[skill.name]
            kept = self._measure_once(
                sampled.fingerprint,
                {**sampled.protocol, "measure": "samples"},
                examples,
                lambda: sample_answers(sampled, tokenizer, examples, settings, limit, progress),
                own=own if sampled is policy else None,
            )
            return [item["token_ids"] for item in kept.evaluation["items"]]

        def measure() -> dict[str, Any]:
            prefix = "teacher_" if teacher else ""
            return evaluate_kl(base_policy, policy, examples, answers_of, prefix)

        meaning = {**meaning, "measure": "KL to the base policy"}
        return self._measure_once(policy.fingerprint, meaning, examples, measure, "kl", own)

    def drift(
        self,
        subject: Subject,
        base_weights: str,
        load_base: Callable[[], Subject],
        progress: Callable[..., object] | None = None,
        skill: Skill | None = None,
    ) -> Measurement:
        """How far ``subject`` has gone from the base policy on general prompts, or on a skill's.

        base_weights: the beginning of the base's fingerprint; load_base: gives the base, asked only
        where its answers are not there yet. harness.evaluation.drift says what is measured.
        """
        settings, seed = cast(Drift, self.settings.drift), self.settings.seed
        if skill is None:
            examples, name, split = drift.drift_prompts(settings.prompts), drift.NAME, "test"
        else:
            name, split = skill.name, self.settings.split
            examples, settings = drift.skill_prompts(skill, split, settings, self.limits[name])
        meaning = drift.drift_protocol(subject, examples, settings, seed, name, split)

        def measure() -> dict[str, Any]:
            answers = self._measure_once(
                base_weights,
                {**meaning, "measure": "samples"},
                examples,
                lambda: drift.answer_as_base(load_base(), examples, settings, seed, progress),
            )
            drifted = drift.measure_drift(subject, examples, answers.evaluation["items"])
            return {**drifted, "base": base_weights}

        return self._measure_once(subject.fingerprint, meaning, examples, measure, "drift")

    def retention(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: str,
        progress: Callable[..., object] | None = None,
        sampler: Sampler | None = None,
    ) -> Iterator[Measurement]:
        """Evaluate the retention suite; yields one measurement a task, in the suite's order.

        weights: the model's fingerprint; sampler: that of the skills, used where its engine is
        vLLM.
        """
        assert self.suite is not None
        start = time.perf_counter()
        vllm = cast(VLLMSampler, sampler) if self.settings.engine == "vllm" else None
        reading = reading_and_ending(model, tokenizer)
        meanings = self.suite.protocols(
            model.dtype, tokenizer, vllm=vllm is not None, chat=self.chat
        )
        lookups = {
            name: self._lookup(weights, {**meaning, **reading}, "retention", name, "test")
            for name, meaning in meanings.items()
        }
        measurements = {
            name: Measurement(key, protocol, evaluation)
            for name, (key, protocol, evaluation) in lookups.items()
            if evaluation is not None
        }

        def save(result: dict[str, Any]) -> None:
            """Each task is kept at once: a kill costs the one that runs."""
            name = result["name"]
            key, protocol, _ = lookups[name]
            # Before the evaluation, which is not made again once it is there.
            self.results.save_questions(protocol, result.pop("questions"))
            values = kept_values(result)
            measurements[name] = self._save(key, protocol, "retention", name, "test", values)

        missing = {lookups[name][0]: name for name in lookups if name not in measurements}
        with closing(self.results.unmeasured(missing, self.waits)) as keys:
            for key in keys:
                run_suite(
                    self.suite,
                    model,
                    tokenizer,
                    only=[missing[key]],
                    progress=progress,
                    vllm=vllm,
                    done=save,
                    chat=self.chat,
                )
        self.seconds["retention"] += time.perf_counter() - start
        for name, (key, protocol, _) in lookups.items():
            yield measurements.get(name) or self._by_others(key, protocol)

    def _measure_once(
        self,
        weights: str,
        meaning: dict[str, Any],
        examples: Sequence[Example],
        measure: Callable[[], dict[str, Any]],
        clock: str | None = None,
        own: OwnPrompts | None = None,
    ) -> Measurement:
        """What ``measure()`` returns, now or before; its seconds go to ``clock``."""
        named = meaning["kind"], meaning["name"], meaning["split"]
        key, protocol, evaluation = self._lookup(weights, meaning, *named, examples, own)
        if evaluation is not None:
            return Measurement(key, protocol, evaluation)
        with closing(self.results.unmeasured([key], self.waits)) as keys:
            for _ in keys:
                start = time.perf_counter()
                measurement = self._save(key, protocol, *named, measure())
                if clock:
                    seconds = time.perf_counter() - start
                    self.seconds[clock] = self.seconds.get(clock, 0.0) + seconds
                return measurement
        return self._by_others(key, protocol)

    def _by_others(self, key: str, protocol: str) -> Measurement:
        """What another process has measured."""
        return Measurement(key, protocol, cast(Evaluation, self.results.evaluation(key)))

    def _subject(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Subject:
        """A model that transformers samples, of no name."""
        sampler = TransformersSampler(model, tokenizer, self.settings.batch_size)
        return Subject(model, tokenizer, sampler, "", self.chat)

    def _own(
        self, subject: Subject, skill: Skill, examples: Sequence[Example]
    ) -> OwnPrompts | None:
        """The prompts that the run's method has for ``examples``, None for their own."""
        return own_prompts(self.questions, subject, skill, examples, self.limits[skill.name])

    def _lookup(
        self,
        weights: str,
        meaning: dict[str, Any],
        kind: str,
        name: str,
        split: str,
        examples: Sequence[Example] | None = None,
        own: OwnPrompts | None = None,
    ) -> tuple[str, str, Mapping[str, Any] | None]:
        """(key, protocol, the evaluation or None); the protocol goes on record.

        A method's own prompts are in the key alone: rows of one protocol are compared. Raises
        UserError if the evaluation of this key is of something else.
        """
        protocol = protocol_hash(meaning)
        key = evaluation_key(weights, protocol, own.digest if own else "")
        self.results.protocol(protocol, meaning)
        evaluation = self.results.evaluation(key)
        if evaluation is not None:
            wanted: dict[str, Any] = {
                "protocol": protocol,
                "kind": kind,
                "name": name,
                "split": split,
            }
            if examples is not None:
                wanted["n"] = len(examples)
            ids = None if examples is None else [example.id for example in examples]
            check_kept_evaluation(self.results.evaluation_path(key), evaluation, wanted, ids)
        return key, protocol, evaluation

    def _save(
        self, key: str, protocol: str, kind: str, name: str, split: str, values: dict[str, Any]
    ) -> Measurement:
        evaluation = cast(
            Evaluation,
            {"protocol": protocol, "kind": kind, "name": name, "split": split, **values},
        )
        self.results.save_evaluation(key, evaluation)
        return Measurement(key, protocol, evaluation)
