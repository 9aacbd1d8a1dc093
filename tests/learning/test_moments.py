"""AdamW's moments in 8 bits: what a code can say, how far a step is from AdamW's, and resumes."""

import io

import pytest
import torch

from harness.learning import halves, moments
from harness.learning.halves import Halves, numbers_of
from harness.learning.moments import (
    BLOCK,
    EIGHT_BITS,
    FLOAT32,
    LEVELS,
    SMALLEST,
    Blocks,
    Floats,
    decoded,
    encoded,
    moments_of,
    thresholds_at,
)
from harness.learning.optimizer import Streamed

CPU = torch.device("cpu")
POWERS = {True: 4, False: 8}
SIGNED = pytest.mark.parametrize("signed", [True, False])


def numbers_like(count, signed, seed=0):
    """Of sizes over ten powers of ten."""
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(count, generator=random) * 10 ** (
        2.5 * torch.randn(count, generator=random)
    )
    return found if signed else found.abs()


def through(numbers, signed, step):
    """What is read after ``numbers`` were written in a step."""
    codes, scales = encoded(numbers, signed, thresholds_at(step, CPU))
    return decoded(codes, scales, signed)[: numbers.numel()].view(numbers.shape)


# ---- codes ---------------------------------------------------------------------------------------


@SIGNED
def test_every_level_stays_what_it_is(signed):
    """As does the largest number of a block, whatever it is."""
    most = LEVELS[signed]
    levels = (torch.arange(most + 1) / most) ** POWERS[signed]
    levels = torch.cat([levels, -levels]) if signed else levels
    for step, scale in ((0, 1.0), (1, 3.7e-6), (7, 2.9e9)):
        numbers = torch.cat([levels * scale, torch.zeros(-len(levels) % BLOCK)])
        numbers[::BLOCK] = scale  # each block has the whole range
        found = through(numbers, signed, step)
        assert torch.allclose(found, numbers, rtol=1e-6, atol=0)
        assert torch.equal(found[::BLOCK], numbers[::BLOCK])


@SIGNED
def test_a_number_is_off_by_less_than_a_gap(signed):
    """At a share x of a block's largest the next level is (x^(1/p) + 1 / L)^p at most."""
    most = LEVELS[signed]
    numbers = numbers_like(40 * BLOCK + 17, signed)
    padded = torch.cat([numbers, torch.zeros(-len(numbers) % BLOCK)]).view(-1, BLOCK)
    scales = padded.abs().amax(1)
    power = POWERS[signed]
    root = (padded.abs() / scales[:, None]).double() ** (1 / power)
    gap = ((root + 1 / most) ** power - root**power) * scales[:, None]
    for step in range(5):
        off = (through(numbers, signed, step) - numbers).abs()
        assert (off <= 1.001 * gap.view(-1)[: len(numbers)]).all()
        assert off.max() > 0
        assert (off <= power / most * scales.repeat_interleave(BLOCK)[: len(numbers)]).all()
        largest = padded.abs().argmax(1) + torch.arange(len(padded)) * BLOCK
        assert not off[largest].any()


@SIGNED
def test_zeros_stay_and_squares_do_not_become_zeros(signed):
    numbers = numbers_like(BLOCK * 3, signed)
    numbers[BLOCK : 2 * BLOCK] = 0
    numbers[5] = 0
    numbers[7] = 1e-30
    for step in range(20):
        found = through(numbers, signed, step)
        assert not found[BLOCK : 2 * BLOCK].any() and found[5] == 0
        assert found.isfinite().all()
        if not signed:
            assert (found[numbers > 0] > 0).all() and (found >= 0).all()
        else:
            assert (found * numbers >= 0).all()


