"""One skill's turn: what a method gets to learn from and to learn with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.learning.draws import draws, seed_all
from harness.learning.packing import Row
from harness.models.chat import ChatInputs, Message, chat_tokens
from harness.models.demonstration import Demonstrations
from harness.sampling.sampler import Completion, Sampler
from harness.skills.skill import Example, Skill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Cap of the importance weights of rollouts from another engine, unless a method names its own; the
# same as in the code of arXiv 2601.19897.
IMPORTANCE_CAP = 2.0

TeacherTemplate = str | list[dict[str, str]]


@dataclass(frozen=True)
class Lesson:
    """A skill as an order has it.

    max_new_tokens: of a rollout; teacher_template: shows the teacher what it sees, None for the
    skill's own.
    """

    skill: Skill
    max_new_tokens: int
    teacher_template: TeacherTemplate | None = None


class Stateful(Protocol):
    """An object that a checkpoint can hold: an optimizer, a module, a method's own memory."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Joined(Protocol):
    """What a stage asks of a part."""

    def examples(self, stage: Stage, step: Step, /) -> Sequence[Any]: ...

    def loss(self, trainer: Any, /) -> Mapping[str, float]: ...


class Step:
    """One optimizer step of a stage.

    index: number of the step in the stage, from 0; examples: what was drawn for it, training
    examples unless ``Stage.steps`` got others; seed: for the method's own draws; logged: the
    diagnostics so far.
    """

    def __init__(self, index: int, examples: list[Any], seed: int) -> None:
        self.index = index
        self.examples = examples
        self.seed = seed
        self.logged: dict[str, float] = {}

    def log(self, **values: float | torch.Tensor) -> None:
        """Add numbers to the step's line in training.jsonl."""
        self.logged.update({name: float(value) for name, value in values.items()})


