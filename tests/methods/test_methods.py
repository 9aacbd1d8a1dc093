"""SFT, SDFT and GRPO against TRL's own trainers and against naive losses in float64."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from harness.base.errors import UserError
from harness.base.settings import build
from harness.learning.distillation import divergence
from harness.learning.packing import Row
from harness.learning.rewards import alike
from harness.learning.trainer import Trainer, TrainingConfig
from harness.sampling.transformers import TransformersSampler
from harness.skills.templates import TEACHER_TEMPLATES
from methods.grpo import GRPO, GRPOConfig, advantages
from methods.sdft import SDFT, SDFTConfig
from methods.sft import SFT
from tests.learning.test_training import Letters, assert_close, make_stage, naive

PAPER = (
    TEACHER_TEMPLATES["paper"][0]["content"]
    .replace("{question}", "{prompt}")
    .replace("{demonstration}", "{privileged_context}")
)
PLAIN = {"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant", "max_grad_norm": 1e9}


class Recorder(TransformersSampler):
    """The sampler itself, which also keeps what it gave."""

    def sample(self, prompts, **settings):
        found = super().sample(prompts, **settings)
        self.kept = [*getattr(self, "kept", []), (prompts, found)]
        return found


class Elsewhere(TransformersSampler):
    """Another engine: weights that are not quite the trainer's."""

    def __init__(self, model, tokenizer):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(
                    0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
                )
        super().__init__(other, tokenizer)
        self.stops, self.kept = self.stops | set(range(25)), []

    def sample(self, prompts, **settings):
        found = super().sample(prompts, **settings)
        self.kept.append((prompts, found))
        return found


class Learned:
    """What a method did in its first steps: log lines, rollouts, gradients and weights after each
    step.
    """

    def __init__(self, method, model, tokenizer, monkeypatch, steps=1, **changes):
        self.gradients, self.weights, self.logs, self.examples = [], [], [], []
        self.start = copy.deepcopy(model)
        sampler = Recorder(model, tokenizer)
        sampler.stops = sampler.stops | set(range(25))
        update = Trainer.update

        def spied(trainer):
            self.gradients.append(
                {
                    name: torch.zeros_like(m) if m.grad is None else m.grad.clone()
                    for name, m in trainer.masters.items()
                }
            )
            return update(trainer)

        def on_step(stage, step):
            self.logs.append(step.logged)
            self.examples.append(step.examples)
            self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", spied)
            self.stage = make_stage(
                model,
                tokenizer,
                **{"sampler": sampler, "prompts": 4 * steps, "on_step": on_step, **changes},
            )
            method.learn(self.stage)
        self.rollouts = getattr(sampler, "kept", [])


@pytest.fixture
def fresh(tiny_model):
    return copy.deepcopy(tiny_model[0]), tiny_model[1]


