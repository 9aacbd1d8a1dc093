"""What an order costs before it runs: work, seconds and memory of each method x skill."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.errors import plug_in
from harness.learning.moments import MOMENT_BYTES, MOMENTS
from harness.learning.options import MASTERS
from harness.learning.outlook import Outlook, Work
from harness.learning.parametrisation import Size, get_parametrisation
from harness.models.flex import FLEX
from harness.models.load import resolve_device
from harness.models.memory import MICRO_BATCH_TOKENS, Passes, free_memory
from harness.models.recompute import can_recompute
from harness.results.formats import JOINT, RELEARN
from harness.results.writer import ResultsWriter
from harness.runs.amounts import measured_seconds
from harness.runs.cards import measured_speeds
from harness.runs.cost import GIB, EngineBytes, Machine, Memory, StepWork
from harness.runs.gpu_cost import GPU, Sampling
from harness.runs.measuring_cost import MeasuringCost
from harness.runs.methods import MethodSpec, ParametersSpec
from harness.runs.order import Order
from harness.runs.order_cost import OrderCost, StageCost
from harness.runs.references import Run, phases_of
from harness.sampling.transformers import GRAPHS
from harness.sampling.vllm import KV_CACHE_GIB
from harness.sampling.vllm_setup import is_invariant
from harness.skills.skill import Skill


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
        machine=estimator.machine.measured,
        seeds=len(order.seeds),
        skills=estimator.skills,
        stages=stages,
        retention=estimator.retention,
        drift=estimator.measuring.drift_after(order.skills),
        base_answers=estimator.base_answers,
        uncounted=estimator.uncounted,
    )


class StageWork(NamedTuple):
    """What a stage is estimated from: see ``work_of``; held: as StageCost's."""

    outlook: Outlook
    work: Work
    trained: Size
    held: dict[str, tuple[float, float]]


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
    with plug_in(spec.place, "size() of its parameters"):
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


class _Learning(NamedTuple):
    """How a method learns: products of a pass in forward ones, its passes, what it learns from."""

    spec: MethodSpec
    products: int
    passes: Passes | None
    outlook: Outlook


def machines_of(order: Order, shape: PreTrainedModel, device: str) -> tuple[Machine, Machine]:
    """This machine as it learns and as it evaluates, whose engines may differ.

    Of a GPU two steps of decoding, a training pass and copies are measured.
    """
    place = torch.device(device)
    if place.type == "cpu":
        machine = Machine(sum(p.numel() for p in shape.parameters()), order.dtype(), device)
        return machine, machine
    speeds = measured_speeds(shape, place)
    invariant = is_invariant(place, order.model.deterministic)
    learning, evaluating = (
        GPU(
            shape,
            speeds,
            Sampling(
                vllm=section.engine == "vllm",
                seats=order.vllm.max_num_seqs,
                invariant=invariant,
                graphs=order.model.decode == GRAPHS,
            ),
        )
        for section in (order.rollout, order.evaluate)
    )
    return learning, evaluating


