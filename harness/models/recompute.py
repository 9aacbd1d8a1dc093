"""Gradient checkpointing: layers whose backward pass computes them again.

A pass then keeps the inputs of its layers alone, for a third more work. What is computed again is
the same to the bit: the same functions of the same inputs, with the same attention and, where there
is dropout, the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from harness.models.forward import attending

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[..., Any]


def can_recompute(model: PreTrainedModel) -> bool:
    """Whether transformers says of the model which of its parts are layers."""
    return bool(_layers(model))


@contextmanager
def recomputing(model: PreTrainedModel, wanted: bool, dropout: bool) -> Iterator[None]:
    """Compute layers again in backward passes within the body, if ``wanted``.

    dropout: whether layers draw, so that the generators' states have to be kept. transformers' own
    switch works in training mode alone, in which dropout acts.
    """
    layers = _layers(model) if wanted else []
    for layer in layers:
        layer.forward = partial(_checkpointed, model, layer.forward, dropout)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The outermost layers, whose ``forward`` nobody has changed."""
    layers: list[torch.nn.Module] = []
    inside: set[torch.nn.Module] = set()
    for module in model.modules():  # from the outside to the inside
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            inside.update(module.modules())
            if "forward" not in vars(module):
                layers.append(module)
    return layers


def _checkpointed(
    model: PreTrainedModel, forward: Forward, dropout: bool, *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # The backward pass comes when ``attending`` is over.
    attention = str(model.config._attn_implementation)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), attending(model, attention)

    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        context_fn=contexts,
        preserve_rng_state=dropout,
        **kwargs,
    )
