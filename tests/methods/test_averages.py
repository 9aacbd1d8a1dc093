"""Averages of weights against closed forms and loops in float64, over whole trainings."""

import copy

import pytest
import torch

from harness.learning.part import Part, PartConfig
from harness.learning.trainer import TrainingConfig, learning
from methods.parts.ema import EMA, EMAConfig
from methods.parts.sfa import SFA, SFAConfig
from methods.parts.wise_ft import WiSEFT, WiSEFTConfig
from methods.sft import SFT
from tests.learning.test_training import assert_near, make_stage
from tests.methods.test_penalties import SETTINGS, model, moved, naive_training, taught

__all__ = ["model"]  # a fixture
CONFIG = TrainingConfig(**SETTINGS)


class Steps(Part):
    """Keeps the float32 weights after each step, and before the first one."""

    def __init__(self):
        super().__init__(PartConfig())
        self.weights = []

    def loss(self, trainer, step):
        self.masters = trainer.masters
        if not self.weights:
            self.updated(step)
        return {}

    def updated(self, step):
        self.weights.append({n: m.detach().double().clone() for n, m in self.masters.items()})


def followed(base, tokenizer, part, folder, start=None, prompts=12):
    """What SFT with ``part`` ends with, and the float32 weights before and after each step."""
    live, steps = copy.deepcopy(base), Steps()
    parts = [steps, part] if part else [steps]
    stage = make_stage(
        live,
        tokenizer,
        parts=parts,
        folder=folder,
        index=2,
        prompts=prompts,
        load_start=lambda of: copy.deepcopy(start[of]),
    )
    for each in parts:
        each.begin(stage)
    SFT(CONFIG).learn(stage)
    merged = {name: weight.detach().clone() for name, weight in live.named_parameters()}
    for each in parts:
        each.end(stage)
    with learning(stage, CONFIG):  # as EWC has one for its Fisher pass
        pass
    for name, weight in live.named_parameters():
        assert torch.equal(weight, merged[name]), name  # merged once
    return live, steps.weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("decay", "begins"), [(0.0, True), (0.6, True), (0.6, False), (0.999999, False)]
)
def test_ema_is_its_closed_form(model, tmp_path, dtype, begins, decay):
    base, tokenizer = copy.deepcopy(model[0]).to(dtype), model[1]
    part = EMA(EMAConfig(decay=decay, start=begins))
    live, weights = followed(base, tokenizer, part, tmp_path, prompts=16)
    free, plain = followed(base, tokenizer, None, tmp_path, prompts=16)
    assert len(weights) == 5
    shares = [(1 - decay) * decay ** (4 - n) for n in range(1, 5)]
    for name, weight in live.named_parameters():
        for one, other in zip(weights, plain, strict=True):  # the training itself is as it was
            assert torch.equal(one[name], other[name])
        mean = sum(s * w[name] for s, w in zip(shares, weights[1:], strict=True))
        mean = decay**4 * weights[0][name] + mean if begins else mean / sum(shares)
        if dtype == torch.float32:
            torch.testing.assert_close(weight.double(), mean, rtol=1e-5, atol=1e-6)
        else:  # at most a rounding of the float32 average
            torch.testing.assert_close(weight.double(), mean, rtol=2**-8, atol=1e-6)
        if decay == 0:
            assert torch.equal(weight, free.get_parameter(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("alpha", "of"), [(0.0, "stage"), (0.3, "stage"), (0.3, "run"), (1, "run")]
)
def test_wise_ft_mixes_float32_weights_with_a_start(model, tmp_path, dtype, alpha, of):
    base, tokenizer = copy.deepcopy(model[0]).to(dtype), model[1]
    start = {"stage": base, "run": moved(base)}
    part = WiSEFT(WiSEFTConfig(alpha=alpha, of=of))
    live, weights = followed(base, tokenizer, part, tmp_path, start)
    for name, weight in live.named_parameters():
        first = start[of].get_parameter(name).double()
        wanted = (1 - alpha) * first + alpha * weights[-1][name]
        if dtype == torch.float32:
            torch.testing.assert_close(weight.double(), wanted, rtol=1e-6, atol=1e-7)
        else:
            # The rounded mixture of masters, not a mixture of rounded weights.
            close = wanted.float().to(dtype)
            assert (close == weight).float().mean() > 0.999, name


@pytest.mark.parametrize(
    ("beta", "period", "of", "after"),
    [
        (0.5, 0.34, "stage", (0, 1, 2)),
        (0.3, 0.7, "run", (1, 2)),
        (0.3, 1.0, "stage", (2,)),
        (0.0, 0.5, "stage", ()),
    ],
)
def test_sfa_is_a_loop_in_float64(model, tmp_path, beta, period, of, after):
    base, tokenizer = model
    start = {"stage": base, "run": moved(base)}
    part = SFA(SFAConfig(beta=beta, period=period, of=of))
    live, stage, _ = taught(base, tokenizer, part, start, CONFIG, tmp_path)
    count, done = len(list(base.named_parameters())), [0]

    def averaged(name, weight, rate):
        step = done[0] // count
        done[0] += 1
        first = start[of].get_parameter(name).double()
        return (1 - beta) * weight + beta * first if step in after else weight

    expected, _ = naive_training(base, stage, CONFIG, None, averaged)
    for name, weight in live.named_parameters():
        assert_near(weight, expected[name])


def test_sfa_with_one_period_is_wise_ft(model, tmp_path):
    base, tokenizer = model
    start = {"stage": base}
    one = SFA(SFAConfig(beta=0.25, period=1))
    other = WiSEFT(WiSEFTConfig(alpha=0.75))
    averaged, _, _ = taught(base, tokenizer, one, start, CONFIG, tmp_path)
    mixed, _, _ = taught(base, tokenizer, other, start, CONFIG, tmp_path)
    for name, weight in averaged.named_parameters():
        torch.testing.assert_close(weight, mixed.get_parameter(name), rtol=1e-6, atol=1e-7)
