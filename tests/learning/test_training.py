"""The shared learning step against naive loops: one row at a time, full logits, float64 or a plain
float32 AdamW.
"""

import copy
import gc
import io
import math
import weakref
from collections import Counter
from contextlib import ExitStack
from itertools import chain
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from harness.base.errors import UserError
from harness.learning import packing
from harness.learning.draws import draws
from harness.learning.packing import TREE, Row, micro_batches
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer, TrainingConfig, cross_entropy, learning, learning_rate
from harness.models.forward import can_share_prompts
from harness.models.load import load_model
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import Example, Skill
from methods.grpo import GRPO, GRPOConfig
from methods.sdft import SDFT, SDFTConfig
from methods.sft import SFT

CONFIG = {"learning_rate": 1e-2, "warmup_steps": 1}


class Letters(Skill):
    """Twelve questions whose prompts and demonstrations differ in length; graded by the share of
    the letter a.
    """

    name = "letters"
    metrics: ClassVar = {
        "a": lambda completion, reference: completion.count("a") / max(1, len(completion))
    }

    def load(self, split):
        return [
            Example(
                str(i),
                [{"role": "user", "content": "q" * (1 + 5 * i % 7) + f" {i}?"}],
                chr(97 + i) * (1 + 3 * i % 5),
                "a",
            )
            for i in range(12)
        ]


def make_stage(model, tokenizer, **changes):
    """A stage of three steps of four prompts on ``model``, which it will change."""
    sampler = TransformersSampler(model, tokenizer)
    sampler.stops = sampler.stops | set(range(25))  # so that answers differ in length
    settings = {
        "skill": Letters(),
        "seed": 1,
        "index": 1,
        "prompts": 12,
        "batch_size": 4,
        "max_new_tokens": 10,
        "sampler": sampler,
    }
    return Stage(model=model, tokenizer=tokenizer, **{**settings, **changes})


@pytest.fixture
def fresh(tiny_model):
    """A copy of the tiny model in float32, and the tokenizer."""
    return copy.deepcopy(tiny_model[0]), tiny_model[1]


def some_rows(count=9):
    """Rows of 2 to 58 tokens; every third has the prompt of the one before it."""
    random = torch.Generator().manual_seed(0)
    size = torch.randint(1, 30, (count, 2), generator=random).tolist()
    rows = [
        Row(
            torch.randint(0, 260, (a,), generator=random).tolist(),
            torch.randint(0, 260, (b,), generator=random).tolist(),
        )
        for a, b in size
    ]
    return [Row(rows[i - (i % 3 == 2)].prompt, r.completion) for i, r in enumerate(rows)]


def naive(model, rows, each):
    """Loss and gradients by name, in float64, one row at a time: each(logits [tokens, vocabulary],
    row) -> scalar.
    """
    model = copy.deepcopy(model).double()
    total = 0.0
    for row in rows:
        logits = model(torch.tensor([row.prompt + row.completion])).logits[
            0, len(row.prompt) - 1 : -1
        ]
        loss = each(logits, row)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in model.named_parameters()}


