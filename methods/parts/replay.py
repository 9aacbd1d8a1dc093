"""Experience replay: each step learns from examples of earlier skills as well.

A buffer keeps training examples of the skills that were learned. A replayed example is learned as
the method learns one of its own skill's: SFT from its demonstration, SDFT and GRPO from answers
that are sampled and taught anew, with the template, reward and limit of the example's skill.

Conventions
* ``ratio`` is the share of each earlier skill's training examples that the buffer keeps (TRACE,
  arXiv 2310.06762, keeps 10%); ``rows`` is the size of the whole buffer, in the same parts for each
  earlier skill. The kept ones are drawn once at the end of their stage (``selection: random``), or
  are the first ones.
* ``share`` of a step's examples are replayed, on top of the budget: a batch of 8 gets 2 at 0.25.
  They are mixed into every step, where TRACE's code replays in an epoch after each task.
  The records count them as prompts drawn.
* Draws go through the buffer in shuffled passes.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.draws import draws
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage, Step
from harness.skills.skill import Example


@dataclass
class ReplayConfig(PartConfig):
    ratio: float | None = option(
        None,
        "share of each earlier skill's training examples that are kept; 0.1 if neither this nor "
        "rows is given",
        above=0,
        max=1,
    )
    rows: int | None = option(None, "examples kept in all, instead of ratio", min=1)
    selection: str = option("random", "which examples are kept", choices=("random", "first"))
    share: float = option(
        0.25, "replayed examples of a step, as a share of its own", above=0, max=10
    )

    def __post_init__(self) -> None:
        if self.ratio is not None and self.rows is not None:
            raise ValueError("give ratio or rows, not both")


class Replay(Part):
    Config = ReplayConfig
    config: ReplayConfig

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config)
        self.buffer: dict[str, list[Example]] = {}  # by skill, in the order of learning

    def check(self, order: OrderView, method: Method, place: str) -> None:
        if len(order.skills) < 2:
            raise UserError(place, "an order of one skill has no earlier one to replay")

    def examples(self, stage: Stage, step: Step) -> Sequence[Example]:
        kept = [example for of_skill in self.buffer.values() for example in of_skill]
        if not kept:
            return ()
        first, end = (self._drawn(stage, n) for n in (step.index, step.index + 1))
        order = draws(len(kept), end, seed_for(stage.seed, stage.index, "replay"))
        return [kept[i] for i in order[first:end]]

    def _drawn(self, stage: Stage, steps: int) -> int:
        """Replayed examples of the first ``steps`` steps."""
        return math.floor(self.config.share * stage.batch_size * steps)

    def end(self, stage: Stage) -> None:
        """Keep examples of the stage's skill."""
        config, examples = self.config, list(stage.examples)
        if config.selection == "random":
            random.Random(seed_for(stage.seed, stage.index, "replay buffer")).shuffle(examples)
        size = config.rows or math.ceil((config.ratio or 0.1) * len(examples))
        self.buffer[stage.skill.name] = [
            replace(example, skill=stage.skill.name) for example in examples[:size]
        ]
        if config.rows:
            each, more = divmod(config.rows, len(self.buffer))
            self.buffer = {
                name: kept[: each + (number < more)]
                for number, (name, kept) in enumerate(self.buffer.items())
            }

    def work(self, outlook: Outlook, work: Work, stage: int) -> Work:
        """As if a replayed example took what one of the stage's own skill takes."""
        if stage == 1:
            return work
        more = 1 + self.config.share
        return replace(
            work,
            learned=work.learned * more,
            scored=work.scored * more,
            read=work.read * more,
            answers=work.answers * more,
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: [asdict(e) for e in kept] for name, kept in self.buffer.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer = {name: [Example(**fields) for fields in kept] for name, kept in state.items()}
