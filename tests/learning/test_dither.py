"""Where masters of a bfloat16 model begin: the same model, of which small updates show at once."""

import copy

import pytest
import torch

from harness.learning.dither import Dither, dither_of
from harness.learning.halves import halves_of, numbers_of, split
from harness.learning.parametrisation import get_parametrisation
from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from tests.learning.test_training import make_stage, some_rows

SMALL = {"learning_rate": 3e-5, "schedule": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def weight():
    """[300, 577] bfloat16 of many sizes, with zeros, infinities, NaN and the largest number."""
    torch.manual_seed(0)
    weight = (torch.randn(300, 577) * 10 ** (4 * torch.rand(300, 577) - 4)).bfloat16()
    weight[0, :5] = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 3.3895e38])
    weight[1] = 2.0 ** -torch.arange(577).clamp(max=120)
    return weight


def dithered(weight, name="w", seed=0):
    return Dither(seed).add(name, weight.float())


def test_it_rounds_to_the_same_weight(weight):
    """To the nearest with ties to even, as on a CPU, and with ties away, as on a GPU."""
    numbers = dithered(weight)
    assert torch.equal(numbers.bfloat16().view(torch.int16), weight.view(torch.int16))
    assert torch.equal(split(numbers)[0].nan_to_num(), weight.nan_to_num())
    moved = numbers != weight.float()
    assert moved[2:].float().mean() > 0.999 and not moved[0, :3].any()


def test_a_small_update_moves_its_share_of_the_weights(weight):
    """Updates from a hundredth to twice the distance of two weights: their mean is what the mean of
    the rounded weights moves by, where half a distance would have to add up first.
    """
    ordinary = weight[2:]
    distance = 2.0 ** (ordinary.float().abs().log2().floor() - 7)
    for share in (0.01, 0.05, 0.2, 0.45, 1.3, 2.0):
        for sign in (-1, 1):
            update = sign * share * distance
            here = (dithered(ordinary) + update).bfloat16().float() - ordinary.float()
            assert (here / distance).mean() == pytest.approx(sign * share, abs=0.003)
            if share < 0.5:
                there = (ordinary.float() + update).bfloat16().float() - ordinary.float()
                assert (there / distance).abs().mean() < 0.02


def test_ranks_have_the_offsets_of_their_parts(weight):
    whole = dithered(weight)
    for first, last in ((0, 100), (100, 200), (200, 300)):
        part = Dither(0).add("w", weight[first:last].float(), first * 577)
        assert torch.equal(part.nan_to_num(), whole[first:last].nan_to_num())
    large = torch.ones(2**17 + 5)
    assert torch.equal(
        Dither(0).add("w", large.clone())[-7:], Dither(0).add("w", large[:7], 2**17 - 2)
    )


def test_stages_runs_and_weights_have_their_own(tiny_model):
    model, tokenizer = copy.deepcopy(tiny_model[0]).bfloat16(), tiny_model[1]
    stages = [make_stage(model, tokenizer) for _ in range(4)]
    stages[1].index, stages[2].seed = 2, 7
    ones = [dither_of(stage).add("w", torch.ones(1000)) for stage in stages]
    assert torch.equal(ones[0], ones[3])
    for other in (ones[1], ones[2], dither_of(stages[0]).add("v", torch.ones(1000))):
        assert (ones[0] == other).float().mean() < 0.01
    assert torch.equal(
        *(dither_of(stage, of_run=True).add("w", torch.ones(1000)) for stage in stages[:2])
    )


def test_masters_in_halves_begin_where_others_do(tiny_model):
    model = copy.deepcopy(tiny_model[0]).bfloat16()
    before = copy.deepcopy(model)
    stage = make_stage(model, tiny_model[1])
    with learning(stage, TrainingConfig(**SMALL)) as trainer:
        halves = halves_of(dict(model.named_parameters()), torch.device("cpu"))
        dither_of(stage).begin(model, halves)
        for name, master in trainer.masters.items():
            assert torch.equal(numbers_of(halves[name]), master), name
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("parameters", ["all", "lora", "dora", "osf"])
def test_a_bfloat16_model_changes_as_much_as_its_numbers(tiny_model, parameters):
    """Four steps of a rate far below half the distance of two weights. Along the change that the
    numbers say the weights have gone as far, and gone nowhere without offsets.
    """
    model, cls = copy.deepcopy(tiny_model[0]).bfloat16(), get_parametrisation(parameters, None, "")
    config = TrainingConfig(**SMALL)
    stage = make_stage(model, tiny_model[1], parameters=cls())
    stage.parameters.begin(stage)
    with learning(stage, config) as trainer:
        names = [name for name, _ in trainer.effective()]
        start = {n: model.get_parameter(n).detach().float().clone() for n in names}
        first = {n: w.detach().float().clone() for n, w in trainer.effective()}
        for _ in range(4):
            trainer.token_mean(some_rows(), cross_entropy)
            trainer.update()
        last = {n: w.detach().float().clone() for n, w in trainer.effective()}

    def moves(of, since):
        return torch.cat([(of[name] - since[name]).flatten() for name in names])

    asked = moves(last, first)
    have = moves({n: model.get_parameter(n).detach().float() for n in names}, start)
    plain = moves({n: (start[n] + last[n] - first[n]).bfloat16().float() for n in names}, start)
    assert (have @ asked) / (asked @ asked) == pytest.approx(1, abs=0.05)
    assert (plain @ asked) / (asked @ asked) < 0.35
