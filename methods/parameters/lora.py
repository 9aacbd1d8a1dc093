"""LoRA: the change of each linear map has a low rank (Hu et al. 2021, arXiv 2106.09685).

    W = W_0 + s B A,    s = alpha / rank, or alpha / sqrt(rank) with ``rslora``

A [rank, inputs] begins uniform in +-1 / sqrt(inputs), B [outputs, rank] at 0. All linear maps but
the output head are targets, as "LoRA without regret" has it (Schulman et al. 2025); the paper has
``targets: [q_proj, v_proj]``. Gradients and steps are those of PEFT's layers, without dropout.

``adapter`` names two baselines of continual learning that papers rarely tell apart:

* ``merged``: each stage trains a new adapter on the weights that the one before left, and ends with
  it merged. The sum of the changes may have any rank.
* ``continued``: one adapter is trained through the run on the weights of the base model. The whole
  change has one low rank. AdamW begins again in each stage, as with all weights.

The learning rate needs its own search: about ten times that of all weights. Settings of papers:
TRACE rank 8, alpha 32, rate 1e-4; O-LoRA rank 8, alpha 32, 1e-3; Tinker rank 64 to 128, 5e-4. Some
have dropout of 0.1 on an adapter's input. "Forgets less" is often at less learned (arXiv
2405.09673).

``base: nf4`` is QLoRA (Dettmers et al. 2023, arXiv 2305.14314): W_0 is kept in 4 bits alone, one of
NormalFloat's 16 values times the largest of 64 weights (section 3 and appendix E). bitsandbytes
rounds it. The largest stay in float32, where the paper rounds them as well.

The run trains on the rounded W_0 from its first step, so what rounding costs is in the first
stage's numbers. It wants ``adapter: continued``: a merged adapter would be rounded with the
weights. W itself is in memory in the model's dtype, where QLoRA makes it anew for each product:
this saves the second copy, not the first.

State: A and B where they are continued, with the 4 bits of W_0, else nothing. Cost: beside the
model, W_0 of the linear maps in memory, in its dtype or in 4.5 bits a weight, and 16 bytes for each
number of A and B; two thirds of the products of a training pass over all weights.
"""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.base.errors import UserError
from harness.base.settings import option
from harness.learning.low_rank import AdapterConfig, LowRank
from harness.learning.parametrisation import Tensors
from harness.models import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 64  # weights with one constant


@dataclass
class LoRAConfig(AdapterConfig):
    base: str = option(
        "model",
        "W_0 in the model's dtype, or in 4 bits (QLoRA; needs bitsandbytes)",
        choices=("model", "nf4"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base == "nf4" and self.adapter == "merged":
            raise ValueError(
                "base: nf4 would round a merged adapter away; write adapter: continued"
            )


class LoRA(LowRank):
    Config = LoRAConfig
    config: LoRAConfig

    @property
    def keeps_base(self) -> bool:
        return self.config.base == "model"

    def trained(self, model: "PreTrainedModel") -> list[str]:
        """Raises UserError where a 4-bit base cannot be had."""
        if not self.keeps_base:
            if importlib.util.find_spec("bitsandbytes") is None:
                problem, remedy = "nf4 needs bitsandbytes", "pip install -r requirements-4bit.txt"
                raise UserError("base", problem, remedy)
            if ranks.count() > 1:
                raise UserError("base", "nf4 is of whole weights", "run it in one process")
        return super().trained(model)

    def beside(self, weight: torch.Tensor) -> int:
        """4 bits a weight and a float32 constant a block, as float32 numbers."""
        blocks = -(-weight.numel() // BLOCK)
        return 0 if self.keeps_base else -(-weight.numel() // 8) + blocks

    def initial(self, weight: torch.Tensor, generator: torch.Generator) -> tuple[Tensors, Tensors]:
        numbers, fixed = super().initial(weight, generator)
        return numbers, fixed if self.keeps_base else _rounded(weight)

    def weight(self, base: torch.Tensor, numbers: Tensors, fixed: Tensors) -> torch.Tensor:
        if self.keeps_base:
            return super().weight(base, numbers, fixed)
        shape = (len(numbers["lora_B"]), numbers["lora_A"].shape[1])
        return super().weight(_unrounded(fixed, shape), numbers, {})


# bitsandbytes rounds flat tensors: on a CPU its kernel takes a row for whole blocks (0.50.2), which
# rows of 96 weights are not.


def _rounded(weight: torch.Tensor) -> Tensors:
    """4 bits of each weight, two in a byte, and the constant of each block."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.flatten(), blocksize=BLOCK, quant_type="nf4")
    return {"nf4": codes, "absmax": state.absmax}


def _unrounded(fixed: Tensors, shape: tuple[int, int]) -> torch.Tensor:
    """The float32 weight of ``_rounded``'s result."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    flat = torch.Size([shape[0] * shape[1]])
    state = QuantState(fixed["absmax"], flat, None, BLOCK, "nf4", torch.float32)
    weight: torch.Tensor = dequantize_4bit(fixed["nf4"], state)
    return weight.view(shape)
