"""The learning step that every method shares: data order, precision, micro-batches, optimizer, schedule, checkpoints.

A method says what its loss is; this file says how a loss becomes an update, so that methods differ in nothing else:

* master weights, gradients, optimizer state and averages are float32 whatever the model computes in; where the model is
  in bfloat16 its weights are the rounded masters (pure bfloat16 updates at fine-tuning rates are mostly rounded away);
* rows are cut into micro-batches by length, so that little is padding;
* the vocabulary-sized tensors exist for one chunk of tokens at a time: each chunk's loss is differentiated as soon as it
  is computed, and only the gradient with respect to the hidden states is kept for the backward pass of the body;
* every random draw is keyed by (seed, stage, step, purpose), so that there is no generator state to save.
"""

import copy
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy
import torch
import torch.nn.functional as F

from harness import models
from harness.config import option
from harness.errors import UserError
from harness.sampler import common_prefix, seed_for

MICRO_BATCH_TOKENS = {False: 1024, True: 8192}  # by whether the model is on a GPU
VOCABULARY_CHUNK = 2**24  # elements of one [tokens, vocabulary] tensor: 64 MiB in float32
IMPORTANCE_CAP = 2.0  # of rollouts from another engine, unless a method says otherwise: that of the paper's code
TREE = 512  # tokens of one sequence that different prompts share: attention to tokens that it may not see grows with it


def cross_entropy(logits, tokens):
    """Sum of -log p over tokens; logits [tokens, vocabulary], tokens [tokens], see ``Trainer.token_mean``."""
    return F.cross_entropy(logits, tokens, reduction="sum")


@dataclass
class TrainingConfig:
    """Hyperparameters that every method has. Defaults are the paper's, section 4 and appendix."""

    learning_rate: float = option(2e-5, "peak learning rate of AdamW", min=0)
    batch_size: int | None = option(None, "prompts per optimizer step; the order's budget.batch_size if left out", min=1)
    epochs: float | None = option(None, "passes over the training examples of each skill; the order's budget if left out", above=0)
    schedule: str = option("cosine", "learning rate after the warm-up", choices=("cosine", "linear", "constant"))
    warmup_steps: int = option(10, "optimizer steps of linear warm-up in each stage, a fifth of the stage at most", min=0)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", min=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this global L2 norm", above=0)
    masters: str = option("device", "where float32 masters, AdamW's moments and an average of the weights stand: on the model's "
                          "device, or in host memory, for the price of copies at each micro-batch and step",
                          choices=("device", "host"))
    micro_batch_tokens: int | None = option(
        None, "tokens, padding included, of one forward and backward pass; 1,024 on a CPU and 8,192 on a GPU if left out", min=1)


@dataclass
class Row:
    """One sequence to learn from: the loss is on ``completion``, given ``prompt`` (both lists of token ids)."""

    prompt: list
    completion: list


@dataclass
class Positions:
    """Where a chunk's completion tokens stand: rows (index of the row), offsets (place in the completion, from 0) and
    tokens (the token itself), int64 tensors [tokens]."""

    rows: torch.Tensor
    offsets: torch.Tensor
    tokens: torch.Tensor


def draws(count, total, seed):
    """Indices of the ``total`` examples drawn from ``count``: epochs without replacement, each in an order of its own."""
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


