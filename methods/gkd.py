"""Generalised knowledge distillation (GKD), arXiv 2306.13649: from another model, or an older self.

    L = mean over tokens of D(q(. | x, y_<t), p(. | x, y_<t)),    y the demonstration or ~ p(. | x)

With the chance ``student_share`` (lambda) a step learns on the student's own answers, otherwise on
the demonstrations, as in the paper's algorithm 1. On every token the student is pulled towards the
teacher, which reads the same prompt and no demonstration.

Conventions
* ``teacher_model`` is a model with the same tokenizer: a hub id, or a folder beside the order file
  or the current one. Results hold what tells it from others: its folder's hash, or the commit. If
  left out it is the model at the start of the run, which takes the student back to what it was: in
  the first stage it has nothing to teach, and AdamW makes whole steps of rounding there; the plan
  tells. ``stage`` is the model at the start of the stage.
* The paper's beta is ``mixture_weight`` under ``divergence: mixture``: beta KL(q || m) + (1 - beta)
  KL(p || m), m = beta q + (1 - beta) p. Its ends are ``forward`` (beta 0) and ``reverse`` (beta 1).
  TRL's GKDTrainer has the same beta, and beta = lambda = 0.5 by default, as here.
* The loss is the mean over tokens, at the rollout temperature (TRL's default is 0.9).
* Output heads may be padded to different sizes: rows that one of them lacks are no tokens, and are
  left out of the teacher's distribution.
* ``preset: minillm`` (arXiv 2306.08543) and ``preset: opd`` (Thinking Machines) are settings of it.

State: nothing. Cost: a second model in memory, of whatever size, and its pass over each row; FLOPs
count it by its own size.
"""

import random
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.checks import check_on_policy
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherModelOption
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.stage import Stage
from harness.learning.teacher import fixed_teacher
from harness.learning.trainer import learning
from harness.models.others import STARTS, check_vocabulary


@dataclass
class GKDConfig(TeacherModelOption, DistillationConfig):
    divergence: str = option("mixture", "KL direction", choices=("forward", "reverse", "mixture"))
    normalise: str | None = option(
        "tokens",
        "what the loss is averaged over",
        choices=("sequences", "tokens", "constant"),
    )
    skip_tokens: int = option(0, "completion tokens without loss", min=0)
    student_share: float = option(
        0.5, "chance that a step learns on the student's answers, not demonstrations", min=0, max=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator in ("sampled", "rao_blackwell") and self.student_share < 1:
            raise ValueError(
                f"estimator: {self.estimator} wants completions of the student; set "
                "student_share to 1"
            )


class GKD(Method):
    Config = GKDConfig
    config: GKDConfig
    needs = ()  # ``check`` asks for demonstrations where they are learned

    def check(self, order: OrderView, place: str) -> None:
        check_on_policy(order, self.config, place)
        for skill in order.skills if self.config.student_share < 1 else ():
            for example in skill.examples("train"):
                if example.demonstration is None:
                    raise UserError(
                        place,
                        f"skill {skill.name}, example {example.id} has no demonstration",
                        "set student_share to 1",
                    )
        if self.config.of not in STARTS:
            own = f"{place}: teacher_model"
            check_vocabulary(self.config.of, order.model.name, order.model.revision, own)

    def notes(self) -> list[str]:
        return self.config.notes()

    def reads_demonstrations(self) -> bool:
        return self.config.student_share < 1

    def longest(self, lengths: Lengths) -> int:
        share, prompt = self.config.student_share, lengths.prompt
        answer = max(lengths.demonstration * (share < 1), lengths.limit * (share > 0))
        return prompt + answer - 1

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            teacher = fixed_teacher(stage, config.of, trainer.limit)
            for step in stage.steps():
                chance = random.Random(seed_for(step.seed, "student")).random()
                if chance < config.student_share:
                    prompts = [stage.prompt_tokens(e) for e in step.examples]
                    groups = stage.answers(step.examples, seed=step.seed)
                    rows = stage.rows(step.examples, prompts, groups)
                    logprobs = [c.logprobs for (c,) in groups]
                    step.log(cut_off=sum(not c.finished for (c,) in groups) / len(groups))
                else:
                    rows, logprobs = stage.demonstration_rows(step.examples), None
                logged = distil(trainer, teacher, rows, rows, config, logprobs)
                step.log(own=float(logprobs is not None), **logged, **trainer.update())

    def work(self, outlook: Outlook) -> Work:
        share = self.config.student_share
        tokens = outlook.prompt + share * outlook.answer + (1 - share) * outlook.demonstration
        return Work(
            learned=tokens,
            scored=tokens * outlook.size_of(self.config.of),
            read=outlook.prompt * share,
            answers=share,
            sampled=outlook.answer,
        ).with_start(self.config.of, outlook)
