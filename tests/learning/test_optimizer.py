"""AdamW with moments in host memory against PyTorch's own, to the bit and to rounding."""

import copy
import io

import pytest
import torch

from harness.learning import halves
from harness.learning.halves import Halves, numbers_of
from harness.learning.optimizer import Resident, Streamed

CPU = torch.device("cpu")
RATES = (1e-3, 2e-3, 5e-4, 1e-3, 1e-4)
SHAPES = {"a": (7, 5), "b": (11,), "norm": (4,)}
DECAY = {"a": 0.1, "b": 0.1, "norm": 0.0}


def weights(dtype):
    random = torch.Generator().manual_seed(0)
    return {n: (0.1 * torch.randn(s, generator=random)).to(dtype) for n, s in SHAPES.items()}


def gradients(step):
    """Of sizes that differ by a million, clipped to a norm of 1."""
    random = torch.Generator().manual_seed(100 + step)
    found = {
        n: torch.randn(s, generator=random) * 10 ** torch.randn(s, generator=random)
        for n, s in SHAPES.items()
    }
    holders = [torch.zeros_like(g) for g in found.values()]
    for holder, gradient in zip(holders, found.values(), strict=True):
        holder.grad = gradient
    torch.nn.utils.clip_grad_norm_(holders, 1.0)
    return found


def torchs(start, **options):
    """PyTorch's AdamW on float32 copies of ``start``: (the masters, a step)."""
    masters = {n: w.float().clone().requires_grad_() for n, w in start.items()}
    groups = [{"params": [m], "weight_decay": DECAY[n]} for n, m in masters.items()]
    adamw = torch.optim.AdamW(groups, lr=1.0, **options)

    def step(number, rate):
        for name, gradient in gradients(number).items():
            masters[name].grad = gradient
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()

    return masters, step


def streamed(start):
    """(the holders, a step of Streamed), in halves where ``start`` is bfloat16."""
    holders = halves.halves_of(copy.deepcopy(start), CPU)
    optimizer = Streamed(holders, DECAY)

    def step(number, rate):
        for name, gradient in gradients(number).items():
            holders[name].grad = gradient
        optimizer.step(rate)

    return holders, optimizer, step


@pytest.mark.parametrize("piece", [3, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_moments_make_torchs_numbers(dtype, piece, monkeypatch):
    monkeypatch.setattr(halves, "PIECE", piece)
    start = weights(dtype)
    fused, fused_step = torchs(start, fused=True)
    plain, plain_step = torchs(start, foreach=False)
    holders, _, step = streamed(start)
    assert isinstance(holders["a"], Halves) == (dtype == torch.bfloat16)
    for number, rate in enumerate(RATES):
        for each in (fused_step, plain_step, step):
            each(number, rate)
        for name, holder in holders.items():
            numbers = numbers_of(holder)
            assert (numbers - plain[name]).abs().max() <= 1e-7
            # The kernel's own rounding depends on where its vectors end.
            assert (numbers - fused[name]).abs().max() <= 3e-8
            if piece > 3:
                assert torch.equal(numbers, fused[name])
            if dtype == torch.bfloat16:
                assert torch.equal(holder.weight, halves.split(numbers)[0])
    assert all((numbers_of(h) - start[n].float()).abs().max() > 1e-3 for n, h in holders.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_moments_go_on_from_a_checkpoint(dtype):
    start = weights(dtype)
    holders, optimizer, step = streamed(start)
    for number in range(2):
        step(number, 1e-3)
    file = io.BytesIO()
    models = {n: h.weight if isinstance(h, Halves) else h for n, h in holders.items()}
    torch.save([models, halves.kept_of(holders), optimizer.state_dict()], file)
    for number in range(2, 5):
        step(number, 1e-3)
    file.seek(0)
    models, masters, moments = torch.load(file, weights_only=True)
    again, restored, step = streamed(models)
    halves.restore(again, masters)
    restored.load_state_dict(moments)
    for number in range(2, 5):
        step(number, 1e-3)
    for name, holder in holders.items():
        assert torch.equal(numbers_of(again[name]), numbers_of(holder))
    with pytest.raises(ValueError, match="the checkpoint of the optimizer has no weight 'b'"):
        restored.load_state_dict({n: m for n, m in moments.items() if n != "b"})


@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_one_weight_at_a_time_is_all_at_once(kind):
    start = weights(torch.float32)
    whole, apart = ({n: w.clone().requires_grad_() for n, w in start.items()} for _ in range(2))
    one, other = kind(whole, DECAY), kind(apart, DECAY)
    for number, rate in enumerate(RATES):
        for name, gradient in gradients(number).items():
            whole[name].grad = gradient.clone()
        one.step(rate)
        for name, gradient in gradients(number).items():
            other.move(name, gradient, rate)
            if kind is Resident:
                assert apart[name].grad is None
        assert all(torch.equal(whole[n], apart[n]) for n in start)
    one.forget()
    assert one.state_dict() == {}