def engine_bytes(order: Order, memory: Memory) -> EngineBytes:
    """What vLLM takes on the order's GPU; nothing where it does not sample, or on a CPU."""
    if not memory.on_gpu or "vllm" not in (order.rollout.engine, order.evaluate.engine):
        return EngineBytes()
    asleep = order.vllm.asleep(memory.vocabulary)
    room = GIB * (order.vllm.kv_cache_gib or KV_CACHE_GIB["cuda"])
    return EngineBytes(memory.parameters * memory.size + room + asleep, asleep)


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
        self.machine, evaluating = machines_of(order, shape, device)
        self.memory = Memory(shape, dtype, device, order.model.attention != FLEX)
        self.engine = engine_bytes(order, self.memory)
        self.outlooks = outlooks_of(order, tokenizer, self.machine.parameters)
        self.measuring = MeasuringCost(order, evaluating, self.memory, self.outlooks)
        self.skills = {skill.name: self.measuring.skill(skill) for skill in order.skills}
        self.retention, self.uncounted = self.measuring.retention(tokenizer, results)
        self.base_answers = self.measuring.base_answers()

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
        phases = phases_of(order, spec, skill, earlier)
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
        measured = measured_seconds(results, stem, self.order.seeds, number)
        passes = self._passes(spec, work, trained)
        learned_by = _Learning(spec, parameters.passes, passes, outlook)
        learning = self._learning_seconds(work, prompts, batch_size, trained, learned_by)
        seconds_estimated = learning + self._evaluation_seconds(skill, names)
        seconds_estimated += (1 + inside) * self.measuring.drift_after(learned[:number])
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
            stem=stem,
            number=number,
            learning=measured[0] if measured else learning,
            seconds=measured[1] if measured else seconds_estimated,
            is_measured=measured is not None,
            memory=self._peak(spec, work, outlook, batch_size, trained, passes),
            passes=passes,
            choices=self._choices(spec, skill, prompts, len(learned) - number, earlier),
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
        phases = spec.with_parts(spec.phases(sum(prompts)), [])
        further = self._work(spec, skills[0], sum(prompts), later=0, earlier=[]).work.further
        measured = measured_seconds(results, run.stem, self.order.seeds, 1)
        learning, estimated = 0.0, self.retention if run.reference == JOINT else 0.0
        peaks, states = [(0.0, 0.0)], [0.0]
        products = spec.make_parameters().passes
        for skill, own in zip(skills, prompts, strict=True):
            outlook, work, trained, _ = self._work(spec, skill, own, later=0, earlier=[])
            passes = self._passes(spec, work, trained)
            learned_by = _Learning(spec, products, passes, outlook)
            learning += self._learning_seconds(work, own, batch_size, trained, learned_by)
            estimated += self.skills[skill.name].evaluation
            peaks.append(self._peak(spec, work, outlook, batch_size, trained, passes))
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
            stem=run.stem,
            number=1,
            learning=measured[0] if measured else learning,
            seconds=measured[1] if measured else learning + estimated,
            is_measured=measured is not None,
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
        """Bytes of float32 masters, of moments, and of copies of what a teacher has."""
        copied = trained.numbers if trained.made else self.machine.parameters
        each = 4 + MOMENT_BYTES[spec.config.moments]
        return float(each * trained.numbers * spec.cls.trains + 4 * work.copies * copied)

    def _passes(self, spec: MethodSpec, work: Work, trained: Size) -> Passes | None:
        """The passes that a run would find on this GPU now; None on a CPU, as in ``passes_of``."""
        memory = self.memory
        if not memory.on_gpu or not spec.cls.trains or spec.cls.has_own_loop:
            return None
        free = free_memory(memory.device) - memory.parameters * memory.size - self.engine.asleep
        layered = can_recompute(self.shape)
        return memory.passes(int(free), spec.config, work, trained, layered)

    def _choices(
        self, spec: MethodSpec, skill: Skill, prompts: int, later: int, earlier: Sequence[Skill]
    ) -> dict[tuple[str, str], tuple[float, float]]:
        """{(what else is chosen, place of masters): peak} of a method that trains on a GPU."""
        peaks = {}
        batch_size = self.order.batch_size(spec.config)
        for what, other in self._others(spec):
            outlook, work, trained, _ = self._work(other, skill, prompts, later, earlier)
            for masters in MASTERS:
                placed = replace(other, config=replace(other.config, masters=masters))
                passes = self._passes(placed, work, trained)
                peak = self._peak(placed, work, outlook, batch_size, trained, passes)
                peaks[what, masters] = peak
        return peaks

    def _others(self, spec: MethodSpec) -> Iterator[tuple[str, MethodSpec]]:
        """The method, with other moments, and with adapters: ways to train it on a GPU."""
        if not self.memory.on_gpu or not spec.cls.trains or spec.cls.has_own_loop:
            return
        yield "", spec
        for moments in MOMENTS:
            if moments != spec.config.moments:
                config = replace(spec.config, moments=moments)
                yield f"moments: {moments}", replace(spec, config=config)
        if spec.parameters is None and not any(p.make().wants_weights() for p in spec.parts):
            lora = get_parametrisation("lora", None, spec.place)
            adapters = ParametersSpec("lora", lora, lora.Config(), {}, spec.place)
            yield "parameters: lora", replace(spec, parameters=adapters)

    def _learning_seconds(
        self, work: Work, prompts: int, batch_size: int, trained: Size, by: "_Learning"
    ) -> float:
        machine = self.machine
        at_once = self._sampled_at_once(by.outlook)
        passes = by.passes or Passes(MICRO_BATCH_TOKENS[self.memory.on_gpu])
        step = StepWork(
            prompts=batch_size,
            work=work,
            completion=max(0.0, work.learned - by.outlook.prompt),
            passes=by.products,
            trained=trained,
            masters=by.spec.config.masters,
            limit=passes.tokens,
            at_once=at_once,
            recomputed=passes.recomputed,
            moments=by.spec.config.moments,
        )
        full_batches, rest = divmod(prompts, batch_size)
        seconds = full_batches * machine.learning(step) if full_batches else 0.0
        if rest:
            seconds += machine.learning(replace(step, prompts=rest))
        return seconds + machine.sample(prompts * work.beforehand, work.sampled, at_once)

    def _sampled_at_once(self, outlook: Outlook) -> int:
        """Rollouts that are sampled at once."""
        usual = self.memory.rows_at_once(outlook.prompt, outlook.limit)
        return self.order.rollout.batch_size or usual

    def _evaluation_seconds(self, skill: Skill, evaluated_skills: Sequence[str]) -> float:
        """Of all evaluations of the stage that teaches ``skill``."""
        own = self.skills[skill.name]
        skills = sum(self.skills[name].evaluation for name in evaluated_skills)
        return skills + self.retention + own.pass_at_k + own.kl

    def _peak(
        self,
        spec: MethodSpec,
        work: Work,
        outlook: Outlook,
        batch_size: int,
        trained: Size,
        passes: Passes | None,
    ) -> tuple[float, float]:
        """GiB (on the device, in host memory), of learning or evaluation, whichever has more."""
        order = self.order
        length = outlook.prompt + outlook.limit
        at_once = self._sampled_at_once(outlook)
        by_vllm = order.rollout.engine == "vllm" and self.memory.on_gpu
        cached_tokens = 0.0 if by_vllm else min(at_once, batch_size * work.answers) * length
        for skill in order.skills:
            if order.evaluate.engine == "vllm" and self.memory.on_gpu:
                continue
            prompt, limit = work.shown + self.outlooks[skill.name].prompt, order.limit(skill)
            at_once = order.evaluate.batch_size or self.memory.rows_at_once(prompt, limit)
            rows = min(at_once, self.skills[skill.name].answers)
            cached_tokens = max(cached_tokens, rows * (prompt + limit))
        learned_rows = batch_size * max(1, work.answers)
        packed = not self.memory.on_gpu  # or not, as is measured when the order starts
        if not spec.cls.trains:
            return self.memory.untrained(cached_tokens, packed), 0.0
        return self.memory.of(
            *(spec.config, work, length, cached_tokens, learned_rows, packed, trained),
            passes=passes,
            engine=self.engine,
        )
