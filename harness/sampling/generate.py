"""transformers' ``generate`` as a way of sampling, with the model's own cache and masks.

It fits every model that transformers can generate from: those with a recurrent state or a
convolution, attention code of their own, or no cache at all. The harness draws the tokens, so seeds
and log-probabilities are those of the faster way. Finished rows stay in the batch until its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from harness.models.forward import PAD
from harness.sampling.ways import ALONE, PADDED, UNCACHED, Way

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sampling.drawing import Growing


class _Draw(LogitsProcessor):
    """Hands the logits to ``answers``, and leaves ``generate`` the tokens drawn, no other."""

    def __init__(self, answers: Growing) -> None:
        self.answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = torch.full_like(scores, -torch.inf)
        drawn[:, PAD] = 0  # of the rows that have ended
        rows = self.answers.live
        if rows:
            tokens, _ = self.answers.add(scores[rows])
            drawn[rows] = -torch.inf
            drawn[rows, tokens] = 0
        return drawn


class _Ended(StoppingCriteria):
    """The rows of ``answers`` that have ended."""

    def __init__(self, answers: Growing) -> None:
        self.answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ended = torch.ones(len(input_ids), dtype=torch.bool)
        ended[self.answers.live] = False
        return ended.to(input_ids.device)


@torch.no_grad()
def generated(
    model: PreTrainedModel,
    prompts: list[list[int]],
    completions: int,
    answers: Growing,
    use_cache: bool = True,
) -> None:
    """Complete ``answers``, so many ``completions`` of each prompt, through ``generate``."""
    rows = [prompt for prompt in prompts for _ in range(completions)]
    longest = max(map(len, rows))
    padded = [[PAD] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    with _plain_generation(model):
        model.generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=GenerationConfig(
                max_new_tokens=answers.limit,
                do_sample=False,
                use_cache=use_cache,
                pad_token_id=PAD,
            ),
            logits_processor=LogitsProcessorList([_Draw(answers)]),
            stopping_criteria=StoppingCriteriaList([_Ended(answers)]),
        )


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """The model in eval mode, without penalties and end tokens of its generation config.

    ``generate`` would take from there what its own configuration leaves open.
    """
    was_training = model.training
    config = model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.train(was_training)
        model.generation_config = config


GENERATE_WAYS = {  # the fastest first
    PADDED: Way(generated, pads=True),
    ALONE: Way(generated, pads=False),
    UNCACHED: Way(partial(generated, use_cache=False), pads=False),
}
