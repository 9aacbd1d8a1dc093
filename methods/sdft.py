"""Self-distillation fine-tuning (SDFT), "Self-Distillation Enables Continual Learning", arXiv 2601.19897.

One model in two roles. The student sees the question and samples an answer. The teacher, an average of the student's
weights over the steps, sees the question and a demonstration; on every token of the student's own answer the student's
next-token distribution is pulled towards the teacher's. No reward is used.

Conventions
* ``forward`` is KL(teacher || student), summed over the full vocabulary: the direction behind all of the paper's results,
  as its authors say, and their code's default. ``reverse`` is KL(student || teacher), as in the paper's equations.
  ``mixture`` is the generalised Jensen-Shannon divergence with weight ``mixture_weight`` on the teacher:
  w KL(teacher || m) + (1 - w) KL(student || m), m = w teacher + (1 - w) student.
* The first ``skip_tokens`` tokens of a completion carry no loss. The mean is over the remaining tokens of a completion, then
  over the completions of the step (as in TRL's SDFTTrainer); a completion that has none left counts as 0.
* Both distributions are taken at the rollout temperature.
* With ``rollouts`` above 1 every prompt is sampled that often; one is the paper's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.config import option
from harness.method import Method
from harness.plan import Work
from harness.training import Row, Teacher, TrainingConfig, learning


@dataclass
class SDFTConfig(TrainingConfig):
    divergence: str = option("forward", "KL direction", choices=("forward", "reverse", "mixture"))
    mixture_weight: float = option(0.5, "weight of the teacher in the mixture, below 1", above=0, max=1)
    teacher: str = option("ema", "teacher weights: average, frozen at the start of the stage, or the live student",
                          choices=("ema", "frozen", "live"))
    ema_alpha: float = option(0.01, "share of the student in the average after each optimizer step", above=0, max=1)
    skip_tokens: int = option(3, "completion tokens without loss, against artifacts like 'Based on the text'", min=0)
    rollouts: int = option(1, "completions sampled for each prompt", min=1)

    def __post_init__(self):
        if self.mixture_weight == 1:
            raise ValueError("mixture_weight must be below 1: at 1 the mixture is the teacher and the divergence 0; "
                             "divergence: reverse is the limit that is meant")


def divergence(student, teacher, kind, weight=0.5):
    """Per-token divergence [tokens], in nats, of logits [tokens, vocabulary]; conventions in the module's docstring."""
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)

    def kl(p, q):  # KL(p || q) of log-probabilities
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    weight = torch.tensor(weight, dtype=student.dtype, device=student.device)
    mixture = torch.logaddexp(teacher + weight.log(), student + (1 - weight).log())
    return weight * kl(teacher, mixture) + (1 - weight) * kl(student, mixture)


class SDFT(Method):
    Config = SDFTConfig

    def learn(self, stage):
        config = self.config
        with learning(stage, config) as trainer:
            alpha = {"ema": config.ema_alpha, "frozen": 0, "live": 1}[config.teacher]
            teacher = Teacher(stage, alpha, trainer.limit)
            for step in stage.steps():
                prompts = [stage.prompt_tokens(e) for e in step.examples]
                sampled = stage.sample(prompts, n=config.rollouts, seed=step.seed)
                asked = [p for p in prompts for _ in range(config.rollouts)]
                shown = [t for e in step.examples for t in [stage.teacher_tokens(e)] * config.rollouts]
                answers = [c for group in sampled for c in group]
                rows = [Row(p, c.token_ids) for p, c in zip(asked, answers)]
                targets = teacher.states([Row(p, c.token_ids) for p, c in zip(shown, answers)])
                counted = [max(1, len(r.completion) - config.skip_tokens) for r in rows]
                weight = 1.0 / (torch.tensor(counted, device=stage.model.device) * len(rows))
                totals = {"kl": 0.0, "kl_tokens": 0, "gap": 0.0}

                def loss(logits, at):
                    places = list(zip(at.rows.tolist(), at.offsets.tolist()))
                    with torch.no_grad():
                        target = teacher.head(torch.stack([targets[i][t] for i, t in places])).float()
                    each = divergence(logits / stage.temperature, target / stage.temperature, config.divergence,
                                      config.mixture_weight)
                    first = at.offsets == 0
                    totals["gap"] += each.detach()[first].sum().item()
                    kept = (at.offsets >= config.skip_tokens).float()
                    totals["kl"] += (each.detach() * kept).sum().item()
                    totals["kl_tokens"] += int(kept.sum())
                    return (each * kept * weight[at.rows]).sum()

                value = trainer.backward(rows, loss)
                step.log(loss=value, kl=totals["kl"] / max(1, totals["kl_tokens"]), first_token_gap=totals["gap"] / len(rows),
                         completion_tokens=sum(len(c.token_ids) for c in answers) / len(answers),
                         cut_off=sum(not c.finished for c in answers) / len(answers), **trainer.update())
                teacher.follow(trainer.masters)

    def work(self, prompt, demonstration, teacher_prompt, limit):
        answer = min(limit, demonstration or limit)  # answers become as long as the demonstrations
        n = self.config.rollouts
        return Work(learned=prompt + n * answer, scored=teacher_prompt + n * answer, read=prompt, answers=n, sampled=answer)