@SIGNED
def test_the_mean_over_steps_is_exact(signed):
    """Within a hundredth of a gap after 500 steps; the nearest level would be off by up to half."""
    numbers = numbers_like(4 * BLOCK, signed)
    scales = numbers.view(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK)
    found = torch.stack([through(numbers, signed, step) for step in range(500)]).double()
    share = numbers.abs() / scales
    most = LEVELS[signed]
    power = POWERS[signed]
    root = share.double() ** (1 / power)
    gap = ((root + 1 / most) ** power - (root - 1 / most).clamp(min=0) ** power) * scales
    # below the first level squares are told as that level
    told = share > float(most) ** -power
    off = (found.mean(0) - numbers).abs() / gap
    assert off[told].max() < 0.01
    assert (found.std(0)[told] > 0).float().mean() > 0.9


def test_thresholds_fill_the_unit_interval_along_a_block_and_in_time():
    """The largest hole between 500 of them is a few five-hundredths."""
    along = torch.stack([thresholds_at(step, CPU) for step in range(500)])
    assert along.dtype == torch.float32 and along.min() >= 0 and along.max() < 1
    for line in (*along[:3], *along.T[:3]):
        holes = torch.cat([torch.zeros(1), line.sort().values, torch.ones(1)]).diff()
        assert holes.max() < 4 / len(line)


# ---- steps ---------------------------------------------------------------------------------------


def run(kind, gradients, start, rate=1e-2, holders=None):
    """(the masters, the optimizer) after steps by the gradients."""
    holders = holders or {"w": start.clone()}
    optimizer = Streamed(holders, {"w": 0.0}, CPU, kind)
    for gradient in gradients:
        optimizer.move("w", gradient, rate)
    return holders["w"], optimizer


def test_steps_are_near_adamws():
    """Gradients with a mean and noise, of sizes that differ by four powers of ten in a block: how
    far the way of 300 steps is from AdamW's, by the size.
    """
    random = torch.Generator().manual_seed(0)
    size = 10 ** torch.randn(SMALLEST * 2, generator=random)
    drift = 0.3 * torch.randn(len(size), generator=random)
    gradients = [size * (drift + torch.randn(len(size), generator=random)) for _ in range(300)]
    start = torch.zeros(len(size))
    whole, _ = run(FLOAT32, gradients, start)
    found, _ = run(EIGHT_BITS, gradients, start)
    share = (size.view(-1, BLOCK) / size.view(-1, BLOCK).amax(1, keepdim=True)).view(-1)
    for least, most, off, longer in (
        (0, 1e-3, 0.2, 0.06),
        (1e-3, 1e-2, 0.1, 0.03),
        (1e-2, 0.1, 0.06, 0.02),
        (0.1, 2, 0.04, 0.01),
    ):
        part = (share >= least) & (share < most)
        assert part.sum() > 300
        assert (found - whole)[part].norm() < off * whole[part].norm()
        assert found[part].norm() == pytest.approx(whole[part].norm().item(), rel=longer)


def test_mean_squares_follow_gradients_that_grow_small():
    """After 100 large gradients 1,100 small ones: a mean of squares goes down by a thousandth a
    step, which no code can say.
    """
    random = torch.Generator().manual_seed(0)
    found = {}
    for kind in (FLOAT32, EIGHT_BITS):
        random.manual_seed(1)
        holders = {"w": torch.zeros(SMALLEST)}
        optimizer = Streamed(holders, {"w": 0.0}, CPU, kind)
        for step in range(1200):
            gradient = torch.randn(SMALLEST, generator=random)
            optimizer.move("w", gradient * (1.0 if step < 100 else 0.03), 1e-3)
        found[kind] = optimizer.moments["w"][1].read(0, CPU).sqrt()
    ratio = found[EIGHT_BITS] / found[FLOAT32]
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert ratio.std() < 0.15 and ratio.min() > 0.5 and ratio.max() < 2


