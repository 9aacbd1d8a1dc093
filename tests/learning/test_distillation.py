"""The estimators of harness/learning/distillation.py against float64 enumeration of every
completion, and against TRL's SDFT.

The tiny world: three tokens, the last of which ends a completion, at most three of them. Every
completion can be listed, so an expectation is a sum, and the gradient that an estimator claims
comes from differentiating that sum.
"""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from harness.base.errors import UserError
from harness.base.settings import build
from harness.learning import packing
from harness.learning.distillation import (
    DistillationConfig,
    distil,
    divergence,
    on_support,
    sampled_divergence,
    token_losses,
)
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer
from harness.runs.reading import read_order
from methods.offline_distillation import OfflineConfig
from methods.sdft import SDFT, SDFTConfig
from tests.learning.test_training import Letters, assert_close, naive
from tests.methods.test_methods import (
    PAPER,
    PLAIN,
    Elsewhere,
    Learned,
    padded,
    quiet,
    replay,
    sdft_case,
)

END, LONGEST, TEMPERATURE = 2, 3, 0.8
KINDS = ["forward", "reverse", "mixture"]
ALPHAS = {"forward": 0.0, "reverse": 1.0, "mixture": 0.3}
COMPLETIONS = [
    c
    for n in range(1, LONGEST + 1)
    for c in itertools.product(range(3), repeat=n)
    if END not in c[:-1] and (c[-1] == END or n == LONGEST)
]


@pytest.fixture
def fresh(tiny_model):
    return copy.deepcopy(tiny_model[0]), tiny_model[1]


# ---- every completion of a tiny world -----------------------------------------------------------


def tiny_llama(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=3,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.5,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=END,
        )
    )


PROMPT, SHOWN = [0, 1], [1, 1, 0]


def logits_of(model, prompt, completion):
    out = model(torch.tensor([prompt + list(completion)])).logits[0, len(prompt) - 1 : -1]
    return out / TEMPERATURE


def per_token(kind, p, q, weight=0.3):
    """Divergence [tokens] of probabilities, from its definition."""
    m = weight * q + (1 - weight) * p
    return {
        "forward": q * (q / p).log(),
        "reverse": p * (p / q).log(),
        "mixture": weight * q * (q / m).log() + (1 - weight) * p * (p / m).log(),
    }[kind].sum(-1)


def enumerated(student, teacher, kind, skip, constant, through_samples):
    """Gradient by name of E_y[share(y) sum_t D_t], in float64; with the distribution of y
    differentiated as well or not.
    """
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    total = 0.0
    for y in COMPLETIONS:
        p = logits_of(student, PROMPT, y).softmax(-1)
        q = logits_of(teacher, SHOWN, y).softmax(-1).detach()
        chance = p[range(len(y)), list(y)].prod()
        share = 1 / LONGEST if constant else 1 / max(1, len(y) - skip)
        total = (
            total
            + (chance if through_samples else chance.detach())
            * share
            * per_token(kind, p, q)[skip:].sum()
        )
    total.backward()
    return {n: p.grad for n, p in student.named_parameters()}


def expected(student, teacher, **options):
    """Mean over all completions of the gradient that ``distil`` leaves behind, each completion a
    step of its own.
    """
    config = build(DistillationConfig, {"mixture_weight": 0.3, **options}, "test")
    model = copy.deepcopy(student)
    stage = Stage(
        model=model,
        tokenizer=None,
        sampler=None,
        skill=Letters(),
        seed=0,
        index=1,
        prompts=1,
        batch_size=1,
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
    )
    trainer, frozen = Trainer(stage, config), Teacher(stage, 0, 1024)
    frozen.model.load_state_dict(teacher.state_dict())
    out = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in model.named_parameters()}
    mass = 0.0
    for y in COMPLETIONS:
        with torch.no_grad():
            logprob = logits_of(student, PROMPT, y).double().log_softmax(-1)[range(len(y)), list(y)]
        distil(trainer, frozen, [Row(PROMPT, list(y))], [Row(SHOWN, list(y))], config)
        mass += logprob.sum().exp().item()
        for name, master in trainer.masters.items():
            if master.grad is not None:
                out[name] += logprob.sum().exp() * master.grad
            master.grad = None
    assert mass == pytest.approx(1, rel=1e-6) and len(COMPLETIONS) == 1 + 2 + 12
    return out


def distance(found, wanted):
    """Of two gradients, relative to the second, over all parameters at once."""
    off, size = (
        sum((f(n)).double().square().sum() for n in wanted) ** 0.5
        for f in (lambda n: found[n] - wanted[n], lambda n: wanted[n])
    )
    return (off / size).item()


