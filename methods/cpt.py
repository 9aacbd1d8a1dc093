"""Continual pre-training (CPT): next-token loss on the source texts themselves.

    L = - mean over tokens of log p(y_t | y_<t)

The baseline for new knowledge in arXiv 2601.19897. The texts are the ``source`` of the training
examples, in the order of their first example; a text that several questions rest on is there once.
There is no chat template, no question and no answer.

Conventions
* A text is its tokens and the token that ends a turn, cut into chunks of ``chunk_tokens``. Each
  chunk follows the last token of the chunk before it, so that every token but perhaps the very
  first is learned once. The first chunk follows the token that begins a text, where the tokenizer
  has one.
* The mean is over all tokens of the optimizer step.
* A prompt drawn is a chunk drawn. At the same ``budget.prompts`` and batch size CPT makes as many
  optimizer steps as every other method, and passes ``prompts / chunks`` times over the texts;
  ``budget.epochs`` counts the training examples, not the texts.

The method's folder holds ``corpus.json``: numbers of texts, chunks, tokens, and passes over them.

State: nothing. Cost: a pass forward and backward over each chunk drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.base.files import write_json
from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from harness.skills.skill import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class CPTConfig(TrainingConfig):
    chunk_tokens: int = option(1024, "tokens of a chunk; a shorter text is one chunk", min=2)


def texts(examples: Iterable[Example]) -> list[str]:
    """The different sources of ``examples``, in the order of their first example."""
    return list(dict.fromkeys(e.source.strip() for e in examples if e.source is not None))


def chunks(tokenizer: PreTrainedTokenizerBase, text: str, size: int, end: int) -> list[Row]:
    """Rows that hold ``text`` and the token ``end``, at most ``size`` tokens to learn in each."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] + [end]
    start = tokenizer("")["input_ids"][:1]  # the token that begins a text, if there is one
    if not start:
        start = tokens[:1]
        tokens = tokens[1:]
    return [
        Row(start if at == 0 else [tokens[at - 1]], tokens[at : at + size])
        for at in range(0, len(tokens), size)
    ]


class CPT(Method):
    Config = CPTConfig
    config: CPTConfig
    needs = ("source",)
    joins = ("weights",)

    def learn(self, stage: Stage) -> None:
        rows = self._rows(stage.tokenizer, stage.examples, stage.sampler.end)
        write_json(
            stage.folder / "corpus.json",
            {
                "texts": len(texts(stage.examples)),
                "chunks": len(rows),
                "tokens": sum(len(row.completion) for row in rows),
                "passes": stage.prompts / len(rows),
            },
        )
        with learning(stage, self.config) as trainer:
            for step in stage.steps(examples=rows):
                step.log(**trainer.token_mean(step.examples, cross_entropy), **trainer.update())

    def longest(self, lengths: Lengths) -> int:
        return min(lengths.source + 1, self.config.chunk_tokens)

    def work(self, outlook: Outlook) -> Work:
        examples = outlook.skill.examples("train")
        rows = self._rows(outlook.tokenizer, examples, outlook.tokenizer.eos_token_id)
        tokens = sum(len(row.prompt) + len(row.completion) for row in rows)
        return Work(learned=tokens / len(rows))

    def _rows(
        self, tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], end: int
    ) -> list[Row]:
        return [
            row
            for text in texts(examples)
            for row in chunks(tokenizer, text, self.config.chunk_tokens, end)
        ]
