"""Attention by segments: that of a mask over the whole sequence, and of one row at a time."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from harness.models import segments as module
from harness.models.forward import attending, hidden_states
from harness.models.segments import ATTENTION, Segments, can_take_segments

# A beginning, two rests of prompts, three completions, one of them empty; then a second tree.
CHAINS = [
    [(0, 5)],
    [(0, 5), (5, 8)],
    [(0, 5), (5, 8), (8, 12)],
    [(0, 5), (5, 8), (12, 21)],
    [(0, 5), (21, 22)],
    [(0, 5), (21, 22), (22, 22)],
    [(22, 25)],
    [(22, 25), (25, 30)],
]
TOKENS = 30
SHAPES = {
    "llama": LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "qwen": Qwen2Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        use_sliding_window=False,
    ),
}


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES[name]), dtype=dtype).eval()


def positions():
    places = torch.zeros(TOKENS, dtype=torch.long)
    for chain in CHAINS:
        before = sum(end - start for start, end in chain[:-1])
        start, end = chain[-1]
        places[start:end] = torch.arange(before, before + end - start)
    return places


def alone(model, ids, chain):
    """States of a segment's own tokens in a row that holds its chain and nothing else."""
    row = torch.cat([ids[start:end] for start, end in chain])[None]
    return hidden_states(model, row)[0, len(row[0]) - (chain[-1][1] - chain[-1][0]) :]


def by_segments(model, ids):
    segments = Segments(CHAINS, model.dtype, model.device)
    with attending(model, ATTENTION):
        states = hidden_states(
            model, ids[None], position_ids=positions()[None], attention_mask=segments.mask()
        )[0]
    assert segments.used and model.config._attn_implementation == "sdpa"
    return states


@pytest.mark.parametrize(("price", "groups"), [(0, 7), (40, 3), (10_000, 1)])
@pytest.mark.parametrize("name", SHAPES)
def test_states_and_gradients_are_those_of_rows_alone(name, price, groups, monkeypatch):
    """However many segments are computed together, and where some are merged, as at the last price.

    The weight tells tokens apart.
    """
    monkeypatch.setattr(module, "GROUP", price)
    assert len(Segments(CHAINS, torch.float32, torch.device("cpu")).groups) == groups
    model = model_of(name)
    ids = torch.arange(TOKENS) * 7 % 60
    weight = torch.linspace(1, 2, TOKENS)[:, None] * torch.linspace(-1, 1, 32)
    states = by_segments(model, ids)
    (states * weight).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for chain in CHAINS:
        start, end = chain[-1]
        wanted = alone(model, ids, chain) if end > start else states[start:end]
        torch.testing.assert_close(states[start:end], wanted, rtol=1e-4, atol=1e-5)
        if end > start:
            (wanted * weight[start:end]).sum().backward()
    for n, grad in found.items():
        wanted = model.get_parameter(n).grad
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def partitions(members):
    """All ways to cut a list into runs."""
    if not members:
        yield []
    for end in range(1, len(members) + 1):
        for rest in partitions(members[end:]):
            yield [members[:end], *rest]


def test_groups_cost_least(monkeypatch):
    """Of all ways to cut segments, by length, into groups, on made-up trees."""
    draw = random.Random(0)
    met = set()
    for price in (0, 30, 300) * 20:
        monkeypatch.setattr(module, "GROUP", price)
        chains, at = [[(0, draw.randint(1, 9))]], 0
        for _ in range(draw.randint(1, 8)):
            at = chains[-1][-1][1]
            parent = draw.choice(chains) if draw.random() < 0.5 else []
            chains.append([*parent, (at, at + draw.randint(0, 12))])
        cost, groups = module._grouped(chains)
        sizes = [(sum(e - s for s, e in c), c[-1][1] - c[-1][0]) for c in chains]
        by_length = sorted((size for size in sizes if size[1]), reverse=True)
        assert cost == min(
            sum(price + len(g) * max(k for k, _ in g) * max(q for _, q in g) for g in cut)
            for cut in partitions(by_length)
        )
        together = [(sum(e - s for s, e in c), c[-1][1] - c[-1][0]) for g in groups for c in g]
        assert sorted(together, reverse=True) == by_length
        met.add(len(groups))
    assert met >= {1, 2, 3, 4}


