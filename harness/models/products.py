"""How a CPU computes a model's matrix products: in which dtype, and how those of few rows.

What is faster differs by processor. It is measured once an order and kept in results.json, because
another dtype or kernel rounds otherwise: every run, worker and resume of the order takes what is
kept. The times are of one thread and of the processor, so that other work on the machine hardly
moves them. The products of training and scoring stay PyTorch's own: no other way of those with many
rows was a tenth faster where it was tried (python -m benchmarks.speed.products).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from harness.base.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# In the environment: "fixed" measures nothing, and the processor's kind alone decides.
PIN = "HARNESS_PRODUCTS"
BFLOAT16_FROM = 1.5  # times as fast as float32, from which `auto` is bfloat16
SAMPLING_FROM = 1.1  # times as fast as the plain way, from which another is taken
# (rows, width, outputs) of the products that dtypes are compared on.
SIZES = ((1024, 576, 1536), (1024, 2048, 2048))
ROWS = 16  # of the products that ways of sampling are compared on
ROUNDS = 5  # of which the fastest counts
SMALL = 2**20  # weights of a model whose products are in no case worth another way
WEIGHTS_FIRST_ROWS = 256  # up to which a product takes the weights first
PLAIN, WEIGHTS_FIRST, PACKED = "plain", "weights_first", "packed"

Product = Callable[[torch.Tensor], torch.Tensor]


# ---- what an order keeps -------------------------------------------------------------------------


@dataclass(frozen=True)
class Products:
    """What results.json keeps of an order on a CPU.

    dtype: what the model computes in; sampling: the way of the products of few rows; bfloat16: how
    many times as fast as float32, None where the order names the dtype; seconds: of a token of ROWS
    answers, by way.
    """

    dtype: str
    sampling: str
    bfloat16: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def check(self, place: object, is_auto: bool) -> None:
        """Raises UserError at ``place`` unless this machine can compute so.

        is_auto: whether the order leaves the dtype open. One that names it may be slow.
        """
        missing = None
        if self.sampling not in (PLAIN, WEIGHTS_FIRST, PACKED):
            missing = f"products of an unknown kind ({str(self.sampling)[:40]!r})"
        elif self.sampling == PACKED and not _can_pack():
            missing = "weights packed by oneDNN, which this PyTorch does not have"
        elif is_auto and self.dtype == "bfloat16" and not has_bfloat16():
            missing = "bfloat16, which this processor does not compute"
        if missing:
            raise UserError(
                place,
                f"its order began with {missing}",
                "go on where it began, or give another folder with --out",
            )

    def said(self) -> str | None:
        """One line on what was measured, None where nothing was."""
        said = []
        if self.bfloat16:
            said.append(f"bfloat16 is {self.bfloat16:.2g} times as fast as float32: {self.dtype}")
        if self.seconds:
            gain = self.seconds[PLAIN] / self.seconds[self.sampling]
            said.append(f"sampling takes {self.sampling} products ({gain:.2g} times as fast)")
        return "products: " + "; ".join(said) if said else None


# ---- the dtype -----------------------------------------------------------------------------------


def is_fixed() -> bool:
    """Whether the environment says that nothing is measured."""
    return os.environ.get(PIN) == "fixed"


def has_bfloat16() -> bool:
    """Whether oneDNN computes products in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 this processor multiplies in bfloat16.

    It is measured once a process, in a second; 0 where no instructions do it.
    """
    if not has_bfloat16():
        return 0.0
    works: dict[str, list[Callable[[], object]]] = {"float32": [], "bfloat16": []}
    for rows, width, outputs in SIZES:
        x, weight = torch.ones(rows, width), torch.ones(outputs, width)
        works["float32"].append(partial(F.linear, x, weight))
        works["bfloat16"].append(partial(F.linear, x.bfloat16(), weight.bfloat16()))
    seconds = Counter[str]()
    for single, short in zip(*works.values(), strict=True):
        seconds.update(_fastest({"float32": single, "bfloat16": short}))
    return seconds["float32"] / seconds["bfloat16"]


def bfloat16_pays() -> bool:
    """Whether ``auto`` is bfloat16 on this CPU."""
    if is_fixed():
        return torch.cpu._is_amx_tile_supported()
    return bfloat16_gain() >= BFLOAT16_FROM


def _fastest(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the processor for each of ``works`` on one thread, the fewest of some rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    try:
        for work in works.values():
            work()
        for _ in range(ROUNDS):
            for name, work in works.items():
                start = time.thread_time()
                work()
                taken = time.thread_time() - start
                seconds[name] = min(seconds.get(name, taken), taken)
    finally:
        torch.set_num_threads(threads)
    return seconds


# ---- products of few rows ------------------------------------------------------------------------

_SAMPLING = "_sampling_products"  # attribute of a model with the way that it samples by


def keep_products(model: PreTrainedModel, way: str) -> None:
    """Let ``model`` and its copies sample by ``way``."""
    setattr(model, _SAMPLING, way)


def products_of(model: PreTrainedModel) -> str:
    """The way that ``model`` samples by: what it was given, else what its processor's kind says."""
    return getattr(model, _SAMPLING, None) or fixed_products(model.dtype)


