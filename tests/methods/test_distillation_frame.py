"""The frame of on-policy distillation against TRL's losses and loops in float64: teachers, clips,
means, SDPO, GKD and PSFT.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from harness.base.errors import UserError
from harness.base.settings import build
from harness.learning.distillation import divergence
from harness.learning.part import Part, PartConfig
from harness.learning.trainer import Trainer
from harness.models.load import load_model
from harness.runs.reading import read_order
from methods.gkd import GKD, GKDConfig
from methods.psft import PSFT, PSFTConfig
from methods.sdft import SDFT, SDFTConfig
from methods.sdpo import SDPO, SDPOConfig, reprompt
from tests.conftest import save_tiny
from tests.learning.test_training import Letters, assert_close, make_stage, naive
from tests.methods.test_methods import PLAIN, Learned, by_enumeration, padded, quiet
from tests.methods.test_penalties import moved


@pytest.fixture
def fresh(tiny_model):
    return copy.deepcopy(tiny_model[0]), tiny_model[1]


def logits_of(model, prompt, completion):
    """Logits [tokens, vocabulary] that predict a completion, in float64 and without a gradient."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(torch.tensor([prompt + completion])).logits
    return logits[0, len(prompt) - 1 : -1]


# ---- clips and means ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "weight"), [("forward", 0.5), ("reverse", 0.5), ("mixture", 0.3)])
def test_a_clipped_entry_counts_up_to_the_clip(kind, weight):
    """By enumeration; entries above it have no gradient, and a large clip changes nothing."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 7, 20, dtype=torch.float64)
    p, q = student.softmax(-1), teacher.softmax(-1)
    m = weight * q + (1 - weight) * p
    entries = {
        "forward": q * (q / p).log(),
        "reverse": p * (p / q).log(),
        "mixture": weight * q * (q / m).log() + (1 - weight) * p * (p / m).log(),
    }[kind]
    found = divergence(student, teacher, kind, weight, 0.05)
    torch.testing.assert_close(found, entries.clamp(max=0.05).sum(-1))
    assert (entries > 0.05).any() and (found < entries.sum(-1)).any()
    whole = [
        by_enumeration(a, b, kind, weight) for a, b in zip(p.tolist(), q.tolist(), strict=True)
    ]
    assert divergence(student, teacher, kind, weight, 1e9).tolist() == pytest.approx(whole)
    live = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: divergence(s, teacher, kind, weight, 0.05), live)


def test_options_that_contradict_are_refused():
    for options in (
        {"estimator": "sampled", "entry_clip": 0.05},
        {"estimator": "rao_blackwell", "normalise": "tokens"},
    ):
        with pytest.raises(UserError, match=options["estimator"]):
            build(SDFTConfig, options, "order")
    with pytest.raises(UserError, match="student_share"):
        build(GKDConfig, {"estimator": "sampled"}, "order")


# ---- teachers -----------------------------------------------------------------------------------


def teacher_logits(kind, student, start, run, prompt, completion):
    """The teacher's logits as the docs have them, in the second step."""
    if kind == "trust_region":
        one, two = (logits_of(m, prompt, completion) for m in (start, student))
        return 0.7 * one + 0.3 * two
    return logits_of(run, prompt, completion)


@pytest.mark.parametrize("kind", ["run_start", "trust_region"])
def test_the_teacher_of_the_second_step(either, monkeypatch, kind):
    """SDFT with clips and the mean over tokens, in a stage that is not the first of the run."""
    run = moved(either[0], 7, 0.05)
    config = SDFTConfig(
        **{**PLAIN, "learning_rate": 1e-3},
        teacher=kind,
        ema_alpha=0.3,
        entry_clip=0.05,
        normalise="tokens",
        skip_tokens=1,
        micro_batch_tokens=100,
    )
    found = Learned(
        SDFT(config),
        *either,
        monkeypatch,
        steps=2,
        index=2,
        load_start=lambda of: {"run": run, "stage": None}[of],
    )
    student = copy.deepcopy(found.start)
    student.load_state_dict(found.weights[0], strict=False)
    stage, examples = found.stage, found.examples[1]
    groups = found.rollouts[1][1]
    rows = stage.rows(examples, [stage.prompt_tokens(e) for e in examples], groups)
    shown = {id(r): stage.teacher_tokens(e) for r, e in zip(rows, examples, strict=True)}
    count = sum(max(0, len(r.completion) - 1) for r in rows)

    def each(logits, row):
        teacher = teacher_logits(kind, student, found.start, run, shown[id(row)], row.completion)
        return divergence(logits, teacher, "forward", 0.5, 0.05)[1:].sum() / count

    wanted, gradients = naive(student, rows, each)
    assert found.logs[1]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert_close(found.gradients[1], gradients, 1e-3)


# ---- SDPO ---------------------------------------------------------------------------------------


class Told(Letters):
    """Right where an answer is long; says something of every answer of uneven length."""

    def reward(self, completion, reference):
        return float(len(completion) >= 7)

    def feedback(self, completion, reference):
        return f"{len(completion)} letters" if len(completion) % 2 else None


