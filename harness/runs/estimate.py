"""What an order costs before it runs: work, seconds and memory of each method x skill."""

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.errors import UserError, plug_in
from harness.base.files import read_json
from harness.evaluation.loaded_tasks import think_end_token
from harness.evaluation.suite import Suite
from harness.learning.outlook import Outlook, Work
from harness.learning.parametrisation import Parametrisation, Size
from harness.learning.part import joint_budget
from harness.models.load import resolve_device
from harness.results.formats import JOINT, RELEARN
from harness.results.writer import ResultsWriter
from harness.runs.cost import Machine, Memory
from harness.runs.methods import MethodSpec
from harness.runs.order import Order
from harness.runs.order_cost import OrderCost, SkillCost, StageCost
from harness.runs.references import Run
from harness.skills.skill import Skill
from harness.skills.templates import ORACLE_TEMPLATE

GENERAL_PROMPT = 40  # tokens of a prompt of the drift with its chat template
RETENTION_BATCH = 32  # answers that the retention suite samples at once


def estimate_order(
    order: Order,
    tokenizer: PreTrainedTokenizerBase,
    shape: PreTrainedModel,
    results: ResultsWriter,
) -> OrderCost:
    """What an order costs on this machine; shape: its model on the meta device.

    results: the folder whose finished stages give measured times.
    """
    estimator = _Estimator(order, tokenizer, shape, results)
    stages = [
        estimator.stage(spec, sequence, number, results)
        for spec in order.methods.values()
        for sequence in order.sequences
        for number in range(1, len(order.skills) + 1)
    ]
    for run in order.runs():
        if run.reference and run.seed == order.seeds[0]:
            stages.append(estimator.reference(order.methods[run.label], run, results))
    return OrderCost(
        parameters=estimator.machine.parameters,
        flops=estimator.machine.flops,
        seeds=len(order.seeds),
        skills=estimator.skills,
        stages=stages,
        retention=estimator.retention,
        drift=estimator.drift_after(order.skills),
        base_answers=estimator.base_answers,
        uncounted=estimator.uncounted,
    )


def example_count(skill: Skill, split: str, most: int | None) -> int:
    """Examples of a split that are measured: the first ``most``, or all."""
    count = len(skill.examples(split))
    return count if most is None else min(count, most)


class StageWork(NamedTuple):
    """What a stage is estimated from: see ``work_of``; held: as StageCost's."""

    outlook: Outlook
    work: Work
    trained: Size
    held: dict[str, tuple[float, float]]


def _with_parts(spec: MethodSpec, phases: list[int], drawn: Sequence[int]) -> list[int]:
    """The phases of a stage, and one more for the steps that parts add behind the first.

    drawn: examples that each stage before drew.
    """
    own, behind = joint_budget([part.make() for part in spec.parts], phases[0], drawn)
    return [own, *([behind] if behind else []), *phases[1:]]


def outlooks_of(
    order: Order, tokenizer: PreTrainedTokenizerBase, parameters: int
) -> dict[str, Outlook]:
    """What is known of each skill, by its name; parameters: weights of the model."""
    return {
        skill.name: Outlook(
            tokenizer,
            skill,
            order.template(skill),
            order.limit(skill, rollout=True),
            order.prompts(skill),
            parameters,
        )
        for skill in order.skills
    }


def work_of(
    spec: MethodSpec,
    shape: PreTrainedModel,
    outlooks: Mapping[str, Outlook],
    own: tuple[Skill, int],
    later: int,
    earlier: Sequence[tuple[Skill, int]],
) -> StageWork:
    """What is known of a skill before a stage, what the method does in it, what it trains.

    shape: the model, which may be on the meta device; own: the skill and its budget; later: skills
    still to come; earlier: those that were learned before, with the same method.
    """

    def known(skill: Skill, prompts: int) -> Outlook:
        outlook = copy.copy(outlooks[skill.name])
        outlook.prompts = prompts
        return outlook

    outlook = known(*own)
    outlook.later = later
    outlook.earlier = [known(*each) for each in earlier]
    trained = spec.make_parameters().size(shape)
    outlook.parameters = trained.weights
    work = spec.ask("work", outlook)
    held = {spec.method: (work.kept, work.gold_rows)}
    for part in spec.parts:
        before = work
        with plug_in(spec.place, f"work() of {part.name}"):
            work = part.make().work(outlook, work, outlook.earlier)
            kept, rows = work.kept - before.kept, work.gold_rows - before.gold_rows
        held[part.name] = (kept, rows)
    if spec.parameters:
        held[spec.parameters.name] = (4.0 * trained.kept * (later > 0), 0.0)
    return StageWork(outlook, work, trained, held)