def assert_close(found, wanted, relative):
    """Every tensor within ``relative`` of the largest element of its reference."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.abs().max().item()
        assert (
            scale > 0
            and (found[name].double() - value.double()).abs().max().item() <= relative * scale
        ), name


def assert_near(found, wanted):
    """A weight after some steps is that of a loop in float64, to a hundredth of its change.

    Where a gradient passes 0 AdamW makes much of its last digits: one entry in a thousand, which
    another order of the same sums moves by less than a step does.
    """
    away = (found.detach().double() - wanted.detach().double()).abs()
    assert away.max() < 2e-3 and (away > 5e-5).sum() <= max(1, away.numel() // 1000), away.max()


# ---- data order and schedule --------------------------------------------------------------------


def test_draws_are_epochs_without_replacement():
    found = draws(10, 34, 3)
    assert len(found) == 34
    epochs = [found[i : i + 10] for i in range(0, 34, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs[:3]) and len(set(epochs[3])) == 4
    assert len({tuple(e) for e in epochs[:3]}) == 3  # each in an order of its own
    assert draws(10, 7, 3) == found[:7] and draws(10, 34, 4) != found
    # every example is as likely to come first
    first = Counter(draws(10, 1, seed)[0] for seed in range(2000))
    # chi-square, 9 degrees of freedom, 0.1%
    assert sum((n - 200) ** 2 / 200 for n in first.values()) < 27.9


def test_every_method_gets_the_same_prompts(fresh):
    def seen(**changes):
        stage = make_stage(*fresh, **changes)
        return [[e.id for e in s.examples] for s in stage.steps()]

    once = seen(prompts=30)
    assert [len(s) for s in once] == [4] * 7 + [2]
    assert seen(prompts=30, max_new_tokens=3) == once
    # the batch size cuts the same sequence
    assert [*chain(*seen(prompts=30, batch_size=7))] == [*chain(*once)]
    assert seen(prompts=30, seed=2) != once and seen(prompts=30, index=2) != once


@pytest.mark.parametrize("steps", [1, 4, 40, 400])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate(schedule, steps):
    config = TrainingConfig(learning_rate=3e-4, schedule=schedule, warmup_steps=10)
    warm = min(10, steps // 5)
    found = [learning_rate(config, s, steps) for s in range(steps)]
    for step, rate in enumerate(found):
        if step < warm:
            wanted = 3e-4 * (step + 1) / (warm + 1)
        else:
            x = (step - warm) / (steps - warm)
            wanted = (
                3e-4
                * {"cosine": math.cos(math.pi * x / 2) ** 2, "linear": 1 - x, "constant": 1}[
                    schedule
                ]
            )
        assert rate == pytest.approx(wanted, rel=1e-12)
    assert max(found) == found[warm] == pytest.approx(3e-4) and min(found) > 0


# ---- micro-batches and chunks -------------------------------------------------------------------


@pytest.mark.parametrize("in_line", [True, False])
def test_micro_batches_hold_every_row_once_within_the_limit(fresh, monkeypatch, in_line):
    """Whether each prompt has a completion or twelve: a row that is longer than the limit stands
    alone. Padding counts where trees stand beside each other.
    """
    monkeypatch.setattr(packing, "_in_line", lambda model: in_line)
    for rows in (
        some_rows(40),
        [Row(some_rows()[i % 2].prompt, r.completion) for i, r in enumerate(some_rows(24))],
    ):
        for limit in (1, 60, 200, 10**6):
            groups = list(micro_batches(fresh[0], rows, limit))
            assert sorted(i for group in groups for tree in group for i in tree) == list(
                range(len(rows))
            )
            for group in groups:
                lengths = [naive_length([rows[i] for i in tree]) for tree in group]
                tokens = sum(lengths) if in_line else max(lengths) * len(group)
                assert tokens <= limit or (len(group) == 1 and len(group[0]) == 1)
        assert len(groups) == 1  # a prompt is computed once
        assert all(
            len({n for n, tree in enumerate(groups[0]) for i in tree if rows[i].prompt == r.prompt})
            == 1
            for r in rows
        )


def naive_length(rows):
    """Tokens of a sequence that holds the common beginning once, and every prompt once."""
    prompts = {tuple(r.prompt) for r in rows}
    shared = 0
    while all(len(p) > shared for p in prompts) and len({p[shared] for p in prompts}) == 1:
        shared += 1
    return shared + sum(len(p) - shared for p in prompts) + sum(len(r.completion) - 1 for r in rows)


@pytest.mark.parametrize(("in_line", "longest"), [(True, 1024), (False, TREE)])
def test_prompts_that_begin_alike_stand_in_sequences_of_even_length(
    fresh, monkeypatch, in_line, longest
):
    monkeypatch.setattr(packing, "_in_line", lambda model: in_line)
    opening = list(range(30, 130))
    rows = [Row(opening + [i] * (5 + i % 7), [3] * (10 + i % 5)) for i in range(64)]
    groups = list(micro_batches(fresh[0], rows, 1024))
    lengths = [naive_length([rows[i] for i in tree]) for group in groups for tree in group]
    assert longest / 2 < max(lengths) <= longest and max(lengths) - min(lengths) <= 25
    assert sum(lengths) < 0.4 * sum(naive_length([r]) for r in rows)
    few = [Row(opening[:4] + [i] * 40, [3] * 10) for i in range(8)]  # too little to share
    assert all(len(tree) == 1 for group in micro_batches(fresh[0], few, 1024) for tree in group)


@pytest.mark.parametrize("limit", [1, 64, 150, 10**6])
@pytest.mark.parametrize("chunk", [1, 260 * 7, 2**24])
def test_gradients_do_not_depend_on_the_cutting(fresh, monkeypatch, limit, chunk):
    """Whatever the micro-batches and the chunks of the vocabulary, loss and gradients are those of
    one row at a time.

    The loss depends on the row, the place in the completion, and the token: all three must be
    handed over rightly.
    """
    monkeypatch.setitem(packing.VOCABULARY_CHUNK, False, chunk)
    model, rows = fresh[0], some_rows()
    numbers = {id(r): i for i, r in enumerate(rows)}

    def each(logits, row):
        place = torch.arange(len(row.completion))
        value = (
            F.cross_entropy(logits, torch.tensor(row.completion), reduction="none")
            * (1 + numbers[id(row)])
            / (1 + place)
        )
        return value.sum() + 0.01 * (logits**2).sum()

    def loss(logits, at):
        assert logits.dtype == torch.float32 and len(logits) <= max(1, chunk // 260)
        value = (
            F.cross_entropy(logits, at.tokens, reduction="none") * (1 + at.rows) / (1 + at.offsets)
        )
        return value.sum() + 0.01 * (logits**2).sum()

    wanted, gradients = naive(model, rows, each)
    stage = make_stage(*fresh)
    with learning(stage, TrainingConfig(**CONFIG, micro_batch_tokens=limit)) as trainer:
        assert trainer.backward(rows, loss) == pytest.approx(wanted, rel=1e-5)
        assert_close({n: p.grad for n, p in model.named_parameters()}, gradients, 1e-4)
        trainer.backward(rows, loss)  # a second call adds up
        assert_close({n: p.grad / 2 for n, p in model.named_parameters()}, gradients, 1e-4)
    most = 2 * sum(len(r.prompt) + len(r.completion) for r in rows)
    # a shared prompt counts as often as it is computed
    again = 2 * sum(len(rows[i].prompt) for i in range(2, len(rows), 3))
    assert stage.tokens == {1: most, 10**6: most - again}.get(limit, stage.tokens)


def test_untied_heads_learn_too(tmp_path):
    """Where input and output embeddings are two matrices, each has its own gradient."""
    from tests.conftest import save_tiny

    model, tokenizer = load_model(
        str(save_tiny(tmp_path / "m", tie_word_embeddings=False)), "float32", "cpu"
    )
    rows = some_rows()
    wanted, gradients = naive(
        model, rows, lambda logits, row: F.cross_entropy(logits, torch.tensor(row.completion))
    )
    sizes = torch.tensor([len(r.completion) for r in rows])
    with learning(
        make_stage(model, tokenizer), TrainingConfig(**CONFIG, micro_batch_tokens=64)
    ) as trainer:
        found = trainer.backward(
            rows,
            lambda logits, at: (
                F.cross_entropy(logits, at.tokens, reduction="none") / sizes[at.rows]
            ).sum(),
        )
    assert found == pytest.approx(wanted, rel=1e-5)
    assert_close({n: p.grad for n, p in model.named_parameters()}, gradients, 1e-4)
    assert "lm_head.weight" in gradients


def test_the_heads_gradient_reaches_masters_elsewhere(tmp_path, monkeypatch):
    """A bfloat16 model, tied and not: the chunks' sum is that of one chunk, within the rounding of
    the products.
    """
    from tests.conftest import save_tiny

    for tied in (True, False):
        model, tokenizer = load_model(
            str(save_tiny(tmp_path / f"{tied}", tie_word_embeddings=tied)), "bfloat16", "cpu"
        )
        rows = some_rows()
        gradients = []
        for chunk in (260 * 7, 2**24):
            monkeypatch.setitem(packing.VOCABULARY_CHUNK, False, chunk)
            with learning(
                make_stage(model, tokenizer),
                TrainingConfig(**CONFIG, micro_batch_tokens=10**6, masters="host"),
            ) as trainer:
                trainer.backward(rows, token_mean(rows))
                assert trainer.projected is None and all(
                    p.grad is None for p in trainer.params.values()
                )
                gradients.append({n: m.grad for n, m in trainer.masters.items()})
        assert_close(*gradients, 0.02)


# ---- optimizer ----------------------------------------------------------------------------------


def token_mean(rows):
    count = sum(len(r.completion) for r in rows)
    return lambda logits, at: F.cross_entropy(logits, at.tokens, reduction="sum") / count


class HandAdamW:
    """Adam with decoupled weight decay and clipping, written from Loshchilov & Hutter (arXiv
    1711.05101), in float64. Norms do not decay; the tiny model has no biases.
    """

    def __init__(self, weights):
        self.weights = [w.detach().double().clone() for w in weights.values()]
        self.decays = ["norm" not in name for name in weights]
        self.m, self.v, self.t = (
            [torch.zeros_like(w) for w in self.weights],
            [torch.zeros_like(w) for w in self.weights],
            0,
        )

    def step(self, gradients, rate, decay, limit):
        gradients = [g.double() for g in gradients]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        scale = min(1.0, limit / norm)
        self.t += 1
        for w, m, v, g, decays in zip(
            self.weights, self.m, self.v, gradients, self.decays, strict=True
        ):
            g = g * scale
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            w.mul_(1 - rate * decay * decays)
            w.sub_(rate * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8))
        return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [0.5, 1e9])
@pytest.mark.parametrize("masters", ["device", "host"])
def test_updates_are_adamw_on_float32_masters(fresh, dtype, limit, masters):
    """Ten steps against an AdamW of our own that is fed the same gradients; in bfloat16 the weights
    are the rounded masters.
    """
    model, rows = fresh[0].to(dtype), some_rows()
    config = TrainingConfig(
        learning_rate=1e-3, warmup_steps=2, weight_decay=0.1, max_grad_norm=limit, masters=masters
    )
    stage = make_stage(model, fresh[1], prompts=40)
    with learning(stage, config) as trainer:
        reference = HandAdamW(trainer.masters)
        for step in stage.steps():
            trainer.backward(rows, token_mean(rows))
            gradients = [m.grad.clone() for m in trainer.masters.values()]
            assert all(g.dtype == torch.float32 and g.device == trainer.place for g in gradients)
            found = trainer.update()
            rate = learning_rate(config, step.index, 10)
            assert found["learning_rate"] == rate
            assert found["grad_norm"] == pytest.approx(
                reference.step(gradients, rate, 0.1, limit), rel=1e-5
            )
            for param, master, wanted in zip(
                model.parameters(), trainer.masters.values(), reference.weights, strict=True
            ):
                assert master.dtype == torch.float32 and torch.equal(param, master.to(dtype))
                assert (master - wanted).abs().max() < 2e-6
    assert stage.step == 10 and (found["grad_norm"] > 0.5)


def test_a_gradient_that_is_no_number_stops_before_the_weights(fresh):
    model, stage = fresh[0], make_stage(*fresh)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with (
        learning(stage, TrainingConfig(learning_rate=1e-3)) as trainer,
        pytest.raises(UserError, match="norm is nan"),
    ):
        next(stage.steps())
        trainer.backward(some_rows(), lambda logits, at: logits.sum() * float("nan"))
        trainer.update()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_small_updates_survive_in_bfloat16(fresh):
    """At 1e-5 pure bfloat16 leaves most weights where they were; the masters move by what was
    asked.
    """
    model, rows = fresh[0].bfloat16(), some_rows()
    start = [p.detach().clone() for p in model.parameters()]
    pure = copy.deepcopy(model)
    lossy = torch.optim.AdamW(pure.parameters(), lr=1e-5, weight_decay=0.0)
    stage = make_stage(model, fresh[1], prompts=80)
    with learning(
        stage,
        TrainingConfig(learning_rate=1e-5, schedule="constant", warmup_steps=0, max_grad_norm=1e9),
    ) as trainer:
        for _ in stage.steps():
            trainer.backward(rows, token_mean(rows))
            for param, master in zip(pure.parameters(), trainer.masters.values(), strict=True):
                param.grad = master.grad.bfloat16()
            trainer.update()
            lossy.step()
        moved = torch.cat(
            [
                ((m - s.float()).abs() > 1e-4).flatten()
                for m, s in zip(trainer.masters.values(), start, strict=True)
            ]
        )
    stuck = torch.cat([(p == s).flatten() for p, s in zip(pure.parameters(), start, strict=True)])
    big = torch.cat([(s.abs() > 0.05).flatten() for s in start])
    assert moved.float().mean() > 0.8  # 20 steps of about 1e-5 each
    assert stuck[big].float().mean() > 0.99


def test_micro_batches_add_up_in_float32(fresh):
    """In bfloat16, many small gradients on top of a large one are not lost."""
    model, rows = fresh[0].bfloat16(), some_rows(1)
    with learning(make_stage(model, fresh[1]), TrainingConfig(**CONFIG)) as trainer:
        trainer.backward(rows, token_mean(rows))
        one = [m.grad.clone() for m in trainer.masters.values()]
        for _ in range(100):
            trainer.backward(rows, lambda logits, at: token_mean(rows)(logits, at) / 1024)
        for master, first in zip(trainer.masters.values(), one, strict=True):
            assert torch.allclose(
                master.grad,
                first * (1 + 100 / 1024),
                rtol=2e-2,
                atol=float(first.abs().max()) * 2e-3,
            )
        assert all(p.grad is None for p in model.parameters())


# ---- teacher weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_is_the_closed_form(fresh, dtype):
    """phi_T = (1-a)^T theta_0 + sum_t a (1-a)^(T-t) theta_t, kept in float32 whatever the model
    computes in.
    """
    model, alpha, rows = fresh[0].to(dtype), 0.05, some_rows()
    stage = make_stage(model, fresh[1], prompts=32)
    with learning(stage, TrainingConfig(learning_rate=1e-3)) as trainer:
        history = [{n: m.detach().double().clone() for n, m in trainer.masters.items()}]
        teacher = Teacher(stage, alpha, 2048, trainer.place)
        for _ in stage.steps():
            trainer.backward(rows, token_mean(rows))
            trainer.update()
            teacher.follow(trainer.masters)
            history.append({n: m.detach().double().clone() for n, m in trainer.masters.items()})
    last = len(history) - 1
    assert list(teacher.average) == list(history[0])
    for name, param in teacher.model.named_parameters():
        average = teacher.average[name]
        wanted = (1 - alpha) ** last * history[0][name]
        wanted = wanted + sum(
            alpha * (1 - alpha) ** (last - t) * history[t][name] for t in range(1, last + 1)
        )
        assert average.dtype == torch.float32 and (average - wanted).abs().max() < 1e-6
        assert torch.equal(param, average.to(dtype))
    assert any((history[0][n] - a).abs().max() > 1e-4 for n, a in teacher.average.items())


def test_frozen_never_moves_and_live_is_the_model(fresh):
    model, rows = fresh[0], some_rows()
    start = [p.detach().clone() for p in model.parameters()]
    stage = make_stage(*fresh)
    with learning(stage, TrainingConfig(**CONFIG)) as trainer:
        frozen, live = Teacher(stage, 0, 2048), Teacher(make_stage(*fresh), 1, 2048)
        for _ in stage.steps():
            trainer.backward(rows, token_mean(rows))
            trainer.update()
            frozen.follow(trainer.masters)
            live.follow(trainer.masters)
    assert live.model is model and live.state_dict()["weights"] == {}
    assert all(torch.equal(a, b) for a, b in zip(frozen.model.parameters(), start, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True))
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_teacher_states(fresh):
    """One tensor a row, in the rows' order, with the logits of a plain forward pass; without
    dropout.
    """
    model, rows = fresh[0], some_rows()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    stage = make_stage(*fresh)
    with learning(stage, TrainingConfig(**CONFIG)):
        teacher = Teacher(stage, 0, 40)
        found = teacher.states(rows)
    model.eval()
    for row, states in zip(rows, found, strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([row.prompt + row.completion])).logits[
                0, len(row.prompt) - 1 : -1
            ]
        assert torch.allclose(teacher.head(states), wanted, atol=2e-5)


# ---- checkpoints --------------------------------------------------------------------------------


def through_disk(state):
    """As a checkpoint does it: nothing is shared with what goes on training."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "method",
    [
        SFT(TrainingConfig(**CONFIG)),
        SFT(TrainingConfig(**CONFIG, moments="8bit")),
        SDFT(SDFTConfig(**CONFIG, ema_alpha=0.1)),
        SDFT(SDFTConfig(**CONFIG, teacher="frozen", divergence="mixture", mixture_weight=0.3)),
        GRPO(GRPOConfig(**CONFIG, group_size=3, kl_beta=0.1)),
    ],
)
def test_a_resumed_stage_ends_in_the_same_bits(fresh, dtype, method):
    """Four steps, against two, a checkpoint, and two more on a model that was loaded again."""
    model, tokenizer = fresh[0].to(dtype), fresh[1]
    base, saved, logs = copy.deepcopy(model), {}, []

    def on_step(stage, step):
        logs.append({k: v for k, v in step.logged.items() if k != "seconds"})
        if stage.step == 2:
            saved.update(through_disk({"model": model.state_dict(), "stage": stage.state_dict()}))

    method.learn(make_stage(model, tokenizer, prompts=15, on_step=on_step))
    whole, logs[:] = logs[:], logs[:2]
    base.load_state_dict(saved["model"])
    on_step, resumed = (
        (lambda stage, step: logs.append({k: v for k, v in step.logged.items() if k != "seconds"})),
        base,
    )
    stage = make_stage(resumed, tokenizer, prompts=15, on_step=on_step, restored=saved["stage"])
    assert stage.step == 2
    method.learn(stage)
    assert logs == whole and len(logs) == 4
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True)
    )


