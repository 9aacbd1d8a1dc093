"""Passes of sampling whose shapes never change, so that a GPU repeats them as CUDA graphs.

A step of decoding starts a thousand small kernels, and Python takes longer to start them than the
GPU to end them. A graph starts all of them at once. Every step reads the whole buffers of keys and
values, under a mask of what is written. Rows leave the batch when half of it has ended, and the
smaller step becomes a graph of its own.

On a CPU the same step runs by itself. The prompts are read as in buffers.py. No GPU has run a graph
of this file yet: it stands behind ``model.decode``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from harness.models.forward import has_local_attention, on_device
from harness.sampling.buffers import LayerBuffer, Rows, sampling_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sampling.drawing import Growing

WARM_UP = 2  # steps before one is recorded: kernels are chosen, workspaces are made


@torch.inference_mode()
def graphed(
    model: PreTrainedModel, prompts: list[list[int]], completions: int, answers: Growing
) -> None:
    """Complete ``answers``, so many ``completions`` of each prompt, by steps of one shape.

    Raises ValueError for a model whose layers see a window, or that has attention of its own.
    """
    if has_local_attention(model) or model.config._attn_implementation != "sdpa":
        raise ValueError("steps of one shape want PyTorch's attention over all tokens")
    with sampling_mode(model):
        rows = Rows(model, prompts, answers.limit)
        tokens, going_on = answers.add(rows.prefill(completions))
        if not going_on:
            return
        step = _Step(rows)
        while going_on:
            tokens = step.keep(going_on, tokens)
            tokens, going_on = answers.add(step.read(tokens))


class _Step:
    """One step of decoding over fixed buffers.

    tokens, positions [rows, 1], mask [rows, 1, 1, columns], column [1]: what the next step reads,
    where, what of the buffers it sees, and where its keys go. live: those of the rows whose answers
    go on.
    """

    def __init__(self, rows: Rows) -> None:
        """rows: after the prompts are read, and before the first token is."""
        self.model = rows.model
        device = self.model.device
        count, room = len(rows.padding), rows.layers[0].room
        self.layers = rows.layers
        for layer in self.layers:  # what is hidden may be anything but NaN
            layer.keys[:, :, rows.length :] = 0
            layer.values[:, :, rows.length :] = 0
        self.column = torch.full((1,), rows.length, device=device)
        self.positions = rows.length - rows.padding[:, None]
        seen = (torch.arange(room, device=device) < rows.length).expand(count, room)
        if rows.mask is not None:
            seen = seen & rows.mask.bool()
        self.mask = seen[:, None, None].clone()
        self.live = list(range(count))
        self._prepare()

    def _prepare(self) -> None:
        """Make what the present number of rows needs."""
        device = self.model.device
        self.tokens = torch.zeros_like(self.positions)
        self.cache = Cache(layers=[_FixedLayer(layer, self.column) for layer in self.layers])
        self.index = on_device(torch.tensor(self.live), device)
        self.replay = self._recorded() if _has_graphs(device) else self._run

    def keep(self, going_on: list[int], tokens: torch.Tensor) -> torch.Tensor:
        """The ``tokens`` of the live rows that go on, given as indices; the others end."""
        if len(going_on) == len(self.live):
            return tokens
        tokens = tokens[on_device(torch.tensor(going_on), tokens.device)]
        self.live = [self.live[j] for j in going_on]
        self.index = on_device(torch.tensor(self.live), tokens.device)
        if 2 * len(self.live) <= len(self.positions):
            for layer in self.layers:
                layer.select(self.index)
            self.positions, self.mask = self.positions[self.index], self.mask[self.index]
            self.live = list(range(len(self.live)))
            self._prepare()
        return tokens

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read the next ``tokens`` of the live rows; the logits [rows, vocabulary] after them."""
        self.tokens[self.index] = tokens[:, None]
        return self.replay()[self.index]

    def _run(self) -> torch.Tensor:
        """The step itself: all it reads and writes is in tensors that stay where they are."""
        self.mask.index_fill_(3, self.column, True)
        out = self.model(
            input_ids=self.tokens,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            attention_mask=self.mask,
            logits_to_keep=1,
        )
        self.column += 1
        self.positions += 1
        return out.logits[:, -1].float()

    def _recorded(self) -> Callable[[], torch.Tensor]:
        """The step as a CUDA graph; what trial steps have counted and written is taken back."""
        column, positions = self.column.clone(), self.positions.clone()

        def take_back() -> None:
            self.column.copy_(column)
            self.positions.copy_(positions)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run()
                take_back()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._run()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


class _FixedLayer(CacheLayerMixin):
    """A layer's whole buffers; new keys and values go to the column that a tensor names."""

    is_sliding = False

    def __init__(self, buffer: LayerBuffer, column: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = buffer.keys, buffer.values
        self.room = buffer.room
        self.column = column
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("it is made of buffers")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.room, 0

    def get_seq_length(self) -> int:
        return self.room - 1

    def get_max_length(self) -> int:
        return self.room
