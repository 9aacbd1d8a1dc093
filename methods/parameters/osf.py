"""OSF: each weight learns in its small singular values alone (Nayak et al. 2025, arXiv 2504.07097).

    W = U_h S_h V_h + U_l S_l V_l

This is the singular value decomposition of a weight at the start of the stage. The share
``preserved`` of the singular values, the largest, and their vectors stay. U_l, S_l and V_l learn,
U_l and V_l orthogonal to U_h and V_h:

    U_l <- U_l - U_h U_h^T U_l,    V_l <- V_l - V_l V_h^T V_h

This is done after each step. The paper's code and PEFT project gradients alone (``project:
gradient``). AdamW divides these entry by entry, so that steps leave the subspace.

Each stage decomposes again. ``growth`` is added to the share with each stage, as the paper has it
("the preserved rank grows with the tasks"); PEFT's default is half, without growth.

State: nothing but the weights. Cost: more memory than with all weights: beside the model W_0, 16
bytes for each of U_l, S_l, V_l, and 4 for each of U_h, S_h, V_h. A decomposition of each weight at
the start of a stage, and two products a weight and step for the projection.
"""

from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.made_weights import MadeConfig, MadeWeights
from harness.learning.parametrisation import Tensors
from harness.learning.stage import Stage

LEFT, VALUES, RIGHT = "osf_U_low", "osf_S_low", "osf_V_low"


@dataclass
class OSFConfig(MadeConfig):
    preserved: float = option(
        0.5, "share of singular values that stay in the first stage", min=0, max=1
    )
    growth: float = option(0.0, "what each further stage adds to it", min=0, max=1)
    project: str = option(
        "update",
        "what is kept orthogonal to what stays: U_l and V_l after each step, or their gradients",
        choices=("update", "gradient"),
    )


class OSF(MadeWeights):
    Config = OSFConfig
    config: OSFConfig
    kinds = (LEFT, VALUES, RIGHT)
    number = 1  # of the stage in its run

    def begin(self, stage: Stage) -> None:
        self.number = stage.number
        super().begin(stage)

    def _preserved(self, weight: torch.Tensor) -> int:
        """How many singular values of a weight stay; one at least learns."""
        share = self.config.preserved + (self.number - 1) * self.config.growth
        return min(int(share * min(weight.shape)), min(weight.shape) - 1)

    def count(self, weight: torch.Tensor) -> int:
        return (min(weight.shape) - self._preserved(weight)) * (sum(weight.shape) + 1)

    def beside(self, weight: torch.Tensor) -> int:
        return self._preserved(weight) * (sum(weight.shape) + 1)

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        u, values, v = torch.linalg.svd(weight, full_matrices=False)  # from the largest on
        k = self._preserved(weight)
        numbers = {LEFT: u[:, k:].cpu(), VALUES: values[k:].cpu(), RIGHT: v[k:].cpu()}
        return numbers, {"U": u[:, :k].clone(), "S": values[:k].clone(), "V": v[:k].clone()}

    def weight(self, base: torch.Tensor, numbers: Tensors, fixed: Tensors) -> torch.Tensor:
        high = (fixed["U"] * fixed["S"]) @ fixed["V"]
        return torch.addmm(high, numbers[LEFT] * numbers[VALUES], numbers[RIGHT])

    def gradients(
        self, base: torch.Tensor, numbers: Tensors, fixed: Tensors, gradient: torch.Tensor
    ) -> Tensors:
        of_right, of_left = numbers[LEFT].T @ gradient, gradient @ numbers[RIGHT].T
        found = {
            LEFT: of_left * numbers[VALUES],
            VALUES: (numbers[LEFT] * of_left).sum(0),
            RIGHT: numbers[VALUES][:, None] * of_right,
        }
        if self.config.project == "gradient":
            _project(found, fixed)
        return found

    def bring_back(self, numbers: Tensors, fixed: Tensors) -> None:
        if self.config.project == "update":
            _project(numbers, fixed)


def _project(numbers: Tensors, fixed: Tensors) -> None:
    """Take the directions that stay out of U_l and V_l, or of what is like them, in place."""
    left, right = numbers[LEFT], numbers[RIGHT]
    u, v = fixed["U"].to(left.device), fixed["V"].to(right.device)
    left.sub_(u @ (u.T @ left))
    right.sub_((right @ v.T) @ v)