def test_a_regression_ends_where_adamws_does():
    random = torch.Generator().manual_seed(0)
    wanted = torch.randn(64, 80, generator=random)
    losses = {}
    for kind in (FLOAT32, EIGHT_BITS):
        random.manual_seed(2)
        weight = torch.zeros(64, 80)
        optimizer = Streamed({"w": weight}, {"w": 0.0}, CPU, kind)
        for step in range(400):
            inputs = torch.randn(32, 64, generator=random)
            noise = 0.1 * torch.randn(32, 80, generator=random)
            error = inputs @ (weight - wanted) - noise
            optimizer.move("w", inputs.T @ error / 32, 0.02 * (1 - step / 400))
        losses[kind] = (weight - wanted).square().mean().item()
    assert losses[EIGHT_BITS] < 1.1 * losses[FLOAT32] < 0.01


def test_small_tensors_keep_float32():
    start = torch.zeros(SMALLEST - 1)
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(len(start), generator=random) for _ in range(3)]
    assert torch.equal(run(FLOAT32, gradients, start)[0], run(EIGHT_BITS, gradients, start)[0])
    assert isinstance(moments_of(start, CPU, EIGHT_BITS)[0], Floats)
    assert isinstance(moments_of(torch.zeros(SMALLEST), CPU, EIGHT_BITS)[0], Blocks)


def test_two_bytes_a_number():
    means, squares = moments_of(torch.zeros(3, 50 * BLOCK), CPU, EIGHT_BITS)
    for moment in (means, squares):
        size = sum(part.nbytes for part in moment.parts)
        assert 2 * size / (150 * BLOCK) == moments.MOMENT_BYTES[EIGHT_BITS] == 2.03125


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("contiguous", [True, False])
def test_they_go_on_from_a_checkpoint_to_the_bit(dtype, contiguous, monkeypatch):
    """In pieces, the last of which ends within a block."""
    monkeypatch.setattr(halves, "PIECE", 2 * BLOCK)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(73, 70, generator=random).to(dtype)
    weight = weight if contiguous else weight.T
    gradients = [
        torch.empty_like(weight, dtype=torch.float32).copy_(
            torch.randn(weight.shape, generator=random)
        )
        for _ in range(6)
    ]
    whole = halves.halves_of({"w": weight.clone()}, CPU)
    run(EIGHT_BITS, gradients, weight, holders=whole)

    first = halves.halves_of({"w": weight.clone()}, CPU)
    master, optimizer = run(EIGHT_BITS, gradients[:3], weight, holders=first)
    file = io.BytesIO()
    upper = master.weight if isinstance(master, Halves) else master
    torch.save([upper, halves.kept_of(first), optimizer.state_dict()], file)
    file.seek(0)
    upper, masters, kept = torch.load(file, weights_only=True)
    again = halves.halves_of({"w": upper}, CPU)
    halves.restore(again, masters)
    resumed = Streamed(again, {"w": 0.0}, CPU, EIGHT_BITS)
    resumed.load_state_dict(kept)
    for gradient in gradients[3:]:
        resumed.move("w", gradient, 1e-2)
    assert torch.equal(numbers_of(again["w"]), numbers_of(whole["w"]))
    assert not torch.equal(numbers_of(again["w"]), weight.float())
    assert kept["w"]["exp_avg"][0].dtype == torch.int8
    assert kept["w"]["exp_avg_sq"][0].dtype == torch.uint8


def test_pieces_are_restored_from_the_whole_tensor(monkeypatch):
    """As ranks keep them: one tensor of a part's shape, whatever pieces it has in memory."""
    monkeypatch.setattr(halves, "PIECE", 4)
    moment, _ = moments_of(torch.zeros(3, 3), CPU, FLOAT32)
    assert [len(part) for part in moment.parts] == [4, 4, 1]
    whole = torch.arange(9.0).view(3, 3)
    moments.restore(moment, [whole])
    assert torch.equal(torch.cat(list(moment.parts)).view(3, 3), whole)
    moments.restore(moment, list(moment.parts))
    assert torch.equal(torch.cat(list(moment.parts)).view(3, 3), whole)