def padded(rows, side):
    """(ids, mask) of lists of token ids, padded on ``side`` as TRL's batches are."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row)
        ids.append([256] * gap + row if side == "left" else row + [256] * gap)
        mask.append([0] * gap + [1] * len(row) if side == "left" else [1] * len(row) + [0] * gap)
    return torch.tensor(ids), torch.tensor(mask)


def quiet(folder, **changes):
    """Settings that keep a TRL trainer on the CPU, in float32 and to itself."""
    return dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        fp16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=0,
        **changes,
    )


# ---- SFT ----------------------------------------------------------------------------------------


def test_sft_loss_and_gradient_are_the_token_mean(either, monkeypatch):
    found = Learned(SFT(TrainingConfig(**PLAIN, micro_batch_tokens=40)), *either, monkeypatch)
    tokenizer = either[1]
    rows = []
    for e in found.examples[0]:
        prompt = tokenizer(f"<|user|>{e.prompt[0]['content']}<|end|><|assistant|>")["input_ids"]
        rows.append(Row(prompt, tokenizer(e.demonstration + "<|end|>")["input_ids"]))
    count = sum(len(r.completion) for r in rows)
    assert len({len(r.completion) for r in rows}) > 2

    def each(logits, row):
        return F.cross_entropy(logits, torch.tensor(row.completion), reduction="sum") / count

    wanted, gradients = naive(found.start, rows, each)
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert_close(found.gradients[0], gradients, 1e-4)


def test_sft_is_trl_sft(either, monkeypatch, tmp_path):
    """The same tokens, losses, gradient norms and weights as SFTTrainer over three steps, its
    batches accumulated 2 + 2.
    """
    from trl import SFTConfig, SFTTrainer

    config = TrainingConfig(
        **{**PLAIN, "learning_rate": 1e-3, "max_grad_norm": 1.0}, micro_batch_tokens=40
    )
    theirs = copy.deepcopy(either[0])
    found = Learned(SFT(config), *either, monkeypatch, steps=3)
    data = Dataset.from_list(
        [
            {"prompt": e.prompt, "completion": [{"role": "assistant", "content": e.demonstration}]}
            for step in found.examples
            for e in step
        ]
    )
    trainer = SFTTrainer(
        theirs,
        SFTConfig(
            **quiet(tmp_path),
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            warmup_steps=0,
            max_steps=3,
            max_grad_norm=1.0,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            train_sampling_strategy="sequential",
            weight_decay=0.0,
            completion_only_loss=True,
            max_length=None,
        ),
        train_dataset=data,
        processing_class=either[1],
    )
    for row, e in zip(
        trainer.train_dataset, [e for step in found.examples for e in step], strict=True
    ):
        mask = (
            row["completion_mask"]
            if "completion_mask" in row
            else [int(t != -100) for t in row["labels"]]
        )
        assert row["input_ids"] == found.stage.prompt_tokens(e) + found.stage.demonstration_tokens(
            e
        )
        assert mask == [0] * len(found.stage.prompt_tokens(e)) + [1] * len(
            found.stage.demonstration_tokens(e)
        )
    trainer.train()
    logs = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert [line["loss"] for line in found.logs] == pytest.approx(
        [line["loss"] for line in logs], rel=1e-4
    )
    assert [line["grad_norm"] for line in found.logs] == pytest.approx(
        [line["grad_norm"] for line in logs], rel=1e-3
    )
    moved = {
        n: p.detach() - q.detach()
        for (n, p), q in zip(either[0].named_parameters(), found.start.parameters(), strict=True)
    }
    assert_close(
        moved,
        {
            n: p.detach() - q.detach()
            for (n, p), q in zip(theirs.named_parameters(), found.start.parameters(), strict=True)
        },
        2e-2,
    )
    for (name, p), q in zip(theirs.named_parameters(), either[0].parameters(), strict=True):
        assert (p - q).abs().max() < 5e-5, name


# ---- divergences --------------------------------------------------------------------------------


def by_enumeration(student, teacher, kind, weight):
    """Divergence of two lists of probabilities in plain Python."""

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    mixture = [weight * t + (1 - weight) * s for s, t in zip(student, teacher, strict=True)]
    return {
        "forward": kl(teacher, student),
        "reverse": kl(student, teacher),
        "mixture": weight * kl(teacher, mixture) + (1 - weight) * kl(student, mixture),
    }[kind]


@pytest.mark.parametrize(
    "kind,weight",
    [("forward", 0.5), ("reverse", 0.5), ("mixture", 0.5), ("mixture", 0.3), ("mixture", 0.9)],
)
def test_divergence_is_the_definition_and_trls(kind, weight):
    from trl.experimental.sdft.loss_utils import compute_divergence

    torch.manual_seed(0)
    student, teacher = 4 * torch.randn(2, 17, 50, dtype=torch.float64)
    found = divergence(student, teacher, kind, weight)
    p, q = student.softmax(-1).tolist(), teacher.softmax(-1).tolist()
    assert found.tolist() == pytest.approx(
        [by_enumeration(a, b, kind, weight) for a, b in zip(p, q, strict=True)], rel=1e-9
    )
    alpha = {"forward": 0.0, "reverse": 1.0, "mixture": weight}[kind]
    theirs = compute_divergence(student.log_softmax(-1), teacher.log_softmax(-1), alpha)
    assert torch.allclose(found, theirs, rtol=1e-6)
    assert torch.allclose(
        divergence(student.float(), teacher.float(), kind, weight).double(), found, rtol=1e-4
    )


def test_directions_by_hand():
    """Teacher (1/2, 1/2), student (3/4, 1/4): KL(teacher || student) = 1/2 ln 4/3, the other way
    3/4 ln 3 - ln 2.
    """
    student, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert divergence(student, teacher, "forward").item() == pytest.approx(
        0.5 * math.log(4 / 3), rel=1e-6
    )
    assert divergence(student, teacher, "reverse").item() == pytest.approx(
        0.75 * math.log(3) - math.log(2), rel=1e-6
    )


@pytest.mark.parametrize("kind,covers", [("forward", True), ("reverse", False)])
def test_forward_covers_both_modes_and_reverse_picks_one(kind, covers):
    """A student that can only put mass around one place: forward spreads over a two-peaked teacher,
    reverse takes a peak.
    """
    place = torch.arange(21.0)
    teacher = torch.logaddexp(-((place - 4) ** 2) / 2, -((place - 16) ** 2) / 2 - 0.1)[None]
    best = min(
        itertools.product(range(21), (1.0, 2.0, 4.0, 6.0, 9.0)),
        key=lambda c: divergence(
            (-((place - c[0]) ** 2) / (2 * c[1] ** 2))[None], teacher, kind
        ).item(),
    )
    assert (8 <= best[0] <= 12 and best[1] >= 6) if covers else best == (4, 1.0)


def test_divergence_has_no_gradient_at_the_teacher():
    logits = torch.randn(3, 9, dtype=torch.float64)
    for kind in ("forward", "reverse", "mixture"):
        student = logits.clone().requires_grad_()
        value = divergence(student, logits, kind, 0.3).sum()
        value.backward()
        assert abs(value.item()) < 1e-12 and student.grad.abs().max() < 1e-12
        student = (logits + torch.randn_like(logits)).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, kind=kind: divergence(s, logits, kind, 0.3), student
        )


def test_a_mixture_that_is_the_teacher_is_refused():
    with pytest.raises(UserError, match="mixture_weight"):
        build(SDFTConfig, {"divergence": "mixture", "mixture_weight": 1.0}, "order")


# ---- SDFT ---------------------------------------------------------------------------------------


def sdft_case(kind, monkeypatch, fresh, **changes):
    """One step of SDFT on all twelve examples; the teacher is the student, another prompt."""
    settings = {
        "divergence": kind,
        "mixture_weight": 0.3,
        "teacher": "live",
        "skip_tokens": 3,
        "micro_batch_tokens": 100,
    }
    return Learned(
        SDFT(SDFTConfig(**PLAIN, **{**settings, **changes})),
        *fresh,
        monkeypatch,
        prompts=12,
        batch_size=12,
        temperature=0.8,
    )


def replay(found, rollouts=1):
    """(student prompt, teacher prompt, completion) of every completion of the first step, the
    prompts spelled out here.
    """
    tokenize, out = found.stage.tokenizer, []
    for e, group in zip(found.examples[0], found.rollouts[0][1], strict=True):
        question = e.prompt[0]["content"]
        shown = PAPER.replace("{prompt}", question).replace("{privileged_context}", e.demonstration)
        for c in group:
            out.append(
                (
                    *(
                        tokenize(f"<|user|>{t}<|end|><|assistant|>")["input_ids"]
                        for t in (question, shown)
                    ),
                    c.token_ids,
                )
            )
    assert len(out) == rollouts * len(found.examples[0])
    return out


@pytest.mark.parametrize("kind,alpha", [("forward", 0.0), ("reverse", 1.0), ("mixture", 0.3)])
@pytest.mark.parametrize("rollouts", [1, 2])
def test_sdft_is_trl_sdft(either, monkeypatch, tmp_path, kind, alpha, rollouts):
    """Loss and gradients of a replayed batch equal those of SDFTTrainer.compute_loss, teacher
    prompt and all.

    Some completions are shorter than the tokens that are skipped.
    """
    from trl.experimental.sdft import SDFTConfig as Config
    from trl.experimental.sdft import SDFTTrainer

    found = sdft_case(kind, monkeypatch, either, rollouts=rollouts)
    cases = replay(found, rollouts)
    sizes = [len(c) for _, _, c in cases]
    assert min(sizes) <= 3 < max(sizes)
    examples = [e for e in found.examples[0] for _ in range(rollouts)]
    trainer = SDFTTrainer(
        found.start,
        Config(
            **quiet(tmp_path),
            distillation_alpha=alpha,
            distillation_mode="full_logits",
            num_loss_tokens_to_skip=3,
            temperature=0.8,
            teacher_model_kind="live",
            teacher_prompt_template=PAPER,
            max_completion_length=10,
            num_generations=1,
            per_device_train_batch_size=1,
        ),
        processing_class=either[1],
        train_dataset=Dataset.from_list(
            [{"prompt": e.prompt, "privileged_context": e.demonstration} for e in examples]
        ),
    )
    prompt_ids, prompt_mask = padded([p for p, _, _ in cases], "left")
    completion_ids, completion_mask = padded([c for _, _, c in cases], "right")
    batch = dict(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        **trainer.teacher_context_builder.build(
            [e.prompt for e in examples],
            [e.demonstration for e in examples],
            completion_ids,
            completion_mask,
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() > 0.1
    assert found.logs[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_close(found.gradients[0], {n: p.grad for n, p in trainer.model.named_parameters()}, 1e-3)


def naive_divergences(logits, teacher, shown, completion, kind):
    """Of each token of a completion, at temperature 0.8; the mixture is 0.3 of the teacher.

    logits: the student's, float64; shown: the tokens that the teacher reads before the completion.
    """
    with torch.no_grad():
        target = teacher(torch.tensor([shown + completion])).logits[0, -len(completion) - 1 : -1]
    q, p = (logits / 0.8).log_softmax(-1), (target / 0.8).log_softmax(-1)
    m = torch.log(0.3 * p.exp() + 0.7 * q.exp())
    return {
        "forward": p.exp() * (p - q),
        "reverse": q.exp() * (q - p),
        "mixture": 0.3 * p.exp() * (p - m) + 0.7 * q.exp() * (q - m),
    }[kind].sum(-1)


@pytest.mark.parametrize("kind", ["forward", "reverse", "mixture"])
@pytest.mark.parametrize("skip", [0, 3, 50])
def test_sdft_is_the_naive_loss(either, monkeypatch, kind, skip):
    """Against full logits in float64, row by row; the diagnostics too."""
    found = sdft_case(kind, monkeypatch, either, skip_tokens=skip)
    cases = replay(found)
    teacher, shown = copy.deepcopy(found.start).double(), {id(c): t for _, t, c in cases}
    pieces, gaps = [], []

    def each(logits, row):
        prompt = shown[id(row.completion)]
        tokens = naive_divergences(logits, teacher, prompt, row.completion, kind)
        pieces.extend(tokens[skip:].tolist())
        gaps.append(tokens[0].item())
        return tokens[skip:].sum() / max(1, len(row.completion) - skip) / len(cases)

    wanted, gradients = naive(found.start, [Row(p, c) for p, _, c in cases], each)
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert found.logs[0]["kl"] == pytest.approx(sum(pieces) / max(1, len(pieces)), rel=1e-4)
    assert found.logs[0]["first_token_gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    if skip == 50:
        assert wanted == 0 and all(not g.any() for g in found.gradients[0].values())
    else:
        assert_close(found.gradients[0], gradients, 1e-3)


def test_rollouts_answer_the_students_prompt(fresh, monkeypatch):
    """On-policy means the student's: the demonstration is not in what the sampler reads."""
    found = sdft_case("forward", monkeypatch, fresh)
    assert found.rollouts[0][0] == [p for p, _, _ in replay(found)]