def learning_rate(config, step, steps):
    """The rate of optimizer step ``step`` (from 0) of ``steps``: linear warm-up, then the schedule down to 0."""
    warmup = min(config.warmup_steps, steps // 5)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    part = (step - warmup) / max(1, steps - warmup)
    factor = {"cosine": 0.5 * (1 + numpy.cos(numpy.pi * part)), "linear": 1 - part, "constant": 1.0}[config.schedule]
    return float(config.learning_rate * factor)


class Step:
    """One optimizer step of a stage: ``index`` (from 0), ``examples`` drawn, and ``log`` for the method's diagnostics."""

    def __init__(self, index, examples, seed):
        self.index, self.examples, self.seed, self.logged = index, examples, seed, {}

    def log(self, **values):
        self.logged.update({k: float(v) for k, v in values.items()})


class Stage:
    """One skill's turn: what a method is handed, and all that it needs.

    model, tokenizer, sampler: live; skill; examples: the training examples; seed; index: 1 for the first skill; folder:
    the method's own, for whatever it wants to write; max_new_tokens, temperature, top_p: of rollouts; prompts: the budget;
    phases: prompts drawn in each phase (Method.phases), the budget alone if left out; sampled_elsewhere: whether the sampler
    is another engine than the model itself, so that its distribution is a slightly different one.
    """

    def __init__(self, *, model, tokenizer, sampler, skill, teacher_template=None, seed, index, prompts, batch_size,
                 max_new_tokens, temperature=1.0, top_p=1.0, folder=None, on_step=None, restored=None, phases=None,
                 sampled_elsewhere=False):
        self.model, self.tokenizer, self.sampler, self.skill = model, tokenizer, sampler, skill
        self.sampled_elsewhere = sampled_elsewhere
        self.teacher_template, self.seed, self.index, self.folder = teacher_template, seed, index, folder
        self.prompts, self.batch_size, self.phases = prompts, batch_size, phases or [prompts]
        self.begun, self.planned = 0, self._steps(self.phases[0])  # steps before the phase at hand, and in it
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.examples = skill.examples("train")
        self.seconds = {"training": 0.0, "sampling": 0.0}
        self.tokens = 0  # tokens that went through a training or scoring pass or were sampled, so far in this stage
        self.step = 0  # optimizer steps done in this stage
        self._on_step, self._kept, self._times, self._restored = on_step, {}, {}, {}  # restored: {name: (times kept, state)}
        if restored:
            self.step, self.tokens, self.seconds = restored["step"], restored["tokens"], restored["seconds"]
            times = restored.get("times", {})  # checkpoints from before it was written do not have it
            self._restored = {name: (times.get(name, 1), state) for name, state in restored["kept"].items()}

    @property
    def steps_in_all(self):
        """Optimizer steps of the stage: the prompts of each phase, ``batch_size`` at a time, its last batch smaller."""
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
        """Indices of the examples (``count`` of them; the training examples if left out) in the order in which a phase draws."""
        key = ("data", phase) if phase else ("data",)
        return draws(len(self.examples) if count is None else count, self.phases[phase], seed_for(self.seed, self.index, *key))

    def keep(self, **parts):
        """Make ``parts`` (objects with state_dict and load_state_dict) part of the checkpoints; restores them on resume.

        Before the first phase or after it: a resume comes by here again, and whatever the checkpoint has of a name is its state. Of
        a name that stands for one object after another, as for a trainer of each phase, those up to the checkpoint's are restored.
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
        """The skill is learned: let go of what was kept for checkpoints (optimizer, teacher) before the evaluation."""
        self._kept, self._times, self._restored = {}, {}, {}

    def state_dict(self):
        return {"step": self.step, "tokens": self.tokens, "seconds": dict(self.seconds),
                "times": dict(self._times), "kept": {name: part.state_dict() for name, part in self._kept.items()}}

    def steps(self, phase=0, examples=None):
        """The optimizer steps of a phase that are still to be done. After each, progress, evaluation and checkpoint have their
        turn. examples: what is drawn from; the training examples if left out."""
        examples = self.examples if examples is None else examples
        indices = self.draws(phase, len(examples))
        self.begun = sum(map(self._steps, self.phases[:phase]))
        self.planned = self._steps(self.phases[phase])
        while self.step < self.begun + self.planned:
            seed = seed_for(self.seed, self.index, self.step)
            seed_all(seed)
            first = (self.step - self.begun) * self.batch_size
            step = Step(self.step, [examples[i] for i in indices[first:first + self.batch_size]], seed)
            sampling, tokens, start = self.seconds["sampling"], self.tokens, time.perf_counter()
            yield step
            spent = time.perf_counter() - start
            self.seconds["training"] += spent - (self.seconds["sampling"] - sampling)
            self.step += 1
            step.log(seconds=spent, tokens=self.tokens - tokens)
            if self._on_step:
                self._on_step(self, step)
        seed_all(seed_for(self.seed, self.index, "after", phase))  # for what is drawn between two phases

    def sample(self, prompts, *, seed, n=1, max_new_tokens=None, temperature=None, top_p=None):
        """Completions from the live weights at the order's rollout settings; see Sampler.sample."""
        start = time.perf_counter()
        out = self.sampler.sample(
            prompts, n=n, seed=seed,
            max_new_tokens=self.max_new_tokens if max_new_tokens is None else max_new_tokens,
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p if top_p is None else top_p)
        self.sampler.rest()
        self.seconds["sampling"] += time.perf_counter() - start
        self.tokens += sum(len(c.token_ids) for group in out for c in group) + sum(map(len, prompts))
        return out

    def importance_cap(self, asked):
        """Cap of the importance weights of rollouts, None for no weights. asked: a method's option; 0 is never."""
        return (IMPORTANCE_CAP if self.sampled_elsewhere else None) if asked is None else asked or None

    def prompt_tokens(self, example):
        return models.chat_tokens(self.tokenizer, example.prompt)

    def teacher_tokens(self, example, context=None):
        """The teacher's prompt. Raises UserError if the example lacks what it shows."""
        return models.chat_tokens(self.tokenizer, self.skill.teacher_prompt(example, self.teacher_template, context))

    @cached_property
    def _closing(self):
        return models.closed_thought(self.tokenizer)

    def demonstration_tokens(self, example):
        """The demonstration and the token that ends a turn: what a sampled answer would look like. Where the chat template opens the
        reasoning, a demonstration without any closes it first: it would be taught as a thought that never ends."""
        text = example.demonstration if "</think>" in example.demonstration else self._closing + example.demonstration
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.sampler.end]


