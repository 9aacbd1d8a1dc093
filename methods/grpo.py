"""Group-relative policy optimisation (GRPO), DeepSeekMath, arXiv 2402.03300, and its relatives.

The on-policy reinforcement-learning baseline. Every prompt is sampled ``group_size`` times from the
live model. A completion's advantage is its reward less the mean of its group, divided by the
group's standard deviation (unbiased, plus 1e-4):

    A = (R - mean R) / (std R + 1e-4),    loss of token t = -A p(y_t) / p_old(y_t)

With one update for each batch of rollouts p_old is p, the ratio is 1, clipping never acts and the
gradient is the plain policy gradient -A grad log p(y_t).

Conventions
* ``normalise: tokens`` divides by the number of completion tokens of the step (DAPO's loss, arXiv
  2503.14476, TRL's default); ``sequences`` takes each completion's mean first (the original GRPO);
  ``constant`` divides by completions x the rollout limit (Dr. GRPO, arXiv 2503.20783).
* ``kl_beta`` adds beta times the k3 estimate of KL(policy || policy at the start of the stage) to
  every token's loss: q/p - log q/p - 1 at y_t, with q the policy at the start. Its gradient is the
  plain one of GRPO (TRL's with ``use_bias_correction_kl=False``, which is not TRL's default).
* ``importance_cap``: where another engine sampled, every token's policy loss (not its KL term) is
  weighted by min(cap, p / p_sampler) of that token, a constant for the gradient: TRL's
  ``token_truncate``. The cap is 2 where vLLM samples. Under several updates p is p_old.
* Groups whose rewards are all equal have no gradient without a KL term. Their forward and backward
  passes are left out, which changes nothing but the time.

Relatives
* ``baseline: others`` takes the mean of the group's other rewards: A = R_i - mean_{j != i} R_j =
  G/(G-1) (R_i - mean R). With ``scale_rewards: false`` it is RLOO (arXiv 2402.14740), whose loss is
  the sum over a completion's tokens: ``normalise: constant`` but for a factor, which clipping of
  the gradients' norm alone feels. With ``scale_rewards`` it is GRPO times G/(G-1).
* ``resample`` is DAPO's dynamic sampling: groups whose rewards are all equal leave the batch, and
  further prompts of the skill take their place, in at most so many rounds. These count as prompts
  drawn. A batch that stays short is learned as it is; ``normalise`` counts what is learned.
  Replayed prompts without signal leave no place to the skill's own.
  ``reward`` is logged of the step's own prompts, so that the selection does not raise it.
* ``inner_batches`` and ``inner_epochs`` make several updates on one batch of rollouts (PPO, arXiv
  1707.06347): -min(r A, clip(r, 1 - ``clip_low``, 1 + ``clip_high``) A). DAPO clips at 0.2 and
  0.28. All updates of a step have its learning rate; inner batches hold whole groups.
* ``ratio: sequence`` is GSPO (arXiv 2507.18071): r = (p(y) / p_old(y))^(1/|y|), one for all tokens
  of a completion, clipped at 3e-4 and 4e-4, with ``normalise: sequences``.
* ``clip: cispo`` is CISPO (arXiv 2506.13585): -sg(min(r, 1 + ``clip_high``)) A log p(y_t), so that
  clipped tokens keep a gradient; it has no ``clip_low``. TRL's ``epsilon_high`` is 1 +
  ``clip_high`` here, 5 by its advice.

With one update for each batch (``inner_batches`` and ``inner_epochs`` 1) r is 1, and the gradient
is the same whatever ``clip``, ``clip_low``, ``clip_high`` and ``ratio`` say: GSPO is GRPO with
``normalise: sequences``, CISPO and DAPO without resampling are GRPO with ``normalise: tokens``.
There these options are refused.

The ratio of a step's first update is 1 exactly. In bfloat16 those of later ones carry the rounding
of two passes, which for short answers may be more than GSPO's 3e-4.

State: nothing between stages. Cost: ``group_size`` answers to each prompt and a pass forward and
backward over them; with ``kl_beta`` one of the policy at the start of the stage, and a second copy
of the weights. Several updates add a scoring pass over the rollouts, with ``ratio: sequence`` one
for each further update.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.base.seeds import seed_for
from harness.base.settings import only_with, option
from harness.learning.draws import draws
from harness.learning.inner import (
    InnerOptions,
    clipped,
    completion_logprobs,
    mean_of,
    sequence_ratios,
)
from harness.learning.logprobs import importance_weights, token_logprobs
from harness.learning.method import Method
from harness.learning.options import ImportanceOption
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Positions, Row, TokenValues
from harness.learning.rewards import alike, group_rewards
from harness.learning.shares import mean_of_all
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.teacher import Teacher, live_scorer
from harness.learning.trainer import Trainer, TrainingConfig, learning
from harness.models.forward import on_device
from harness.sampling.sampler import Completion
from harness.skills.skill import Example


@dataclass
class GRPOConfig(InnerOptions, ImportanceOption, TrainingConfig):
    group_size: int = option(8, "completions sampled for each prompt", min=2, max=10_000)
    scale_rewards: bool = option(True, "divide advantages by the standard deviation of the group")
    normalise: str = option(
        "tokens", "what the loss is averaged over", choices=("tokens", "sequences", "constant")
    )
    kl_beta: float = option(
        0.0, "weight of the KL to the policy at the start of the stage", min=0, max=1e6
    )
    baseline: str = option(
        "group",
        "what a reward is compared with: the mean of its group, or of the group's others (RLOO)",
        choices=("group", "others"),
    )
    resample: int = option(
        0, "rounds in which further prompts replace groups without signal (DAPO)", min=0, max=100
    )
    ratio: str = option(
        "token",
        "p / p_old of each token, or of the whole completion (GSPO)",
        choices=("token", "sequence"),
    )
    clip: str = option("ppo", "how the ratio is clipped", choices=("ppo", "cispo"))
    clip_low: float = option(0.2, "the ratio p / p_old is clipped at 1 less this", min=0, max=1)

    def check_effects(self) -> None:
        only_with(
            self,
            self.several,
            "inner_batches or inner_epochs above 1",
            "ratio",
            "clip",
            "clip_low",
            "clip_high",
        )
        only_with(self, self.clip == "ppo", "clip: ppo", "clip_low")


@dataclass
class Rollouts:
    """What a step learns from: examples, the completions of each, rewards [groups, group_size]."""

    examples: list[Example]
    groups: list[list[Completion]]
    rewards: torch.Tensor

    def __add__(self, other: "Rollouts") -> "Rollouts":
        return Rollouts(
            self.examples + other.examples,
            self.groups + other.groups,
            torch.cat([self.rewards, other.rewards]),
        )

    def with_signal(self) -> "Rollouts":
        """Those whose rewards are not all equal."""
        places = (~alike(self.rewards)).nonzero()[:, 0].tolist()
        return Rollouts(
            [self.examples[i] for i in places],
            [self.groups[i] for i in places],
            self.rewards[places],
        )

    @property
    def answers(self) -> list[Completion]:
        """All completions, those of one group together."""
        return [completion for group in self.groups for completion in group]


class GRPO(Method):
    Config = GRPOConfig
    config: GRPOConfig
    needs = ()
    graded = True

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            reference = Teacher(stage, 0, trainer.limit) if config.kl_beta else None
            policy = None
            if config.several:
                policy = live_scorer(stage, trainer.limit)
            for step in stage.steps():
                drawn = self._sampled(stage, step.examples, step.seed)
                learned, sampled = self._resampled(stage, step, drawn)
                step.log(
                    reward=drawn.rewards.mean(),
                    reward_std=drawn.rewards.std(1).mean(),
                    groups_without_signal=alike(drawn.rewards).float().mean(),
                    completion_tokens=sum(len(c.token_ids) for c in sampled) / len(sampled),
                    cut_off=sum(not c.finished for c in sampled) / len(sampled),
                )
                step.log(**self._update(trainer, learned, policy, reference))

    def _sampled(self, stage: Stage, examples: Sequence[Example], seed: int) -> Rollouts:
        groups = stage.answers(examples, n=self.config.group_size, seed=seed)
        return Rollouts(list(examples), groups, group_rewards(stage, examples, groups))

    def _resampled(
        self, stage: Stage, step: Step, drawn: Rollouts
    ) -> tuple[Rollouts, list[Completion]]:
        """(the rollouts that a step learns from, all completions that it has sampled)."""
        rounds, size = self.config.resample, len(drawn.examples)
        if not rounds:
            return drawn, drawn.answers
        learned, sampled = drawn.with_signal(), drawn.answers
        # Prompts of the skill take the place of its own, not of replayed ones.
        missing = sum(map(stage.is_own, drawn.examples)) - sum(map(stage.is_own, learned.examples))
        wanted = len(learned.examples) + missing
        seed = seed_for(step.seed, "resample")
        order = draws(len(stage.examples), rounds * size, seed)
        for number in range(rounds):
            lacking = wanted - len(learned.examples)
            examples = [stage.examples[order.pop()] for _ in range(lacking)]
            if not examples:
                break
            further = self._sampled(stage, examples, seed_for(seed, number))
            stage.further += len(examples)
            learned = learned + further.with_signal()
            sampled = sampled + further.answers
        step.log(resampled=len(sampled) / self.config.group_size - size)
        return learned, sampled

    def _update(
        self,
        trainer: Trainer,
        learned: Rollouts,
        policy: Teacher | None,
        reference: Teacher | None,
    ) -> dict[str, float]:
        """The updates of a step; returns what it logs of them.

        policy: the live model, which scores p_old, None where that is the policy itself.
        """
        config, stage, size = self.config, trainer.stage, self.config.group_size
        if not learned.examples:  # where resampling has found no signal
            return {"loss": 0.0, **trainer.update()}
        prompts = [stage.prompt_tokens(example) for example in learned.examples]
        rows = stage.rows(learned.examples, prompts, learned.groups)
        gains = advantages(learned.rewards, config.scale_rewards, config.baseline).flatten()
        sampler = [completion.logprobs for completion in learned.answers]
        old = completion_logprobs(policy, rows, stage.temperature) if policy else None
        updates: list[dict[str, float]] = []
        for prompts_of in config.cut(len(prompts)):
            places = slice(prompts_of.start * size, prompts_of.stop * size)
            loss = PolicyLoss(
                stage,
                config,
                rows[places],
                gains[places],
                sampler[places],
                reference,
                old[places] if old and updates else None,  # at first p is p_old, to the bit
                policy,
            )
            value = trainer.backward(loss.rows, loss)
            logged = {name: float(number) for name, number in loss.diagnostics().items()}
            updates.append({**logged, "loss": value, **trainer.update()})
        return mean_of(updates)

    def work(self, outlook: Outlook) -> Work:
        """With ``resample`` as if all of its rounds were needed."""
        config = self.config
        tokens = outlook.prompt + config.group_size * outlook.answer
        has_reference = config.kl_beta > 0
        scored = config.several * (1 + (config.ratio == "sequence") * config.inner_epochs)
        return Work(
            learned=tokens * config.inner_epochs,
            scored=tokens * (has_reference * config.inner_epochs + scored),
            read=outlook.prompt * (1 + config.resample),
            answers=config.group_size * (1 + config.resample),
            sampled=outlook.answer,
            copies=int(has_reference),
        )


def advantages(rewards: torch.Tensor, scale: bool = True, baseline: str = "group") -> torch.Tensor:
    """Advantages [groups, group_size] from rewards of the same shape.

    scale: whether they are divided by the standard deviation; baseline: the mean of the ``group``
    that is taken off, or of its ``others``.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if baseline == "others":
        centred *= rewards.shape[1] / (rewards.shape[1] - 1)
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
    """The loss of one update, called chunk by chunk.

    rows: all completions of the update; advantages [rows]; logprobs: of each completion's tokens by
    the engine that sampled them; reference: the policy at the start of the stage, None without a KL
    term; old: log p_old of each completion's tokens, None where p_old is the policy itself; policy:
    scores the completions for the ratio of sequences. ``self.rows`` are those that have a gradient,
    and what the trainer computes.
    """

    def __init__(
        self,
        stage: Stage,
        config: GRPOConfig,
        rows: Sequence[Row],
        advantages: torch.Tensor,
        logprobs: Sequence[Sequence[float]],
        reference: Teacher | None,
        old: Sequence[torch.Tensor] | None = None,
        policy: Teacher | None = None,
    ) -> None:
        device = stage.model.device
        learned = [i for i, a in enumerate(advantages.tolist()) if a or config.kl_beta]
        shares = token_shares(rows, config.normalise, stage.max_new_tokens)
        self.config = config
        self.rows = [rows[i] for i in learned]
        self.advantages = on_device(advantages[learned], device)
        self.shares = on_device(shares[learned], device)
        self.sampler_logprobs = TokenValues.of_rows([logprobs[i] for i in learned], device)
        self.cap = stage.importance_cap(config.importance_cap)
        self.importance: list[torch.Tensor] = []
        self.outside: list[torch.Tensor] = []
        self.temperature = stage.temperature
        self.reference = reference
        self.reference_states = None if reference is None else reference.states(self.rows)
        self.old = None if old is None else TokenValues.of_rows([old[i] for i in learned], device)
        if policy is not None and self.old is not None and config.ratio == "sequence":
            now = completion_logprobs(policy, self.rows, self.temperature)
            self.ratios = sequence_ratios(self.old, now).to(device)

    def __call__(self, logits: torch.Tensor, positions: Positions) -> torch.Tensor:
        """The chunk's loss, a scalar, from the policy's logits [tokens, vocabulary]."""
        logprobs = token_logprobs(logits / self.temperature, positions.tokens)
        old = logprobs.detach() if self.old is None else self.old.at(positions)
        losses = self._policy(logprobs, old, positions)
        if self.cap:
            weights = importance_weights(old, positions, self.sampler_logprobs, self.cap)
            self.importance.append(weights)
            losses = losses * weights
        if self.reference is not None:
            beta = self.config.kl_beta
            losses = losses + beta * self._k3(self.reference, logprobs, positions)
        return (losses * self.shares[positions.rows]).sum()

    def _policy(
        self, logprobs: torch.Tensor, old: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """The policy loss [tokens]; logprobs, old: of the sampled tokens."""
        config, gains = self.config, self.advantages[positions.rows]
        ratio = (logprobs - old).exp()  # 1, with the gradient of log p, where p_old is p
        if self.old is not None:
            if config.ratio == "sequence":
                # Its value, with the gradient r grad log p: each token has 1/|y| of the
                # completion's loss, and the ratio's gradient is r/|y| at each of its |y| tokens.
                ratio = self.ratios[positions.rows] * (logprobs - logprobs.detach()).exp()
            above, below = ratio > 1 + config.clip_high, ratio < 1 - config.clip_low
            self.outside.append(above if config.clip == "cispo" else above | below)
        if config.clip == "cispo":
            return -ratio.detach().clamp(max=1 + config.clip_high) * gains * logprobs
        if self.old is None:
            return -gains * ratio
        return clipped(ratio, gains, config.clip_low, config.clip_high)

    def _k3(self, reference: Teacher, logprobs: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Estimate [tokens] of KL(policy || reference) at the sampled tokens, never negative."""
        assert self.reference_states is not None
        with torch.no_grad():
            logits = reference.logits_at(self.reference_states, positions) / self.temperature
            reference_logprobs = token_logprobs(logits, positions.tokens)
        log_ratio = reference_logprobs - logprobs
        return log_ratio.exp() - log_ratio - 1

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """The mean importance weight, and the share of ratios outside the clip, where there are."""
        if not self.rows:
            return {}
        found = {}
        if self.cap:
            found["importance_weight"] = mean_of_all(self.importance, self.advantages.device)
        if self.old is not None:
            found["outside_clip"] = mean_of_all(self.outside, self.advantages.device)
        return found
