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

State: A and B where they are continued, else nothing. Cost: beside the model, W_0 of the linear
maps in memory, in its dtype, and 16 bytes for each number of A and B; two thirds of the products of
a training pass over all weights.
"""

from dataclasses import dataclass

from harness.learning.low_rank import AdapterConfig, LowRank


@dataclass
class LoRAConfig(AdapterConfig):
    pass


class LoRA(LowRank):
    Config = LoRAConfig
