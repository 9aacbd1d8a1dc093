"""One skill's turn: what a method is handed."""

import random
import time
from functools import cached_property

import numpy
import torch

from harness.base.seeds import seed_for
from harness.models.chat import chat_tokens, closed_thought

# of rollouts from another engine, unless a method says otherwise: that of the paper's code
IMPORTANCE_CAP = 2.0


def draws(count, total, seed):
    """Indices of the ``total`` examples drawn from ``count``: epochs without replacement, each in
    an order of its own.
    """
    out = []
    epoch = 0
    while len(out) < total:
        order = list(range(count))
        random.Random(seed_for(seed, "epoch", epoch)).shuffle(order)
        out += order
        epoch += 1
    return out[:total]


def seed_all(seed):
    """Seed what a method may draw from: Python's generator, NumPy's and PyTorch's."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)


class Step:
    """One optimizer step of a stage: ``index`` (from 0), ``examples`` drawn, and ``log`` for the
    method's diagnostics.
    """

    def __init__(self, index, examples, seed):
        self.index, self.examples, self.seed, self.logged = index, examples, seed, {}

    def log(self, **values):
        self.logged.update({k: float(v) for k, v in values.items()})


class Stage:
    """One skill's turn: what a method is handed, and all that it needs.

    model, tokenizer, sampler: live; skill; examples: the training examples; seed; index: 1 for the
    first skill; folder: the method's own, for whatever it wants to write; max_new_tokens,
    temperature, top_p: of rollouts; prompts: the budget; phases: prompts drawn in each phase
    (Method.phases), the budget alone if left out; sampled_elsewhere: whether the sampler is another
    engine than the model itself, so that its distribution is a slightly different one.
    """

    def __init__(
        self,
        *,
        model,
        tokenizer,
        sampler,
        skill,
        teacher_template=None,
        seed,
        index,
        prompts,
        batch_size,
        max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        folder=None,
        on_step=None,
        restored=None,
        phases=None,
        sampled_elsewhere=False,
    ):
        self.model, self.tokenizer, self.sampler, self.skill = model, tokenizer, sampler, skill
        self.sampled_elsewhere = sampled_elsewhere
        self.teacher_template, self.seed, self.index, self.folder = (
            teacher_template,
            seed,
            index,
            folder,
        )
        self.prompts, self.batch_size, self.phases = prompts, batch_size, phases or [prompts]
        # steps before the phase at hand, and in it
        self.begun, self.planned = 0, self._steps(self.phases[0])
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.examples = skill.examples("train")
        self.seconds = {"training": 0.0, "sampling": 0.0}
        # tokens that went through a training or scoring pass or were sampled, so far in this stage
        self.tokens = 0
        self.step = 0  # optimizer steps done in this stage
        # restored: {name: (times kept, state)}
        self._on_step, self._kept, self._times, self._restored = on_step, {}, {}, {}
        if restored:
            self.step, self.tokens, self.seconds = (
                restored["step"],
                restored["tokens"],
                restored["seconds"],
            )
            # checkpoints from before it was written do not have it
            times = restored.get("times", {})
            self._restored = {
                name: (times.get(name, 1), state) for name, state in restored["kept"].items()
            }

    @property
    def steps_in_all(self):
        """Optimizer steps of the stage: the prompts of each phase, ``batch_size`` at a time, its
        last batch smaller.
        """
        return sum(map(self._steps, self.phases))

    @property
    def prompts_drawn(self):
        """Prompts drawn so far, in all phases."""
        done, drawn = self.step, 0
        for prompts in self.phases:
            drawn += min(done * self.batch_size, prompts)
            done = max(0, done - self._steps(prompts))
        return drawn

    def _steps(self, prompts):
        return -(-prompts // self.batch_size)

    def draws(self, phase=0, count=None):
        """Indices of the examples (``count`` of them; the training examples if left out) in the
        order in which a phase draws.
        """
        key = ("data", phase) if phase else ("data",)
        return draws(
            len(self.examples) if count is None else count,
            self.phases[phase],
            seed_for(self.seed, self.index, *key),
        )

    def keep(self, **parts):
        """Make ``parts`` (objects with state_dict and load_state_dict) part of the checkpoints;
        restores them on resume.

        Before the first phase or after it: a resume comes by here again, and whatever the
        checkpoint has of a name is its state. Of a name that stands for one object after another,
        as for a trainer of each phase, those up to the checkpoint's are restored.
        """
        for name, part in parts.items():
            self._times[name] = self._times.get(name, 0) + (self._kept.get(name) is not part)
            self._kept[name] = part
            if name in self._restored:
                times, state = self._restored[name]
                part.load_state_dict(state)
                if self._times[name] >= times:
                    del self._restored[name]

    def let_go(self, part):
        """Checkpoints from now on are without ``part``, which is done with before the stage is."""
        self._kept = {name: kept for name, kept in self._kept.items() if kept is not part}

    def close(self):
        """The skill is learned: let go of what was kept for checkpoints (optimizer, teacher) before
        the evaluation.
        """
        self._kept, self._times, self._restored = {}, {}, {}

    def state_dict(self):
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": dict(self.seconds),
            "times": dict(self._times),
            "kept": {name: part.state_dict() for name, part in self._kept.items()},
        }

    def steps(self, phase=0, examples=None):
        """The optimizer steps of a phase that are still to be done. After each, progress,
        evaluation and checkpoint have their turn. examples: what is drawn from; the training
        examples if left out.
        """
        examples = self.examples if examples is None else examples
        indices = self.draws(phase, len(examples))
        self.begun = sum(map(self._steps, self.phases[:phase]))
        self.planned = self._steps(self.phases[phase])
        while self.step < self.begun + self.planned:
            seed = seed_for(self.seed, self.index, self.step)
            seed_all(seed)
            first = (self.step - self.begun) * self.batch_size
            step = Step(
                self.step, [examples[i] for i in indices[first : first + self.batch_size]], seed
            )
            sampling, tokens, start = self.seconds["sampling"], self.tokens, time.perf_counter()
            yield step
            spent = time.perf_counter() - start
            self.seconds["training"] += spent - (self.seconds["sampling"] - sampling)
            self.step += 1
            step.log(seconds=spent, tokens=self.tokens - tokens)
            if self._on_step:
                self._on_step(self, step)
        # for what is drawn between two phases
        seed_all(seed_for(self.seed, self.index, "after", phase))

    def sample(self, prompts, *, seed, n=1, max_new_tokens=None, temperature=None, top_p=None):
        """Completions from the live weights at the order's rollout settings; see Sampler.sample."""
        start = time.perf_counter()
        out = self.sampler.sample(
            prompts,
            n=n,
            seed=seed,
            max_new_tokens=self.max_new_tokens if max_new_tokens is None else max_new_tokens,
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p if top_p is None else top_p,
        )
        self.sampler.rest()
        self.seconds["sampling"] += time.perf_counter() - start
        self.tokens += sum(len(c.token_ids) for group in out for c in group) + sum(
            map(len, prompts)
        )
        return out

    def importance_cap(self, asked):
        """Cap of the importance weights of rollouts, None for no weights. asked: a method's option;
        0 is never.
        """
        return (
            (IMPORTANCE_CAP if self.sampled_elsewhere else None) if asked is None else asked or None
        )

    def prompt_tokens(self, example):
        return chat_tokens(self.tokenizer, example.prompt)

    def teacher_tokens(self, example, context=None):
        """The teacher's prompt. Raises UserError if the example lacks what it shows."""
        return chat_tokens(
            self.tokenizer, self.skill.teacher_prompt(example, self.teacher_template, context)
        )

    @cached_property
    def _closing(self):
        return closed_thought(self.tokenizer)

    def demonstration_tokens(self, example):
        """The demonstration and the token that ends a turn: what a sampled answer would look like.
        Where the chat template opens the reasoning, a demonstration without any closes it first: it
        would be taught as a thought that never ends.
        """
        text = (
            example.demonstration
            if "</think>" in example.demonstration
            else self._closing + example.demonstration
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.sampler.end]
