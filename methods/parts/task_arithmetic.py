"""Task arithmetic: the sum of what the stages learned, scaled (arXiv 2212.04089).

    theta = theta_B + scale sum_k tau_k

theta_B are the weights of the base model. A stage's training begins at the ``base`` model, as in
the paper, and tau_k is what it changed; the stage ends with theta, which is measured. With ``begin:
merged`` training begins at the theta of the stage before, and tau_k is what it changed there;
``scale: 1`` then changes nothing.

The start of the stage, for parts that ask for it, stays the theta of the stage before.

The paper chooses scale by validation, mostly 0.3 to 0.5; TIES' authors take 0.4 without.

State: the sum of task vectors, a float32 for each weight. Cost: theta_B in memory, and with
``merged`` the stage's start.
"""

import torch

from harness.learning.task_vectors import TaskVectors


class TaskArithmetic(TaskVectors):
    def add(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        return self.total("sum", name, vector)
