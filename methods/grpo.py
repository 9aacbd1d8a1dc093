"""Group-relative policy optimisation (GRPO), DeepSeekMath, arXiv 2402.03300: the on-policy
reinforcement-learning baseline.

Every prompt is sampled ``group_size`` times from the live model; each completion's advantage is its
reward less the mean of its group, divided by the group's standard deviation (unbiased, plus 1e-4).
With one update per batch of rollouts the probability ratio is 1, so that clipping never acts and
the gradient is the plain policy gradient: there is no clip option.

Conventions
* ``normalise: tokens`` divides by the number of completion tokens of the step (DAPO's loss, arXiv
  2503.14476, TRL's default); ``sequences`` takes each completion's mean first (the original GRPO);
  ``constant`` divides by completions x the rollout limit (Dr. GRPO, arXiv 2503.20783).
* ``kl_beta`` adds beta times the k3 estimate of KL(policy || policy at the start of the stage) to
  every token's loss. Its gradient is the plain one of GRPO (TRL's with
  ``use_bias_correction_kl=False``, which is not TRL's default).
* ``importance_cap``: where another engine sampled, every token's policy loss (not its KL term) is
  weighted by min(cap, p / p_sampler) of that token, a constant for the gradient: TRL's
  ``token_truncate``. The cap is 2 where vLLM samples.
* Groups whose rewards are all equal have no gradient without a KL term: their forward and backward
  passes are left out, which changes nothing but the time.
"""

from dataclasses import dataclass

import torch

from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.trainer import TrainingConfig, learning


@dataclass
class GRPOConfig(TrainingConfig):
    group_size: int = option(8, "completions sampled for each prompt", min=2)
    scale_rewards: bool = option(True, "divide advantages by the standard deviation of the group")
    normalise: str = option(
        "tokens", "what the loss is averaged over", choices=("tokens", "sequences", "constant")
    )
    kl_beta: float = option(0.0, "weight of the KL to the policy at the start of the stage", min=0)
    importance_cap: float | None = option(
        None,
        "cap of the importance weights; if left out 2 where vLLM samples, else no weights; "
        "0: never",
        min=0,
    )


def alike(rewards):
    """Which groups of rewards [groups, group_size] are all equal; their standard deviation may be
    off 0 by a rounding.
    """
    return (rewards == rewards[:, :1]).all(1)


def advantages(rewards, scale=True):
    """Advantages [groups, group_size] from rewards of the same shape; formula in the module's
    docstring.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    # the mean of equal numbers may be off by a rounding, which 1e-4 blows up
    centred[alike(rewards)] = 0.0
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


class GRPO(Method):
    Config = GRPOConfig
    needs = ()

    def learn(self, stage):
        config = self.config
        with learning(stage, config) as trainer:
            reference = Teacher(stage, 0, trainer.limit) if config.kl_beta else None
            for step in stage.steps():
                prompts = [stage.prompt_tokens(e) for e in step.examples]
                sampled = stage.sample(prompts, n=config.group_size, seed=step.seed)
                rewards = torch.tensor(
                    [
                        [float(stage.skill.reward(c.text, e.reference)) for c in group]
                        for e, group in zip(step.examples, sampled)
                    ]
                )
                advantage = advantages(rewards, config.scale_rewards)
                answers = [c for group in sampled for c in group]
                count = sum(len(c.token_ids) for c in answers)
                learn_from = [
                    i for i, a in enumerate(advantage.flatten().tolist()) if a or config.kl_beta
                ]
                rows = [
                    Row(prompts[i // config.group_size], answers[i].token_ids) for i in learn_from
                ]
                weight = advantage.flatten()[learn_from].to(stage.model.device)
                length = torch.tensor([len(r.completion) for r in rows], device=stage.model.device)
                if config.normalise == "tokens":
                    share = torch.full_like(weight, 1 / count)
                elif config.normalise == "sequences":
                    share = 1 / (length * len(answers))
                else:
                    share = torch.full_like(weight, 1 / (len(answers) * stage.max_new_tokens))
                anchor = reference.states(rows) if reference else None
                cap, importance = stage.importance_cap(config.importance_cap), []

                def loss(logits, at):
                    logprob = (
                        (logits / stage.temperature)
                        .log_softmax(-1)
                        .gather(1, at.tokens[:, None])[:, 0]
                    )
                    each = -weight[at.rows] * (logprob - logprob.detach()).exp()
                    places = list(zip(at.rows.tolist(), at.offsets.tolist()))
                    if cap:
                        others = torch.tensor(
                            [answers[learn_from[i]].logprobs[t] for i, t in places],
                            device=logprob.device,
                        )
                        importance.append((logprob.detach() - others).exp().clamp(max=cap))
                        each = each * importance[-1]
                    if anchor:
                        with torch.no_grad():
                            old = (
                                reference.head(
                                    torch.stack([anchor[i][t] for i, t in places])
                                ).float()
                                / stage.temperature
                            )
                            old = old.log_softmax(-1).gather(1, at.tokens[:, None])[:, 0]
                        each = each + config.kl_beta * ((old - logprob).exp() - (old - logprob) - 1)
                    return (each * share[at.rows]).sum()

                value = trainer.backward(rows, loss)
                if importance:
                    step.log(importance_weight=torch.cat(importance).mean())
                step.log(
                    loss=value,
                    reward=rewards.mean(),
                    reward_std=rewards.std(1).mean(),
                    groups_without_signal=alike(rewards).float().mean(),
                    completion_tokens=count / len(answers),
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                    **trainer.update(),
                )

    def work(self, outlook):
        prompt, answer, n = outlook.prompt, outlook.answer, self.config.group_size
        return Work(
            learned=prompt + n * answer,
            scored=(prompt + n * answer) * (self.config.kl_beta > 0),
            read=prompt,
            answers=n,
            sampled=answer,
            copies=int(self.config.kl_beta > 0),
        )