@pytest.mark.parametrize("kind", ["ema", "frozen", "live"])
def test_which_weights_teach(fresh, monkeypatch, kind):
    """In the third step the target comes from the average, the first weights or the present ones;
    checked by the loss.
    """
    found = Learned(
        SDFT(SDFTConfig(**PLAIN, teacher=kind, ema_alpha=0.3, skip_tokens=0)),
        *fresh,
        monkeypatch,
        steps=3,
    )
    theta = [dict(found.start.named_parameters()), *found.weights]
    average = {n: 0.49 * theta[0][n] + 0.21 * theta[1][n] + 0.3 * theta[2][n] for n in theta[0]}
    student, teacher = copy.deepcopy(found.start), copy.deepcopy(found.start)
    student.load_state_dict(theta[2], strict=False)
    teacher.load_state_dict(
        {"ema": average, "frozen": theta[0], "live": theta[2]}[kind], strict=False
    )
    found.examples, found.rollouts = found.examples[2:], found.rollouts[2:]
    total = 0.0
    with torch.no_grad():
        for prompt, shown, completion in replay(found):
            q, p = (
                m(torch.tensor([x + completion]))
                .logits[0, -len(completion) - 1 : -1]
                .log_softmax(-1)
                for m, x in ((student, prompt), (teacher, shown))
            )
            total += (p.exp() * (p - q)).sum(-1).mean().item() / 4
    assert found.logs[2]["loss"] == pytest.approx(total, rel=1e-4)


