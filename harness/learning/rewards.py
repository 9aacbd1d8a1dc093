"""Rewards of the answers that a model gives to a prompt, several to each: its group."""

from collections.abc import Sequence

import torch

from harness.base.errors import UserError
from harness.learning.stage import Stage
from harness.sampling.sampler import Completion
from harness.skills.skill import Example


def group_rewards(
    stage: Stage, examples: Sequence[Example], groups: Sequence[Sequence[Completion]]
) -> torch.Tensor:
    """Rewards [groups, group_size] of the completions of each example.

    Raises UserError for one that is not finite.
    """
    rewards = torch.tensor(
        [[stage.reward(e, c) for c in group] for e, group in zip(examples, groups, strict=True)]
    )
    if not rewards.isfinite().all():
        raise UserError(f"skill {stage.skill.name}", "a reward is not finite", "mend reward()")
    return rewards


def accepted(rewards: torch.Tensor, accept: float) -> list[list[bool]]:
    """Which rewards, as ``group_rewards`` gives them, are at least ``accept``.

    That is rounded as they are: a reward of 0.9 in float32 is less than 0.9 in float64.
    """
    return [row.tolist() for row in rewards >= torch.tensor(accept, dtype=rewards.dtype)]


def alike(rewards: torch.Tensor) -> torch.Tensor:
    """Which groups of rewards [groups, group_size] are all equal: booleans [groups].

    Their standard deviation does not tell, which a rounding may put off 0.
    """
    return (rewards == rewards[:, :1]).all(1)
