"""Weights of tokens from log-probabilities of whole rows: what several parts share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from harness.base.settings import option
from harness.learning.inner import completion_logprobs
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Positions, Row
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.teacher import fixed_teacher, live_scorer


def row_logprobs(stage: Stage, rows: Sequence[Row], of: str | None = None) -> list[torch.Tensor]:
    """Log-probabilities [completion tokens], in nats, of each row's completion.

    They are float32, on the CPU. of: under which ``stage.start``; the live model if left out.
    """
    given = stage.training.micro_batch_tokens if stage.training else None
    limit = given or stage.passes.tokens
    scorer = fixed_teacher(stage, of, limit) if of else live_scorer(stage, limit)
    return [scores.cpu() for scores in completion_logprobs(scorer, rows, temperature=1.0)]


def row_key(row: Row) -> str:
    """The same text for the same tokens."""
    return hashlib.blake2b(repr((row.prompt, row.completion)).encode(), digest_size=16).hexdigest()


class Scores:
    """Log-probabilities of rows under the model at the start ``of`` the stage or the run.

    Each row is scored once in a stage, when it is first asked for. ``stage.keep`` can hold them.
    """

    def __init__(self, stage: Stage, of: str) -> None:
        self.stage = stage
        self.start = of
        self.known: dict[str, torch.Tensor] = {}

    def of(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """As ``row_logprobs``."""
        new = {row_key(row): row for row in rows}
        new = {key: row for key, row in new.items() if key not in self.known}
        if new:
            scores = row_logprobs(self.stage, list(new.values()), self.start)
            self.known.update(zip(new, scores, strict=True))
        return [self.known[row_key(row)] for row in rows]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.known)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.known = dict(state)


class RowWeighting(Part):
    """A part that knows the weights of all tokens of a step before the pass over them."""

    def row_weights(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Float32 weights [completion tokens] of each row."""
        raise NotImplementedError

    def weigh(self, rows: Sequence[Row]) -> None:
        self.table = pad_sequence(self.row_weights(rows), batch_first=True)

    def weights(
        self, rows: Sequence[Row], positions: Positions, logits: torch.Tensor
    ) -> torch.Tensor:
        self.table = self.table.to(logits.device)
        return self.table[positions.rows, positions.offsets]


@dataclass
class StartConfig(PartConfig):
    """Options of weights that an earlier model gives."""

    of: str = option("stage", "whose start p_0 is", choices=("stage", "run"))


class StartWeighting(RowWeighting):
    """Weights by the probabilities that the model at a start gave to the tokens."""

    Config = StartConfig
    config: StartConfig

    def begin(self, stage: Stage) -> None:
        self.scores = Scores(stage, self.config.of)
        stage.keep(**{type(self).__name__.lower(): self.scores})

    def end(self, stage: Stage) -> None:
        stage.let_go(self.scores)
        del self.scores

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        once = min(1, len(outlook.skill.examples("train")) / outlook.prompts)
        length = outlook.prompt + (outlook.demonstration or outlook.answer)
        scored = work.scored + once * length
        return replace(work.with_start(self.config.of, outlook), scored=scored)


def mean_over_kept(masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Weights with which a mean over all tokens is the mean over those that ``masks`` keep."""
    count = sum(map(len, masks))
    kept = sum(int(mask.sum()) for mask in masks)
    return [mask.float() * (count / max(1, kept)) for mask in masks]