def test_sdft_lowers_its_divergence(fresh, monkeypatch):
    for kind in ("forward", "reverse", "mixture"):
        model = copy.deepcopy(fresh[0])
        settings = {**PLAIN, "learning_rate": 3e-3, "max_grad_norm": 1.0}
        found = Learned(
            SDFT(SDFTConfig(**settings, divergence=kind, teacher="frozen")),
            model,
            fresh[1],
            monkeypatch,
            steps=20,
        )
        kls = [line["kl"] for line in found.logs]
        assert sum(kls[-4:]) < 0.8 * sum(kls[:4])


# ---- GRPO ---------------------------------------------------------------------------------------


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.8], [0.3, 0.3, 0.3, 0.3]])
    found = advantages(rewards)
    for row, got in zip(rewards.double().tolist(), found.tolist(), strict=True):
        mean = sum(row) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / 3)
        assert got == pytest.approx([(r - mean) / (std + 1e-4) for r in row], abs=1e-5)
    assert advantages(rewards, scale=False)[1].tolist() == pytest.approx([-0.3, -0.1, 0.1, 0.3])


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7])
def test_equal_rewards_have_no_advantage_at_all(value):
    """The mean of eight times 0.3 is not 0.3 in float32: what is left over, divided by 1e-4, would
    be learned from.
    """
    for size in range(2, 12):
        assert not advantages(torch.full((3, size), value)).any()


