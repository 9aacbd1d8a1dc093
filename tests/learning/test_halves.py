"""Float32 numbers in two halves: the same bits again, and the nearest bfloat16 above."""

import pytest
import torch

from harness.learning import halves
from harness.learning.halves import Halves, Masters, join, pieces, round_into, split

CPU = torch.device("cpu")
MANTISSAS = [
    *(0, 1, 2, 0x7FFF, 0x8000, 0x8001, 0xFFFF),  # below, at and above a tie, to an even number
    *(0x10000, 0x17FFF, 0x18000, 0x18001, 0x1FFFF),  # and to an odd one
    *(0x3F8000, 0x3FFFFF, 0x400000, 0x7F7FFF, 0x7F8000, 0x7FFFFE, 0x7FFFFF),
]


def every_exponent():
    """Float32 numbers of both signs, all 256 exponents, and many mantissas."""
    random = torch.randint(0, 2**23, (200,), generator=torch.Generator().manual_seed(0))
    mantissas = torch.cat([torch.tensor(MANTISSAS), random])
    bits = (torch.arange(256) << 23)[:, None] + mantissas
    bits = torch.cat([bits, bits - 2**31]).flatten()
    return bits.to(torch.int32).view(torch.float32)


def bits_of(numbers):
    return numbers.view(torch.int32)


def test_split_and_join_give_the_same_bits():
    numbers = every_exponent()
    assert len(numbers) == 2 * 256 * (len(MANTISSAS) + 200)
    high, low = split(numbers)
    assert (high.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    back, is_nan = join(high, low), numbers.isnan()
    assert torch.equal(bits_of(back)[~is_nan], bits_of(numbers)[~is_nan])
    # A signalling NaN becomes quiet, as in every operation; a quiet one keeps all its bits.
    quiet = bits_of(numbers)[is_nan] | 0x400000
    assert torch.equal(bits_of(back)[is_nan], quiet) and is_nan.sum() > 400
    assert torch.equal(high.isnan(), is_nan)
    for value in (0.0, -0.0, float("inf"), -float("inf"), 1e-45, -1e-45, 3.4e38):
        one = torch.tensor([value])
        assert torch.equal(bits_of(join(*split(one))), bits_of(one))


def test_the_upper_half_is_the_nearest_bfloat16():
    """As PyTorch rounds, but for ties, which go away from zero."""
    numbers = every_exponent()
    numbers = numbers[~numbers.isnan()]
    high, _ = split(numbers)
    usual = numbers.bfloat16()
    tie = (bits_of(numbers) & 0xFFFF) == 0x8000
    assert torch.equal(high[~tie].view(torch.int16), usual[~tie].view(torch.int16))
    assert tie.sum() > 1000 and (high[tie].abs() > numbers[tie].abs()).all()
    finite = numbers[tie].abs() < 3e38
    distance = (high[tie].double() - numbers[tie].double()).abs()[finite]
    assert torch.equal(distance, (usual[tie].double() - numbers[tie].double()).abs()[finite])


def test_numbers_that_a_model_has_need_no_lower_half():
    model = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    high, low = split(model.float())
    assert torch.equal(high, model) and not low.any()


@pytest.mark.parametrize("contiguous", [True, False])
def test_halves_hold_a_float32_weight(contiguous, monkeypatch):
    monkeypatch.setattr(halves, "PIECE", 5)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=random).bfloat16()
    weight = weight if contiguous else weight.T
    master = Halves(weight, CPU)
    assert torch.equal(master.whole(), weight.float()) and master.low is None
    wanted = torch.randn(weight.shape, generator=random)
    master.write(wanted)
    assert torch.equal(master.whole(), wanted) and torch.equal(weight, split(wanted)[0])
    seen = []

    def double(number, numbers):
        seen.append((number, numbers.numel()))
        numbers.mul_(2.1)

    master.change(double)
    assert torch.equal(master.whole(), wanted * 2.1)
    assert seen == ([(0, 5), (1, 5), (2, 2)] if contiguous else [(0, 12)])
    kept = halves.kept_of({"w": master})
    assert [low.dtype for low in kept["w"]] == [torch.int16] * len(seen)
    again = Halves(weight.clone(memory_format=torch.preserve_format), CPU)
    halves.restore({"w": again}, kept)
    assert torch.equal(again.whole(), wanted * 2.1)
    halves.restore({"w": again}, {"w": []})
    assert torch.equal(again.whole(), weight.float())


def test_masters_in_halves_are_to_read():
    """What would be lost with the tensor raises; a float32 master is the tensor itself."""
    weight, other = torch.ones(2).bfloat16(), torch.ones(2, requires_grad=True)
    held = halves.halves_of({"half": weight, "whole": other}, CPU)
    masters = Masters(held)
    assert list(masters) == ["half", "whole"] and masters["whole"] is other
    read = masters["half"]
    assert read.dtype == torch.float32 and torch.equal(torch.zeros(2).lerp_(read, 0.5), read / 2)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        read.add_(1)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        (read * other).sum().backward()
    assert halves.gradient_of(held["half"]).dtype == torch.float32
    halves.gradient_of(held["half"]).add_(1)
    assert torch.equal(held["half"].grad, torch.ones(2))


def test_a_cpu_rounds_as_ever():
    numbers = torch.tensor([1.00390625, 1.01171875])  # ties, to an even and to an odd bfloat16
    weight = torch.zeros(2, dtype=torch.bfloat16)
    round_into(weight, numbers)
    assert torch.equal(weight, numbers.bfloat16()) and not torch.equal(weight, split(numbers)[0])
    whole = torch.zeros(2)
    round_into(whole, numbers)
    assert torch.equal(whole, numbers)


def test_pieces_share_the_memory(monkeypatch):
    monkeypatch.setattr(halves, "PIECE", 4)
    tensor = torch.arange(10.0).view(2, 5)
    assert [len(piece) for piece in pieces(tensor)] == [4, 4, 2]
    for piece in pieces(tensor):
        piece.zero_()
    assert not tensor.any()