class TwoPhases(SFT):
    """SFT twice, the second time pulled back to where the first ended; ``trainers``: one for both
    phases, or one for each.
    """

    trainers = 1

    def learn(self, stage):
        with ExitStack() as stack:
            for phase in range(2):
                if phase == 0 or self.trainers == 2:
                    stack.close()
                    trainer = stack.enter_context(learning(stage, self.config))
                if phase:
                    masters = list(trainer.masters.values())
                    start = torch.nn.ParameterList(
                        m.detach().clone() for m in masters
                    ).requires_grad_(False)
                    stage.keep(start=start)
                for step in stage.steps(phase):
                    rows = [
                        Row(stage.prompt_tokens(e), stage.demonstration_tokens(e))
                        for e in step.examples
                    ]
                    logged = trainer.token_mean(rows, cross_entropy)
                    distance = (
                        sum((m - s).square().sum() for m, s in zip(masters, start, strict=True))
                        if phase
                        else torch.zeros(())
                    )
                    if phase:
                        distance.backward()
                    step.log(distance=distance.detach(), **logged, **trainer.update())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trainers", [1, 2])
def test_a_stage_resumed_in_any_phase_ends_in_the_same_bits(fresh, dtype, trainers):
    """Two phases of three steps, gone on with after each step; what the second keeps is not there
    in the first.
    """
    first, tokenizer = fresh[0].to(dtype), fresh[1]
    method, saved, wanted = TwoPhases(TrainingConfig(**CONFIG)), [], []
    method.trainers = trainers

    def learn(model, logs, restored=None, keep=None):
        def on_step(stage, step):
            logs.append({k: v for k, v in step.logged.items() if k != "seconds"})
            if keep is not None:
                keep.append(
                    through_disk({"model": model.state_dict(), "stage": stage.state_dict()})
                )

        method.learn(
            make_stage(model, tokenizer, phases=[12, 12], on_step=on_step, restored=restored)
        )

    whole = copy.deepcopy(first)
    learn(whole, wanted, keep=saved)
    assert len(wanted) == 6 and wanted[4]["distance"] > 0
    for done, state in enumerate(saved[:-1], 1):
        model, logs = copy.deepcopy(first), wanted[:done]
        model.load_state_dict(state["model"])
        learn(model, logs, state["stage"])
        assert logs == wanted, done
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
        ), done


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "method", [SFT(TrainingConfig(**CONFIG)), SDFT(SDFTConfig(**CONFIG, ema_alpha=0.1))]
)
def test_what_a_stage_held_goes_with_it(fresh, dtype, method, monkeypatch):
    """At once, not when Python looks for cycles: on a GPU the next stage would begin with twice the
    memory.
    """
    held, real = [], Trainer.close

    def close(trainer):
        moments = [
            value for state in trainer.optimizer.adamw.state.values() for value in state.values()
        ]
        masters = [
            m
            for m in trainer.masters.values()
            if all(m is not p for p in trainer.model.parameters())
        ]
        held.extend(
            map(
                weakref.ref,
                [
                    trainer,
                    trainer.optimizer.adamw,
                    *trainer.stage._kept.values(),
                    *moments,
                    *masters,
                ],
            )
        )
        real(trainer)

    monkeypatch.setattr(Trainer, "close", close)
    stage = make_stage(fresh[0].to(dtype), fresh[1])
    gc.collect()
    gc.disable()
    try:
        method.learn(stage)
        stage.close()
        assert len(held) > 50 and not [ref for ref in held if ref() is not None]
    finally:
        gc.enable()


