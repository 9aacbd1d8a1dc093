"""Completions from the live weights.

One engine for rollouts and evaluation, on the very model that is being trained: nothing is copied
or reloaded. Rows are sorted by length, a prompt that is sampled several times is read once, and so
is the beginning that all prompts of a batch have in common; finished rows leave the batch, and keys
and values go into buffers that are allocated once.
"""

from contextlib import contextmanager
from functools import partial

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from harness.base.seeds import seed_for
from harness.models.chat import stop_tokens
from harness.models.forward import PAD, can_share_prompts
from harness.sampling.sampler import Completion, common_prefix

FEW = 256  # rows, up to which a product takes the weights first


def _grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """PyTorch's attention; a decoding step takes the query heads that share keys as queries of one
    head.

    The same sums, but keys and values [rows, key heads, tokens, width] are read where they are:
    transformers would first repeat them for every query head, which costs more than the attention
    itself.
    """
    rows, heads, length, width = query.shape
    if length > 1 or heads == key.shape[1]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    query = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling
    )
    # on a GPU the kernel may lay it out in another way
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register("grouped_sdpa", _grouped_attention)
AttentionMaskInterface.register("grouped_sdpa", sdpa_mask)


@contextmanager
def _weights_first(model):
    """Few rows times a large weight as W x^T, not x W^T: the same sums, on a processor without
    AVX-512 sooner (docs/speed.md).

    The order depends on processor, dtype and number of rows alone, never on a timing: a run that
    goes on computes as before.
    """
    linears = []
    if (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    ):
        linears = [
            module
            for module in model.modules()
            if type(module) is torch.nn.Linear and "forward" not in vars(module)
        ]
    for module in linears:
        module.forward = partial(_product, module)
    try:
        yield
    finally:
        for module in linears:
            del module.forward


def _product(linear, x):
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > FEW:
        return torch.nn.functional.linear(x, linear.weight, linear.bias)
    out = (linear.weight @ rows.t()).t().contiguous()
    return (out if linear.bias is None else out + linear.bias).view(*x.shape[:-1], -1)


class _Layer(CacheLayerMixin):
    """Keys and values [rows, heads, tokens, width] in buffers with room for all that will come."""

    is_sliding = False

    def __init__(self, room):
        super().__init__()
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states, value_states):
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.room, width)
        self.values = value_states.new_empty(rows, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows):
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_seq_length(self):
        return self.length

    def get_max_length(self):
        return -1


