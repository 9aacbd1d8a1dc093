"""Time and memory of an order on this machine: a model of their cost."""

import time

import torch
from transformers import AttentionInterface

from harness.learning.packing import VOCABULARY_CHUNK
from harness.learning.trainer import MICRO_BATCH_TOKENS
from harness.models.forward import hidden_states


class Machine:
    """Speed of this machine for a model of ``parameters`` weights in ``dtype``, from half a second
    of measuring.
    """

    def __init__(self, parameters, dtype, device):
        self.parameters = parameters
        self.flops = self._best(
            lambda a: a @ a, torch.randn(1536, 1536, device=device).to(dtype), 2 * 1536**3
        )
        block = torch.zeros(64 * 2**20, dtype=torch.uint8, device=device)
        self.step = (
            parameters * dtype.itemsize / self._best(lambda a: a.clone(), block, 2 * 64 * 2**20)
        )

    @staticmethod
    def _best(work, argument, amount):
        rates = []
        for _ in range(6):
            start = time.perf_counter()
            work(argument)
            if argument.is_cuda:
                torch.cuda.synchronize(argument.device)
            rates.append(amount / (time.perf_counter() - start))
        return max(rates)

    def forward(self, tokens):
        """Seconds of a forward pass; a backward pass costs two of them."""
        return 2 * self.parameters * tokens / self.flops

    def sample(self, rows, length, batch):
        """Seconds to decode ``rows`` answers of ``length`` tokens, ``batch`` at a time: weights are
        read once a step.
        """
        batches = -(-rows // batch) if rows else 0
        return length * (batches * self.step + 2 * self.parameters * rows / self.flops)


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass: its inputs and its output, no
    weights.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def _counted(module, query, key, value, attention_mask, **kwargs):
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _counted)


def activations(shape, tokens=8):
    """Bytes that a forward pass keeps for each token's backward pass: of ``shape``, a model on the
    meta device, without its head.

    Counted, not computed: what autograd saves, parameters apart, with fused attention.
    """
    saved = {}

    def count(tensor):
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            # kept, so that no other storage gets its address
            saved[base.untyped_storage()._cdata] = base
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    attention, shape.config._attn_implementation = shape.config._attn_implementation, "counted"
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        hidden_states(
            shape.train(),
            ids,
            position_ids=ids,
            attention_mask=ids.new_ones(1, 1, tokens, tokens).bool(),
        )
    shape.config._attn_implementation = attention
    return sum(tensor.nbytes for tensor in saved.values()) / tokens


class Memory:
    """Peak memory of a stage in GiB: weights, gradients, optimizer, copies, and the larger of one
    micro-batch and the rollouts.

    Without the runtime of Python and its libraries, and without what an allocator loses to
    fragments.
    """

    def __init__(self, shape, dtype, device):
        config = shape.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.parameters, self.size = sum(p.numel() for p in shape.parameters()), dtype.itemsize
        self.on_gpu = torch.device(device).type != "cpu"
        # bytes of a token in a micro-batch, and of one in the sampler's cache
        self.token = activations(shape)
        self.cached = 2 * config.num_hidden_layers * heads * width * dtype.itemsize
        # of one chunk: logits and log-probabilities of both models, and a gradient
        self.logits = 5 * 4 * VOCABULARY_CHUNK

    def of(self, config, work, length, cached):
        """(on the model's device, in host memory for its masters) for a method's config and its
        Work on rows of ``length`` tokens, with keys and values of ``cached`` tokens where answers
        are sampled, for learning or evaluation.
        """
        apart = self.size < 4 or (self.on_gpu and config.masters == "host")
        # AdamW's moments, gradients, masters, the average
        state = 8 + 4 + 4 * apart + 4 * (apart and work.averaged)
        limit = config.micro_batch_tokens or MICRO_BATCH_TOKENS[self.on_gpu]
        passing = max(max(limit, length) * self.token + self.logits, cached * self.cached)
        fixed, state = self.parameters * self.size * (1 + work.copies), self.parameters * state
        host = state if apart and config.masters == "host" else 0
        return (fixed + passing + state - host) / 2**30, host / 2**30
