"""L2-SP: weights are pulled towards where they started (Li et al. 2018, arXiv 1802.01483).

    L = the method's loss + (strength / 2) sum_i (theta_i - theta*_i)^2

theta* are the weights at the start of the ``stage``, or with ``of: run`` those of the base model,
which are pulled to in every stage.

``coupled: true``, as in the paper, adds the penalty's gradient to that of the loss. Clipping and
AdamW's division then hide its strength. With ``coupled: false`` it acts beside AdamW, as decoupled
weight decay does: by its proximal step at the step's learning rate, stable at any strength. A
weight that AdamW moves by the learning rate in each step then ends at most 1 / strength away.

What ``strength`` is measured by:
* ``coupled: false``: with a = strength x learning rate x steps of the stage, a weight that AdamW
  moves one way goes (1 - exp(-a)) / a of the way that it goes without: 0.95 at a = 0.1, 0.63 at 1,
  0.10 at 10. a = 1 is a strength of 312 at the rate 2e-4 over 16 steps, and of 5 at 1e-3 over 200.
  The default 1 is meant for ``coupled: true``. No value fits all: it trades learning against
  forgetting, so search it.
* ``coupled: true``: the penalty weighs as much as the loss where strength |theta - theta*| is the
  gradient norm of the loss (``change`` in stage.json, ``grad_norm`` in training.jsonl).

State: nothing; theta* is read from where the run keeps it. Cost: a second copy of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.settings import option
from harness.learning.outlook import Outlook, Work
from harness.learning.penalty import Penalty, PenaltyConfig


@dataclass
class L2SPConfig(PenaltyConfig):
    of: str = option("stage", "whose start the weights are pulled to", choices=("stage", "run"))


class L2SP(Penalty):
    Config = L2SPConfig
    config: L2SPConfig

    def origin(self) -> str:
        return self.config.of

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        return work.with_start(self.config.of, outlook)
