"""Continual pre-training (CPT): next-token loss on the source texts themselves, the paper's
baseline for new knowledge.

The texts are the training examples' ``source``, each once however many questions rest on it, in the
order in which they come; no chat template, no question, no answer. A text is its tokens and the
token that ends a turn, cut into chunks of ``chunk_tokens``; a chunk is given the last token of the
one before it (the tokenizer's first token of a text, where it has one), so that every token but
perhaps the very first is learned once. The mean is over all tokens of the optimizer step.

The shared budget: a prompt drawn is a chunk drawn. At the same ``budget.prompts`` and batch size
CPT makes as many optimizer steps as every other method, and goes over the texts ``prompts /
chunks`` times; ``budget.epochs`` counts the training examples, not the texts. The method's folder
holds ``corpus.json``: texts, chunks, tokens, and passes over them.
"""

from dataclasses import dataclass

from harness.base.files import write_json
from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.trainer import TrainingConfig, cross_entropy, learning


@dataclass
class CPTConfig(TrainingConfig):
    chunk_tokens: int = option(1024, "tokens of a chunk; a shorter text is one chunk", min=2)


def texts(examples):
    """The different sources of ``examples``, in the order of their first example."""
    return list(dict.fromkeys(e.source.strip() for e in examples))


def chunks(tokenizer, text, size, end):
    """Rows that hold ``text`` and the token ``end``; see the module's docstring."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] + [end]
    # the token that begins a text, if the tokenizer adds one
    start = tokenizer("")["input_ids"][:1]
    if not start:
        start, tokens = tokens[:1], tokens[1:]
    return [
        Row(start if at == 0 else [tokens[at - 1]], tokens[at : at + size])
        for at in range(0, len(tokens), size)
    ]


class CPT(Method):
    Config = CPTConfig
    needs = ("source",)

    def learn(self, stage):
        found = texts(stage.examples)
        rows = [
            row
            for text in found
            for row in chunks(stage.tokenizer, text, self.config.chunk_tokens, stage.sampler.end)
        ]
        write_json(
            stage.folder / "corpus.json",
            {
                "texts": len(found),
                "chunks": len(rows),
                "tokens": sum(len(r.completion) for r in rows),
                "passes": stage.prompts / len(rows),
            },
        )
        with learning(stage, self.config) as trainer:
            for step in stage.steps(examples=rows):
                step.log(**trainer.token_mean(step.examples, cross_entropy), **trainer.update())

    def work(self, outlook):
        end = outlook.tokenizer.eos_token_id
        rows = [
            row
            for text in texts(outlook.skill.examples("train"))
            for row in chunks(outlook.tokenizer, text, self.config.chunk_tokens, end)
        ]
        return Work(learned=sum(len(r.prompt) + len(r.completion) for r in rows) / len(rows))