def test_groups_of_equal_rewards_are_found_by_equality():
    """In float32 the standard deviation of eight times 0.3 is 0 or 3e-8, by the shape of what
    stands beside them.
    """
    rewards = torch.tensor([[0.3] * 8, [0.3] * 7 + [0.4], [0.0] * 8])
    assert (
        alike(rewards).tolist()
        == [len(set(row)) == 1 for row in rewards.tolist()]
        == [True, False, True]
    )


def grpo_case(fresh, monkeypatch, **changes):
    found = Learned(
        GRPO(GRPOConfig(**PLAIN, group_size=4, micro_batch_tokens=100, **changes)),
        *fresh,
        monkeypatch,
        skill=Signal(),
        prompts=6,
        batch_size=6,
        temperature=0.9,
    )
    prompts = [
        found.stage.tokenizer(f"<|user|>{e.prompt[0]['content']}<|end|><|assistant|>")["input_ids"]
        for e in found.examples[0]
    ]
    assert found.rollouts[0][0] == prompts
    groups = found.rollouts[0][1]
    rewards = torch.tensor(
        [
            [Signal().reward(c.text, e.reference) for c in g]
            for e, g in zip(found.examples[0], groups, strict=True)
        ]
    )
    rows = [Row(p, c.token_ids) for p, g in zip(prompts, groups, strict=True) for c in g]
    equal = [len(set(group)) == 1 for group in rewards.tolist()]
    assert any(equal) and not all(equal) and len({len(r.completion) for r in rows}) > 4
    assert found.logs[0]["groups_without_signal"] == pytest.approx(sum(equal) / 6)
    assert found.logs[0]["reward"] == pytest.approx(rewards.mean().item())
    return found, rows, advantages(rewards, changes.get("scale_rewards", True)).flatten()


class Signal(Letters):
    """Rewards the length of an answer on every other question, on the rest all answers alike."""

    def load(self, split):
        return [dataclasses.replace(e, reference=i % 2) for i, e in enumerate(super().load(split))]

    def reward(self, completion, reference):
        return len(completion) / 10 if reference else 0.3


