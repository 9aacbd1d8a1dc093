"""Losses whose gradient takes the place of the logits, behind ``model.fused_losses``.

The usual losses make float32 tensors [tokens, vocabulary] of a chunk: logits, log-probabilities, a
gradient. These leave the chunk's logits in the model's dtype. The forward pass reads them for one
number a token; the backward pass reads them again and writes the gradient over them, computed in
float32 and rounded once, as autograd would. That is the form of Liger Kernel's fused linear losses
(arXiv 2410.10989); the head's products are the trainer's, chunk by chunk.

On a GPU the two passes are the Triton kernels of fused_kernels.py, which no GPU has run yet.
Elsewhere PyTorch's own functions compute the same numbers as the usual losses, to the bit.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from harness.base.errors import UserError

Pair = tuple[torch.Tensor, torch.Tensor]


class Kernels(Protocol):
    """The four passes; the functions of fused_kernels.py say what each does."""

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> Pair: ...

    def logprobs_gradient(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        sums: torch.Tensor,
        gradient: torch.Tensor,
        temperature: float,
    ) -> None: ...

    def forward_kl(
        self, student: torch.Tensor, teacher: torch.Tensor, temperature: float
    ) -> Pair: ...

    def forward_kl_gradient(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        sums: torch.Tensor,
        gradient: torch.Tensor,
        temperature: float,
    ) -> None: ...


class Plain:
    """PyTorch's own functions. They compute the log-probabilities again in the backward pass."""

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> Pair:
        log_p = _log_softmax(logits, temperature)
        return log_p.gather(1, tokens[:, None])[:, 0], tokens.new_empty(0)

    def logprobs_gradient(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        sums: torch.Tensor,
        gradient: torch.Tensor,
        temperature: float,
    ) -> None:
        log_p = _log_softmax(logits, temperature)
        chosen = torch.zeros_like(log_p).scatter_(1, tokens[:, None], gradient[:, None])
        slope = torch._log_softmax_backward_data(chosen, log_p, -1, log_p.dtype)
        logits.copy_(slope / temperature if temperature != 1 else slope)

    def forward_kl(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> Pair:
        log_p, log_q = (_log_softmax(logits, temperature) for logits in (student, teacher))
        return torch.linalg.vecdot(log_q.exp(), log_q - log_p), log_p.new_empty(0)

    def forward_kl_gradient(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        sums: torch.Tensor,
        gradient: torch.Tensor,
        temperature: float,
    ) -> None:
        p, q = (_log_softmax(logits, temperature).exp_() for logits in (student, teacher))
        slope = p.sub_(q) * gradient[:, None]
        student.copy_(slope / temperature if temperature != 1 else slope)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Float32 log-probabilities of logits of any dtype."""
    logits = logits.float()
    return (logits / temperature if temperature != 1 else logits).log_softmax(-1)


def kernels_of(device: torch.device) -> Kernels:
    """What computes on a device."""
    if device.type != "cuda":
        return Plain()
    from harness.learning import fused_kernels

    return fused_kernels


def check_fused(device: str | torch.device, place: str) -> None:
    """Raises UserError where a GPU's kernels cannot be had."""
    if torch.device(device).type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            place,
            "the kernels of a GPU want Triton, which is not installed",
            "pip install triton, or leave fused_losses out",
        )


def fused_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities [tokens], in nats, of tokens under logits [tokens, vocabulary].

    The logits, of any dtype, hold their gradient after the backward pass.
    """
    return _Logprobs.apply(logits, tokens, temperature)


def fused_cross_entropy(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Sum of -log p over tokens, a scalar; otherwise as ``fused_logprobs``."""
    return -fused_logprobs(logits, tokens).sum()


def fused_kl(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) [tokens], in nats, of logits [tokens, vocabulary] of any dtypes.

    It is constant in the teacher. The student's logits hold their gradient after the backward pass.
    """
    return _ForwardKLInPlace.apply(student, teacher, temperature)


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        values, sums = kernels_of(logits.device).logprobs(logits, tokens, temperature)
        ctx.save_for_backward(logits, tokens, sums)
        ctx.temperature = temperature
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, tokens, sums = ctx.saved_tensors
        gradient = logits.detach()
        kernels = kernels_of(logits.device)
        kernels.logprobs_gradient(gradient, tokens, sums, grad, ctx.temperature)
        return _written(gradient), None, None


class _ForwardKLInPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        values, sums = kernels_of(student.device).forward_kl(student, teacher, temperature)
        ctx.save_for_backward(student, teacher, sums)
        ctx.temperature = temperature
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        student, teacher, sums = ctx.saved_tensors
        gradient = student.detach()
        kernels = kernels_of(student.device)
        kernels.forward_kl_gradient(gradient, teacher, sums, grad, ctx.temperature)
        return _written(gradient), None, None


def _written(logits: torch.Tensor) -> torch.Tensor:
    """The logits, of which autograd now knows that they have changed.

    A kernel writes without PyTorch. Whoever kept the logits for a backward pass of its own gets an
    error then, not wrong numbers.
    """
    torch.autograd.graph.increment_version(logits)
    return logits