class Stage:
    """One skill's turn, with all that a method needs to learn it.

    model, tokenizer, sampler: live; the method trains ``model`` in place.
    skill: what is learned; examples: its training examples.
    seed: of the run; index: 1 for the first skill of the order.
    folder: a folder of the method's own, for files that it wants to write.
    prompts: the budget, in prompts; batch_size: prompts per optimizer step; phases: prompts drawn
    in each phase (Method.phases), the budget in one phase if left out.
    max_new_tokens, temperature, top_p: of rollouts; sampled_elsewhere: whether another engine than
    the model itself samples, so that its distribution differs slightly.
    deterministic: whether training passes repeat to the bit on a GPU, which costs some time.
    teacher_template: shows the teacher what it sees, see Skill.teacher_prompt.
    earlier: the lessons of the skills that were learned before, in their order.
    parts: what joins the method (harness/learning/part.py).
    chat, teacher_chat: what the chat template is given for the student and the teacher.
    step: optimizer steps done so far; tokens: tokens read in a training or scoring pass or sampled
    so far; seconds: time spent so far, ``training`` and ``sampling``, outside the steps as well;
    further: prompts drawn outside the steps (``over``).
    updates: of trainers since the start of the process, None without a trainer; idle: steps in
    which none of them made an update.
    begun: steps before the present phase; planned: steps of the present phase.
    has_sampled: whether the present step has sampled from the model, whose dropout is then off.

    on_step: called after each step, for evaluation, checkpoints and progress; on_work: called with
    (what, done, total) outside the steps, for progress; restored: what ``state_dict`` returned when
    a stage was cut off, to go on from there.
    """

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
        earlier: Sequence[Lesson] = (),
        parts: Sequence[Joined] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.skill = skill
        self.teacher_template = teacher_template
        self.chat = chat
        self.teacher_chat = teacher_chat
        self.seed = seed
        self.index = index
        self.prompts = prompts
        self.batch_size = batch_size
        self.phases = phases or [prompts]
        self.max_new_tokens = max_new_tokens
        self.earlier = list(earlier)
        self.parts = list(parts)
        lessons = [*self.earlier, Lesson(skill, max_new_tokens, teacher_template)]
        self._lessons = {lesson.skill.name: lesson for lesson in lessons}
        self.temperature = temperature
        self.top_p = top_p
        self.sampled_elsewhere = sampled_elsewhere
        self.deterministic = deterministic
        self.examples: list[Example] = skill.examples("train")
        self.begun = 0
        self.planned = self._steps_for(self.phases[0])
        self.has_sampled = False
        self.step = 0
        self.tokens = 0
        self.further = 0
        self.seconds = {"training": 0.0, "sampling": 0.0}
        self.updates: int | None = None
        self.idle = 0
        self._folder = folder
        self._on_step = on_step
        self._on_work = on_work
        self._read = time.perf_counter()  # when the clock of training was read last
        # Counts to go on from at the first step; what is done before it has been counted already.
        self._counts: tuple[int, int, dict[str, float]] | None = None
        # What checkpoints hold: objects by name, and how often each name has been kept
        self._kept: dict[str, Stateful] = {}
        self._times: dict[str, int] = {}
        # What a resume still has to restore: {name: (times kept, state)}
        self._restored: dict[str, tuple[int, Any]] = {}
        if restored:
            self._restore(restored)

    def _restore(self, restored: Mapping[str, Any]) -> None:
        """Take over the counts of a stage that was cut off; ``keep`` restores what it kept."""
        self.step = restored["step"]
        self.tokens = restored["tokens"]
        self.idle = restored["idle"]
        self.further = restored["further"]
        self.seconds = dict(restored["seconds"])
        self._counts = self.tokens, self.further, dict(self.seconds)
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
        return sum(map(self._steps_for, self.phases))

    @property
    def prompts_drawn(self) -> int:
        """Prompts drawn so far, in all phases and outside the steps."""
        steps_left = self.step
        drawn = self.further
        for prompts in self.phases:
            drawn += min(steps_left * self.batch_size, prompts)
            steps_left = max(0, steps_left - self._steps_for(prompts))
        return drawn

    def _steps_for(self, prompts: int) -> int:
        return -(-prompts // self.batch_size)

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

        examples: what the phase draws from; the training examples if left out.
        """
        if examples is None:
            examples = self.examples
        indices = self.draws(phase, len(examples))
        self.begun = sum(map(self._steps_for, self.phases[:phase]))
        self.planned = self._steps_for(self.phases[phase])
        self._go_on_counting()
        while self.step < self.begun + self.planned:
            seed = seed_for(self.seed, self.index, self.step)
            seed_all(seed)
            self.has_sampled = False
            first = (self.step - self.begun) * self.batch_size
            batch = [examples[i] for i in indices[first : first + self.batch_size]]
            step = Step(self.step, batch, seed)
            joined = [example for part in self.parts for example in part.examples(self, step)]
            batch += joined
            tokens_before = self.tokens
            updates_before = self.updates
            self.read_clock()
            start = time.perf_counter()
            yield step
            self.read_clock()
            self.has_sampled = False
            self._check_finite(step)
            self.further += len(joined)
            self.idle += self.updates is not None and self.updates == updates_before
            self.step += 1
            step.log(seconds=time.perf_counter() - start, tokens=self.tokens - tokens_before)
            if self._on_step:
                self._on_step(self, step)
                self.start_clock()
        # For draws of the method between two phases
        seed_all(seed_for(self.seed, self.index, "after", phase))

    def _check_finite(self, step: Step) -> None:
        """Raises UserError if a loss or a reward that a step has logged is not finite."""
        for name, value in step.logged.items():
            if name.endswith(("loss", "reward")) and not math.isfinite(value):
                raise UserError(
                    f"skill {self.skill.name}, step {self.step + 1}",
                    f"the {name} is {value}",
                    "take a smaller learning_rate, or look at the data and at the method; the last "
                    "checkpoint is whole",
                )

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
            self.tokens, self.further, seconds = self._counts
            self.seconds.update(seconds)
            self._counts = None
            self.start_clock()

    # ---- checkpoints ---------------------------------------------------------------------------

    def keep(self, **parts: Stateful) -> None:
        """Add objects to the stage's checkpoints, each under a name of its own.

        Their ``state_dict()`` holds tensors and plain values alone, as that of a method.

        A method calls it before its first phase or between phases. When a stage is resumed the
        method runs from its beginning and calls it again: objects that the checkpoint holds get
        their state back.

        A name may be kept more than once, for example a trainer for each phase. A resume gives the
        saved state to each of them, up to the one that was saved; later ones stay as made.
        """
        for name, part in parts.items():
            if self._kept.get(name) is not part:
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
        self._kept = {}
        self._times = {}
        self._restored = {}

    def state_dict(self) -> dict[str, Any]:
        """What a new stage needs as ``restored`` to go on after the present step."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "idle": self.idle,
            "further": self.further,
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
                # A completion's draws depend on its place, which another limit begins anew.
                seed=seed_for(seed, "limit", limit) if number else seed,
                max_new_tokens=limit,
                temperature=self.temperature if temperature is None else temperature,
                top_p=self.top_p if top_p is None else top_p,
            )
            for i, group in zip(places, sampled_groups, strict=True):
                groups[i] = group
        self.sampler.rest()
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

    # ---- what an example's skill says ----------------------------------------------------------

    def lesson(self, example: Example) -> Lesson:
        """The lesson of the skill that an example belongs to: this stage's, or an earlier one."""
        return self._lessons[example.skill or self.skill.name]

    def reward(self, example: Example, completion: Completion) -> float:
        """The reward of a completion of the example's prompt, by its skill."""
        return float(self.lesson(example).skill.reward(completion.text, example.reference))

    def answers(
        self, examples: Sequence[Example], *, seed: int, n: int = 1
    ) -> list[list[Completion]]:
        """``n`` completions of each example's prompt, each within the limit of its skill."""
        prompts = [self.prompt_tokens(example) for example in examples]
        return self.sample(prompts, seed=seed, n=n, max_new_tokens=self._limits(examples))

    def rows(
        self,
        examples: Sequence[Example],
        prompts: Sequence[list[int]],
        groups: Sequence[Sequence[Completion]],
    ) -> list[Row]:
        """A row for each completion of ``groups``, behind its example's prompt of ``prompts``."""
        limits = self._limits(examples)
        return [
            Row(prompt, completion.token_ids, limit)
            for prompt, limit, group in zip(prompts, limits, groups, strict=True)
            for completion in group
        ]

    def _limits(self, examples: Sequence[Example]) -> list[int]:
        return [self.lesson(example).max_new_tokens for example in examples]

    # ---- tokens --------------------------------------------------------------------------------

    def prompt_tokens(self, example: Example) -> list[int]:
        """Token ids of the example's prompt, up to where the answer begins."""
        return self.message_tokens(example.prompt)

    def message_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of chat messages as the student reads them, up to where an answer begins."""
        return chat_tokens(self.tokenizer, messages, inputs=self.chat)

    def teacher_tokens(self, example: Example, context: str | None = None) -> list[int]:
        """Token ids of the teacher's prompt. Raises UserError if the example lacks what it shows.

        context: one of TEACHER_CONTEXTS, instead of what the template shows.
        """
        lesson = self.lesson(example)
        messages = lesson.skill.teacher_prompt(example, lesson.teacher_template, context)
        return chat_tokens(self.tokenizer, messages, inputs=self.teacher_chat)

    def demonstration_rows(self, examples: Iterable[Example]) -> list[Row]:
        """Rows of supervised learning: each example's prompt and its demonstration."""
        return [
            Row(self.prompt_tokens(example), self.demonstration_tokens(example))
            for example in examples
        ]

    def demonstration_tokens(self, example: Example) -> list[int]:
        """Token ids of the turn that the demonstration is, to the token that closes it.

        They follow those of the prompt, as the chat template writes them: see
        harness/models/demonstration.py.
        """
        if example.demonstration is None:
            raise ValueError(f"example {example.id} has no demonstration")
        return self._demonstrations.tokens(example.prompt, example.demonstration)

    @cached_property
    def _demonstrations(self) -> Demonstrations:
        return Demonstrations(self.tokenizer, self.sampler.end, self.chat)
