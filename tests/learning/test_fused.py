"""Losses that write their gradient over the logits: to the bit those of the usual ones on a CPU,
and the kernels in Triton's interpreter.
"""

import copy
import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu_check.material import make_model, make_stage, make_tokenizer, small_config
from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.learning import fused, packing
from harness.learning.distillation import DistillationConfig, distil, divergence
from harness.learning.fused import (
    Plain,
    check_fused,
    fused_cross_entropy,
    fused_kl,
    fused_logprobs,
)
from harness.learning.halves import gradient_of
from harness.learning.logprobs import token_logprobs
from harness.learning.options import TrainingConfig
from harness.learning.packing import Row
from harness.learning.part import Part, PartConfig
from harness.learning.teacher import OtherModel, Teacher, TrustRegion
from harness.learning.trainer import Trainer, cross_entropy
from harness.runs.reading import read_order

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
DTYPES = [FLOAT32, BFLOAT16]


def logits_of(rows, vocabulary, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(rows, vocabulary, generator=random)).to(dtype)


def gradient_at(logits, loss):
    """(value, gradient) of ``loss`` at logits, which it may write over."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf * 1)
    value.backward(torch.linspace(-1, 2, value.numel()).view(value.shape))
    return value.detach(), leaf.grad


def usual_logprobs(logits, tokens, temperature):
    logits = logits.float()
    return token_logprobs(logits / temperature if temperature != 1 else logits, tokens)


def usual_kl(student, teacher, temperature):
    student, teacher = student.float(), teacher.float()
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    return divergence(student, teacher, "forward")


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cpu_has_the_usual_numbers_to_the_bit(dtype, temperature):
    student, teacher = (logits_of(7, 301, dtype, seed) for seed in range(2))
    tokens = torch.tensor([0, 300, 5, 5, 17, 250, 1])
    for of_fused, of_usual in (
        (
            lambda logits: fused_logprobs(logits, tokens, temperature),
            lambda logits: usual_logprobs(logits, tokens, temperature),
        ),
        (
            lambda logits: fused_kl(logits, teacher, temperature),
            lambda logits: usual_kl(logits, teacher, temperature),
        ),
    ):
        (value, gradient), (wanted, slope) = (
            gradient_at(student, loss) for loss in (of_fused, of_usual)
        )
        assert torch.equal(value, wanted) and torch.equal(gradient, slope)
        assert gradient.dtype == dtype and value.dtype == FLOAT32


def test_cross_entropy_is_pytorchs():
    logits, tokens = logits_of(5, 40, BFLOAT16), torch.arange(5)
    value, gradient = gradient_at(logits, lambda x: fused_cross_entropy(x, tokens))
    wanted, slope = gradient_at(logits, lambda x: cross_entropy(x.float(), tokens))
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.equal(gradient, slope)


def test_the_gradient_takes_the_logits_place():
    """And who keeps the logits for a backward pass of its own is told."""
    leaf = logits_of(3, 20, FLOAT32).requires_grad_()
    logits = leaf * 1
    (gradient,) = torch.autograd.grad(fused_logprobs(logits, torch.arange(3)).sum(), logits)
    assert gradient.data_ptr() == logits.data_ptr()
    kept = leaf.exp()  # whose own backward pass reads it
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fused_logprobs(kept, torch.arange(3)).sum().backward()


def test_wider_teachers_and_steps_between_rows():
    """A teacher may be a part of a wider tensor, of another dtype."""
    student, wide = logits_of(4, 30, BFLOAT16), logits_of(4, 37, FLOAT32, 1)
    teacher = wide[:, :30]
    value, gradient = gradient_at(student, lambda x: fused_kl(x, teacher))
    wanted, slope = gradient_at(student, lambda x: usual_kl(x, teacher.contiguous(), 1.0))
    assert torch.equal(value, wanted) and torch.equal(gradient, slope)


# ---- steps ---------------------------------------------------------------------------------------


@functools.cache
def small(dtype):
    config = small_config(True)
    model = make_model(config, torch.float32, torch.device("cpu"))
    return model.to(dtype), make_tokenizer(config.vocab_size)


def some_rows(shift=0):
    random = torch.Generator().manual_seed(5)
    rows = []
    for i in range(6):
        tokens = torch.randint(300, 1000, (4 + i,), generator=random).tolist()
        rows.append(Row([7] * shift + tokens[:3], [*tokens[3:], 9, 8, 7, 6, 5]))
    return rows


def step_of(dtype, fused_losses, learn, **settings):
    """(what a step logs, the gradients of all weights)."""
    model, tokenizer = small(dtype)
    stage = make_stage(copy.deepcopy(model), tokenizer, fused_losses=fused_losses)
    for name, value in settings.items():
        setattr(stage, name, value)
    trainer = Trainer(stage, TrainingConfig(micro_batch_tokens=40))
    logged = learn(trainer)
    gradients = {name: gradient_of(master).clone() for name, master in trainer.holders.items()}
    trainer.close()
    return logged, gradients


def distilled(of, **options):
    """A step of distillation; of: makes the teacher of a trainer."""
    config = DistillationConfig(**options)

    def learn(trainer):
        rows, seen = some_rows(), some_rows(shift=4)
        logprobs = [[-5.0 + 0.3 * i] * len(row.completion) for i, row in enumerate(rows)]
        return distil(trainer, of(trainer), rows, seen, config, logprobs)

    return learn


def frozen(trainer):
    other = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    return Teacher(trainer.stage, 0, 60, model=other)


def padded(trainer):
    """A teacher with a head of a few rows more, which are no tokens."""
    teacher = frozen(trainer)
    other = OtherModel(trainer.stage, 0, 60, model=teacher.model)
    head = other.head
    other.head = lambda states: F.pad(head(states), (0, 3), value=5.0)
    return other


def trusted(trainer):
    return TrustRegion(frozen(trainer), Teacher(trainer.stage, 1, 60), 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "learn, settings, fuses",
    [
        (lambda trainer: trainer.token_mean(some_rows(), cross_entropy), {}, True),
        (distilled(frozen), {}, True),
        (distilled(frozen, normalise="tokens"), {"temperature": 0.7}, True),
        # importance weights, of log-probabilities that are read before the gradient is written
        (distilled(frozen), {"sampled_elsewhere": True, "temperature": 1.3}, True),
        (distilled(padded), {}, True),
        (distilled(trusted), {}, True),
        (distilled(frozen, divergence="reverse"), {}, False),
        (distilled(frozen, estimator="sampled"), {}, False),
        (distilled(frozen, estimator="top_k", top_k=5), {}, False),
        (distilled(frozen, estimator="rao_blackwell", importance_cap=0), {}, False),
        (distilled(frozen, entry_clip=0.05), {}, False),
    ],
)
def test_a_step_has_the_same_gradients_to_the_bit(dtype, learn, settings, fuses, monkeypatch):
    """By chunks of seven tokens; losses that have no fused form stay what they are."""
    monkeypatch.setitem(packing.VOCABULARY_CHUNK, False, 7 * 1024)
    calls = []
    for name in ("logprobs_gradient", "forward_kl_gradient"):
        real = getattr(Plain, name)
        monkeypatch.setattr(
            Plain, name, lambda *arguments, real=real: calls.append(1) or real(*arguments)
        )
    usual, wanted = step_of(dtype, False, learn, **settings)
    assert not calls
    logged, gradients = step_of(dtype, True, learn, **settings)
    assert bool(calls) == fuses
    assert logged == pytest.approx(usual, rel=1e-6)
    assert sum(g.abs().sum() for g in wanted.values()) > 0
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wanted[name]), name


def test_parts_that_weigh_tokens_see_float32_logits():
    """The cross-entropy is then the usual one."""
    seen = []

    class Weighing(Part):
        def weights(self, rows, at, logits):
            seen.append(logits.dtype)
            return torch.full((len(logits),), 0.5)

    def learn(trainer):
        trainer.stage.parts = [Weighing(PartConfig())]
        return trainer.token_mean(some_rows(), cross_entropy)

    usual, fused_one = (step_of(BFLOAT16, flag, learn) for flag in (False, True))
    assert usual[0] == fused_one[0] and set(seen) == {FLOAT32}


# ---- what an order says --------------------------------------------------------------------------


def test_a_gpu_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    check_fused("cpu", "model: fused_losses")
    with pytest.raises(UserError) as caught:
        check_fused("cuda:1", "model: fused_losses")
    assert str(caught.value) == (
        "model: fused_losses: the kernels of a GPU want Triton, which is not installed; "
        "pip install triton, or leave fused_losses out"
    )
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: SimpleNamespace())
    check_fused("cuda:1", "model: fused_losses")


def test_an_order_chooses_fused_losses_and_they_are_on_record(order_file):
    order = read_order(order_file())
    assert order.model.fused_losses is False and "fused_losses" not in order.about()["model"]
    order = read_order(order_file(), ["model.fused_losses=true"])
    assert order.about()["model"]["fused_losses"] is True


# ---- the kernels ---------------------------------------------------------------------------------


def interpreted():
    """Every kernel against PyTorch's functions; called in a process whose Triton interprets."""
    from harness.learning import fused_kernels

    fused_kernels.LONGEST = 64  # so that a vocabulary has several blocks
    plain = Plain()
    for vocabulary, dtype in ((5, FLOAT32), (64, BFLOAT16), (203, FLOAT32), (203, BFLOAT16)):
        for temperature in (1.0, 0.7):
            student = logits_of(4, vocabulary, dtype)
            student[1, : vocabulary // 2] = -1e4  # no token
            student[2] += 1e4  # all of them large
            wide = logits_of(4, vocabulary + 9, dtype, 1)
            for teacher in (wide[:, :vocabulary], wide[:, :vocabulary].contiguous().float()):
                tokens = torch.tensor([0, vocabulary - 1, 3, 2])
                gradient = torch.tensor([1.0, -0.25, 0.0, 3.0])
                compare(fused_kernels, plain, student, teacher, tokens, gradient, temperature)
    whole_steps(fused_kernels)
    print("interpreted")


def compare(kernels, plain, student, teacher, tokens, gradient, temperature):
    for name, other in (("logprobs", tokens), ("forward_kl", teacher)):
        found, wanted = [], []
        for module, into in ((kernels, found), (plain, wanted)):
            logits = student.clone()
            values, sums = getattr(module, name)(logits, other, temperature)
            assert torch.equal(logits, student)  # until the backward pass
            getattr(module, f"{name}_gradient")(logits, other, sums, gradient, temperature)
            into += [values, logits]
        torch.testing.assert_close(found[0], wanted[0], rtol=2e-6, atol=2e-6)
        assert found[1].dtype == student.dtype
        if student.dtype == FLOAT32:
            torch.testing.assert_close(found[1], wanted[1], rtol=2e-5, atol=2e-7)
        else:  # the interpreter cuts what a GPU rounds: the same, or its neighbour
            torch.testing.assert_close(found[1], wanted[1], rtol=2**-7, atol=1e-7)


def whole_steps(kernels):
    """Steps of a trainer by the kernels: the gradients of all weights."""
    for learn in (
        lambda trainer: trainer.token_mean(some_rows()[:2], cross_entropy),
        lambda trainer: distil(
            trainer,
            frozen(trainer),
            some_rows()[:2],
            some_rows(4)[:2],
            DistillationConfig(),
            [[-5.0] * len(row.completion) for row in some_rows()[:2]],
        ),
    ):
        usual, wanted = step_of(FLOAT32, True, learn, sampled_elsewhere=True)
        fused.kernels_of = lambda device: kernels
        logged, gradients = step_of(FLOAT32, True, learn, sampled_elsewhere=True)
        fused.kernels_of = lambda device: Plain()
        assert logged == pytest.approx(usual, rel=1e-5)
        for name, gradient in gradients.items():
            assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


POINTERS = {
    **dict.fromkeys(("logits", "student", "teacher"), "*bf16"),
    **dict.fromkeys(("values", "sums", "gradient"), "*fp32"),
    "tokens": "*i64",
    "scale": "fp32",
    "BLOCK": "constexpr",
}


def compiled():
    """Every kernel by Triton's compiler, which needs no GPU, for two generations of them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from harness.learning import fused_kernels

    for name in ("_logprobs", "_logprobs_gradient", "_forward_kl", "_forward_kl_gradient"):
        kernel = getattr(fused_kernels, name)
        signature = {argument: POINTERS.get(argument, "i32") for argument in kernel.arg_names}
        for capability in (80, 90):
            source = ASTSource(kernel, signature, {"BLOCK": fused_kernels.LONGEST})
            target = GPUTarget("cuda", capability, 32)
            made = triton.compile(source, target, {"num_warps": fused_kernels.WARPS})
            assert f".target sm_{capability}" in made.asm["ptx"]
            # what is written over the logits is rounded to nearest
            assert ("cvt.rn.bf16" in made.asm["ptx"]) == name.endswith("gradient")
    print("compiled")


@pytest.mark.parametrize("how, interprets", [("interpreted", "1"), ("compiled", "0")])
def test_the_kernels_without_a_gpu(how, interprets, tmp_path):
    """In Triton's interpreter, and by its compiler."""
    pytest.importorskip("triton", reason="Triton is not installed; make test-vllm has it")
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.learning import test_fused as t; t.{how}()"],
        cwd=ROOT,
        env={
            **os.environ,
            "TRITON_INTERPRET": interprets,
            "TRITON_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == [how], done.stderr[-3000:]