@pytest.mark.parametrize("normalise", ["tokens", "sequences", "constant"])
@pytest.mark.parametrize("kl_beta", [0.0, 0.2])
@pytest.mark.parametrize("scale", [True, False])
def test_grpo_is_the_naive_policy_gradient(either, monkeypatch, normalise, kl_beta, scale):
    """-A log p and the k3 term on every token of every completion, those of groups without signal
    included, in float64.
    """
    found, rows, advantage = grpo_case(
        either, monkeypatch, normalise=normalise, kl_beta=kl_beta, scale_rewards=scale
    )
    count, number = sum(len(r.completion) for r in rows), {id(r): i for i, r in enumerate(rows)}

    def each(logits, row):
        logprob = (
            (logits / 0.9).log_softmax(-1).gather(1, torch.tensor(row.completion)[:, None])[:, 0]
        )
        # the surrogate whose gradient is the policy gradient; its value is that of -A times a ratio
        # of 1
        value = -advantage[number[id(row)]].double() * (1 + logprob - logprob.detach())
        # the first step: the policy is the reference, k3 and its gradient are 0
        old = logprob.detach()
        value = value + kl_beta * ((old - logprob).exp() - (old - logprob) - 1)
        share = {
            "tokens": count,
            "sequences": len(row.completion) * len(rows),
            "constant": len(rows) * 10,
        }[normalise]
        return value.sum() / share

    wanted, gradients = naive(found.start, rows, each)
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert_close(found.gradients[0], gradients, 1e-3)


def test_groups_without_signal_may_be_left_out(fresh, monkeypatch):
    """With a KL weight too small to matter every row is computed: loss, gradients and weights stay
    what they were.
    """
    model = copy.deepcopy(fresh[0])
    short, _, _ = grpo_case(fresh, monkeypatch)
    whole, _, _ = grpo_case((model, fresh[1]), monkeypatch, kl_beta=1e-30)
    assert whole.stage.tokens > short.stage.tokens
    assert short.logs[0]["loss"] == pytest.approx(whole.logs[0]["loss"], rel=1e-5, abs=1e-7)
    assert_close(short.gradients[0], whole.gradients[0], 1e-5)


def trl_grpo(fresh, tmp_path, found, loss_type, beta):
    from trl import GRPOConfig as Config
    from trl import GRPOTrainer

    return GRPOTrainer(
        found.start,
        lambda completions, **_: [0.0] * len(completions),
        Config(
            **quiet(tmp_path),
            loss_type=loss_type,
            beta=beta,
            num_generations=4,
            max_completion_length=10,
            temperature=0.9,
            per_device_train_batch_size=4,
            steps_per_generation=1,
            use_bias_correction_kl=False,
        ),
        processing_class=fresh[1],
        train_dataset=Dataset.from_list([{"prompt": e.prompt} for e in found.examples[0]]),
    )


