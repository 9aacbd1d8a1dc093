"""Passes of sampling over keys and values in buffers that are allocated once.

A prompt that is sampled several times is read once, and so is the beginning that all prompts of a
batch have in common. Finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from harness.models.forward import PAD, attending, can_share_prompts, on_device, unrecorded
from harness.models.rope import border_of, side_of
from harness.sampling.sampler import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sampling.drawing import Growing


@unrecorded()
def buffered(
    model: PreTrainedModel, prompts: list[list[int]], completions: int, answers: Growing
) -> None:
    """Complete ``answers``, so many ``completions`` of each prompt, through ``Rows``."""
    with sampling_mode(model):
        rows = Rows(model, prompts, answers.limit)
        logits = rows.prefill(completions)
        while True:
            tokens, going_on = answers.add(logits)
            if not going_on:
                return
            if len(going_on) < len(tokens):
                indices = on_device(torch.tensor(going_on), logits.device)
                tokens = tokens[indices]
                rows.select(indices)
            logits = rows.read(tokens[:, None])


class Rows:
    """The rows of a batch, as far as the model has read them.

    The columns of a row are the beginning that all prompts share, padding, the rest of the prompt,
    and the completion. Padding is masked and takes no position.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int
    ) -> None:
        device = model.device
        shortest = min(map(len, prompts))
        longest = max(map(len, prompts))
        shared = 0
        # A beginning that is read by itself has the rotary positions of a short row.
        border = border_of(model.config)
        if len(prompts) > 1 and not side_of(border, longest) and can_share_prompts(model):
            # One token of every prompt is left, whose logits begin the answer.
            shared = min(common_prefix(prompts), shortest - 1)
        paddings = [longest - len(prompt) for prompt in prompts]
        room = longest + max_new_tokens
        self.model = model
        self.beginning = prompts[0][:shared]
        self.remainders = [
            [PAD] * padding + prompt[shared:]
            for padding, prompt in zip(paddings, prompts, strict=True)
        ]
        self.padding = on_device(torch.tensor(paddings), device)
        # Shape [rows, columns]; None without a shared beginning and without padding.
        self.mask: torch.Tensor | None = None
        if any(paddings) or shared:
            columns = torch.arange(room, device=device)[None]
            unpadded = (columns < shared) | (columns >= shared + self.padding[:, None])
            self.mask = unpadded.long()
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [LayerBuffer(room) for _ in range(layers)]
        self.cache = Cache(layers=self.layers)
        self.length = 0  # columns that have been read

    def prefill(self, completions: int) -> torch.Tensor:
        """Read the prompts, and make a row of each of their ``completions``.

        Returns the logits [rows, vocabulary] of the first tokens.
        """
        device = self.model.device
        if self.beginning:
            beginning = on_device(torch.tensor([self.beginning]), device)
            self._forward(beginning, self.padding.new_zeros(1), None)
            self._select_buffers(self.padding.new_zeros(len(self.remainders)))
        logits = self.read(on_device(torch.tensor(self.remainders), device))
        if completions > 1:
            prompts = torch.arange(len(self.remainders), device=device)
            rows = prompts.repeat_interleave(completions)
            self.select(rows)
            logits = logits[rows]
        return logits

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read the next tokens [rows, columns]; the logits [rows, vocabulary] that follow them."""
        return self._forward(tokens, self.padding, self.mask)

    def select(self, rows: torch.Tensor) -> None:
        """Let ``rows`` (indices, each as often as is wanted) take the place of the present rows."""
        self._select_buffers(rows)
        self.padding = self.padding[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]

    def _select_buffers(self, rows: torch.Tensor) -> None:
        for layer in self.layers:
            layer.select(rows)

    def _forward(
        self, tokens: torch.Tensor, padding: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        start = self.length
        self.length += tokens.shape[1]
        columns = torch.arange(start, self.length, device=tokens.device)[None]
        out = self.model(
            input_ids=tokens,
            position_ids=(columns - padding[:, None]).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            attention_mask=None if mask is None else mask[:, : self.length],
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


class LayerBuffer(CacheLayerMixin):
    """Keys and values of a layer, [rows, heads, tokens, width], with room for every token."""

    is_sliding = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room  # tokens
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.room, width)
        self.values = value_states.new_empty(rows, heads, self.room, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: torch.Tensor) -> None:
        self.keys = self.keys[rows]
        self.values = self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


@contextmanager
def sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """The model in eval mode, with the attention below; afterwards as before."""
    was_training = model.training
    attention = model.config._attn_implementation
    model.eval()
    try:
        with attending(model, "grouped_sdpa" if attention == "sdpa" else attention):
            yield
    finally:
        model.train(was_training)


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention, without a copy of keys and values in a decoding step.

    A decoding step takes the query heads that share keys as the queries of one head. The sums are
    the same, but keys and values [rows, key heads, tokens, width] are read where they are.
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
    # A GPU's kernel may return another memory layout, which a view would not take.
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register("grouped_sdpa", _grouped_attention)
AttentionMaskInterface.register("grouped_sdpa", sdpa_mask)