def test_a_segment_and_its_only_follower_are_one():
    beginning, prompt, two = [(0, 5)], [(0, 5), (5, 8)], [(0, 5), (8, 10)]
    of_two = [two, [*two, (10, 11)], [*two, (11, 14)]]
    assert module._merged([beginning, prompt, [*prompt, (8, 8)], *of_two]) == [
        beginning,
        prompt,
        *of_two,
    ]
    row = [[(0, 4)], [(0, 4), (4, 9)]]
    assert module._merged(row) == [[(0, 9)]]
    apart = [[(0, 4)], [(4, 6)], [(0, 4), (6, 9)]]  # its only follower is not behind it
    assert module._merged(apart) == apart


def test_a_mask_is_that_of_the_segments():
    """For models that do not know segments: by the mask alone, every token by itself."""
    visible = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for chain in CHAINS:
        for token in range(*chain[-1]):
            for start, end in chain:
                for seen in range(start, min(end, token + 1)):
                    visible[token, seen] = True
    assert torch.equal(Segments(CHAINS, torch.float32, torch.device("cpu")).mask()[0, 0], visible)


def reference(query, key, value, mask, scale):
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    return (scale * query @ key.mT + mask).softmax(-1) @ value


@pytest.mark.parametrize("scale", [None, 0.3])
def test_joined_heads_are_attention_with_its_gradient(scale):
    """To the precision of float64 and float32; in bfloat16 as near as PyTorch's own, times two."""
    torch.manual_seed(1)
    query = torch.randn(3, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(3, 2, 12, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    hidden = torch.arange(12) > 5 + torch.arange(7)[:, None]
    mask = torch.zeros(3, 1, 7, 12, dtype=torch.float64).masked_fill(hidden, -torch.inf)
    upstream = torch.randn(3, 4, 7, 8, dtype=torch.float64)

    def both(function, dtype=torch.float64):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (query, key, value)]
        output = function(*inputs, mask.to(dtype))
        gradients = torch.autograd.grad(output, inputs, upstream.to(dtype))
        return [t.double() for t in (output, *gradients)]

    size = scale or 8**-0.5
    wanted = both(lambda q, k, v, m: reference(q, k, v, m, size))

    def joined(*inputs):
        return module._joined(*inputs, scale).transpose(1, 2)

    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        for got, want in zip(both(joined, dtype), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    short = both(joined, torch.bfloat16)
    fused = both(
        lambda q, k, v, m: F.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=m, scale=size
        ),
        torch.bfloat16,
    )
    for got, theirs, want in zip(short, fused, wanted, strict=True):
        assert (got - want).norm() <= 2 * (theirs - want).norm()


@pytest.mark.parametrize("keys", [512, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_joined_up_to_a_length(keys, dtype, monkeypatch):
    """Beyond it transformers' own attention. Both give the model's states."""
    monkeypatch.setattr(module, "KEYS", keys)
    monkeypatch.setattr(module, "GROUP", 0)
    calls = []
    joined = module._joined
    monkeypatch.setattr(module, "_joined", lambda *a: calls.append(a) or joined(*a))
    model = model_of("llama", dtype)
    ids = torch.arange(TOKENS) * 7 % 60
    with torch.no_grad():
        states = by_segments(model, ids)
        for chain in CHAINS:
            if chain[-1][1] > chain[-1][0]:
                wanted = alone(model, ids, chain)
                tolerance = 1e-5 if dtype == torch.float32 else 0.05
                assert (states[slice(*chain[-1])] - wanted).abs().max() < tolerance
    groups = Segments(CHAINS, model.dtype, model.device).groups
    assert len(calls) == 2 * sum(group.mask.shape[-1] <= keys for group in groups) > 0
    assert len(groups) > 4


def test_dropout_of_attention_acts_on_segments():
    config = copy.deepcopy(SHAPES["llama"])
    config.attention_dropout = 0.5
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ids = torch.arange(TOKENS) * 7 % 60
    with torch.no_grad():
        model.eval()
        assert torch.equal(by_segments(model, ids), by_segments(model, ids))
        model.train()
        assert not torch.equal(by_segments(model, ids), by_segments(model, ids))


def test_models_that_take_segments():
    assert can_take_segments(model_of("llama"))
    assert can_take_segments(model_of("qwen", torch.bfloat16))
    eager = model_of("llama")
    eager.set_attn_implementation("eager")
    assert not can_take_segments(eager)
    dense = model_of("llama")
    for layer in dense.model.layers:  # an attention of the model's own, which reads the mask
        layer.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    assert not can_take_segments(dense)