def micro_batches(model, rows, limit):
    """Indices of ``rows`` in trees, rows that are computed as one sequence since their prompts begin alike, and trees of similar
    length in groups of at most ``limit`` tokens with their padding (a tree that is longer stands alone): yields lists of lists.

    Rows with one prompt always share it. Different prompts share their common beginning (a system turn, worked examples) where
    it is at least a fifth of a row; such a sequence ends at TREE tokens, since each token is held against all of them.
    """
    def length(tree):
        return _computed(rows, tree)

    trees, latest, share = [], {}, models.can_share_prompts(model)
    for i, row in enumerate(rows):
        tree = latest.get(tuple(row.prompt)) if share else None
        if tree and length([*tree, i]) <= limit:
            tree.append(i)
        else:
            trees.append([i])
            latest[tuple(row.prompt)] = trees[-1]
    if share and len(latest) > 1:
        beginning, whole = common_prefix(list(latest)), sum(map(length, trees))
        if 5 * beginning * len(trees) >= whole:
            trees = _even(trees, [length(tree) - beginning for tree in trees], max(1, min(TREE, limit) - beginning))
    group = []
    for tree in sorted(trees, key=lambda tree: (-length(tree), tree[0])):
        if group and length(group[0]) * (len(group) + 1) > limit:
            yield group
            group = []
        group.append(tree)
    if group:
        yield group


