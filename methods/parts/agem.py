"""A-GEM: no step raises the loss on examples of earlier skills, to first order (arXiv 1812.00420).

    u <- u - (u . g / g . g) g    where u . g > 0

u is the step's update of all weights, g the gradient of the mean loss of ``share`` examples of a
memory of earlier skills for each example of the batch, at the weights before the step:
cross-entropy on their demonstrations, whatever the method.

The paper projects the gradient of the skill against g (``project: gradient``). AdamW then divides
it entry by entry and adds what its moments have of earlier steps, so that the update may still
raise the loss; here the ``update`` is projected, after AdamW, weight decay and whatever other parts
make of it. AdamW's moments are of the gradient as it was.

At a stage's end ``rows`` of the examples that it drew, at random, go into the memory. The first
stage has none.

State: the kept examples, as texts. Cost: g and the weights before the step in memory, and a pass
forward and backward over the memory's examples for each update.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.draws import draws
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Positions
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.trainer import Trainer, cross_entropy
from harness.skills.skill import Example

Tensors = Mapping[str, torch.Tensor]


@dataclass
class AGEMConfig(PartConfig):
    rows: int = option(
        100, "examples of each skill in the memory, all where there are fewer", min=1
    )
    share: float = option(1.0, "memory's examples for each example of a batch", above=0, max=100)
    project: str = option("update", "what is projected", choices=("update", "gradient"))


class AGEM(Part):
    Config = AGEMConfig
    config: AGEMConfig

    def __init__(self, config: AGEMConfig) -> None:
        super().__init__(config)
        self.memory: list[Example] = []
        self.reference: dict[str, torch.Tensor] = {}  # g, from ``loss`` to ``project``
        self.projected = False  # whether the last update was

    def check(self, order: OrderView, method: Method, place: str) -> None:
        if len(order.skills) < 2:
            raise UserError(place, "an order of one skill has no earlier one")
        for skill in order.skills[:-1]:
            if any(example.demonstration is None for example in skill.examples("train")):
                raise UserError(place, f"its memory wants demonstrations; {skill.name} has none")

    def wants_weights(self) -> str:
        return ""  # To first order the loss changes by u . g of whatever is trained.

    def loss(self, trainer: Trainer, step: Step) -> Mapping[str, float]:
        if not self.memory:
            return {}
        stage = self.stage
        count = max(1, round(self.config.share * stage.batch_size))
        seed = seed_for(stage.seed, stage.index, "agem")
        drawn = draws(len(self.memory), count * (step.index + 1), seed)[count * step.index :]
        rows = stage.demonstration_rows(self.memory[i] for i in drawn)
        tokens = sum(len(row.completion) for row in rows)

        def mean(logits: torch.Tensor, at: Positions) -> torch.Tensor:
            return cross_entropy(logits, at.tokens) / tokens

        own = trainer.take_gradients()
        value = trainer.backward(rows, mean)
        self.reference = trainer.take_gradients()
        if self.config.project == "gradient":
            self._take_out(own, own.get, -1)
        trainer.give_gradients(own)
        return {"agem_loss": value}

    @torch.no_grad()
    def project(self, before: Tensors, after: Tensors) -> None:
        if self.reference:
            self._take_out(after, lambda name: after[name] - before[name], 1)

    def _take_out(
        self,
        changed: Tensors,
        vector: Callable[[str], torch.Tensor | None],
        sign: int,
    ) -> None:
        """Take g's direction out of ``changed`` where sign (vector . g) > 0."""
        product = square = 0.0
        for name, reference in self.reference.items():
            square += reference.square().sum(dtype=torch.float64).item()
            if (own := vector(name)) is not None:
                product += (own * reference).sum(dtype=torch.float64).item()
        self.projected = sign * product > 0
        for name, reference in self.reference.items():
            if self.projected and (tensor := changed.get(name)) is not None:
                tensor.sub_(reference, alpha=product / square)
        self.reference = {}

    def updated(self, step: Step) -> None:
        if self.memory:
            step.log(projected=float(self.projected))

    def end(self, stage: Stage) -> None:
        if not stage.later:
            return
        drawn = list(dict.fromkeys(stage.draws()))
        random.Random(seed_for(stage.seed, stage.index, "agem memory")).shuffle(drawn)
        self.memory += [
            replace(stage.examples[i], skill=stage.skill.name) for i in drawn[: self.config.rows]
        ]

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        length = outlook.prompt + outlook.demonstration
        learned = self.config.share * length if earlier else 0.0
        rows = sum(
            min(self.config.rows, each.prompts, len(each.skill.examples("train")))
            for each in (*earlier, outlook)
        )
        return replace(
            work,
            learned=work.learned + learned,
            held=work.held + 8 * outlook.parameters,
            kept=work.kept + rows * outlook.example_bytes * (outlook.later > 0),
            gold_rows=work.gold_rows + rows * (outlook.later > 0),
        )

    def gold_rows(self) -> int:
        return len(self.memory)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": [asdict(example) for example in self.memory]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = [Example(**fields) for fields in state["memory"]]