@pytest.fixture(scope="module")
def world():
    return tiny_llama(1), tiny_llama(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [0, 1])
def test_full_and_sampled_claim_the_gradient_at_given_prefixes(world, kind, skip):
    """Both, in the mean, are the gradient with the sampling distribution held fixed: off the whole
    gradient, and by the same.
    """
    fixed = enumerated(*world, kind, skip, constant=True, through_samples=False)
    whole = enumerated(*world, kind, skip, constant=True, through_samples=True)
    for estimator in ("full", "sampled"):
        found = expected(
            *world, divergence=kind, estimator=estimator, skip_tokens=skip, normalise="constant"
        )
        assert distance(found, fixed) < 1e-4
        assert distance(found, whole) > 0.05  # the bias that the paper names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("chunk", [3, 2**24])
def test_rao_blackwell_is_the_whole_gradient(world, kind, skip, chunk, monkeypatch):
    """Without bias, also with one token a chunk, so that credit has to pass from chunk to chunk."""
    monkeypatch.setitem(packing.VOCABULARY_CHUNK, False, chunk)
    whole = enumerated(*world, kind, skip, constant=True, through_samples=True)
    found = expected(*world, divergence=kind, estimator="rao_blackwell", skip_tokens=skip)
    assert distance(found, whole) < 1e-4


def test_reverse_rao_blackwell_is_the_kl_of_sequences(world):
    """The chain rule: sum_t of KLs along y ~ p is the KL of the distributions over completions."""
    student, teacher = (copy.deepcopy(m).double() for m in world)
    total = 0.0
    for y in COMPLETIONS:
        p = logits_of(student, PROMPT, y).log_softmax(-1)[range(len(y)), list(y)].sum()
        q = logits_of(teacher, SHOWN, y).log_softmax(-1)[range(len(y)), list(y)].sum().detach()
        total = total + p.exp() * (p - q)
    (total / LONGEST).backward()
    found = expected(*world, divergence="reverse", estimator="rao_blackwell", skip_tokens=0)
    assert distance(found, {n: p.grad for n, p in student.named_parameters()}) < 1e-4


