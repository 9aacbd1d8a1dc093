"""Time of attention over a packed sequence, by what one more group of its segments is said to cost.

    python -m benchmarks.speed.segments

Milliseconds of the processor's time on one thread: a layer of the embedded model with its gradient,
for a step of 8 rows, and in brackets the number of groups.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from harness.base.errors import Parser, reported
from harness.learning.packing import Row, completion_states, micro_batches
from harness.models import segments
from harness.models.chat import chat_tokens
from harness.models.load import load_model
from harness.models.products import _fastest, has_bfloat16
from harness.models.segments import Chain, Segments, _segment_attention
from harness.skills.registry import get_skill

SKILLS = (
    "messages_urgency",
    "codes_mask",
    "codes_pattern",
    "notes_line",
    "notes_object",
    "tables_value",
    "tables_query",
)
PRICES = (0, 1_000, 3_000, 10_000, 30_000, 10**9)
ROWS = 8
PASSES = 10


def chains_of(model: Any, tokenizer: Any, skill: str) -> Sequence[Chain]:
    """Those of a step of SFT on the first examples of a skill, which is one micro-batch."""
    rows = [
        Row(
            chat_tokens(tokenizer, e.prompt),
            [*tokenizer.encode(e.demonstration), tokenizer.eos_token_id],
        )
        for e in get_skill(skill).examples("train")[:ROWS]
    ]
    (batch,) = micro_batches(model, rows, 2048)
    found: list[Sequence[Chain]] = []

    def keep(chains: Sequence[Chain], *rest: Any) -> Segments:
        found.append(chains)
        return Segments(chains, *rest)

    with patch("harness.learning.packing.Segments", keep), torch.no_grad():
        completion_states(model, rows, batch)
    return found[-1]


def attention(config: Any, groups: Segments, dtype: torch.dtype) -> None:
    """PASSES of a layer's attention with its gradient."""
    length = len(groups.places)
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    query, key, value = (
        torch.ones(1, count, length, width, dtype=dtype, requires_grad=True)
        for count in (heads, shared, shared)
    )
    module = torch.nn.Module()
    module.num_key_value_groups = heads // shared
    mask: Any = SimpleNamespace(segments=groups)
    for _ in range(PASSES):
        output, _ = _segment_attention(module, query, key, value, mask, scaling=width**-0.5)
        output.float().sum().backward()


def lines() -> Iterator[str]:
    """The table in Markdown."""
    model, tokenizer = load_model("embedded", "float32", "cpu")
    yield f"| dtype | skill | {' | '.join(f'{price:,}' for price in PRICES)} |"
    yield "|---|---|" + "---:|" * len(PRICES)
    for dtype in (torch.float32, *([torch.bfloat16] if has_bfloat16() else [])):
        for skill in SKILLS:
            chains = chains_of(model, tokenizer, skill)
            groups = {}
            for price in PRICES:
                with patch.object(segments, "GROUP", price):
                    groups[str(price)] = Segments(chains, dtype, torch.device("cpu"))
            taken = _fastest(
                {p: partial(attention, model.config, groups[p], dtype) for p in groups}
            )
            cells = [f"{taken[p] / PASSES * 1e3:.1f} ({len(groups[p].groups)})" for p in groups]
            yield f"| {str(dtype).removeprefix('torch.')} | {skill} | {' | '.join(cells)} |"


def main() -> None:
    Parser(description=__doc__).parse_args()
    with reported(None):
        for line in lines():
            print(line, flush=True)


if __name__ == "__main__":
    main()