@pytest.mark.parametrize(
    "normalise,loss_type", [("tokens", "dapo"), ("sequences", "grpo"), ("constant", "dr_grpo")]
)
@pytest.mark.parametrize("kl_beta", [0.0, 0.2])
def test_grpo_is_trl_grpo(either, monkeypatch, tmp_path, normalise, loss_type, kl_beta):
    """Loss and gradients of GRPOTrainer's compute_loss on the same completions, the reference in a
    second step not the policy.
    """
    settings = GRPOConfig(
        **PLAIN, group_size=4, micro_batch_tokens=100, normalise=normalise, kl_beta=kl_beta
    )
    found = Learned(
        GRPO(settings),
        *either,
        monkeypatch,
        steps=2,
        skill=Signal(),
        prompts=12,
        batch_size=6,
        temperature=0.9,
    )
    anchor = copy.deepcopy(found.start)
    found.start.load_state_dict(found.weights[0], strict=False)  # where the second step began
    trainer = trl_grpo(either, tmp_path, found, loss_type, kl_beta)
    prompts, groups = found.rollouts[1]
    rewards = torch.tensor(
        [
            [Signal().reward(c.text, e.reference) for c in g]
            for e, g in zip(found.examples[1], groups, strict=True)
        ]
    )
    prompt_ids, prompt_mask = padded([p for p in prompts for _ in range(4)], "left")
    completion_ids, completion_mask = padded([c.token_ids for g in groups for c in g], "right")
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": advantages(rewards).flatten(),
        "num_items_in_batch": completion_mask.sum(),
    }
    with torch.no_grad():
        logits = anchor(
            torch.cat([prompt_ids, completion_ids], 1),
            attention_mask=torch.cat([prompt_mask, completion_mask], 1),
        ).logits
        logprobs = (logits[:, prompt_ids.shape[1] - 1 : -1] / 0.9).log_softmax(-1)
        batch["ref_per_token_logps"] = logprobs.gather(2, completion_ids[..., None])[..., 0]
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert found.logs[1]["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert_close(found.gradients[1], {n: p.grad for n, p in trainer.model.named_parameters()}, 1e-3)


def test_grpos_importance_weights_are_trls(fresh, monkeypatch, tmp_path):
    """Completions of another model: min(cap, p / p_sampler) on every token's policy loss and not on
    its KL term.
    """
    sampler = Elsewhere(*fresh)
    settings = GRPOConfig(
        **PLAIN, group_size=4, micro_batch_tokens=100, kl_beta=0.2, importance_cap=1.1
    )
    found = Learned(
        GRPO(settings),
        *fresh,
        monkeypatch,
        sampler=sampler,
        skill=Signal(),
        prompts=6,
        batch_size=6,
        temperature=0.9,
    )
    [(prompts, groups)] = sampler.kept
    rewards = torch.tensor(
        [
            [Signal().reward(c.text, e.reference) for c in g]
            for e, g in zip(found.examples[0], groups, strict=True)
        ]
    )
    answers = [c for g in groups for c in g]
    prompt_ids, prompt_mask = padded([p for p in prompts for _ in range(4)], "left")
    completion_ids, completion_mask = padded([c.token_ids for c in answers], "right")
    with torch.no_grad():
        logits = found.start(
            torch.cat([prompt_ids, completion_ids], 1),
            attention_mask=torch.cat([prompt_mask, completion_mask], 1),
        ).logits
        own = (
            (logits[:, prompt_ids.shape[1] - 1 : -1] / 0.9)
            .log_softmax(-1)
            .gather(2, completion_ids[..., None])[..., 0]
        )
    others = torch.zeros_like(own)
    for row, c in zip(others, answers, strict=True):
        row[: len(c.logprobs)] = torch.tensor(c.logprobs)
    ratio = (own - others).exp().clamp(max=1.1)
    trainer = trl_grpo(fresh, tmp_path, found, "dapo", 0.2)
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(
        trainer.model,
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": advantages(rewards).flatten(),
            "num_items_in_batch": completion_mask.sum(),
            "ref_per_token_logps": own,
            "importance_sampling_ratio": ratio,
        },
    )
    loss.backward()
    assert found.logs[0]["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert_close(found.gradients[0], {n: p.grad for n, p in trainer.model.named_parameters()}, 1e-3)
    real = ratio[completion_mask.bool()]
    assert real.min() < 0.9 and real.max() == 1.1
    assert found.logs[0]["importance_weight"] == pytest.approx(real.mean().item(), rel=1e-4)


def test_importance_weights_are_on_where_another_engine_samples(fresh, monkeypatch):
    for asked, elsewhere, wanted in (
        (None, False, False),
        (None, True, True),
        (0, True, False),
        (2.0, False, True),
    ):
        found = Learned(
            GRPO(GRPOConfig(**PLAIN, group_size=4, importance_cap=asked)),
            copy.deepcopy(fresh[0]),
            fresh[1],
            monkeypatch,
            skill=Signal(),
            prompts=6,
            batch_size=6,
            sampled_elsewhere=elsewhere,
        )
        assert ("importance_weight" in found.logs[0]) is wanted
        assert not wanted or found.logs[0]["importance_weight"] == pytest.approx(1, abs=1e-4)


def test_grpo_raises_its_reward(fresh, monkeypatch):
    settings = GRPOConfig(**{**PLAIN, "max_grad_norm": 1.0}, group_size=8)
    found = Learned(GRPO(settings), *fresh, monkeypatch, steps=40, skill=Signal())
    rewards = [line["reward"] for line in found.logs]
    assert sum(rewards[-10:]) > sum(rewards[:10]) + 1
