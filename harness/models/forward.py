"""The two forward passes that everything else is built on.

``hidden_states`` runs the body of a model, ``output_head`` makes logits of the states. Beside them:
``pad_right``, which makes a batch, ``on_device``, which moves it, ``sees_later_tokens``, which says
whether it may be made, and ``can_share_prompts``, which says whether the model takes several
completions behind one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from harness.models import ranks
from harness.models.sharded import sharded

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

PAD = 0  # Rows are padded on the right, where no real token looks: the value does not matter.

GradientOf = Callable[[torch.nn.Parameter], torch.Tensor]


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, **inputs: torch.Tensor | BlockMask
) -> torch.Tensor:
    """Last hidden states [rows, tokens, width] of right-padded rows of token ids.

    By default there is no attention mask: under causal attention a real token never sees the
    padding to its right, and without a mask the fast kernels apply.
    inputs: position_ids and a boolean attention_mask [rows, 1, tokens, tokens], or one that the
    model's attention takes.
    """
    # Llama 4 names a prefix that it does not have.
    body = getattr(model, model.base_model_prefix or "model", None) or model.model
    return body(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state


@contextmanager
def unrecorded() -> Iterator[None]:
    """No gradients in the body: PyTorch's inference mode, or no_grad among ranks.

    What FSDP2 allocates in inference mode could not be used in training.
    """
    with torch.no_grad() if ranks.active() else torch.inference_mode():
        yield


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model computes the attention that transformers has registered as ``name``."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def sees_later_tokens(model: PreTrainedModel) -> bool:
    """Whether a state depends on tokens behind it, as an encoder's do: padding would change it.

    By the gradient of the first states of a row, which is zero at the embeddings of later tokens,
    to the bit, in every causal model.
    """
    embedded: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: embedded.append(output)
    )
    try:
        with torch.enable_grad():
            ids = torch.arange(1, 9, device=model.device)[None]
            states = hidden_states(model, ids)[:, :4]
            # Not the plain sum: behind a layer norm it is the same for all inputs.
            target = (states * torch.linspace(1, 2, states.shape[-1]).to(states)).sum()
            (gradient,) = torch.autograd.grad(target, embedded[0])
    finally:
        hook.remove()
    return bool(gradient[:, 4:].any())


_SHARES = "_shares_prompts"  # attribute of a model with what can_share_prompts answered


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether several completions of a prompt may follow it in one row, under a mask of their own.

    They may not where a window or chunk of attention is shorter than such a row may be, nor where
    layers ignore the mask or the positions, as a recurrence does. The model itself is tried on a
    few tokens, once: the answer stays with it and with its copies, so that it cannot change with
    the weights.
    """
    if not hasattr(model, _SHARES):
        keep_sharing(model, not has_local_attention(model) and _sees_what_it_may(model))
    return bool(getattr(model, _SHARES))


def keep_sharing(model: PreTrainedModel, answer: bool) -> None:
    """Give ``model`` the answer of ``can_share_prompts`` that an earlier start of its run got."""
    setattr(model, _SHARES, answer)


# Keys of a configuration for local attention, in tokens, and what layers of that kind are called.
LOCAL = {"sliding_window": "sliding", "attention_chunk_size": "chunk", "window_size": "local"}


def has_local_attention(model: PreTrainedModel) -> bool:
    """Whether some layers see a window or a chunk alone, which a mask of our own would widen."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    return any(
        getattr(config, key, None) and (not kinds or any(word in kind for kind in kinds))
        for key, word in LOCAL.items()
    )


@torch.no_grad()
def _sees_what_it_may(model: PreTrainedModel) -> bool:
    """Whether a completion in a shared row depends on all that it may see and on nothing else.

    The row holds a prompt and two completions. The states of the second completion must not move
    by a bit where the first one has other tokens. They must move where the prompt, the completion's
    own first token or its positions are others. All passes have the same shapes, so that they round
    alike, and no tolerance is needed.
    """
    tokens = distinct_tokens(model, 10)
    if tokens is None:
        return False
    *row, spare, another = tokens
    positions = [0, 1, 2, 3, 4, 5, 4, 5]
    segment = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2], device=model.device)
    mask = torch.ones(8, 8, dtype=torch.bool, device=model.device).tril()
    mask &= (segment[:, None] == segment) | (segment == 0)

    def states(row: list[int], positions: list[int]) -> torch.Tensor:
        ids, places = torch.tensor([[row], [positions]], device=model.device)
        passed = hidden_states(model, ids, position_ids=places, attention_mask=mask[None, None])
        return passed[0, 6:]

    was_training = model.training
    model.eval()  # Dropout would move the states.
    try:
        before = states(row, positions)
        other_completion = states([*row[:4], spare, another, *row[6:]], positions)
        must_move = [
            states([row[0], spare, *row[2:]], positions),
            states([*row[:6], spare, row[7]], positions),
            # A distance of one token may round to nothing in bfloat16.
            states(row, [*positions[:6], 24, 25]),
        ]
    except Exception:  # A model that takes no such mask or positions may raise anything.
        return False
    finally:
        model.train(was_training)
    return torch.equal(before, other_completion) and not any(
        torch.equal(before, moved) for moved in must_move
    )


def distinct_tokens(model: PreTrainedModel, count: int) -> list[int] | None:
    """Ids of ``count`` tokens with different embeddings, from all over the vocabulary.

    Some vocabularies begin with special tokens that were never trained and are all alike. None if
    there are too few.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.linspace(0, vocabulary - 1, min(vocabulary, 64), device=model.device).long()
    embedding, parts = model.get_input_embeddings(), sharded(model)
    found = parts.whole(embedding.weight)[ids] if parts else embedding(ids)
    embeddings = found.flatten(1).float().cpu()
    alike = (embeddings[:, None] == embeddings).all(-1)
    first = alike.int().argmax(1) == torch.arange(len(ids))
    distinct = ids.cpu()[first].tolist()
    return distinct[:count] if len(distinct) >= count else None


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
    not called where the projection has a bias or does not learn. Of a model in parts the projection
    is made whole here: the function is that of the weights as they are now.
    """
    project = _projection(model, gradient)
    config = model.config.get_text_config()

    def setting(*names: str) -> float | None:
        return next((v for name in names if (v := getattr(config, name, None))), None)

    cap = setting("final_logit_softcapping", "logits_soft_cap")
    factor = setting("logit_scale", "lm_head_multiplier") or 1.0
    divisor = setting("logits_scaling") or 1.0

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
    if type(linear) is not torch.nn.Linear:
        return linear
    parts = sharded(model)
    weight = parts.head_weight() if parts else linear.weight
    frozen = linear.bias is not None or not linear.weight.requires_grad

    def project(states: torch.Tensor) -> torch.Tensor:
        states = states.to(weight.dtype)  # Mamba's are float32 in any case.
        if parts and (gradient is None or frozen):
            return F.linear(states, weight)
        if gradient is None or frozen:
            return linear(states)
        return _Projection.apply(states, weight, gradient)

    return project


def pad_right(
    rows: Sequence[list[int]], device: torch.device | str, value: int = PAD
) -> torch.Tensor:
    """A tensor [rows, longest] of lists of token ids, padded on the right."""
    longest = max(map(len, rows))
    padded = torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    return on_device(padded, device)


def on_device(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the host on ``device``, to which it is copied while Python goes on.

    From pinned memory: from other memory a GPU's copy waits for all the work before it.
    """
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