class TransformersSampler:
    """Samples from ``model``, whatever its weights are at the time of the call."""

    def __init__(self, model, tokenizer, batch_size=48):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.end, self.stops = stop_tokens(model, tokenizer)

    @torch.inference_mode()
    def sample(
        self,
        prompts,
        *,
        max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        n=1,
        seed=0,
        strings=(),
        progress=None,
    ):
        """``n`` completions of each of ``prompts`` (lists of token ids): a list of lists of
        Completion, in their order.

        temperature 0 is greedy. Draws depend on ``seed``, the prompt's place and the completion's
        place alone, not on the batching: each completion has its own stream of uniform numbers,
        inverted through the cumulative distribution in float64. strings: texts that end a
        completion as well, with the token that completes one. progress: called with the number of
        completions finished so far.
        """
        was_training, attention = self.model.training, self.model.config._attn_implementation
        self.model.eval()
        if attention == "sdpa":
            self.model.config._attn_implementation = "grouped_sdpa"
        done = [[None] * n for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        per_batch = max(1, self.batch_size // n)
        finished = 0
        try:
            with _weights_first(self.model):
                for start in range(0, len(order), per_batch):
                    chosen = [(i, prompts[i]) for i in order[start : start + per_batch]]
                    # more completions of one prompt than fit go in turns
                    for first in range(0, n, self.batch_size):
                        turn = range(first, min(n, first + self.batch_size))
                        for (index, k), completion in self._batch(
                            chosen, max_new_tokens, temperature, top_p, turn, seed, strings
                        ):
                            done[index][k] = completion
                        finished += len(chosen) * len(turn)
                        if progress:
                            progress(finished)
        finally:
            self.model.train(was_training)
            self.model.config._attn_implementation = attention
        return done

    def rest(self):
        """Training follows; an engine of its own would put itself aside, the model has nothing to."""

    def _batch(self, prompts, max_new_tokens, temperature, top_p, turn, seed, strings):
        """Completions number ``turn`` (a range) of each of ``prompts`` ((index, token ids) pairs)."""
        device = self.model.device
        longest = max(len(p) for _, p in prompts)
        shared = 0
        if len(prompts) > 1 and can_share_prompts(self.model):
            shared = min(
                common_prefix([p for _, p in prompts]), min(len(p) for _, p in prompts) - 1
            )
        # stand between the common beginning and the rest of the prompt
        gaps = [longest - len(p) for _, p in prompts]
        ids = torch.tensor(
            [[PAD] * gap + p[shared:] for gap, (_, p) in zip(gaps, prompts)], device=device
        )
        gap = torch.tensor(gaps, device=device)
        columns = torch.arange(longest + max_new_tokens, device=device)[None]
        seen = (
            ((columns < shared) | (columns >= shared + gap[:, None])).long()
            if any(gaps) or shared
            else None
        )
        layers = [
            _Layer(longest + max_new_tokens)
            for _ in range(self.model.config.get_text_config().num_hidden_layers)
        ]
        cache = Cache(layers=layers)

        def step(tokens, at, gap, seen):
            width = tokens.shape[1]
            positions = (torch.arange(at, at + width, device=device)[None] - gap[:, None]).clamp(
                min=0
            )
            out = self.model(
                input_ids=tokens,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                attention_mask=None if seen is None else seen[:, : at + width],
                logits_to_keep=1,
            )
            return out.logits[:, -1].float()

        if shared:
            step(torch.tensor([prompts[0][1][:shared]], device=device), 0, gap.new_zeros(1), None)
            for layer in layers:
                layer.select(torch.zeros(len(prompts), dtype=torch.long, device=device))
        logits = step(ids, shared, gap, seen)
        rows = [(i, k) for i, _ in prompts for k in turn]
        # the prompt was read once; from here on every completion is a row of its own
        if len(turn) > 1:
            repeat = torch.arange(len(prompts), device=device).repeat_interleave(len(turn))
            for layer in layers:
                layer.select(repeat)
            logits, gap = logits[repeat], gap[repeat]
            seen = None if seen is None else seen[repeat]
        draws = self._uniforms(rows, max_new_tokens, seed) if temperature else None
        stops = torch.tensor(sorted(self.stops), device=device)
        tokens, logprobs = [[] for _ in rows], [[] for _ in rows]
        live = list(range(len(rows)))
        for t in range(max_new_tokens):
            picked, logprob = _pick(
                logits, temperature, top_p, None if draws is None else draws[live, t]
            )
            ended = torch.isin(picked, stops).tolist()
            for row, token, value in zip(live, picked.tolist(), logprob.tolist()):
                tokens[row].append(token)
                logprobs[row].append(value)
            if strings:
                ended = [e or self._holds(tokens[row], strings) for e, row in zip(ended, live)]
            if t == max_new_tokens - 1 or all(ended):
                break
            if any(ended):
                keep = torch.tensor([j for j, e in enumerate(ended) if not e], device=device)
                live = [live[j] for j in keep.tolist()]
                picked, gap = picked[keep], gap[keep]
                seen = None if seen is None else seen[keep]
                for layer in layers:
                    layer.select(keep)
            logits = step(picked[:, None], longest + t, gap, seen)
        for row, key in enumerate(rows):
            text = self.tokenizer.decode(tokens[row], skip_special_tokens=True)
            yield key, Completion(tokens[row], logprobs[row], tokens[row][-1] in self.stops, text)

    def _holds(self, tokens, strings):
        """Whether the last token completes one of ``strings``; a token is a byte at least."""
        tail = self.tokenizer.decode(tokens[-1 - max(len(s.encode()) for s in strings) :])
        return any(s in tail for s in strings)

    @staticmethod
    def _uniforms(rows, count, seed):
        """Uniform numbers [rows, count] in float64; row (i, k) has its own stream."""
        out = torch.empty(len(rows), count, dtype=torch.float64)
        for row, (i, k) in enumerate(rows):
            generator = torch.Generator().manual_seed(seed_for(seed, i, k))
            out[row].uniform_(generator=generator)
        return out


def _pick(logits, temperature, top_p, draws):
    """Next tokens [rows] and their log-probabilities [rows] from float32 logits [rows, vocabulary]."""
    if not temperature:
        picked = logits.argmax(-1)
        return picked, torch.log_softmax(logits, -1).gather(-1, picked[:, None])[:, 0]
    logprobs = torch.log_softmax(logits / temperature, -1)
    probs = logprobs.double().exp()
    if top_p < 1:
        ordered, places = probs.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # keeps the token that crosses the mark
        probs = probs.scatter(-1, places, ordered.masked_fill(outside, 0.0))
    cumulative = probs.cumsum(-1)
    target = draws.to(logits.device)[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return picked[:, 0], logprobs.gather(-1, picked)[:, 0]
