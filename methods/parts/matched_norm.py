"""Matched norm: the control that only takes smaller steps, or larger ones, than the method does.

    theta <- theta_before + c u

u is the step's update of all weights after AdamW; its direction stays and the factor c makes its
size that of another method's at the same step. So SFT with ``like: stm`` learns with the step sizes
of the method ``stm`` of the order, at the same seed: what is still between the two is not that one
moved less.

``like`` names a label that stands before in ``methods``, or a point of a grid for a
point of a later one. It has this part as well (``with: {stm: {}, matched_norm: {}}``). ``of`` says
which size is matched:

* ``update``: the L2 norm |u| of each update.
* ``distance``: |theta - theta_0|, of the float32 masters from the stage's start; not of the model's
  own weights, of which `change` in stage.json is. AdamW's updates have nearly the same
  norm whatever the loss is scaled by; weighted losses differ in how far they get. c is the root at
  which the new distance is the other method's, or takes the weights as near to it as the direction
  can.

``norm``, a number, is the norm of an update at the peak of the learning rate, and goes down with
the schedule. Without ``like`` and ``norm`` c is 1 and nothing changes.

Each step logs ``update_norm`` |c u|, ``distance`` and ``stretch`` c. With several updates a step
(inner batches) ``like`` is refused. A reference run follows the same reference of the other method.
Other parts' updates are in u but for those of ``project`` that join behind it. A learning rate at
which the norms agree in the mean is the simpler control; this one needs no search and agrees in
each step.

State: nothing. Cost: theta_0 and the weights before the step in memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.base.errors import UserError
from harness.base.files import read_jsonl
from harness.base.settings import option
from harness.learning.inner import InnerOptions
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.step import Step

SEVERAL = (
    "like wants one update for each step; the method makes several",
    "set inner_batches and inner_epochs to 1",
)
Tensors = Mapping[str, torch.Tensor]


@dataclass
class MatchedNormConfig(PartConfig):
    like: str | None = option(None, "label of the method whose step sizes are taken")
    of: str = option("update", "whose size is matched", choices=("update", "distance"))
    norm: float | None = option(
        None,
        "L2 norm of an update at the peak of the learning rate, instead of like",
        above=0,
        max=1e6,
    )

    def __post_init__(self) -> None:
        if self.norm is not None and (self.like is not None or self.of == "distance"):
            raise ValueError("norm is that of an update; leave like and of out, or norm")


class MatchedNorm(Part):
    Config = MatchedNormConfig
    config: MatchedNormConfig

    def check(self, order: OrderView, method: Method, place: str) -> None:
        options = method.config
        if self.config.like is not None and isinstance(options, InnerOptions) and options.several:
            raise UserError(place, *SEVERAL)

    def follows(self) -> str | None:
        return self.config.like

    def begin(self, stage: Stage) -> None:
        self.targets = self._targets(stage)
        self.last = -1  # step of the last update
        self.logged: dict[str, float] = {}

    def _targets(self, stage: Stage) -> list[float] | None:
        """The other method's sizes, one for each step; None without one.

        They are of the same stage of the same run: a reference run follows that of the method.
        Raises UserError where there is none, or one of another number of steps.
        """
        if self.config.like is None:
            return None
        place = f"with.matched_norm: like: {self.config.like}"
        name = f"{self.config.like}{stage.reference}-seed{stage.seed}"
        run = stage.folder.parents[2] / name
        file = run / f"stage-{stage.number}" / "training.jsonl"
        if not file.is_file():
            raise UserError(
                place,
                f"run {run.name} has no stage {stage.number} in the results folder",
                "name a method that stands before this one in the order",
            )
        key = "update_norm" if self.config.of == "update" else "distance"
        sizes = [row.get(key) for _, row in read_jsonl(file)]
        if any(size is None for size in sizes):
            raise UserError(
                place, f"{file} has no {key}", "give that method `with: {matched_norm: {}}`"
            )
        if len(sizes) != stage.steps_in_all:
            raise UserError(
                place,
                f"it made {len(sizes)} steps in stage {stage.number}, this one makes "
                f"{stage.steps_in_all}",
                "give both the same budget and batch size",
            )
        return [float(size) for size in sizes if size is not None]

    @torch.no_grad()
    def project(self, before: Tensors, after: Tensors) -> None:
        stage, start = self.stage, self.stage.start("stage")
        squares = products = behind = 0.0  # u . u, (theta_before - theta_0) . u, and its square
        for name, weight in after.items():
            moved = weight - before[name]
            away = before[name] - start.get_parameter(name).to(weight)
            squares += moved.square().sum(dtype=torch.float64).item()
            products += (away * moved).sum(dtype=torch.float64).item()
            behind += away.square().sum(dtype=torch.float64).item()
        factor = self._factor(squares, products, behind)
        if factor != 1:
            for name, weight in after.items():
                weight.sub_(before[name]).mul_(factor).add_(before[name])
        ends = behind + factor * (2 * products + factor * squares)
        self.logged = {"distance": math.sqrt(max(ends, 0)), "stretch": factor}
        if self.last != stage.step:  # of several updates none is that of the step
            self.logged["update_norm"] = abs(factor) * math.sqrt(squares)
        self.last = stage.step

    def _factor(self, squares: float, products: float, behind: float) -> float:
        """c, from the sums that ``project`` made."""
        stage, config = self.stage, self.config
        if not squares or (self.targets is None and config.norm is None):
            return 1.0
        if config.norm is not None:
            assert stage.training is not None  # of the trainer that made the update
            peak = stage.training.learning_rate
            return config.norm * (stage.rate / peak if peak else 1) / math.sqrt(squares)
        assert self.targets is not None
        if self.last == stage.step:
            raise UserError("with.matched_norm", *SEVERAL)
        target = self.targets[stage.step]
        if config.of == "update":
            return target / math.sqrt(squares)
        return nearest_root(squares, products, behind - target**2)

    def updated(self, step: Step) -> None:
        step.log(**self.logged)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        held = work.held + 4 * outlook.parameters
        return replace(work.with_start("stage", outlook), held=held)


def nearest_root(a: float, b: float, c: float) -> float:
    """The x from 0 on at which a x^2 + 2 b x + c is 0, or nearest to it; a is above 0.

    Of two such x the one nearer to 0; without one the least point, or 0 where that is below 0.
    """
    rest = b * b - a * c
    if rest < 0:
        return max(0.0, -b / a)
    roots = sorted([(-b - math.sqrt(rest)) / a, (-b + math.sqrt(rest)) / a])
    return next((root for root in roots if root >= 0), 0.0)
