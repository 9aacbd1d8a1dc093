"""FlexAttention over a packed sequence: one kernel that skips what no token may see.

It stands behind ``model.attention: flex``, as no GPU has run it yet. On a GPU PyTorch compiles its
kernel (arXiv 2412.05496), whose backward pass adds nothing by atomics. On a CPU the same function
of PyTorch gives the states; it has no gradient there, so that of dense attention under the same
mask takes its place.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    create_mask,
    flex_attention,
)
from transformers import AttentionInterface

from harness.base.errors import UserError
from harness.models.forward import can_share_prompts, on_device
from harness.models.segments import TRIAL, Chain, agrees, trial_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLEX = "flex"  # the value of ``model.attention``
ATTENTION = "flex_in_line"  # its name in transformers' registry
# Kernels at most for the lengths, dtypes and heads of a process; about five are made of each.
KERNELS = 64
BACKEND = "inductor"  # PyTorch's compiler

_ATTENDS = "_attends_by_flex"  # attribute of a model that does, and of its copies


# ---- which tokens see which ----------------------------------------------------------------------


def line_mask(chains: Sequence[Chain], device: torch.device) -> BlockMask:
    """Which tokens of a packed sequence see which, in blocks of 128; see ``Segments``.

    What continues a segment stands right behind it. So a token is seen by itself and by all behind
    it, up to the end of the last segment that continues its own.
    """
    seen_until = _seen_until(chains)
    until = on_device(torch.tensor(seen_until), device)

    def sees(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key <= query) & (query < until[key])

    length = len(seen_until)
    return create_block_mask(sees, None, None, length, length, device=device)


def _seen_until(chains: Sequence[Chain]) -> list[int]:
    """The end of the last segment that sees each token."""
    until = [0] * chains[-1][-1][1]
    for chain in chains:  # in the order of the sequence: later ends are larger
        for start, end in chain:
            until[start:end] = [chain[-1][1]] * (end - start)
    return until


# ---- attention -----------------------------------------------------------------------------------


@cache
def _compiled(backend: str) -> Callable[..., torch.Tensor]:
    """FlexAttention in one kernel for all lengths. PyTorch does without where it made too many."""
    torch._dynamo.config.recompile_limit = max(KERNELS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, backend=backend, fullgraph=True, dynamic=True)


def _on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scale: float | None,
) -> torch.Tensor:
    """FlexAttention [1, heads, tokens, width]."""
    return _compiled(BACKEND)(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


class _OnCPU(torch.autograd.Function):
    """FlexAttention [1, heads, tokens, width] with the gradient of dense attention."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: BlockMask,
        scale: float | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.mask, ctx.scale = mask, scale
        inputs = (query.detach(), key.detach(), value.detach())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without")
            return flex_attention(*inputs, block_mask=mask, scale=scale, enable_gqa=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        length = grad.shape[2]
        visible = create_mask(ctx.mask.mask_mod, 1, 1, length, length, device=grad.device)
        with torch.enable_grad():
            output = F.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, scale=ctx.scale, enable_gqa=True
            )
        return *torch.autograd.grad(output, (query, key, value), grad), None, None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """FlexAttention under the mask of ``line_mask``.

    Raises ValueError for what a model adds to its attention: dropout, a cap of the scores, biases
    of positions, sinks.
    """
    more = {"dropout": dropout or None}
    more |= {name: kwargs.get(name) for name in ("softcap", "position_bias", "s_aux")}
    if added := [name for name, value in more.items() if value is not None]:
        raise ValueError(f"its attention has {added[0]}")
    compute = _OnCPU.apply if query.device.type == "cpu" else _on_gpu
    output = compute(query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)


# ---- where it goes -------------------------------------------------------------------------------


def check_flex(device: str, place: str) -> None:
    """Raises UserError at ``place`` where FlexAttention cannot run on ``device``."""
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise UserError(
            place, f"FlexAttention does not run on the device {kind}", "leave attention out"
        )
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            place,
            "FlexAttention's kernels want Triton, which is not installed",
            "pip install triton, or leave attention out",
        )


def attend_by_flex(model: PreTrainedModel, place: str) -> None:
    """Let training passes of ``model`` and its copies attend by FlexAttention.

    It is tried on a few tokens. Raises UserError at ``place`` if they come out otherwise than by
    the model's own attention, or if rows cannot share prompts.
    """
    reason = None
    try:
        if not can_share_prompts(model):
            reason = "some of its layers attend to a window, or take no mask"
        elif not _agrees(model):
            reason = "its states come out otherwise"
    except Exception as error:  # A model or a compiler may raise anything.
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
    if reason:
        raise UserError(
            place,
            f"{type(model).__name__} cannot attend by FlexAttention: {reason}",
            "leave attention out",
        )
    keep_flex(model, True)


def _agrees(model: PreTrainedModel) -> bool:
    """Whether ``model`` gives the same states by FlexAttention. Dropout in it raises ValueError."""
    mask = line_mask(TRIAL, model.device)
    if not agrees(model, ATTENTION, mask):
        return False
    was_training = model.training
    model.train()  # in which dropout would act
    try:
        trial_states(model, ATTENTION, mask)
    finally:
        model.train(was_training)
    return True


def keep_flex(model: PreTrainedModel, answer: bool) -> None:
    """Say whether training passes of ``model`` and its copies attend by FlexAttention."""
    setattr(model, _ATTENDS, answer)


def attends_by_flex(model: PreTrainedModel) -> bool:
    """What ``keep_flex`` said of ``model``, else False."""
    return bool(getattr(model, _ATTENDS, False))
