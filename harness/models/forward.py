"""The two forward passes that everything else is built on.

``hidden_states`` runs the body of a model, ``output_head`` makes logits of the states. Beside them:
``pad_right``, which makes a batch, and ``can_share_prompts``, which says whether the model takes
several completions behind one prompt.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = 0  # Rows are padded on the right, where no real token looks: the value does not matter.

GradientOf = Callable[[torch.nn.Parameter], torch.Tensor]


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, **inputs: torch.Tensor
) -> torch.Tensor:
    """Last hidden states [rows, tokens, width] of right-padded rows of token ids.

    By default there is no attention mask: under causal attention a real token never sees the
    padding to its right, and without a mask the fast kernels apply.
    inputs: position_ids and a boolean attention_mask [rows, 1, tokens, tokens].
    """
    body = getattr(model, model.base_model_prefix)
    return body(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state


# The answers of can_share_prompts, which cost two forward passes each.
_SHARES: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether several completions of a prompt may follow it in one row, under a mask of their own.

    They may not where a sliding window is shorter than such a row may be, nor where layers ignore
    the mask. The model itself is tried on a few tokens, once.
    """
    if _has_sliding_window(model):
        return False
    if model not in _SHARES:
        _SHARES[model] = _shared_row_is_equal(model)
    return _SHARES[model]


def _has_sliding_window(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    if not getattr(config, "sliding_window", None):
        return False
    kinds = getattr(config, "layer_types", None) or ["sliding"]
    return any("sliding" in kind for kind in kinds)


@torch.no_grad()
def _shared_row_is_equal(model: PreTrainedModel) -> bool:
    """Whether a completion in a shared row has the hidden state that it has in a row of its own."""
    # The prompt is 1 2 3 4, and its completions are 5 and 6.
    ids = torch.arange(1, 7, device=model.device)[None] % model.config.get_text_config().vocab_size
    segment = torch.tensor([0, 0, 0, 0, 1, 2], device=model.device)
    mask = torch.ones(6, 6, dtype=torch.bool, device=model.device).tril()
    mask &= (segment[:, None] == segment[None]) | (segment[None] == 0)
    alone = hidden_states(model, ids[:, [0, 1, 2, 3, 5]])[0, -1].float()
    shared = hidden_states(
        model,
        ids,
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 4]], device=model.device),
        attention_mask=mask[None, None],
    )[0, -1]
    return torch.allclose(alone, shared.float(), rtol=0.02, atol=0.02 * alone.std().item())


class _Projection(torch.autograd.Function):
    """A linear map whose backward adds the weight's gradient to ``gradient(weight)`` in place.

    Autograd would build a second matrix [vocabulary, width] for every chunk of tokens and then add
    it. With a large vocabulary that is most of a step's memory and a good part of its time.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.nn.Parameter, gradient: GradientOf
    ) -> torch.Tensor:
        ctx.save_for_backward(states)
        ctx.weight = weight
        ctx.gradient = gradient
        return F.linear(states, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (states,) = ctx.saved_tensors
        total = ctx.gradient(ctx.weight)
        if total.dtype == grad.dtype:
            total.addmm_(grad.T, states)
        else:
            total.add_(grad.T @ states)
        return grad @ ctx.weight, None, None


def output_head(
    model: PreTrainedModel, gradient: GradientOf | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from hidden states [..., width] to the model's own logits [..., vocabulary].

    gradient: ``f(weight) -> tensor`` of the weight's shape. The backward of states [tokens, width]
    adds the gradient of the projection's weight to that tensor, without the weight's hooks. It is
    not called where the projection has a bias or does not learn.
    """
    project = _projection(model, gradient)
    cap = getattr(model.config, "final_logit_softcapping", None)
    factor = getattr(model.config, "logit_scale", None) or 1.0
    divisor = getattr(model.config, "logits_scaling", None) or 1.0

    def logits(states: torch.Tensor) -> torch.Tensor:
        out = project(states)
        if factor != 1.0:
            out = out * factor
        if divisor != 1.0:
            out = out / divisor
        return torch.tanh(out / cap) * cap if cap else out

    return logits


def _projection(
    model: PreTrainedModel, gradient: GradientOf | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's last linear map, through ``_Projection`` where ``gradient`` can be used."""
    linear = model.get_output_embeddings()
    if gradient is None or type(linear) is not torch.nn.Linear:
        return linear
    weight = linear.weight
    if linear.bias is not None or not weight.requires_grad:
        return linear

    def project(states: torch.Tensor) -> torch.Tensor:
        return _Projection.apply(states, weight, gradient)

    return project


def pad_right(
    rows: Sequence[list[int]], device: torch.device | str, value: int = PAD
) -> torch.Tensor:
    """A tensor [rows, longest] of lists of token ids, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)