def _even(parts, sizes, room):
    """``parts`` (lists) joined to as few lists as it takes for their sizes to fit into ``room``, all about equally full."""
    order = sorted(range(len(parts)), key=lambda i: (-sizes[i], i))  # the longest first, each where most room is
    for count in range(-(-sum(sizes) // room), len(parts) + 1):
        joined, filled = [[] for _ in range(count)], [0] * count
        for i in order:
            place = filled.index(min(filled))
            joined[place] += parts[i]
            filled[place] += sizes[i]
        if max(filled) <= room:
            return joined
    return parts


def completion_states(model, rows, group):
    """Hidden states that predict the completions of a micro-batch: [completion tokens, width], and their Positions.

    What the prompts of a tree have in common is computed once; the rest of each prompt follows, and after it its completions,
    each token at the position that it would have in a row of its own, seeing what it would see there.
    """
    sequences, positions, segments, parents, places = [], [], [], [], []
    for number, tree in enumerate(group):
        shared = common_prefix([rows[i].prompt for i in tree])
        sequence, position = rows[tree[0]].prompt[:shared], list(range(shared))
        segment, parent = [0] * shared, [0] * shared  # of each token: the part it belongs to, and the part that one follows

        def add(tokens, first, after):
            own = segment[-1] + 1 if segment else 1
            sequence.extend(tokens)
            position.extend(range(first, first + len(tokens)))
            segment.extend([own] * len(tokens))
            parent.extend([after] * len(tokens))
            return own if tokens else after

        prompt = None
        for i in tree:
            if rows[i].prompt != prompt:  # rows of one prompt stand side by side
                prompt = rows[i].prompt
                part = add(prompt[shared:], shared, 0)
                last = len(sequence) - 1 if len(prompt) > shared else shared - 1
            tokens, start = rows[i].completion, len(sequence)
            places += [(number, last if t == 0 else start + t - 1, i, t, token) for t, token in enumerate(tokens)]
            add(tokens[:-1], len(prompt), part)
        for all_of, one in zip((sequences, positions, segments, parents), (sequence, position, segment, parent)):
            all_of.append(one)
    device = model.device
    ids = models.pad_right(sequences, device)
    if all(len(tree) == 1 for tree in group):
        states = models.hidden(model, ids)
    else:
        segment, parent = models.pad_right(segments, device, -1)[:, None, :], models.pad_right(parents, device, -1)[:, :, None]
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
        sees = causal & ((segment == segment.mT) | (segment == parent) | (segment == 0))
        states = models.hidden(model, ids, position_ids=models.pad_right(positions, device), attention_mask=sees[:, None])
    tree, at, row, offset, token = torch.tensor(places, device=device).T
    return states[tree, at], Positions(row, offset, token)


def _is_master(param, place):
    return param.dtype == torch.float32 and param.device == place


def _master(param, place):
    return param.detach().to(place, torch.float32, copy=True)


class Trainer:
    """AdamW on float32 master weights of ``stage.model``: ``backward`` as often as wanted, then ``update``."""

    def __init__(self, stage, config):
        self.stage, self.config, self.model = stage, config, stage.model
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.place = torch.device("cpu") if config.masters == "host" else self.model.device
        self.masters = [p if _is_master(p, self.place) else _master(p, self.place).requires_grad_() for p in self.params]
        self.hooks = [p.register_post_accumulate_grad_hook(self._accumulate(m))
                      for p, m in zip(self.params, self.masters) if m is not p]
        self.adamw = torch.optim.AdamW(self.masters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.limit = config.micro_batch_tokens or MICRO_BATCH_TOKENS[self.model.device.type != "cpu"]
        self.projected = None
        self.head = models.head(self.model, self._head_gradient)
        stage.keep(trainer=self)

    @staticmethod
    def _accumulate(master):
        def hook(param):  # micro-batches add up in float32
            if param.grad is None:  # the head's weight, whose gradient goes its own way
                return
            grad = param.grad.to(master.device, torch.float32)
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            param.grad = None

        return hook

    def _head_gradient(self, weight):
        """What the chunks of a micro-batch add the gradient of the head's weight to: where the weight is its own master its gradient,
        else a sum in float32 beside it, which goes to the master once."""
        if not self.hooks:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            return weight.grad
        if self.projected is None:
            self.projected = torch.zeros_like(weight, dtype=torch.float32)
        return self.projected

    def backward(self, rows, loss, last_first=False):
        """Add the gradient of a sum over all completion tokens of ``rows`` to the masters' gradients; returns that sum.

        loss: ``f(logits, positions) -> scalar`` for one chunk of tokens; logits float32 [tokens, vocabulary], positions a
        Positions whose ``rows`` index into ``rows``. It must already be divided by whatever the method averages over.
        last_first: the chunks of a completion come in reverse, for losses that need what comes after.
        """
        total = 0.0
        for group in micro_batches(self.model, rows, self.limit):
            self.stage.tokens += _tokens(rows, group)
            states, at = completion_states(self.model, rows, group)
            leaf = states.detach().requires_grad_()
            parts = chunks(len(leaf), self.model.config.get_text_config().vocab_size)
            for part in reversed(parts) if last_first else parts:
                value = loss(self.head(leaf[part]).float(), Positions(at.rows[part], at.offsets[part], at.tokens[part]))
                if value.requires_grad:
                    value.backward()
                total += value.item()
            if leaf.grad is not None:
                states.backward(leaf.grad)
            if self.projected is not None:
                weight = self.model.get_output_embeddings().weight
                master = next(m for p, m in zip(self.params, self.masters) if p is weight)
                grad, self.projected = self.projected.to(master.device), None
                master.grad = grad if master.grad is None else master.grad.add_(grad)
        return total

    def token_mean(self, rows, total):
        """Backward of the mean loss over all completion tokens of ``rows``; returns what a step logs of it.

        total: ``f(logits [tokens, vocabulary], tokens [tokens]) -> scalar``, the sum over a chunk's tokens, as ``cross_entropy``.
        """
        count = sum(len(r.completion) for r in rows)
        value = self.backward(rows, lambda logits, at: total(logits, at.tokens) / count)
        return {"loss": value, "completion_tokens": count / len(rows)}

    def update(self):
        """One optimizer step. Returns the gradients' global L2 norm before clipping, and the learning rate used. Raises UserError
        where that norm is not finite.

        Each phase of a stage is a training of its own: warm-up, schedule and AdamW's averages begin anew.
        """
        stage = self.stage
        if 0 < stage.begun == stage.step:
            self.adamw.state.clear()
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        rate = learning_rate(self.config, stage.step - stage.begun, stage.planned)
        self.adamw.param_groups[0]["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.config.max_grad_norm)
        if not torch.isfinite(norm):  # AdamW would write it into every weight
            raise UserError(f"step {stage.step + 1}", f"the gradients' norm is {norm.item()}",
                            "take a smaller learning_rate, or float32; the last checkpoint is whole")
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._copy_to_model()
        return {"grad_norm": norm.item(), "learning_rate": rate}

    @torch.no_grad()
    def _copy_to_model(self):
        for param, master in zip(self.params, self.masters):
            if master is not param:
                param.copy_(master)

    def close(self):
        """Leave the model as it is and let go of the rest. The head's function holds this trainer, which holds it: left so, masters
        and moments would live until Python looks for cycles, and on a GPU stand beside those of the next stage."""
        for hook in self.hooks:
            hook.remove()
        self.stage.let_go(self)
        self.head = self.adamw = self.projected = self.params = self.masters = self.hooks = None  # what is asked for later fails

    def state_dict(self):
        return {"masters": [m.detach() for m in self.masters], "adamw": self.adamw.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state):
        for master, value in zip(self.masters, state["masters"], strict=True):
            master.copy_(value)
        self.adamw.load_state_dict(state["adamw"])
        self._copy_to_model()


class Teacher:
    """A second set of weights that follows the model as an exponential moving average, kept in float32.

    After every optimizer step phi <- alpha * theta + (1 - alpha) * phi (paper, section 3). alpha 0 is a frozen copy; alpha
    1 is the live model itself, of which no copy is made. In the model's own bfloat16 most steps of an average with
    alpha 0.01 are below half a unit in the last place and would be lost: hence the float32 state, which stands on ``place``
    (where the trainer's masters are; the model's device if left out).
    """

    def __init__(self, stage, alpha, micro_batch_tokens, place=None):
        self.stage, self.alpha, self.limit = stage, alpha, micro_batch_tokens
        self.model = stage.model if alpha == 1 else copy.deepcopy(stage.model).requires_grad_(False).eval()
        place = place or self.model.device
        self.average = [] if alpha in (0, 1) else [p if _is_master(p, place) else _master(p, place) for p in self.model.parameters()]
        stage.keep(teacher=self)
        self.head = models.head(self.model)

    @torch.no_grad()
    def follow(self, masters):
        """Take one step towards ``masters``, the trainer's float32 weights."""
        for average, master, param in zip(self.average, masters, self.model.parameters()):
            average.lerp_(master, self.alpha)
            if average is not param:
                param.copy_(average)

    @torch.no_grad()
    def states(self, rows):
        """Hidden states that predict each row's completion: a list of [completion tokens, width], in the rows' order."""
        out = [None] * len(rows)
        for group in micro_batches(self.model, rows, 2 * self.limit):
            self.stage.tokens += _tokens(rows, group)
            states, _ = completion_states(self.model, rows, group)
            order = [i for tree in group for i in tree]
            for i, part in zip(order, states.split([len(rows[i].completion) for i in order])):
                out[i] = part
        return out

    def state_dict(self):
        parts = self.average or ([] if self.alpha == 1 else list(self.model.parameters()))
        return {"weights": [p.detach() for p in parts]}

    @torch.no_grad()
    def load_state_dict(self, state):
        for position, value in enumerate(state["weights"]):
            if self.average:
                self.average[position].copy_(value)
        for param, value in zip(self.model.parameters(), state["weights"]):
            param.copy_(value)


def _computed(rows, tree):
    """Tokens of a tree's sequence: what the prompts share, the rest of each prompt, and all but the last of each completion."""
    shared = common_prefix([rows[i].prompt for i in tree])
    own = {tuple(rows[i].prompt): len(rows[i].prompt) - shared for i in tree}
    return shared + sum(own.values()) + sum(len(rows[i].completion) - 1 for i in tree)


def _tokens(rows, group):
    return sum(_computed(rows, tree) + len(tree) for tree in group)


def chunks(count, vocabulary):
    """Slices over ``count`` tokens such that a [tokens, vocabulary] tensor stays within VOCABULARY_CHUNK elements."""
    size = max(1, VOCABULARY_CHUNK // vocabulary)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


@contextmanager
def learning(stage, config):
    """A Trainer for the length of a stage."""
    trainer = Trainer(stage, config)
    stage.model.train()
    try:
        yield trainer
    finally:
        trainer.close()
        stage.model.eval()