class _Estimator:
    """Costs of one order: of each skill, of the retention suite, and on request of a stage."""

    def __init__(
        self,
        order: Order,
        tokenizer: PreTrainedTokenizerBase,
        shape: PreTrainedModel,
        results: ResultsWriter,
    ) -> None:
        device, dtype = resolve_device(order.model.device), order.dtype()
        self.order = order
        self.shape = shape
        self.machine = Machine(sum(p.numel() for p in shape.parameters()), dtype, device)
        self.memory = Memory(shape, dtype, device)
        self.outlooks = outlooks_of(order, tokenizer, self.machine.parameters)
        self.skills = {skill.name: self._skill(skill) for skill in order.skills}
        self.retention, self.uncounted = self._retention(tokenizer, results)
        self.base_answers = self._base_answers()

    # ---- stages --------------------------------------------------------------------------------

    def stage(
        self, spec: MethodSpec, sequence: str, number: int, results: ResultsWriter
    ) -> StageCost:
        """The cost of stage ``number`` of one run of a method through a sequence."""
        order, learned = self.order, self.order.in_sequence(sequence)
        skill = learned[number - 1]
        prompts = order.prompts(skill, spec.config)
        batch_size = order.batch_size(spec.config)
        earlier = learned[: number - 1]
        drawn = [
            min(spec.phases(order.prompts(e, spec.config))[0], len(e.examples("train")))
            for e in earlier
        ]
        phases = _with_parts(spec, spec.phases(prompts), drawn)
        steps = sum(-(-phase // batch_size) for phase in phases)
        every = order.evaluate.every_steps
        inside = (steps - 1) // every if every else 0
        names = [s.name for s in order.evaluated(number, True, sequence)]
        names += [s.name for s in order.evaluated(number, False, sequence)] * inside
        outlook, work, trained, held = self._work(
            spec, skill, prompts, len(learned) - number, earlier
        )
        parameters = spec.make_parameters()
        stem = Run(spec.label, 0, (), sequence=sequence).stem
        seconds_measured = self._measured_seconds(stem, number, results)
        seconds_estimated = self._learning_seconds(work, prompts, batch_size, type(parameters))
        seconds_estimated += self._evaluation_seconds(skill, names)
        seconds_estimated += (1 + inside) * self.drift_after(learned[:number])
        taught = {each.name for each in learned[:number]}
        answers = sum(self.skills[name].answers for name in names if name in taught)
        seconds_estimated += self.machine.forward(answers * work.shown)
        return StageCost(
            label=spec.label,
            skill=skill.name,
            prompts=sum(phases) + round(work.further),
            batch_size=batch_size,
            steps=steps,
            evaluations=1 + inside,
            evaluated_skills=tuple(names),
            seconds=seconds_estimated if seconds_measured is None else seconds_measured,
            is_measured=seconds_measured is not None,
            memory=self._peak(spec, work, outlook, batch_size, trained),
            trained=trained.numbers,
            state=self._state(spec, work, trained),
            kept=work.kept + 4 * trained.kept * (outlook.later > 0),
            shown=work.shown,
            held=held,
            sequence=sequence,
            is_last=number == len(learned),
        )

    def reference(self, spec: MethodSpec, run: Run, results: ResultsWriter) -> StageCost:
        """The cost of a reference: of first stages, measured once, retention for joint alone."""
        order, (numbers,) = self.order, run.stages
        if run.reference == RELEARN:
            spec = replace(spec, parts=())
        skills = [order.skills[number - 1] for number in numbers]
        prompts = [order.prompts(skill, spec.config) for skill in skills]
        batch_size = order.batch_size(spec.config)
        phases = _with_parts(spec, spec.phases(sum(prompts)), [])
        further = self._work(spec, skills[0], sum(prompts), later=0, earlier=[]).work.further
        seconds = self._measured_seconds(run.stem, 1, results)
        estimated = self.retention if run.reference == JOINT else 0.0
        peaks, states = [(0.0, 0.0)], [0.0]
        parameters = type(spec.make_parameters())
        for skill, own in zip(skills, prompts, strict=True):
            outlook, work, trained, _ = self._work(spec, skill, own, later=0, earlier=[])
            estimated += self._learning_seconds(work, own, batch_size, parameters)
            estimated += self.skills[skill.name].evaluation
            peaks.append(self._peak(spec, work, outlook, batch_size, trained))
            states.append(self._state(spec, work, trained))
        steps = sum(-(-phase // batch_size) for phase in phases)
        inside = (steps - 1).bit_length() if run.reference == RELEARN else 0
        estimated += inside * self.skills[skills[0].name].evaluation
        return StageCost(
            label=spec.label,
            skill=skills[0].name if len(skills) == 1 else f"all {len(skills)}",
            prompts=sum(phases) + round(further),
            batch_size=batch_size,
            steps=steps,
            evaluations=1 + inside,
            evaluated_skills=tuple(skill.name for skill in skills) * (1 + inside),
            seconds=estimated if seconds is None else seconds,
            is_measured=seconds is not None,
            memory=max(peaks),
            trained=trained.numbers,
            state=max(states),
            kept=0.0,
            shown=work.shown,
            held={},
            reference=run.reference,
            sequence=run.sequence,
        )

    def _work(
        self, spec: MethodSpec, skill: Skill, prompts: int, later: int, earlier: Sequence[Skill]
    ) -> StageWork:
        """``work_of`` with the order's own budgets of earlier skills."""
        budgets = [(each, self.order.prompts(each, spec.config)) for each in earlier]
        return work_of(spec, self.shape, self.outlooks, (skill, prompts), later, budgets)

    def _state(self, spec: MethodSpec, work: Work, trained: Size) -> float:
        """Bytes of float32 masters and moments, and of copies of what a teacher has."""
        copied = trained.numbers if trained.again else self.machine.parameters
        return float(16 * trained.numbers * spec.cls.trains + 4 * work.copies * copied)

    def _measured_seconds(self, stem: str, number: int, results: ResultsWriter) -> float | None:
        """Mean seconds of this stage in the folder's runs of all seeds; None if there are none."""
        seconds = []
        for seed in self.order.seeds:
            path = results.stage(f"{stem}-seed{seed}", number) / "stage.json"
            if path.exists():
                seconds.append(sum(read_json(path, "seconds")["seconds"].values()))
        return statistics.fmean(seconds) if seconds else None

    def _learning_seconds(
        self, work: Work, prompts: int, batch_size: int, trained: type[Parametrisation]
    ) -> float:
        machine, rollout = self.machine, self.order.rollout
        at_once = rollout.batch_size or self.memory.rows_at_once(work.sampled, work.sampled)
        passes = trained.passes * machine.forward(work.learned) + machine.forward(
            work.scored + work.read
        )
        seconds = prompts * passes
        full_batches, rest = divmod(prompts, batch_size)
        for batches, rows in ((full_batches, batch_size), (1, rest)):
            if rows:
                seconds += batches * machine.sample(rows * work.answers, work.sampled, at_once)
        return seconds + machine.sample(prompts * work.beforehand, work.sampled, at_once)

    def _evaluation_seconds(self, skill: Skill, evaluated_skills: Sequence[str]) -> float:
        """Of all evaluations of the stage that teaches ``skill``."""
        own = self.skills[skill.name]
        skills = sum(self.skills[name].evaluation for name in evaluated_skills)
        return skills + self.retention + own.pass_at_k + own.kl

    def _peak(
        self, spec: MethodSpec, work: Work, outlook: Outlook, batch_size: int, trained: Size
    ) -> tuple[float, float]:
        """GiB (on the device, in host memory), of learning or evaluation, whichever has more."""
        order = self.order
        length = outlook.prompt + outlook.limit
        at_once = order.rollout.batch_size or self.memory.rows_at_once(
            outlook.prompt, outlook.limit
        )
        cached_tokens = min(at_once, batch_size * work.answers) * length
        for skill in order.skills:
            prompt, limit = work.shown + self.outlooks[skill.name].prompt, order.limit(skill)
            at_once = order.evaluate.batch_size or self.memory.rows_at_once(prompt, limit)
            rows = min(at_once, self.skills[skill.name].answers)
            cached_tokens = max(cached_tokens, rows * (prompt + limit))
        learned_rows = batch_size * max(1, work.answers)
        packed = not self.memory.on_gpu  # or not, as is measured when the order starts
        if not spec.cls.trains:
            return self.memory.untrained(cached_tokens, packed), 0.0
        return self.memory.of(
            spec.config, work, length, cached_tokens, learned_rows, packed, trained
        )

    # ---- measurements --------------------------------------------------------------------------

    def _skill(self, skill: Skill) -> SkillCost:
        settings = self.order.evaluate
        answers = self._answers(skill, self.order.splits(skill))
        reading = self.outlooks[skill.name].reading(answers, self._evaluated_at_once(skill))
        return SkillCost(
            answers=answers,
            evaluation=self.machine.forward(reading) + self._sampling(skill, answers),
            pass_at_k=self._pass_at_k(skill),
            kl=self._kl(skill),
            teacher=self._teacher(skill) if settings.teacher else 0.0,
            oracle=self._oracle(skill) if settings.oracle else 0.0,
            oracle_answers=self._answers(skill, self.order.reported(skill))
            if settings.oracle
            else 0,
        )

    def _answers(self, skill: Skill, splits: Iterable[str]) -> int:
        most = self.order.evaluate.examples
        return sum(example_count(skill, split, most) for split in splits)

    def _sampling(self, skill: Skill, rows: int) -> float:
        order = self.order
        return self.machine.sample(rows, order.limit(skill), self._evaluated_at_once(skill))

    def _evaluated_at_once(self, skill: Skill) -> int:
        """Answers of an evaluation that are sampled at once."""
        prompt, limit = self.outlooks[skill.name].prompt, self.order.limit(skill)
        return self.order.evaluate.batch_size or self.memory.rows_at_once(prompt, limit)

    def _pass_at_k(self, skill: Skill) -> float:
        pass_at_k = self.order.pass_at_k
        if pass_at_k is None:
            return 0.0
        rows = example_count(skill, self.order.evaluate.split, pass_at_k.prompts)
        return self._sampling(skill, rows * pass_at_k.samples)

    def _kl(self, skill: Skill) -> float:
        """The model's answers, and four passes over them and over those of the base.

        The base's answers are sampled once for all models.
        """
        kl = self.order.kl
        if kl is None:
            return 0.0
        rows = example_count(skill, self.order.evaluate.split, kl.prompts)
        length = self.outlooks[skill.name].prompt + self.order.limit(skill)
        return self._sampling(skill, rows) + self.machine.forward(4 * rows * length)

    def drift_after(self, learned: list[Skill]) -> float:
        """Seconds of one measurement of the drift in the stage of the last of these skills."""
        order = self.order
        if order.drift is None:
            return 0.0
        skills = learned[-1:] * ("new" in order.drifts) + learned[:-1] * ("old" in order.drifts)
        tokens = sum(self._drift_tokens(skill) for skill in skills)
        if "general" in order.drift.along:
            tokens += self._drift_tokens(None)
        return self.machine.forward(tokens)

    def _drift_tokens(self, skill: Skill | None) -> float:
        """Tokens of the base's answers with their prompts: of a skill, or general ones."""
        drift = self.order.drift
        assert drift is not None
        if skill is None:
            return drift.prompts * (GENERAL_PROMPT + drift.max_new_tokens)
        rows = example_count(skill, self.order.evaluate.split, drift.prompts)
        most = min(drift.max_new_tokens, self.order.limit(skill))
        return rows * (self.outlooks[skill.name].prompt + most)

    def _base_answers(self) -> float:
        """Seconds of the base's answers for the drift, which are sampled and scored once."""
        order = self.order
        if order.drift is None:
            return 0.0
        asked: list[Skill | None] = list(order.skills) if order.drifts else []
        asked += [None] * ("general" in order.drift.along)
        seconds = 0.0
        for skill in asked:
            tokens = self._drift_tokens(skill)
            rows, limit = order.drift.prompts, order.drift.max_new_tokens
            if skill is not None:
                rows = example_count(skill, order.evaluate.split, rows)
                limit = min(limit, order.limit(skill))
            at_once = order.evaluate.batch_size or self.memory.rows_at_once(
                tokens / max(rows, 1) - limit, limit
            )
            seconds += self.machine.sample(rows, limit, at_once)
            seconds += 2 * self.machine.forward(tokens)
        return seconds

    def _teacher(self, skill: Skill) -> float:
        order, machine = self.order, self.machine
        outlook = self.outlooks[skill.name]
        teacher_prompt = outlook.teacher_prompt()
        split = order.teacher_split(skill)
        rows = example_count(skill, split, order.evaluate.examples)
        seconds = self._sampling(skill, rows) + machine.forward(rows * teacher_prompt)
        if split not in order.splits(skill):  # the model without the demonstration, beside it
            seconds += self._sampling(skill, rows) + machine.forward(rows * outlook.prompt)
        if order.kl:  # answers of the base and of the teacher, and two passes over each
            rows = example_count(skill, split, order.kl.prompts)
            length = outlook.prompt + teacher_prompt + 2 * order.limit(skill)
            seconds += 2 * self._sampling(skill, rows) + machine.forward(2 * rows * length)
        return seconds

    def _oracle(self, skill: Skill) -> float:
        seconds = 0.0
        for split in self.order.reported(skill):
            rows = example_count(skill, split, self.order.evaluate.examples)
            prompt = self.outlooks[skill.name].teacher_prompt(template=ORACLE_TEMPLATE, split=split)
            seconds += self._sampling(skill, rows) + self.machine.forward(rows * prompt)
        return seconds

    def _retention(
        self, tokenizer: PreTrainedTokenizerBase, results: ResultsWriter
    ) -> tuple[float, str | None]:
        """(seconds of the suite on one model, why they are unknown or None).

        From the suite's own requests, of which a few are made.
        """
        suite, machine = self.order.suite, self.machine
        if suite is None:
            return 0.0, None
        chat = self.order.chat_template.inputs("evaluate")
        lengths = answer_lengths(suite, tokenizer, results)
        try:
            read, generated = suite.work(tokenizer, chat=chat, lengths=lengths)
        except UserError as error:
            return 0.0, str(error).partition(";")[0]
        answers = sum(
            machine.sample(of_task.answers, of_task.tokens, RETENTION_BATCH, of_task.longest)
            for of_task in generated
        )
        return machine.forward(read) + answers, None


def answer_lengths(
    suite: Suite, tokenizer: PreTrainedTokenizerBase, results: ResultsWriter
) -> dict[str, list[int]]:
    """{task: tokens of each answer of the base model, its end included}, where on record.

    Left out are tasks that keep a part of an answer alone, by a filter or behind the model's
    thoughts.
    """
    whole = {entry.task for entry in suite.tasks if entry.metric.rpartition(",")[2] == "none"}
    if think_end_token(tokenizer) is not None:
        return {}
    for stage in sorted(results.folder.glob("runs/*/stage-0")):
        if not results.committed(stage.parent.name, 0):
            continue
        lengths = {}
        for row in results.rows(stage, "records.jsonl"):
            if row.get("kind") != "retention" or row.get("name") not in whole:
                continue
            evaluation = results.evaluation(str(row.get("evaluation")))
            texts = [item.get("response") for item in evaluation["items"]] if evaluation else []
            if texts and all(isinstance(text, str) for text in texts):
                ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
                lengths[row["name"]] = [len(of_text) + 1 for of_text in ids]
        return lengths  # The base model of all runs is the same.
    return {}
