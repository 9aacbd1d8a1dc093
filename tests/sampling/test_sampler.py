"""The sampler against transformers' generate, a plain forward pass and its own distribution."""

import copy

import pytest
import torch
from scipy import stats

from harness.base.seeds import seed_for
from harness.sampling.buffers import _grouped_attention
from harness.sampling.drawing import pick
from harness.sampling.transformers import TransformersSampler

TEXTS = [
    "abc",
    "a much longer question than the others, to be padded against",
    "?",
    "who are you",
    "12 + 7 =",
]


@pytest.fixture
def ragged(tiny_model):
    """Prompts of 1 to 60 tokens, and a sampler whose answers end at different lengths.

    It has many stop tokens.
    """
    model, tokenizer = tiny_model
    sampler = TransformersSampler(model, tokenizer)
    sampler.stops = sampler.stops | set(range(20))
    return [tokenizer(t)["input_ids"] for t in TEXTS], sampler


def token_lists(groups):
    return [[c.token_ids for c in group] for group in groups]


def generated(model, prompt, count, stops):
    """transformers' greedy completion of one prompt, without any padding."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=sorted(stops),
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_is_generate(ragged, tiny_model):
    prompts, sampler = ragged
    sampler.stops = {256} | {
        generated(tiny_model[0], p, i + 4, {256})[-1] for i, p in enumerate(prompts)
    }
    answers = token_lists(sampler.sample(prompts, max_new_tokens=24, temperature=0))
    assert answers == [[generated(tiny_model[0], p, 24, sampler.stops)] for p in prompts]
    assert len({len(group[0]) for group in answers}) > 1  # Rows leave the batch at different times.


@pytest.mark.parametrize(
    "kind", ["gemma2", "gemma3", "qwen2", "granite", "gpt2", "llama-sdpa-1-head"]
)
def test_greedy_is_generate_in_other_architectures(kind, tiny_model):
    """Sliding windows shorter than the prompt, scaled logits, biases, absolute positions.

    The last kind has keys that heads do not share.
    """
    model = other_model(kind, len(tiny_model[1]))
    sampler = TransformersSampler(model, tiny_model[1])
    for opening in ("", "an opening that they share: "):
        prompts = [tiny_model[1](opening + t)["input_ids"] for t in TEXTS]
        answers = token_lists(sampler.sample(prompts, max_new_tokens=16, temperature=0))
        assert answers == [[generated(model, p, 16, sampler.stops)] for p in prompts]


def test_a_common_beginning_is_read_once(tiny_model, monkeypatch):
    """Also where one prompt is the beginning of the others, and with several completions each."""
    model, tokenizer = tiny_model
    prompts = [
        tokenizer(t)["input_ids"]
        for t in ("the same, the same", "the same, the same, and more", "the same, the same?")
    ]
    counts = []  # tokens that each forward pass reads
    forward = model.forward

    def counted(**inputs):
        counts.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", counted)
    sampler = TransformersSampler(model, tokenizer)
    answers = token_lists(sampler.sample(prompts, max_new_tokens=4, n=2, seed=5))
    shared = min(map(len, prompts)) - 1
    assert counts[:2] == [shared, 3 * (max(map(len, prompts)) - shared)]
    monkeypatch.setattr("harness.sampling.buffers.can_share_prompts", lambda model: False)
    assert answers == token_lists(sampler.sample(prompts, max_new_tokens=4, n=2, seed=5))


def other_model(kind, vocabulary, **changes):
    """A tiny random model in eval mode."""
    import transformers as t

    torch.manual_seed(1)
    settings = dict(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=256,
        bos_token_id=256,
        pad_token_id=256,
        **changes,
    )
    gemma = {
        "head_dim": 8,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = {
        "gemma2": lambda: t.Gemma2Config(**settings, **gemma, attn_logit_softcapping=None),
        "gemma3": lambda: t.Gemma3TextConfig(**settings, **gemma),
        "qwen2": lambda: t.Qwen2Config(**settings),
        "granite": lambda: t.GraniteConfig(**settings, logits_scaling=4.0, residual_multiplier=0.5),
        "cohere": lambda: t.CohereConfig(**settings, logit_scale=0.25),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            eos_token_id=256,
            bos_token_id=256,
            initializer_range=0.4,
        ),
        "llama-sdpa-1-head": lambda: t.LlamaConfig(**{**settings, "num_key_value_heads": 4}),
    }[kind]()
    return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("temperature", [0, 1.0, 0.6])
def test_logprobs_are_those_of_a_forward_pass(ragged, tiny_model, temperature):
    prompts, sampler = ragged
    double = copy.deepcopy(tiny_model[0]).double()
    groups = sampler.sample(
        prompts, max_new_tokens=12, n=3, seed=5, temperature=temperature, top_p=0.9
    )
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            with torch.no_grad():
                logits = double(torch.tensor([prompt + c.token_ids])).logits[
                    0, len(prompt) - 1 : -1
                ]
            wanted = (
                (logits / (temperature or 1.0))
                .log_softmax(-1)
                .gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            )
            assert c.logprobs == pytest.approx(wanted.tolist(), abs=2e-5)


def test_draws_do_not_depend_on_the_batching(ragged, tiny_model):
    prompts, sampler = ragged
    wanted = token_lists(sampler.sample(prompts, max_new_tokens=16, n=3, seed=9))
    for size in (1, 2, 4):
        small = TransformersSampler(*tiny_model, batch_size=size)
        small.stops = sampler.stops
        assert token_lists(small.sample(prompts, max_new_tokens=16, n=3, seed=9)) == wanted
    assert len({len(t) for group in wanted for t in group}) > 4
    assert len({tuple(t) for group in wanted for t in group}) == 15
    assert token_lists(sampler.sample(prompts, max_new_tokens=16, n=3, seed=10)) != wanted


def test_several_completions_of_a_prompt_are_rows_of_their_own(ragged):
    """The k-th completion does not depend on n: one reading of the prompt serves all of them."""
    prompts, sampler = ragged
    three = token_lists(sampler.sample(prompts, max_new_tokens=16, n=3, seed=2))
    one = token_lists(sampler.sample(prompts, max_new_tokens=16, n=1, seed=2))
    assert [g[:1] for g in three] == one
    shorter = token_lists(sampler.sample(prompts, max_new_tokens=5, n=3, seed=2))
    assert shorter == [[t[:5] for t in g] for g in three]


def test_the_layout_of_a_gpus_attention_is_taken(monkeypatch):
    """The kernel for a mask there lays out its result as [rows, queries, heads, width].

    Meta tensors have that layout without a GPU.
    """

    def efficient(query, key, value, attn_mask, scale):
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).expand(*query.shape[:3], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, False, scale=scale
        )[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", efficient)
    query = torch.empty(4, 1, 9, 64, device="meta").transpose(1, 2)
    key = value = torch.empty(4, 3, 40, 64, device="meta")[:, :, :24]
    out, _ = _grouped_attention(
        None,
        query,
        key,
        value,
        torch.empty(4, 1, 1, 24, device="meta", dtype=torch.bool),
        scaling=0.1,
    )
    assert out.shape == (4, 1, 9, 64)


@pytest.mark.parametrize("temperature,top_p", [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_frequencies_follow_the_softmax(tiny_model, temperature, top_p):
    """Chi-square of 6,000 draws of the second token after the greedy first.

    The expected counts come from probabilities in float64.
    """
    model, tokenizer = tiny_model
    prompt = tokenizer("which?")["input_ids"]
    sampler = TransformersSampler(model, tokenizer, batch_size=2000)
    firsts = sampler.sample([prompt], max_new_tokens=1, temperature=0)[0][0].token_ids
    counts = torch.zeros(len(tokenizer))
    for seed in range(3):
        group = sampler.sample(
            [prompt + firsts],
            max_new_tokens=1,
            n=2000,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
        )[0]
        counts += torch.bincount(
            torch.tensor([c.token_ids[0] for c in group]), minlength=len(tokenizer)
        )
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(torch.tensor([prompt + firsts])).logits[0, -1]
    probs = (logits / temperature).softmax(-1)
    nucleus = set()
    # The nucleus is the smallest set of likeliest tokens with a mass of top_p.
    for token in probs.argsort(descending=True).tolist():
        if sum(probs[t] for t in nucleus) >= top_p:
            break
        nucleus.add(token)
    inside = torch.tensor([t in nucleus for t in range(len(probs))])
    assert counts[~inside].sum() == 0
    probs = torch.where(inside, probs, 0.0) / probs[inside].sum()
    common = probs * 6000 >= 5
    rest = [counts[~common].sum()] if probs[~common].sum() * 6000 >= 5 else []
    observed = torch.tensor([*counts[common], *rest]).double()
    expected = torch.tensor([*probs[common], *([probs[~common].sum()] if rest else [])]).double()
    pvalue = stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue
    assert len(observed) > 5 and 0.005 < pvalue < 0.999


def test_top_p_keeps_the_token_that_crosses_the_mark():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, nucleus in (
        (0.49, {0}),
        (0.51, {0, 1}),
        (0.79, {0, 1}),
        (0.81, {0, 1, 2}),
        (0.99, {0, 1, 2, 3}),
    ):
        draws = torch.linspace(0, 1 - 1e-9, 200, dtype=torch.float64)
        tokens, logprobs = pick(logits.expand(200, -1), 1.0, top_p, draws)
        assert set(tokens.tolist()) == nucleus
        assert torch.allclose(logprobs, logits[0][tokens])  # of the distribution before top-p
    tokens, _ = pick(logits, 1.0, 0.79, torch.tensor([0.624], dtype=torch.float64))
    assert tokens.item() == 0  # 0.5 / 0.8 = 0.625 of the nucleus
    tokens, _ = pick(logits, 1.0, 0.79, torch.tensor([0.626], dtype=torch.float64))
    assert tokens.item() == 1


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]])
    draws = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = pick(logits.expand(3, -1), 1.0, 1.0, draws)
    assert tokens.tolist() == [1, 3, 3]


def test_an_answer_ends_with_its_stop_token(ragged, tiny_model):
    prompts, sampler = ragged
    completions = [c for g in sampler.sample(prompts, max_new_tokens=16, n=8, seed=1) for c in g]
    for c in completions:
        stopping = [t in sampler.stops for t in c.token_ids]
        assert not any(stopping[:-1]) and len(c.logprobs) == len(c.token_ids) <= 16
        assert c.finished == stopping[-1]
        assert c.finished or len(c.token_ids) == 16
    assert {c.finished for c in completions} == {True, False}


def test_text_is_without_the_end_of_turn(tiny_model):
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    letter = tokenizer("k")["input_ids"][0]

    class Script(torch.nn.Linear):
        """An output layer that writes k three times and then ends the turn."""

        calls = 0

        def forward(self, states):
            out = torch.zeros(*states.shape[:-1], len(tokenizer))
            out[..., letter if self.calls < 3 else tokenizer.eos_token_id] = 50.0
            self.calls += 1
            return out

    model.lm_head = Script(1, 1)
    [[answer]] = TransformersSampler(model, tokenizer).sample([[1, 2]], max_new_tokens=9)
    assert answer.token_ids == [letter] * 3 + [tokenizer.eos_token_id]
    assert answer.text == "kkk" and answer.finished


def test_mode_is_restored(ragged, tiny_model):
    prompts, sampler = ragged
    model = sampler.model
    kernel = model.config._attn_implementation
    for training in (True, False):
        model.train(training)
        sampler.sample(prompts, max_new_tokens=2)
        assert model.training is training and all(m.training is training for m in model.modules())

        def stop(done):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sampler.sample(prompts, max_new_tokens=2, progress=stop)
        assert model.training is training and model.config._attn_implementation == kernel
    model.eval()


def test_sampling_uses_the_weights_at_the_time_of_the_call(tiny_model):
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    sampler, prompt = TransformersSampler(model, tokenizer), tokenizer("abc")["input_ids"]
    before = token_lists(sampler.sample([prompt], max_new_tokens=8, temperature=0))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.roll(1, 0))
    after = token_lists(sampler.sample([prompt], max_new_tokens=8, temperature=0))
    assert after != before and after == [[generated(model, prompt, 8, sampler.stops)]]


def test_seeds_are_stable_and_distinct():
    assert seed_for(1, "data") == 2098555721682660186  # Another value changes every result.
    assert len({seed_for(a, b, c) for a in range(9) for b in range(9) for c in ("x", "y")}) == 162
    assert seed_for(1, 23) != seed_for(12, 3)
