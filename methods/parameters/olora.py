"""O-LoRA: each stage's LoRA is orthogonal to earlier ones (Wang et al. 2023, arXiv 2310.14152).

    L = the method's loss + lambda_1 sum_{i<k} sum |A_i A_k^T| + lambda_2 sum (||A_k|| + ||B_k||)

The sums are over all targets, A_i are of the stages before, and norms are Frobenius norms. The
adapters of earlier stages are frozen and summed, so each is merged at the end of its stage.

Where codes differ: the sum of absolute entries grows with ranks, stages and layers, so lambda_1
means something else for another model or ``targets``. It is met by a small A_k as well as by an
orthogonal one, so ``overlap``, the mean |cosine| of rows of A_k and of earlier ones, and
``adapter_norm``, the norm of all A_k, are logged.

The published script has rank 8, alpha 32, ``targets: [q_proj, v_proj]``, rate 1e-3, constant. It
sets both lambdas by hand for each task: lambda_1 0.5 for most and 5 for others, lambda_2 0 to 0.3.

State: all A_i, one after another. Cost: that of `lora`, and all A_i in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from harness.base.settings import option
from harness.learning.low_rank import LowRank, LowRankConfig
from harness.learning.parametrisation import Size, Tensors, add_gradient
from harness.learning.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class OLoRAConfig(LowRankConfig):
    lambda_1: float = option(0.5, "weight of the overlap with earlier stages", min=0, max=1e6)
    lambda_2: float = option(0.0, "weight of the norms of A and B", min=0, max=1e6)


class OLoRA(LowRank):
    Config = OLoRAConfig
    config: OLoRAConfig

    def __init__(self, config: OLoRAConfig | None = None) -> None:
        super().__init__(config)
        self.earlier: Tensors = {}  # rows of all A_i [ranks, inputs], by the name of A

    def size(self, model: "PreTrainedModel") -> Size:
        size = super().size(model)
        return replace(size, kept=size.numbers)  # A alone, but of all stages

    @torch.no_grad()
    def loss(self, masters: Mapping[str, torch.Tensor]) -> dict[str, float]:
        config, device = self.config, next(iter(masters.values())).device
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        for name, master in masters.items():
            if (norm := master.norm()) > 0:
                add_gradient(master, master * (config.lambda_2 / norm))
            sums[1] += norm
            if "lora_A" not in name:
                continue
            sums[3] += norm**2
            if not self.earlier:
                continue
            earlier = self.earlier[name] = self.earlier[name].to(device)
            products = earlier @ master.T
            add_gradient(master, config.lambda_1 * (products.sign().T @ earlier))
            sums[0] += products.abs().sum()
            sums[2] += (F.normalize(earlier) @ F.normalize(master).T).abs().mean()
        overlap, norms, cosines, square = sums.tolist()
        return {
            "olora_loss": config.lambda_1 * overlap + config.lambda_2 * norms,
            "overlap": cosines / len(self.made),
            "adapter_norm": square**0.5,
        }

    def end(self, stage: Stage) -> None:
        for name, value in self.numbers.items():
            if "lora_A" in name:
                rows = value.detach().cpu()
                old = self.earlier.get(name)
                self.earlier[name] = rows if old is None else torch.cat([old.cpu(), rows])
        super().end(stage)

    def state_dict(self) -> dict[str, Any]:
        return {"earlier": dict(self.earlier)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.earlier = dict(state["earlier"])