def test_words_that_no_skill_has_are_not_always_shown(order_file):
    for when in ("without_solution", "never"):
        read_order(order_file(methods={"sdpo": {"feedback": when}}))
    with pytest.raises(UserError, match="feedback: no skill of the order says anything of an ans"):
        read_order(order_file(methods={"sdpo": {"feedback": "always"}}))


@pytest.mark.parametrize("feedback", ["without_solution", "always", "never"])
def test_sdpo_is_trl_sdpo(fresh, monkeypatch, tmp_path, feedback):
    """Prompts of the teacher, which answers have one, loss and gradients of SDPOTrainer."""
    from trl.experimental.sdpo import SDPOConfig as Config
    from trl.experimental.sdpo import SDPOTrainer

    config = SDPOConfig(
        **PLAIN,
        group_size=3,
        top_k=20,
        normalise="sequences",
        feedback=feedback,
        teacher="frozen",
        micro_batch_tokens=100,
    )
    found = Learned(
        SDPO(config), *fresh, monkeypatch, skill=Told(), prompts=12, batch_size=12, temperature=0.8
    )
    examples, groups = found.examples[0], found.rollouts[0][1]
    answers = [c for g in groups for c in g]
    rewards = torch.tensor([Told().reward(c.text, None) for c in answers])
    trainer = SDPOTrainer(
        found.start,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=Config(
            **quiet(tmp_path),
            distillation_alpha=0.5,
            distillation_mode="topk_logits",
            distillation_topk=20,
            distillation_add_tail=True,
            success_reward_threshold=0.5,
            teacher_model_kind="base",
            include_environment_feedback=feedback != "never",
            environment_feedback_only_without_solution=feedback == "without_solution",
            temperature=0.8,
            num_generations=3,
            max_completion_length=10,
            per_device_train_batch_size=36,
        ),
        processing_class=fresh[1],
        train_dataset=Dataset.from_list([{"prompt": e.prompt} for e in examples]),
    )
    prompts = [found.stage.prompt_tokens(e) for e in examples for _ in range(3)]
    prompt_ids, prompt_mask = padded(prompts, "left")
    completion_ids, completion_mask = padded([c.token_ids for c in answers], "right")
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
    }
    context = trainer.teacher_context_builder.build(
        batch,
        [e.prompt for e in examples for _ in range(3)],
        rewards,
        [Told().feedback(c.text, None) for c in answers],
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {**batch, **context})
    loss.backward()
    shown = context["self_distillation_mask"].mean().item()
    assert 0.1 < shown < 1 and found.logs[0]["shown"] == pytest.approx(shown)
    # TRL's mean is over all answers, ours over those that have a teacher
    assert found.logs[0]["loss"] == pytest.approx(loss.item() / shown, rel=1e-3)
    theirs = {n: p.grad / shown for n, p in trainer.model.named_parameters()}
    assert_close(found.gradients[0], theirs, 2e-3)


def test_what_sdpo_shows():
    example = Letters().load("train")[0]
    question = example.prompt[-1]["content"]
    text = reprompt(example, "a{}b", "f")[-1]["content"]
    assert text.startswith(question + "\nCorrect solution:\n\na{}b\n\n\nThe following is feedback")
    assert text.endswith("attempt:\n\nf\n\n\n\nCorrectly solve the original question.\n")


def test_sdpo_without_a_right_answer_learns_nothing(fresh, monkeypatch):
    class Never(Letters):
        def reward(self, completion, reference):
            return 0.0

    found = Learned(SDPO(SDPOConfig(**PLAIN, group_size=2)), *fresh, monkeypatch, skill=Never())
    assert found.logs[0]["shown"] == 0 and found.logs[0]["grad_norm"] == 0


