"""Sizes of a model and of what training did to it: weights, operations, changes."""

from collections.abc import Mapping
from typing import TypedDict

import torch
from transformers import PretrainedConfig, PreTrainedModel

from harness.models import ranks
from harness.models.sharded import sharded, weights_of


class Change(TypedDict):
    """norm: L2 norm of the difference of all weights; share: of the entries that differ."""

    norm: float
    share: float


def cache_bytes(config: PretrainedConfig, size: int) -> int:
    """Bytes of a token's keys and values in all layers; size: of a number, in bytes.

    0 for a model without attention. config: of the text model.
    """
    all_heads = getattr(config, "num_attention_heads", None)  # a recurrence has none
    heads = getattr(config, "num_key_value_heads", None) or all_heads or 0
    width = getattr(config, "head_dim", None) or config.hidden_size // (all_heads or 1)
    return int(2 * config.num_hidden_layers * heads * width * size)


def read_bytes(config: PretrainedConfig, size: int) -> int:
    """Bytes of a token at the widest place of a pass without gradients; as ``cache_bytes``.

    A layer's input, what it adds, and three tensors of its MLP.
    """
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return int((4 * config.hidden_size + 3 * inner) * size)


def product_weights(model: PreTrainedModel) -> int:
    """N: weights that take part in a product with a state, for operations per token.

    Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) leave out embeddings: a row is looked up. The
    head multiplies, so it counts, also where it shares its weights with the embedding; norms and
    biases do not. Of a mixture of experts all experts count.
    """
    looked_up = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    head = model.get_output_embeddings()
    weights = {id(p): p for p in model.parameters() if p.ndim >= 2 and id(p) not in looked_up}
    if head is not None:
        weights[id(head.weight)] = head.weight
    return sum(weight.numel() for weight in weights.values())


def operations(
    weights: int, tokens: float, learned: int, passes: int = 3, adapters: int = 0
) -> float:
    """FLOPs: 6 N for each token of a training pass, 2 N for each that is scored or sampled.

    Kaplan et al. 2020, section 2.1: 2 N forward, twice that backward; attention's own products are
    not counted. weights: N, of ``product_weights``; tokens: of all passes, those of another model
    as many times as it is larger; learned: of these, those
    that were learned from; passes: forward passes that one of training costs. Adapters beside the
    layers need no gradient of the weights: 4 N, with ``passes`` 2, and 6 of their own numbers.
    """
    a_pass = 2.0 * weights
    return a_pass * (tokens - learned) + (a_pass * passes + 6.0 * adapters) * learned


@torch.no_grad()
def change(weights: Mapping[str, torch.Tensor], start: PreTrainedModel) -> Change:
    """What became of ``start``: ``weights`` by name, the others are as they were.

    weights: of a model in parts, as ``weights_of`` has them.

    Sums are in float64.
    """
    before = weights_of(start)
    squares, differing = 0.0, 0
    for name, weight in weights.items():
        old = before[name].to(weight.device, torch.float32)
        difference = weight.detach().float() - old
        squares += float(difference.double().square().sum())
        differing += int(difference.count_nonzero())
    total = sum(weight.numel() for weight in start.parameters())
    if sharded(start):
        of_ranks = ranks.gathered((squares, differing))
        squares, differing = (sum(numbers) for numbers in zip(*of_ranks, strict=True))
    return {"norm": squares**0.5, "share": differing / total}
