"""The two forward passes that everything else is built on: hidden states, and the head that makes
logits of them.
"""

import weakref

import torch
import torch.nn.functional as F

PAD = 0  # pads on the right: no real token ever attends to it, so its value does not matter


def hidden_states(model, input_ids, **how):
    """Last hidden states [rows, tokens, width] of right-padded rows.

    By default without an attention mask: under causal attention a real token never sees the padding
    to its right, and without a mask the fast kernels apply. how: position_ids and a boolean
    attention_mask [rows, 1, tokens, tokens].
    """
    return getattr(model, model.base_model_prefix)(
        input_ids=input_ids, use_cache=False, **how
    ).last_hidden_state


_SHARES = weakref.WeakKeyDictionary()


def can_share_prompts(model):
    """Whether several completions of a prompt may stand in one row under a mask of their own.

    Not with a sliding window shorter than such a row may be, nor with layers that ignore the mask:
    asked of the model itself, once, on a few tokens.
    """
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) and any(
        "sliding" in t for t in getattr(config, "layer_types", None) or ["sliding"]
    ):
        return False
    if model not in _SHARES:
        # prompt 1 2 3 4, completions 5 and 6
        ids = torch.arange(1, 7, device=model.device)[None] % config.vocab_size
        segment = torch.tensor([0, 0, 0, 0, 1, 2], device=model.device)
        sees = torch.ones(6, 6, dtype=torch.bool, device=model.device).tril()
        sees &= (segment[:, None] == segment[None]) | (segment[None] == 0)
        with torch.no_grad():
            alone = hidden_states(model, ids[:, [0, 1, 2, 3, 5]])[0, -1]
            shared = hidden_states(
                model,
                ids,
                position_ids=torch.tensor([[0, 1, 2, 3, 4, 4]], device=model.device),
                attention_mask=sees[None, None],
            )[0, -1]
        _SHARES[model] = torch.allclose(
            alone.float(), shared.float(), rtol=0.02, atol=0.02 * alone.float().std().item()
        )
    return _SHARES[model]


class _Projection(torch.autograd.Function):
    """``linear`` whose backward adds the weight's gradient to what ``gradient(weight)`` gives.
    Autograd would build a second matrix [vocabulary, width] for every chunk of tokens and then add
    it: with a large vocabulary most of a step's memory and a good part of its time.
    """

    @staticmethod
    def forward(ctx, states, weight, gradient):
        ctx.save_for_backward(states)
        ctx.weight, ctx.gradient = weight, gradient
        return F.linear(states, weight)

    @staticmethod
    def backward(ctx, grad):
        (states,), total = ctx.saved_tensors, ctx.gradient(ctx.weight)
        if total.dtype == grad.dtype:
            total.addmm_(grad.T, states)
        else:
            total.add_(grad.T @ states)
        return grad @ ctx.weight, None, None


def output_head(model, gradient=None):
    """The function from hidden states [..., width] to logits [..., vocabulary], as the model itself
    computes them.

    gradient: ``f(weight) -> tensor`` of the weight's shape, to which the backward of states
    [tokens, width] adds the gradient of the projection's weight, without its hooks. Not asked where
    the projection has a bias or does not learn.
    """
    project, config = model.get_output_embeddings(), model.config
    if (
        gradient
        and type(project) is torch.nn.Linear
        and project.bias is None
        and project.weight.requires_grad
    ):
        weight = project.weight
        project = lambda states: _Projection.apply(states, weight, gradient)  # noqa: E731
    cap = getattr(config, "final_logit_softcapping", None)
    times = getattr(config, "logit_scale", None) or 1.0
    over = getattr(config, "logits_scaling", None) or 1.0

    def logits(states):
        out = project(states)
        if times != 1.0:
            out = out * times
        if over != 1.0:
            out = out / over
        return torch.tanh(out / cap) * cap if cap else out

    return logits


def pad_right(rows, device, value=PAD):
    """Lists of token ids to a tensor [rows, longest], padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows], device=device)
