"""Penalties on weights by what earlier skills say of them: what EWC and MAS share."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.penalty import Penalty, PenaltyConfig
from harness.learning.stage import Stage
from harness.learning.trainer import learning
from harness.skills.skill import Example


@dataclass
class ImportanceConfig(PenaltyConfig):
    """Options of a penalty by importance."""

    examples: int = option(200, "examples of each skill for F, all where there are fewer", min=1)
    gamma: float = option(1.0, "what remains of the F of earlier skills", min=0, max=1)

    @property
    def is_sampled(self) -> bool:
        """Whether the sequences are answers of the model, or else demonstrations."""
        raise NotImplementedError


class ImportancePenalty(Penalty):
    """``Penalty`` whose F comes from gradients of single sequences at the end of each stage.

    A subclass says what the gradient is of, and what it adds to F. what: names the work; file: of
    the method's folder, which says of how many sequences F is, and its mean before it was divided;
    wanted: the option that wants demonstrations.
    """

    Config = ImportanceConfig
    config: ImportanceConfig
    what: ClassVar[str]
    file: ClassVar[str]
    wanted: ClassVar[str]

    def __init__(self, config: ImportanceConfig) -> None:
        super().__init__(config)
        self.fisher: dict[str, torch.Tensor] = {}

    def check(self, order: OrderView, method: Method, place: str) -> None:
        if self.config.is_sampled:
            return
        for skill in order.skills[:-1]:
            if any(example.demonstration is None for example in skill.examples("train")):
                problem = f"{self.wanted} wants demonstrations; {skill.name} has none"
                raise UserError(place, problem, "take sampled answers")

    def origin(self) -> str | None:
        return "stage" if self.fisher else None

    def importance(self, name: str, like: torch.Tensor) -> torch.Tensor:
        self.fisher[name] = self.fisher[name].to(like.device)
        return self.fisher[name]

    def end(self, stage: Stage) -> None:
        """Add what the stage's skill says."""
        if not stage.later:
            return
        drawn = list(dict.fromkeys(stage.draws()))[: self.config.examples]
        sums, count = self._sums(stage, [stage.examples[i] for i in drawn])
        total = sum(each.sum(dtype=torch.float64).item() for each in sums.values())
        mean = total / sum(each.numel() for each in sums.values())
        for name, each in sums.items():
            new = each / mean if mean else each
            old = self.fisher.get(name)
            self.fisher[name] = new if old is None else new + self.config.gamma * old.to(new)
        write_json(stage.folder / self.file, {"sequences": count, "mean": mean / count})

    def _sums(
        self, stage: Stage, examples: Sequence[Example]
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Sums of what sequences add, by name, and of how many sequences."""
        assert stage.training is not None  # of the method's trainer
        count = 0
        config = dataclasses.replace(stage.training, dropout="none")
        with learning(stage, config, of_weights=True) as trainer:
            sums = {name: torch.zeros_like(w) for name, w in trainer.effective()}
            for batch in stage.over(examples, self.what):
                for row in self._rows(stage, batch, count):
                    trainer.backward([row], lambda logits, at: self.output(logits, at.tokens))
                    for name, gradient in trainer.take_gradients().items():
                        self.add(sums[name], gradient)
                    count += 1
        return sums, count

    def output(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What the gradient of a sequence is of: a scalar of a chunk's logits and tokens."""
        raise NotImplementedError

    def add(self, total: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add what one sequence's gradient says of a weight."""
        raise NotImplementedError

    def _rows(self, stage: Stage, examples: Sequence[Example], first: int) -> list[Row]:
        if not self.config.is_sampled:
            return stage.demonstration_rows(examples)
        prompts = [stage.prompt_tokens(example) for example in examples]
        groups = stage.sample(
            prompts,
            seed=seed_for(stage.seed, stage.index, self.what, first),
            max_new_tokens=stage.limits(examples),
            temperature=1.0,
            top_p=1.0,
        )
        return stage.rows(examples, prompts, groups)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        is_last = outlook.later == 0  # which adds nothing to F
        is_sampled = self.config.is_sampled
        answer = outlook.answer if is_sampled else outlook.demonstration
        drawn = min(outlook.prompts, len(outlook.skill.examples("train")))
        count = min(self.config.examples, drawn) * (not is_last)
        each = count / outlook.prompts
        return dataclasses.replace(
            work.with_start("stage", outlook) if earlier else work,
            learned=work.learned + each * (outlook.prompt + answer),
            read=work.read + each * outlook.prompt * is_sampled,
            beforehand=work.beforehand + each * is_sampled,
            sampled=work.sampled or outlook.answer,
            held=work.held + 4 * outlook.parameters,
            further=work.further + count,
            kept=work.kept + 4 * outlook.parameters * (not is_last),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": dict(self.fisher)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fisher = dict(state["fisher"])