# ---- GKD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("mixture", 0.5), ("mixture", 0.1)]
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gkd_is_trl_gkd(either, monkeypatch, kind, beta, share):
    """TRL's loss on the batch, of demonstrations or of own answers, with its gradient."""
    from trl.experimental.gkd import GKDTrainer

    run = moved(either[0], 7, 0.05)
    config = GKDConfig(
        **PLAIN,
        divergence=kind,
        mixture_weight=beta if kind == "mixture" else 0.5,
        student_share=share,
        micro_batch_tokens=100,
    )
    found = Learned(
        GKD(config), *either, monkeypatch, temperature=0.8, index=2, load_start=lambda of: run
    )
    stage, examples = found.stage, found.examples[0]
    rows = stage.demonstration_rows(examples)
    if share:
        prompts = [stage.prompt_tokens(e) for e in examples]
        rows = stage.rows(examples, prompts, found.rollouts[0][1])
    ids, mask = padded([r.prompt + r.completion for r in rows], "right")
    labels = ids.masked_fill(mask == 0, -100)
    for label, row in zip(labels, rows, strict=True):
        label[: len(row.prompt)] = -100
    model = copy.deepcopy(found.start)
    student = model(ids, attention_mask=mask).logits[:, :-1]
    with torch.no_grad():
        teacher = run(ids, attention_mask=mask).logits[:, :-1]
    loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels[:, 1:], beta, 0.8)
    loss.backward()
    assert found.logs[0]["own"] == share
    assert found.logs[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_close(found.gradients[0], {n: p.grad for n, p in model.named_parameters()}, 1e-3)


def test_the_share_of_steps_on_own_answers(fresh, monkeypatch):
    found = Learned(
        GKD(GKDConfig(**{**PLAIN, "learning_rate": 0.0}, student_share=0.3)),
        *fresh,
        monkeypatch,
        steps=40,
        load_start=lambda of: copy.deepcopy(fresh[0]),
    )
    own = sum(line["own"] for line in found.logs)
    assert 5 <= own <= 20  # 12 in the mean, with a deviation of 2.9


def test_another_model_teaches(fresh, monkeypatch, tmp_path):
    """One of another size, with a head that is wider than the tokenizer."""
    save_tiny(tmp_path / "teacher", seed=4, hidden_size=48, vocab_size=270)
    config = GKDConfig(
        **PLAIN, divergence="forward", student_share=0.0, teacher_model=str(tmp_path / "teacher")
    )
    found = Learned(GKD(config), *fresh, monkeypatch)
    teacher, _ = load_model(str(tmp_path / "teacher"), "float32", "cpu")
    rows = found.stage.demonstration_rows(found.examples[0])
    count = sum(len(r.completion) for r in rows)

    def each(logits, row):
        targets = logits_of(teacher, row.prompt, row.completion)[:, : logits.shape[1]]
        return divergence(logits, targets, "forward").sum() / count

    wanted, gradients = naive(found.start, rows, each)
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert_close(found.gradients[0], gradients, 1e-3)


def test_a_teacher_with_another_tokenizer_is_refused(order_file, tmp_path):
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path / "teacher")
    path = order_file(methods={"gkd": {"teacher_model": str(folder)}})
    assert read_order(path).methods["gkd"].config.teacher_model == str(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["and"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"teacher_model: .* has another tokenizer than"):
        read_order(path)
    with pytest.raises(UserError, match=r"teacher_model: \./nowhere is not a folder"):
        read_order(order_file(methods={"gkd": {"teacher_model": "./nowhere"}}))


# ---- PSFT ---------------------------------------------------------------------------------------


class Uneven(Part):
    """Weighs the tokens of a completion 0, 1, 2, 0, 1, 2, ..."""

    def weights(self, rows, positions, logits):
        assert all(row.completion for row in rows)
        return (positions.offsets % 3).to(logits)


@pytest.mark.parametrize("parts", [[], [Uneven(PartConfig())]], ids=["plain", "weighed"])
def test_psft_is_the_clipped_ratio(parts, either, monkeypatch):
    """The fourth update of a step, in float64; some tokens are outside the clip."""
    weights, gradients = [], []
    update = Trainer.update
    model = either[0]

    def spied(trainer):
        weights.append(copy.deepcopy(model.state_dict()))
        gradients.append({n: m.grad.clone() for n, m in trainer.masters.items()})
        return update(trainer)

    config = PSFTConfig(
        **{**PLAIN, "learning_rate": 1e-4},
        inner_batches=2,
        inner_epochs=2,
        clip_high=0.1,
        micro_batch_tokens=60,
    )
    start, logs = copy.deepcopy(model), []
    on_step = {"on_step": lambda s, t: logs.append(t.logged)}
    stage = make_stage(*either, prompts=8, batch_size=8, parts=parts, **on_step)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", spied)
        PSFT(config).learn(stage)
    assert len(weights) == 4
    rows = stage.demonstration_rows([stage.examples[i] for i in stage.draws()])[4:]
    count = sum(len(r.completion) for r in rows)

    def each(logits, row):
        tokens = torch.tensor(row.completion)[:, None]
        old = logits_of(start, row.prompt, row.completion).log_softmax(-1).gather(1, tokens)
        ratio = (logits.log_softmax(-1).gather(1, tokens) - old).exp()
        given = torch.arange(len(tokens)) % 3 if parts else torch.ones(len(tokens))
        return -(given[:, None] * torch.min(ratio, ratio.clamp(0.8, 1.1))).sum() / count

    last = copy.deepcopy(start)
    last.load_state_dict(weights[3])
    wanted, expected = naive(last, rows, each)
    assert_close(gradients[3], expected, 1e-3)
    assert 0 < logs[0]["outside_clip"] < 1
    assert parts or (logs[0]["loss"] < -1 and wanted < -1)


def test_psft_with_one_update_is_sft(fresh, monkeypatch):
    config = PSFTConfig(**PLAIN, inner_batches=1)
    found = Learned(PSFT(config), *fresh, monkeypatch)
    rows = found.stage.demonstration_rows(found.examples[0])
    count = sum(len(r.completion) for r in rows)

    def each(logits, row):
        return F.cross_entropy(logits, torch.tensor(row.completion), reduction="sum") / count

    _, gradients = naive(found.start, rows, each)
    assert_close(found.gradients[0], gradients, 1e-4)
    assert found.logs[0]["loss"] == pytest.approx(-1) and found.logs[0]["outside_clip"] == 0
