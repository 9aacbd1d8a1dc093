"""DARE: task arithmetic over vectors most of whose entries are dropped (arXiv 2311.03099).

    theta = theta_B + scale sum_k m_k tau_k / (1 - drop),    m_k 0 with the chance drop, else 1

theta_B, tau_k and ``begin`` are as in task arithmetic. An entry's expected value is as without
dropping. Draws are of their own for each stage, weight and seed of the run.

The paper's setting: drop 0.9, for vectors of small entries; where training moved weights far it
breaks the model.

State: the sum of what was not dropped, a float32 for each weight. Cost: as task arithmetic.
"""

from dataclasses import dataclass

import torch

from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.task_vectors import TaskVectorConfig, TaskVectors


@dataclass
class DAREConfig(TaskVectorConfig):
    drop: float = option(0.9, "chance that an entry is dropped", min=0, max=0.999999)


class DARE(TaskVectors):
    Config = DAREConfig
    config: DAREConfig

    def add(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        seed = seed_for(self.stage.seed, self.stage.index, "dare", name)
        draws = torch.rand(vector.shape, generator=torch.Generator().manual_seed(seed))
        kept = (draws >= self.config.drop).to(vector)
        return self.total("sum", name, vector * kept / (1 - self.config.drop))
