"""What is measured on the live model of a run: each skill, and at the borders of stages more."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedModel

from harness.evaluation.evaluator import Measurement
from harness.evaluation.subject import Subject
from harness.models.checkpoint import model_fingerprint
from harness.results.formats import ORACLE, RELEARN
from harness.runs.measuring_cost import example_count
from harness.runs.one_run import OneRun, base_weights
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import Skill


@dataclass(frozen=True)
class Finding:
    """An evaluation on its way to the records.

    names: {metric: its name in the records}; None puts all metrics there by their own names.
    """

    measurement: Measurement
    names: dict[str, str] | None = None

    def values(self) -> Iterator[tuple[str, float, float | None]]:
        """(metric, value, standard error) of every record."""
        metrics = self.measurement.evaluation["metrics"]
        names = {metric: metric for metric in metrics} if self.names is None else self.names
        for metric, name in names.items():
            value, stderr = metrics[metric]
            yield name, value, stderr


class _Elsewhere(Exception):
    """Another process is measuring what was asked for."""


def _leave(holder: str) -> None:
    raise _Elsewhere(holder)


class Measurements:
    """Evaluations of a run's model with the weights that it has now.

    Every method yields a Finding as soon as it is made.
    """

    def __init__(
        self, live: OneRun, progress: Callable[[str, str, int], Callable[..., None]]
    ) -> None:
        """progress: f(what is evaluated, its name in a forecast, answers) makes what shows how far
        it is.
        """
        self.live = live
        self.order = live.order
        self.progress = progress
        self.weights = model_fingerprint(live.model)

    def of_skills(self, skills: Iterable[Skill]) -> Iterator[Finding]:
        """Every evaluated split of the skills; validation alone where one is learned again."""
        relearns = self.live.run.reference == RELEARN
        for skill in skills:
            for split in ["validation"] if relearns else self.order.splits(skill):
                measurement = self._skill(skill, split, f"{skill.name} {split}")
                self._say_dropped(measurement, f"{skill.name} {split}")
                yield Finding(measurement)

    def share_out(self, skills: Iterable[Skill]) -> None:
        """Measure now what no other process is measuring.

        So processes that begin together divide what all need of the base model, where each would
        wait for the first one.
        """
        evaluator = self.live.evaluator
        before, evaluator.waits = evaluator.waits, _leave
        try:
            for skill in skills:
                for split in self.order.splits(skill):
                    with suppress(_Elsewhere):
                        self._skill(skill, split, f"{skill.name} {split}")
            with suppress(_Elsewhere):
                list(self.of_retention())
        finally:
            evaluator.waits = before

    def _say_dropped(self, measurement: Measurement, what: str) -> None:
        """Say how many demonstrations a method's prompts had no room for."""
        items = measurement.evaluation["items"]
        if dropped := sum(item.get("demonstrations_dropped", 0) for item in items):
            self.live.progress.say(
                f"{self.live.title}: {what}: {dropped} demonstrations found no room in the "
                f"prompts of {len(items)} questions and are left out"
            )

    def of_drift(self, stage: int) -> Iterator[Finding]:
        """How far the model has gone from the base policy, where the order asks for it.

        stage: the number of skills that are learned, or begun.
        """
        if self.order.drift is None:
            return
        along = self.order.drift.along
        learned = [skill for k in range(1, stage + 1) for skill in self.live.taught(k)]
        if "general" in along:
            yield Finding(self._drift(None))
        if not stage and self.order.drifts:  # while the base is at hand, it answers
            for skill in self.order.skills:
                self._drift(skill)
        for place, skill in enumerate(learned, 1):
            kind = "new" if place == stage else "old"
            if kind in along:
                found = self._drift(skill)
                names = {m: f"{kind}_{m}" for m in found.evaluation["metrics"]}
                yield Finding(found, names)

    def _drift(self, skill: Skill | None) -> Measurement:
        """On the prompts of a skill, or on general ones."""
        live = self.live
        assert self.order.drift is not None
        base = base_weights(live.results, live.run.name) or self.weights

        def load_base() -> Subject:
            """A second copy only where the base has not answered, or the file was removed."""
            return self._subject(
                live.model if base == self.weights else self.live.load_base(), base
            )

        return live.evaluator.drift(
            self._subject(live.model, self.weights),
            base,
            load_base,
            self.progress("the drift from the base", "drift", self.order.drift.prompts),
            skill,
        )

    def _subject(self, model: PreTrainedModel, weights: str) -> Subject:
        """A model that transformers samples, also where the order's engine is another."""
        batch_size = self.order.evaluate.batch_size
        sampler = TransformersSampler(model, self.live.tokenizer, batch_size)
        chat = self.order.chat_template.inputs("evaluate")
        return Subject(model, self.live.tokenizer, sampler, weights, chat)

    def after_learning(self, skill: Skill) -> Iterator[Finding]:
        """pass@k and the KL to the base policy of the skill that was just learned."""
        if self.order.evaluate.pass_at_k:
            yield self._pass_at_k(skill)
        if self.order.evaluate.kl:
            yield self._kl_to_base(skill)

    def of_base(self) -> Iterator[Finding]:
        """pass@k, teacher and oracle of every skill at the base model."""
        settings = self.order.evaluate
        if settings.pass_at_k:
            for skill in self.order.skills:
                yield self._pass_at_k(skill)
        if settings.teacher:
            for skill in self.order.skills:
                yield from self._teacher(skill)
        if settings.oracle:
            for skill in self.order.skills:
                for split in self.order.reported(skill):
                    yield self._oracle(skill, split)

    def of_retention(self) -> Iterator[Finding]:
        """Every task of the retention suite."""
        if self.order.suite is None:
            return
        live = self.live
        show = self.progress("retention", "retention", 0)
        for measurement in live.evaluator.retention(
            live.model, live.tokenizer, self.weights, show, live.sampler
        ):
            yield Finding(measurement)

    def _skill(self, skill: Skill, split: str, what: str, **prompt: bool) -> Measurement:
        """prompt: teacher or oracle, as Evaluator.skill takes them."""
        live = self.live
        return live.evaluator.skill(
            live.model,
            live.tokenizer,
            live.sampler,
            self.weights,
            skill,
            split,
            self.progress(
                what,
                " ".join([skill.name, *prompt]),
                example_count(skill, split, self.order.evaluate.examples),
            ),
            **prompt,
        )

    def _pass_at_k(self, skill: Skill) -> Finding:
        live = self.live
        assert self.order.pass_at_k is not None
        prompts = example_count(skill, self.order.evaluate.split, self.order.pass_at_k.prompts)
        what = f"{skill.name} pass@k"
        measurement = live.evaluator.pass_at_k(
            live.model,
            live.tokenizer,
            live.sampler,
            self.weights,
            skill,
            self.progress(what, what, prompts * self.order.pass_at_k.samples),
        )
        return Finding(measurement)

    def _kl_to_base(self, skill: Skill) -> Finding:
        live = self.live
        measurement = live.evaluator.kl(
            live.model,
            self.live.load_base(),
            live.tokenizer,
            skill,
            self.order.evaluate.split,
            self._progress_of_kl(skill, self.order.evaluate.split),
        )
        return Finding(measurement)

    def _progress_of_kl(self, skill: Skill, split: str) -> Callable[..., None]:
        assert self.order.kl is not None
        answers = example_count(skill, split, self.order.kl.prompts)
        return self.progress(f"{skill.name} KL to the base policy", f"{skill.name} KL", answers)

    def _teacher(self, skill: Skill) -> Iterator[Finding]:
        """Accuracy under the teacher's prompt, and what it is to be compared with."""
        live = self.live
        split = self.order.teacher_split(skill)
        what = f"{skill.name} teacher"
        if split not in self.order.splits(skill):
            yield Finding(self._skill(skill, split, what))
        measurement = self._skill(skill, split, what, teacher=True)
        yield Finding(measurement, names={skill.metric: "teacher_accuracy"})
        if self.order.evaluate.kl:
            measurement = live.evaluator.kl(
                live.model,
                live.model,
                live.tokenizer,
                skill,
                split,
                self._progress_of_kl(skill, split),
                teacher=True,
            )
            yield Finding(measurement)

    def _oracle(self, skill: Skill, split: str) -> Finding:
        measurement = self._skill(
            skill, split, f"{skill.name} {split} with its source", oracle=True
        )
        _, _, evaluation = measurement
        return Finding(measurement, names={m: ORACLE + m for m in evaluation["metrics"]})
