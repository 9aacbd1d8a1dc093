"""One skill's turn: what a method gets to learn from and to learn with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.learning.draws import draws, seed_all
from harness.learning.lessons import Lesson, Lessons, TeacherTemplate
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part, having, joint_budget
from harness.learning.starts import EarlierWeights
from harness.learning.step import Step
from harness.models.chat import ChatInputs
from harness.models.memory import MICRO_BATCH_TOKENS, Passes, return_much_freed_memory
from harness.sampling.sampler import Completion, Sampler
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.learning.trainer import TrainingConfig

# Cap of the importance weights of rollouts from another engine, unless a method names its own; the
# same as in the code of arXiv 2601.19897.
IMPORTANCE_CAP = 2.0
REPEATED = ("tokens", "learned", "further", "beside")  # of what a resumed stage may do again
COUNTS = (*REPEATED, "step", "idle")  # of a stage, in its checkpoints


class Stateful(Protocol):
    """An object that a checkpoint can hold: an optimizer, a module, a method's own memory."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Stage(Lessons, EarlierWeights):
    """One skill's turn, with all that a method needs to learn it.

    model, tokenizer, sampler: live; the method trains ``model`` in place. skill: what is learned;
    examples: its training examples. seed: of the run; index: 1 for the first skill of the order, by
    which seeds go; number: 1 for the first stage of the run, whatever it teaches, ``index`` if left
    out; reference: what the run's name has behind the label, as ``.single-2`` or ``@forward``.
    begins_run: whether the stage begins with the weights of the run's start. folder: of the method.
    prompts: the budget, in prompts; batch_size: prompts per optimizer step; phases: prompts drawn
    in each phase (Method.phases), the budget in one phase if left out.
    max_new_tokens, temperature, top_p: of rollouts; sampled_elsewhere: whether another engine than
    the model itself samples, so that its distribution differs slightly.
    deterministic: training passes repeat to the bit on a GPU, which costs time; fused_losses: see
    fused.py; passes: how long they are where a method leaves it open; a run may set it.
    teacher_template: see Skill.teacher_prompt. earlier: the lessons of the skills that were learned
    before, in their order; later: how many skills are still to come.
    parts: what joins the method (harness/learning/part.py); behind: examples that parts learn from
    in steps behind those of the first phase; present: the step that goes on; rate: its learning
    rate; training: the hyperparameters of the last trainer.
    parameters: which numbers are trained (harness/learning/parametrisation.py). load_start, models:
    see starts.py. chat, teacher_chat: what the chat template is given for student and teacher.
    step: optimizer steps done so far; tokens: tokens read in a training or scoring pass or sampled
    so far; learned: those of training passes; beside: more of them for FLOPs, by the sizes of other
    models; seconds: time spent so far, ``training`` and ``sampling``, outside the steps as well;
    further: prompts drawn outside the steps (``over``). updates: of trainers since the start of the
    process, None without a trainer; idle: steps in which none of them made an update.
    begun: steps before the present phase; planned: steps of the present phase.
    has_sampled: the step has sampled, so dropout is off; merged: parts have made the end's weights.

    on_step: called after each step, for evaluation, checkpoints and progress; on_work: called with
    (what, done, total) outside the steps, for progress; restored: what ``state_dict`` returned when
    a stage was cut off, to go on from there.
    """

    present: Step | None = None
    rate = 0.0
    training: TrainingConfig | None = None
    begun, tokens, learned, further, idle, beside = 0, 0, 0, 0, 0, 0.0
    updates: int | None = None
    has_sampled, merged = False, False

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        skill: Skill,
        teacher_template: TeacherTemplate | None = None,
        chat: ChatInputs | None = None,
        teacher_chat: ChatInputs | None = None,
        seed: int,
        index: int,
        number: int | None = None,
        reference: str = "",
        prompts: int,
        batch_size: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        folder: Path | None = None,
        on_step: Callable[[Stage, Step], None] | None = None,
        on_work: Callable[[str, int, int], None] | None = None,
        restored: Mapping[str, Any] | None = None,
        phases: list[int] | None = None,
        sampled_elsewhere: bool = False,
        deterministic: bool = True,
        fused_losses: bool = False,
        earlier: Sequence[Lesson] = (),
        later: int = 0,
        parts: Sequence[Part] = (),
        load_start: Callable[[str], PreTrainedModel] | None = None,
        models: Mapping[str, str] | None = None,
        parameters: Parametrisation | None = None,
    ) -> None:
        lesson = Lesson(skill, max_new_tokens, teacher_template)
        super().__init__(tokenizer, sampler, lesson, earlier, chat, teacher_chat)
        self.model = model
        self.skill = skill
        self.teacher_template = teacher_template
        self.seed = seed
        self.index, self.number, self.reference = index, number or index, reference
        self.begins_run = self.number == 1
        self.prompts, self.batch_size = prompts, batch_size
        self.passes = Passes(MICRO_BATCH_TOKENS[model.device.type != "cpu"])
        self.max_new_tokens, self.later = max_new_tokens, later
        self.parts = list(parts)
        self.phases = self._join(phases or [prompts])
        self.parameters = parameters or Parametrisation()
        self.load_start, self.models = load_start, models or {}
        self.temperature, self.top_p = temperature, top_p
        self.sampled_elsewhere = sampled_elsewhere
        self.deterministic, self.fused_losses = deterministic, fused_losses
        self.examples: list[Example] = skill.examples("train")
        self.planned = self._steps_of(0)
        self.step = 0
        self.seconds = {"training": 0.0, "sampling": 0.0}
        self._folder = folder
        self._on_step = on_step
        self._on_work = on_work
        self._read = time.perf_counter()  # when the clock of training was read last
        # Counts to go on from at the first step; what is done before it has been counted already.
        self._counts: dict[str, Any] | None = None
        # What checkpoints hold: objects by name, and how often each name has been kept
        self._kept: dict[str, Stateful] = {}
        self._times: dict[str, int] = {}
        # What a resume still has to restore: {name: (times kept, state)}
        self._restored: dict[str, tuple[int, Any]] = {}
        if restored:
            self._restore(restored)

    def _join(self, phases: list[int]) -> list[int]:
        """Let the parts know the stage, and divide the budget of its first phase."""
        for part in self.parts:
            part.stage = self
        drawn = [len(lesson.examples) for lesson in self.earlier]
        own, self.behind = joint_budget(self.parts, phases[0], drawn)
        return [own, *phases[1:]]

    def _restore(self, restored: Mapping[str, Any]) -> None:
        """Take over the counts of a stage that was cut off; ``keep`` restores what it kept."""
        for name in COUNTS:
            setattr(self, name, restored.get(name, 0))  # one from before has no ``learned``
        self.seconds = dict(restored["seconds"])
        self._counts = {name: getattr(self, name) for name in REPEATED}
        self._counts["seconds"] = dict(self.seconds)
        self._restored = {
            name: (restored["times"][name], state) for name, state in restored["kept"].items()
        }

    # ---- budget --------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """A folder of the method's own, for files that it wants to write."""
        if self._folder is None:
            raise ValueError("this stage was made without a folder")
        return self._folder

    @property
    def steps_in_all(self) -> int:
        """Optimizer steps of the stage.

        Each phase draws its prompts ``batch_size`` at a time; its last batch may be smaller.
        """
        return sum(map(self._steps_of, range(len(self.phases))))

    @property
    def prompts_drawn(self) -> int:
        """Prompts drawn so far, in all phases and outside the steps."""
        steps_left = self.step
        drawn = self.further
        for phase, prompts in enumerate(self.phases):
            drawn += min(steps_left * self.batch_size, prompts)
            steps_left = max(0, steps_left - self._steps_of(phase))
        return drawn

    def steps_for(self, prompts: int) -> int:
        """Optimizer steps that draw so many prompts."""
        return -(-prompts // self.batch_size)

    def _steps_of(self, phase: int) -> int:
        """Steps of a phase; those behind the first one belong to it."""
        behind = self.steps_for(self.behind) if phase == 0 else 0
        return self.steps_for(self.phases[phase]) + behind

    def draws(self, phase: int = 0, count: int | None = None) -> list[int]:
        """Indices of examples in the order in which a phase draws them.

        count: how many examples there are to draw from; the training examples if left out.
        """
        key = ("data", phase) if phase else ("data",)
        return draws(
            len(self.examples) if count is None else count,
            self.phases[phase],
            seed_for(self.seed, self.index, *key),
        )

    def steps(self, phase: int = 0, examples: Sequence[Any] | None = None) -> Iterator[Step]:
        """The optimizer steps of a phase that are still to be done.

        The method does a step in the body of its loop. After that come progress, evaluation and
        checkpoints.

        examples: what the phase draws from; the training examples if left out, and then parts
        change what a step learns from.
        """
        joined = self.parts if examples is None else []
        if examples is None:
            examples = self.examples
        elif phase == 0 and (having(self.parts, "examples") or self.behind):
            raise UserError(
                f"skill {self.skill.name}",
                "a method that gives stage.steps() examples of its own learns from no others",
                'leave "examples" out of its `joins`, and such parts out of its `with`',
            )
        indices = self.draws(phase, len(examples))
        self.begun = sum(map(self._steps_of, range(phase)))
        self.planned = self._steps_of(phase)
        self._go_on_counting()
        while self.step < self.begun + self.planned:
            seed = seed_for(self.seed, self.index, self.step)
            seed_all(seed)
            self.has_sampled = False
            first = (self.step - self.begun) * self.batch_size
            batch = [examples[i] for i in indices[first : first + self.batch_size]]
            step = self.present = Step(self.step, batch, seed)
            own = len(batch)
            for part in joined:
                step.examples = list(part.examples(step))
            tokens_before, updates_before = self.tokens, self.updates
            self.read_clock()
            start = time.perf_counter()
            yield step
            for part in self.parts:
                part.updated(step)
            return_much_freed_memory()
            self.read_clock()
            self.has_sampled = False
            step.check_finite(self.skill.name)
            self.further += len(step.examples) - own
            self.idle += self.updates is not None and self.updates == updates_before
            self.step += 1
            step.log(seconds=time.perf_counter() - start, tokens=self.tokens - tokens_before)
            if self._on_step:
                self._on_step(self, step)
                self.start_clock()
        # For draws of the method between two phases
        seed_all(seed_for(self.seed, self.index, "after", phase))

    # ---- what is done outside the steps --------------------------------------------------------

    def over(self, examples: Sequence[Any], what: str) -> Iterator[list[Any]]:
        """Batches of ``batch_size`` examples, for what a method does outside its steps.

        A Fisher matrix or rollouts for a buffer are such work. Each example counts as a prompt
        drawn; tokens, time and memory count as they do in a step. what: names the work, for the
        progress line and for the seeds that every batch gets.
        """
        for first in range(0, len(examples), self.batch_size):
            seed_all(seed_for(self.seed, self.index, what, first))
            self.has_sampled = False
            batch = list(examples[first : first + self.batch_size])
            yield batch
            self.further += len(batch)
            self.show(what, first + len(batch), len(examples))
        self.has_sampled = False

    def show(self, what: str, done: int, total: int) -> None:
        """Show how far work outside the steps has got."""
        if self._on_work:
            self._on_work(what, done, total)

    def start_clock(self) -> None:
        """Let the clock of training begin now: what came before is not the method's."""
        self._read = time.perf_counter()

    def read_clock(self) -> None:
        """Add the time since the last reading, without that of sampling, to ``training``."""
        now = time.perf_counter()
        self.seconds["training"] += now - self._read
        self._read = now

    def _go_on_counting(self) -> None:
        """Leave out what a resumed stage repeats before the phase in which it was cut off."""
        if self._counts and self.begun <= self.step <= self.begun + self.planned:
            vars(self).update(self._counts)
            self._counts = None
            self.start_clock()

    # ---- checkpoints ---------------------------------------------------------------------------

    def keep(self, **parts: Stateful) -> None:
        """Add objects to the stage's checkpoints, each under a name of its own.

        Their ``state_dict()`` holds tensors and plain values alone, as that of a method.

        A method calls it before its first phase or between phases. When a stage is resumed the
        method runs from its beginning and calls it again: objects that the checkpoint holds get
        their state back.

        A name may be kept again once its object was let go, as a trainer for each phase. A resume
        gives the saved state to each of them, up to the one that was saved; later ones stay as
        made. Raises UserError for a name that another object has: one of the two would be lost.
        """
        for name, part in parts.items():
            if (other := self._kept.get(name, part)) is not part:
                problem = f"{name!r} is the name of a {type(other).__name__} already"
                raise UserError("stage.keep", problem, "take another name, or let that one go")
            if name not in self._kept:
                self._times[name] = self._times.get(name, 0) + 1
            self._kept[name] = part
            if name in self._restored:
                times, state = self._restored[name]
                part.load_state_dict(state)
                if self._times[name] >= times:
                    del self._restored[name]

    def let_go(self, part: Stateful) -> None:
        """Leave ``part`` out of checkpoints from now on: the method has no more use for it."""
        self._kept = {name: kept for name, kept in self._kept.items() if kept is not part}

    def close(self) -> None:
        """Free what checkpoints held (optimizer, teacher): learning is over, evaluation follows."""
        self.forget_starts()
        self._kept = {}
        self._times = {}
        self._restored = {}

    def state_dict(self) -> dict[str, Any]:
        """What a new stage needs as ``restored`` to go on after the present step."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "seconds": dict(self.seconds),
            "times": dict(self._times),
            "kept": {name: part.state_dict() for name, part in self._kept.items()},
        }

    # ---- sampling ------------------------------------------------------------------------------

    def sample(
        self,
        prompts: list[list[int]],
        *,
        seed: int,
        n: int = 1,
        max_new_tokens: int | Sequence[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """``n`` completions of each prompt from the live weights, in the prompts' order.

        prompts: token ids. max_new_tokens: the limit of all, or of each prompt. Settings that are
        left out are those of the order's rollouts.
        """
        start = time.perf_counter()
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        limits = [limit] * len(prompts) if isinstance(limit, int) else list(limit)
        groups: list[list[Completion]] = [[] for _ in prompts]
        for number, limit in enumerate(sorted(set(limits))):
            places = [i for i, own in enumerate(limits) if own == limit]
            sampled_groups = self.sampler.sample(
                [prompts[i] for i in places],
                n=n,
                # A completion's draws depend on its place, which another limit begins again.
                seed=seed_for(seed, "limit", limit) if number else seed,
                max_new_tokens=limit,
                temperature=self.temperature if temperature is None else temperature,
                top_p=self.top_p if top_p is None else top_p,
            )
            for i, group in zip(places, sampled_groups, strict=True):
                groups[i] = group
        self.sampler.rest()
        return_much_freed_memory()
        self.has_sampled = True
        seconds = time.perf_counter() - start
        self.seconds["sampling"] += seconds
        self._read += seconds
        sampled = sum(len(completion.token_ids) for group in groups for completion in group)
        self.tokens += sampled + sum(map(len, prompts))
        return groups

    def importance_cap(self, cap: float | None) -> float | None:
        """Cap of the importance weights of this stage's rollouts; None for no weights.

        cap: the method's option. If left out, IMPORTANCE_CAP where another engine samples and no
        weights elsewhere; 0 for no weights at all.
        """
        if cap is None:
            return IMPORTANCE_CAP if self.sampled_elsewhere else None
        return cap or None

    def answers(
        self,
        examples: Sequence[Example],
        *,
        seed: int,
        n: int = 1,
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """``n`` completions of each example's prompt, each within the limit of its skill."""
        prompts = [self.prompt_tokens(example) for example in examples]
        limits = self.limits(examples)
        return self.sample(prompts, seed=seed, n=n, max_new_tokens=limits, temperature=temperature)
