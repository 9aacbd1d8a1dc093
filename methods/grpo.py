"""Group-relative policy optimisation (GRPO), DeepSeekMath, arXiv 2402.03300.

The on-policy reinforcement-learning baseline. Every prompt is sampled ``group_size`` times from the
live model. A completion's advantage is its reward less the mean of its group, divided by the
group's standard deviation (unbiased, plus 1e-4):

    A = (R - mean R) / (std R + 1e-4),    loss of token t = -A p(y_t) / p_old(y_t)

With one update for each batch of rollouts p_old is p, the ratio is 1, clipping never acts and the
gradient is the plain policy gradient -A grad log p(y_t): there is no clip option.

Conventions
* ``normalise: tokens`` divides by the number of completion tokens of the step (DAPO's loss, arXiv
  2503.14476, TRL's default); ``sequences`` takes each completion's mean first (the original GRPO);
  ``constant`` divides by completions x the rollout limit (Dr. GRPO, arXiv 2503.20783).
* ``kl_beta`` adds beta times the k3 estimate of KL(policy || policy at the start of the stage) to
  every token's loss: q/p - log q/p - 1 at y_t, with q the policy at the start. Its gradient is the
  plain one of GRPO (TRL's with ``use_bias_correction_kl=False``, which is not TRL's default).
* ``importance_cap``: where another engine sampled, every token's policy loss (not its KL term) is
  weighted by min(cap, p / p_sampler) of that token, a constant for the gradient: TRL's
  ``token_truncate``. The cap is 2 where vLLM samples.
* Groups whose rewards are all equal have no gradient without a KL term. Their forward and backward
  passes are left out, which changes nothing but the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.base.errors import UserError
from harness.base.settings import option
from harness.learning.logprobs import importance_weights, token_logprobs
from harness.learning.method import Method
from harness.learning.options import ImportanceOption
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Positions, Row
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import TrainingConfig, learning
from harness.sampling.sampler import Completion
from harness.skills.skill import Example


@dataclass
class GRPOConfig(ImportanceOption, TrainingConfig):
    group_size: int = option(8, "completions sampled for each prompt", min=2, max=10_000)
    scale_rewards: bool = option(True, "divide advantages by the standard deviation of the group")
    normalise: str = option(
        "tokens", "what the loss is averaged over", choices=("tokens", "sequences", "constant")
    )
    kl_beta: float = option(0.0, "weight of the KL to the policy at the start of the stage", min=0)


class GRPO(Method):
    Config = GRPOConfig
    config: GRPOConfig
    needs = ()
    graded = True

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            reference = Teacher(stage, 0, trainer.limit) if config.kl_beta else None
            for step in stage.steps():
                prompts = [stage.prompt_tokens(e) for e in step.examples]
                groups = stage.answers(step.examples, n=config.group_size, seed=step.seed)
                rewards = group_rewards(stage, step.examples, groups)
                loss = PolicyLoss(
                    stage,
                    config,
                    stage.rows(step.examples, prompts, groups),
                    advantages(rewards, config.scale_rewards).flatten(),
                    [c.logprobs for group in groups for c in group],
                    reference,
                )
                value = trainer.backward(loss.rows, loss)
                answers = [c for group in groups for c in group]
                step.log(
                    **loss.diagnostics(),
                    loss=value,
                    reward=rewards.mean(),
                    reward_std=rewards.std(1).mean(),
                    groups_without_signal=alike(rewards).float().mean(),
                    completion_tokens=sum(len(c.token_ids) for c in answers) / len(answers),
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                    **trainer.update(),
                )

    def work(self, outlook: Outlook) -> Work:
        tokens = outlook.prompt + self.config.group_size * outlook.answer
        has_reference = self.config.kl_beta > 0
        return Work(
            learned=tokens,
            scored=tokens * has_reference,
            read=outlook.prompt,
            answers=self.config.group_size,
            sampled=outlook.answer,
            copies=int(has_reference),
        )


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


def alike(rewards: torch.Tensor) -> torch.Tensor:
    """Which groups of rewards [groups, group_size] are all equal: booleans [groups].

    Their standard deviation does not tell, which a rounding may put off 0.
    """
    return (rewards == rewards[:, :1]).all(1)


def advantages(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """Advantages [groups, group_size] from rewards of the same shape; without ``scale`` they are
    not divided by the standard deviation.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    # The mean of equal numbers may be off by a rounding, which a division by 1e-4 would blow up
    centred[alike(rewards)] = 0.0
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def token_shares(rows: Sequence[Row], normalise: str, limit: int) -> torch.Tensor:
    """Share [rows] of each completion's tokens in the loss of a step; see the module's docstring.

    limit: tokens of a rollout at most, where a row does not say it.
    """
    lengths = torch.tensor([len(row.completion) for row in rows])
    if normalise == "sequences":
        return 1 / (lengths * len(rows))
    if normalise == "constant":
        return 1 / (torch.tensor([row.limit or limit for row in rows]) * len(rows))
    return torch.full((len(rows),), 1 / int(lengths.sum()))


class PolicyLoss:
    """The loss of one step, called chunk by chunk.

    rows: all completions of the step; advantages [rows]; logprobs: of each completion's tokens by
    the engine that sampled them; reference: the policy at the start of the stage, None without a KL
    term. ``self.rows`` are those that have a gradient, and what the trainer computes.
    """

    def __init__(
        self,
        stage: Stage,
        config: GRPOConfig,
        rows: Sequence[Row],
        advantages: torch.Tensor,
        logprobs: Sequence[Sequence[float]],
        reference: Teacher | None,
    ) -> None:
        device = stage.model.device
        learned = [i for i, a in enumerate(advantages.tolist()) if a or config.kl_beta]
        shares = token_shares(rows, config.normalise, stage.max_new_tokens)
        self.rows = [rows[i] for i in learned]
        self.advantages = advantages[learned].to(device)
        self.shares = shares[learned].to(device)
        self.sampler_logprobs = [logprobs[i] for i in learned]
        self.cap = stage.importance_cap(config.importance_cap)
        self.importance: list[torch.Tensor] = []
        self.temperature = stage.temperature
        self.kl_beta = config.kl_beta
        self.reference = reference
        self.reference_states = [] if reference is None else reference.states(self.rows)

    def __call__(self, logits: torch.Tensor, positions: Positions) -> torch.Tensor:
        """The chunk's loss, a scalar, from the policy's logits [tokens, vocabulary]."""
        logprobs = token_logprobs(logits / self.temperature, positions.tokens)
        ratio = (logprobs - logprobs.detach()).exp()  # 1, with the gradient of log p
        losses = -self.advantages[positions.rows] * ratio
        if self.cap:
            weights = importance_weights(
                logprobs.detach(), positions, self.sampler_logprobs, self.cap
            )
            self.importance.append(weights)
            losses = losses * weights
        if self.reference is not None:
            losses = losses + self.kl_beta * self._k3(self.reference, logprobs, positions)
        return (losses * self.shares[positions.rows]).sum()

    def _k3(self, reference: Teacher, logprobs: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Estimate [tokens] of KL(policy || reference) at the sampled tokens, never negative."""
        with torch.no_grad():
            logits = reference.logits_at(self.reference_states, positions) / self.temperature
            reference_logprobs = token_logprobs(logits, positions.tokens)
        log_ratio = reference_logprobs - logprobs
        return log_ratio.exp() - log_ratio - 1

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """The mean importance weight, where there are weights."""
        return {"importance_weight": torch.cat(self.importance).mean()} if self.importance else {}