def fixed_products(dtype: torch.dtype) -> str:
    """The way on a CPU of folders from before it was measured: by processor and dtype alone."""
    on_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return WEIGHTS_FIRST if dtype == torch.float32 and on_avx2 else PLAIN


@torch.no_grad()
def time_products(model: PreTrainedModel) -> dict[str, float]:
    """Seconds that all products of a token of ROWS answers take, by way; {} for a small model.

    A way that fails here, or whose products differ by more than rounding, is not among them.
    """
    linears = _linears(model)
    if sum(linear.weight.numel() for linear in linears) < SMALL:
        return {}
    counts = Counter((tuple(linear.weight.shape), linear.weight.dtype) for linear in linears)
    seconds = dict.fromkeys((PLAIN, WEIGHTS_FIRST, *([PACKED] if _can_pack() else [])), 0.0)
    for (shape, dtype), count in counts.items():
        linear = next(
            each
            for each in linears
            if (tuple(each.weight.shape), each.weight.dtype) == (shape, dtype)
        )
        x = torch.linspace(-1, 1, ROWS * shape[1]).view(ROWS, shape[1]).to(dtype)
        works = {}
        for way in seconds:
            product = _product(linear, way)
            if _agrees(product, linear, x):
                works[way] = partial(product, x)
        taken = _fastest(works)
        seconds = {
            way: total + count * taken[way] for way, total in seconds.items() if way in taken
        }
    return seconds


def fastest_products(seconds: Mapping[str, float]) -> str:
    """The way with the fewest ``seconds``, the plain one unless another is clearly faster."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[PLAIN] >= SAMPLING_FROM * seconds[best] else PLAIN


def measured_products(model: PreTrainedModel, is_auto: bool) -> Products:
    """The Products of a model that an order has just loaded on a CPU.

    is_auto: whether the order leaves the dtype open, which then was measured.
    """
    seconds = {} if is_fixed() else time_products(model)
    return Products(
        dtype=str(model.dtype).removeprefix("torch."),
        sampling=fastest_products(seconds) if seconds else fixed_products(model.dtype),
        bfloat16=bfloat16_gain() if is_auto and not is_fixed() else None,
        seconds=seconds,
    )


def _agrees(product: Product, linear: torch.nn.Linear, x: torch.Tensor) -> bool:
    """Whether a product is the linear map's own to rounding, which the norms bound."""
    try:
        found = product(x)
    except RuntimeError:  # an operator that this processor does not have
        return False
    wanted = F.linear(x, linear.weight, linear.bias)
    size = x.norm(dim=1).float()[:, None] * linear.weight.norm(dim=1).float() + wanted.abs()
    return bool(((found - wanted).abs() <= 4 * torch.finfo(x.dtype).eps * size).all())


@contextmanager
def sampling_products(model: PreTrainedModel) -> Iterator[None]:
    """The model's linear maps compute in the way that it samples by, without gradients.

    Their weights must not change meanwhile: packed ones are a copy.
    """
    way = products_of(model) if model.device.type == "cpu" else PLAIN
    linears = [] if way == PLAIN else _linears(model)
    for linear in linears:
        linear.forward = _product(linear, way)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _linears(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """The linear maps whose product nobody has changed."""
    return [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear and "forward" not in vars(module)
    ]


def _product(linear: torch.nn.Linear, way: str) -> Product:
    """The product of ``linear`` in a way."""
    if way == PLAIN:
        return partial(F.linear, weight=linear.weight, bias=linear.bias)
    if way == WEIGHTS_FIRST:
        return partial(_weights_first, linear)
    # Without a number of rows: blocks that serve all of them.
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
    return partial(_packed, packed, linear.bias)


def _weights_first(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """W x^T rather than x W^T: the same sums, faster on a processor without AVX-512."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > WEIGHTS_FIRST_ROWS:
        return F.linear(x, linear.weight, linear.bias)
    out = (linear.weight @ rows.t()).t().contiguous()
    if linear.bias is not None:
        out = out + linear.bias
    return out.view(*x.shape[:-1], -1)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """x W^T by a weight in oneDNN's blocks, which it would otherwise make for every product."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _can_pack() -> bool:
    """Whether PyTorch has the operators, which are not part of its interface."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    operators: Any = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(hasattr(operators, n) for n in names)
