"""Self-distillation fine-tuning (SDFT), "Self-Distillation Enables Continual Learning", arXiv
2601.19897.

One model in two roles. The student sees the question and samples an answer. The teacher, an average
of the student's weights over the steps, sees the question and a demonstration; on every token of
the student's own answer the student's next-token distribution is pulled towards the teacher's. No
reward is used.

Conventions
* The loss, its KL direction and the estimators of its gradient stand in
  harness/learning/distillation.py; the defaults are the paper's: forward KL over the full
  vocabulary on the student's own tokens, the first three of an answer left out.
* Both distributions are taken at the rollout temperature.
* With ``rollouts`` above 1 every prompt is sampled that often; one is the paper's.
* ``teacher_context`` exchanges what the teacher is shown, in the style of the skill's template;
  left out, the template stays.
"""

from dataclasses import dataclass

from harness.base.settings import option
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.teacher_samples import check_on_policy, check_teacher
from harness.learning.trainer import learning
from harness.skills.templates import TEACHER_CONTEXTS


@dataclass
class SDFTConfig(DistillationConfig):
    teacher: str = option(
        "ema",
        "teacher weights: average, frozen at the start of the stage, or the live student",
        choices=("ema", "frozen", "live"),
    )
    ema_alpha: float = option(
        0.01, "share of the student in the average after each optimizer step", above=0, max=1
    )
    teacher_context: str | None = option(
        None,
        "what the teacher is shown; what its template shows if left out",
        choices=TEACHER_CONTEXTS,
    )
    rollouts: int = option(1, "completions sampled for each prompt", min=1)


class SDFT(Method):
    Config = SDFTConfig
    needs = ()  # what the teacher is shown: see check

    def check(self, order, place):
        check_teacher(order, self.config.teacher_context, place)
        check_on_policy(order, self.config, place)

    def learn(self, stage):
        config = self.config
        with learning(stage, config) as trainer:
            alpha = {"ema": config.ema_alpha, "frozen": 0, "live": 1}[config.teacher]
            teacher = Teacher(stage, alpha, trainer.limit, trainer.place)
            for step in stage.steps():
                prompts = [stage.prompt_tokens(e) for e in step.examples]
                sampled = stage.sample(prompts, n=config.rollouts, seed=step.seed)
                asked = [p for p in prompts for _ in range(config.rollouts)]
                shown = [
                    t
                    for e in step.examples
                    for t in [stage.teacher_tokens(e, config.teacher_context)] * config.rollouts
                ]
                answers = [c for group in sampled for c in group]
                logged = distil(
                    trainer,
                    teacher,
                    [Row(p, c.token_ids) for p, c in zip(asked, answers)],
                    [Row(p, c.token_ids) for p, c in zip(shown, answers)],
                    config,
                    [c.logprobs for c in answers],
                )
                step.log(
                    **logged,
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                    **trainer.update(),
                )
                teacher.follow(trainer.masters)

    def work(self, outlook):
        answer, n = outlook.answer, self.config.rollouts
        return Work(
            learned=outlook.prompt + n * answer,
            scored=outlook.teacher_prompt(self.config.teacher_context) + n * answer,
            read=outlook.prompt,
            answers=n,
            sampled=answer,
            copies=int(self.config.teacher != "live"),
            averaged=self.config.teacher == "ema",
        )
