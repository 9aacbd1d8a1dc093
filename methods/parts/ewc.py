"""Elastic weight consolidation, online EWC (arXiv 1612.00796; arXiv 1805.06370, "progress &
compress").

    L = the method's loss + (strength / 2) sum_i F_i (theta_i - theta*_i)^2

theta* are the weights at the start of the stage. F is the diagonal of the Fisher information of the
earlier skills, from ``examples`` of what each stage learned, at its end:

    F_i = mean over x of (d log p(y | x) / d theta_i)^2

* ``fisher: sampled`` samples y from the model, at temperature 1; ``empirical`` takes the
  demonstration. Squares are of the gradient of one whole sequence. The square of a batch's mean
  gradient, or of gradients while training, is another quantity, which some codes use.
* Each skill's F is divided by its mean over all weights, so that ``strength`` means the same
  whatever the length of answers. Other codes' strengths (TRACE: 400, with 1/2) are in their units.
* Online: F <- ``gamma`` F + F of the stage. There is one theta*, the last one.
* ``coupled``, and what ``strength`` is measured by: as in L2-SP, for a weight whose F is the mean.
  Most weights have less, and give way further. The penalty begins with the second stage.

State: F, a float32 for each weight. Cost: theta* and F in memory, and one pass forward and backward
over each of ``examples``, with an answer to sample for ``sampled``.

The method's folder holds ``fisher.json``: sequences, and F's mean before it was divided.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.logprobs import token_logprobs
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.penalty import Penalty, PenaltyConfig
from harness.learning.stage import Stage
from harness.learning.trainer import learning
from harness.skills.skill import Example


@dataclass
class EWCConfig(PenaltyConfig):
    fisher: str = option("sampled", "whose answers y are", choices=("sampled", "empirical"))
    examples: int = option(200, "examples of each skill for F, all where there are fewer", min=1)
    gamma: float = option(1.0, "what remains of the F of earlier skills", min=0, max=1)


class EWC(Penalty):
    Config = EWCConfig
    config: EWCConfig

    def __init__(self, config: EWCConfig) -> None:
        super().__init__(config)
        self.fisher: dict[str, torch.Tensor] = {}

    def check(self, order: OrderView, method: Method, place: str) -> None:
        if self.config.fisher == "sampled":
            return
        for skill in order.skills[:-1]:
            if any(example.demonstration is None for example in skill.examples("train")):
                raise UserError(
                    place,
                    f"fisher: empirical wants demonstrations; {skill.name} has none",
                    "take fisher: sampled",
                )

    def origin(self) -> str | None:
        return "stage" if self.fisher else None

    def importance(self, name: str, like: torch.Tensor) -> torch.Tensor:
        self.fisher[name] = self.fisher[name].to(like.device)
        return self.fisher[name]

    def end(self, stage: Stage) -> None:
        """Add the Fisher information of the stage's skill."""
        if not stage.later:
            return
        drawn = list(dict.fromkeys(stage.draws()))[: self.config.examples]
        squares, count = self._squares(stage, [stage.examples[i] for i in drawn])
        total = sum(square.sum(dtype=torch.float64).item() for square in squares.values())
        mean = total / sum(square.numel() for square in squares.values())
        for name, square in squares.items():
            new = square / mean if mean else square
            old = self.fisher.get(name)
            self.fisher[name] = new if old is None else new + self.config.gamma * old.to(new)
        write_json(stage.folder / "fisher.json", {"sequences": count, "mean": mean / count})

    def _squares(
        self, stage: Stage, examples: Sequence[Example]
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Sums of squared gradients by name, and of how many sequences."""
        assert stage.training is not None  # of the method's trainer
        count = 0
        config = dataclasses.replace(stage.training, dropout="none")
        with learning(stage, config, of_weights=True) as trainer:
            squares = {n: torch.zeros_like(w) for n, w in trainer.effective()}
            for batch in stage.over(examples, "Fisher information"):
                for row in self._rows(stage, batch, count):
                    trainer.backward(
                        [row], lambda logits, at: token_logprobs(logits, at.tokens).sum()
                    )
                    for name, gradient in trainer.take_gradients().items():
                        squares[name].addcmul_(gradient, gradient)
                    count += 1
        return {name: square.detach() for name, square in squares.items()}, count

    def _rows(self, stage: Stage, examples: Sequence[Example], first: int) -> list[Row]:
        if self.config.fisher == "empirical":
            return stage.demonstration_rows(examples)
        prompts = [stage.prompt_tokens(example) for example in examples]
        groups = stage.sample(
            prompts,
            seed=seed_for(stage.seed, stage.index, "Fisher information", first),
            max_new_tokens=stage.limits(examples),
            temperature=1.0,
            top_p=1.0,
        )
        return stage.rows(examples, prompts, groups)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        is_last = outlook.later == 0  # which adds nothing to F
        is_sampled = self.config.fisher == "sampled"
        answer = outlook.answer if is_sampled else outlook.demonstration
        drawn = min(outlook.prompts, len(outlook.skill.examples("train")))
        count = min(self.config.examples, drawn) * (not is_last)
        each = count / outlook.prompts
        return dataclasses.replace(
            work,
            learned=work.learned + each * (outlook.prompt + answer),
            read=work.read + each * outlook.prompt * is_sampled,
            beforehand=work.beforehand + each * is_sampled,
            sampled=work.sampled or outlook.answer,
            starts=work.starts | ({"stage"} if earlier else set()),
            held=work.held + 4 * outlook.parameters,
            further=work.further + count,
            kept=work.kept + 4 * outlook.parameters * (not is_last),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": dict(self.fisher)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fisher = dict(state["fisher"])