def test_means_over_a_completion_bias_sampled_but_not_full(world):
    """A length in the denominator is drawn with the tokens."""
    fixed = enumerated(*world, "reverse", 0, constant=False, through_samples=False)
    full, sampled = (
        expected(*world, divergence="reverse", estimator=e, skip_tokens=0)
        for e in ("full", "sampled")
    )
    assert distance(full, fixed) < 1e-4 and distance(sampled, fixed) > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_is_full_in_the_mean_and_by_variance_worse(kind):
    """Value and gradient with respect to logits, one token drawn from five, in float64."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 5, dtype=torch.float64)
    student.requires_grad_()
    probs = student.detach().softmax(-1)[0]
    want_value = divergence(student, teacher, kind, 0.3)
    (want,) = torch.autograd.grad(want_value.sum(), student)
    values, gradients = [], []
    for token in range(5):
        p, q = student.log_softmax(-1)[:, token], teacher.log_softmax(-1)[:, token]
        value = sampled_divergence(p, q, kind, 0.3)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value.sum(), student)[0][0])
    assert (probs @ torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(
        want_value.item(), rel=1e-9
    )
    gradients = torch.stack(gradients)
    assert torch.allclose(probs @ gradients, want[0], rtol=1e-9)
    assert (probs @ (gradients - want[0]).square().sum(1)).item() > 1e-3


# ---- top-k --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [True, False])
def test_top_k_is_the_divergence_of_what_is_left(kind, tail):
    """Against the definition on probabilities, in float64: buckets added up, or conditionals."""
    torch.manual_seed(1)
    student, teacher = 2 * torch.randn(2, 6, 9, dtype=torch.float64)
    config = SimpleNamespace(
        entry_clip=None, estimator="top_k", top_k=4, tail=tail, divergence=kind, mixture_weight=0.3
    )
    found = token_losses(student, teacher, None, config)
    for row in range(6):
        p, q = student[row].softmax(-1), teacher[row].softmax(-1)
        kept = p.argsort(descending=True)[:4]
        if tail:
            a, b = (torch.cat([x[kept], 1 - x[kept].sum(0, keepdim=True)]) for x in (p, q))
        else:
            a, b = (x[kept] / x[kept].sum() for x in (p, q))
        assert found[row].item() == pytest.approx(per_token(kind, a, b).item(), rel=1e-9)
    whole = divergence(student, teacher, kind, 0.3)
    assert not tail or (found <= whole).all()  # coarser cells see less


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_meets_full_where_nothing_is_lost(kind):
    """With a tail of one token, and with all tokens; below that it is off, and its gradient too."""
    torch.manual_seed(2)
    student, teacher = 2 * torch.randn(2, 6, 9, dtype=torch.float64)
    student.requires_grad_()

    def gradient(k, tail):
        config = SimpleNamespace(
            entry_clip=None,
            estimator="top_k",
            top_k=k,
            tail=tail,
            divergence=kind,
            mixture_weight=0.3,
        )
        return torch.autograd.grad(token_losses(student, teacher, None, config).sum(), student)[0]

    (whole,) = torch.autograd.grad(divergence(student, teacher, kind, 0.3).sum(), student)
    for k, tail in ((8, True), (9, True), (9, False), (50, False)):
        assert torch.allclose(gradient(k, tail), whole, rtol=1e-8, atol=1e-12)
    for tail in (True, False):
        assert (gradient(3, tail) - whole).norm() > 0.05 * whole.norm()
    outside = torch.ones_like(whole).scatter(-1, student.detach().topk(3, -1).indices, 0.0).bool()
    assert not gradient(3, False)[outside].any()  # renormalised: what is outside is not seen at all


def test_a_tail_that_float32_cannot_subtract():
    """1 - 0.99999999 is 0 in float32; the tail comes from the logits of the rest."""
    student = torch.tensor([[30.0, 0.0, 0.0, -1.0]])
    cut, _ = on_support(student, student, 1, True)
    exact = student.double().softmax(-1)[0, 1:].sum().log().item()
    assert cut.log_softmax(-1)[0, 1].item() == pytest.approx(exact, rel=1e-6)


# ---- TRL ----------------------------------------------------------------------------------------


def trl_sdft(found, tokenizer, folder, old=None, **settings):
    """Loss and gradients by name of SDFTTrainer.compute_loss on the completions of the first step
    of ``found``.
    """
    from trl.experimental.sdft import SDFTConfig as Config
    from trl.experimental.sdft import SDFTTrainer

    cases, examples = replay(found), found.examples[0]
    trainer = SDFTTrainer(
        found.start,
        Config(
            **quiet(folder),
            num_loss_tokens_to_skip=3,
            temperature=0.8,
            teacher_model_kind="live",
            teacher_prompt_template=PAPER,
            max_completion_length=10,
            num_generations=1,
            per_device_train_batch_size=1,
            **settings,
        ),
        processing_class=tokenizer,
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
    if old is not None:
        batch["old_per_token_logps"] = torch.tensor(
            [row + [0.0] * (completion_ids.shape[1] - len(row)) for row in old]
        )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [True, False])
def test_top_k_is_trls(fresh, monkeypatch, tmp_path, kind, tail):
    found = sdft_case(kind, monkeypatch, fresh, estimator="top_k", top_k=20, tail=tail)
    loss, gradients = trl_sdft(
        found,
        fresh[1],
        tmp_path,
        distillation_mode="topk_logits",
        distillation_topk=20,
        distillation_add_tail=tail,
        distillation_alpha=ALPHAS[kind],
    )
    assert found.logs[0]["loss"] == pytest.approx(loss, rel=1e-4) and loss > 0.01
    assert_close(found.gradients[0], gradients, 1e-3)


def test_sampled_has_trls_gradient(fresh, monkeypatch, tmp_path):
    """TRL has it for the reverse direction. Its loss is another number, of which only the gradient
    means something.
    """
    found = sdft_case("reverse", monkeypatch, fresh, estimator="sampled")
    _, gradients = trl_sdft(
        found, fresh[1], tmp_path, distillation_mode="sampled_token", distillation_alpha=1.0
    )
    assert_close(found.gradients[0], gradients, 1e-3)


@pytest.mark.parametrize(
    "estimator,kind,mode",
    [
        ("full", "forward", "full_logits"),
        ("full", "mixture", "full_logits"),
        ("top_k", "reverse", "topk_logits"),
        ("sampled", "reverse", "sampled_token"),
    ],
)
def test_importance_weights_are_trls(fresh, monkeypatch, tmp_path, estimator, kind, mode):
    """Completions of another model: the ratio of the trainer's probability to the sampler's,
    capped, on every token.
    """
    sampler = Elsewhere(*fresh)
    config = SDFTConfig(
        **PLAIN,
        divergence=kind,
        mixture_weight=0.3,
        teacher="live",
        estimator=estimator,
        top_k=20,
        tail=False,
        importance_cap=1.1,
        micro_batch_tokens=100,
    )
    found = Learned(
        SDFT(config),
        *fresh,
        monkeypatch,
        sampler=sampler,
        prompts=12,
        batch_size=12,
        temperature=0.8,
    )
    found.rollouts = sampler.kept
    old = [c.logprobs for (c,) in sampler.kept[0][1]]
    loss, gradients = trl_sdft(
        found,
        fresh[1],
        tmp_path,
        old,
        distillation_mode=mode,
        distillation_topk=20,
        distillation_alpha=ALPHAS[kind],
        distillation_is_clip=1.1,
    )
    if estimator != "sampled":
        assert found.logs[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert_close(found.gradients[0], gradients, 1e-3)
    ratios = []
    with torch.no_grad():
        for (prompt, _, completion), row in zip(replay(found), old, strict=True):
            own = (
                found.start(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
                / 0.8
            ).log_softmax(-1)
            ratios += [
                min(1.1, (own[t, token] - row[t]).exp().item())
                for t, token in enumerate(completion)
            ]
    assert min(ratios) < 0.9 and 1.1 in ratios
    assert found.logs[0]["importance_weight"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


def test_the_projects_own_sampler_needs_no_weights(fresh, monkeypatch):
    model = copy.deepcopy(fresh[0])
    plain = sdft_case("forward", monkeypatch, fresh)
    capped = sdft_case("forward", monkeypatch, (model, fresh[1]), importance_cap=2.0)
    assert (
        capped.logs[0]["importance_weight"] == pytest.approx(1, abs=1e-4)
        and "importance_weight" not in plain.logs[0]
    )
    assert_close(capped.gradients[0], plain.gradients[0], 1e-3)


def test_rao_blackwell_of_a_batch_is_the_naive_surrogate(fresh, monkeypatch):
    """Rows of different lengths in several micro-batches, against full logits row by row in
    float64.
    """
    found = sdft_case("reverse", monkeypatch, fresh, estimator="rao_blackwell")
    cases = replay(found)
    teacher, shown = copy.deepcopy(found.start).double(), {id(c): t for _, t, c in cases}

    def each(logits, row):
        with torch.no_grad():
            target = teacher(torch.tensor([shown[id(row.completion)] + row.completion])).logits[
                0, -len(row.completion) - 1 : -1
            ]
        p = (logits / 0.8).log_softmax(-1)
        kl = (p.exp() * (p - (target / 0.8).log_softmax(-1))).sum(-1)
        kl = torch.cat([torch.zeros_like(kl[:3]), kl[3:]])
        own = p.gather(1, torch.tensor(row.completion)[:, None])[:, 0]
        credit = [kl[t + 1 :].sum().detach() * (own[t] - own[t].detach()) for t in range(len(own))]
        return (kl.sum() + sum(credit)) / (10 * len(cases))

    wanted, gradients = naive(found.start, [Row(p, c) for p, _, c in cases], each)
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert_close(found.gradients[0], gradients, 1e-3)


# ---- what makes no sense is refused -------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, options, said",
    [
        (
            SDFTConfig,
            {"estimator": "rao_blackwell", "normalise": "sequences"},
            "goes with normalise: constant",
        ),
        (SDFTConfig, {"estimator": "rao_blackwell", "importance_cap": 2}, "has no importance_cap"),
        (
            SDFTConfig,
            {"estimator": "top_k", "top_k": 1, "tail": False},
            "top_k must be at least 2 without a tail",
        ),
        (SDFTConfig, {"estimator": "topk"}, "did you mean 'top_k'"),
        (SDFTConfig, {"teacher_context": "article"}, "teacher_context: unknown value 'article'"),
        (OfflineConfig, {"estimator": "sampled"}, "wants completions of the student"),
        (OfflineConfig, {"estimator": "rao_blackwell"}, "wants completions of the student"),
        (
            OfflineConfig,
            {"importance_cap": 2},
            "importance_cap goes with completions of the student",
        ),
        (OfflineConfig, {"mixture_weight": 1.0}, "mixture_weight must be below 1"),
    ],
)
def test_refusals(cls, options, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as caught:
        build(cls, options, "order.yaml: methods.x")
    assert str(caught.value).startswith("order.yaml: methods.x")


@pytest.mark.parametrize("method", ["sdft", "sft_reinvoke"])
@pytest.mark.parametrize("estimator", ["sampled", "rao_blackwell"])
def test_estimators_of_the_students_own_draws_want_all_of_its_distribution(
    order_file, method, estimator
):
    order = order_file(methods={method: {"estimator": estimator}})
    read_order(order)
    with pytest.raises(
        UserError,
        match=f"methods.{method}: estimator: {estimator} .* rollout.top_p: 0.9 cuts; "
        "set rollout.top_p to 1",
    ):
        read_order(order, ["rollout.top_p=0.9"])