def test_the_stage_leaves_a_plain_model_behind(fresh):
    """In eval mode, in its dtype, and without hooks that would keep the masters alive."""
    model = fresh[0].bfloat16()
    SFT(TrainingConfig(**CONFIG)).learn(make_stage(model, fresh[1]))
    assert not model.training and model.dtype == torch.bfloat16
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama-sdpa-1-head", "qwen2", "granite", "gemma2", "gemma3"])
def test_shared_prompts_in_other_architectures(kind, tiny_model):
    """Twelve completions of three prompts, together and one by one; a sliding window is left to
    rows of their own.
    """
    from tests.sampling.test_sampler import other_model

    model, few = other_model(kind, 260), some_rows()
    rows = [Row(few[i % 3].prompt, r.completion) for i, r in enumerate(some_rows(12))]
    assert can_share_prompts(model) is not kind.startswith("gemma")
    wanted, gradients = naive(
        model,
        rows,
        lambda logits, row: F.cross_entropy(logits, torch.tensor(row.completion), reduction="sum"),
    )
    with learning(make_stage(model, tiny_model[1]), TrainingConfig(**CONFIG)) as trainer:
        found = trainer.backward(
            rows, lambda logits, at: F.cross_entropy(logits, at.tokens, reduction="sum")
        )
    assert found == pytest.approx(wanted, rel=1e-5)
    assert_close({n: p.grad for n, p in model.named_parameters()}, gradients, 1e-4)


def test_a_name_of_the_checkpoint_is_that_of_one_object(fresh):
    """One of two would be lost, and a resume would give its state to both."""
    stage = make_stage(*fresh)
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    stage.keep(memory=one)
    stage.keep(memory=one, buffer=other)
    with pytest.raises(UserError) as error:
        stage.keep(memory=other)
    assert str(error.value) == (
        "stage.keep: 'memory' is the name of a Linear already; "
        "take another name, or let that one go"
    )
    assert stage.state_dict()["times"] == {"memory": 1, "buffer": 1}
    stage.let_go(one)
    stage.keep(memory=other)
    assert stage.state_dict()["times"]["memory"] == 2
    frozen, average = Teacher(stage, 0, 64), Teacher(stage, 0.5, 64, name="average")
    assert {"teacher", "average"} <= set(stage.state_dict()["kept"])
    with pytest.raises(UserError, match="'teacher' is the name of a Teacher already"):
        Teacher(stage, 0, 64)
    assert frozen.average == {} and average.average
