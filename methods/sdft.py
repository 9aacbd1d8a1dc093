"""Self-distillation fine-tuning (SDFT), "Self-Distillation Enables Continual Learning", arXiv
2601.19897.

One model in two roles. The student sees the question and samples an answer. The teacher, an average
of the student's weights over the steps, sees the question and a demonstration. On every token of
the student's own answer the student's next-token distribution is pulled towards the teacher's. No
reward is used.

Conventions
* harness/learning/distillation.py has the loss, its KL direction and the estimators of its
  gradient. The defaults are the paper's: forward KL over the full vocabulary on the student's own
  tokens, without the first three of an answer.
* Both distributions are taken at the rollout temperature.
* With ``rollouts`` above 1 every prompt is sampled that often; the paper has one.
* ``teacher_context`` changes what the teacher is shown, in the style of the skill's template; if
  left out, the template decides.
"""

from dataclasses import dataclass

from harness.base.settings import option
from harness.learning.checks import check_on_policy, check_teacher
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherOption
from harness.learning.outlook import Outlook, Work
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import learning


@dataclass
class SDFTConfig(TeacherOption, DistillationConfig):
    teacher: str = option(
        "ema",
        "teacher weights: average, frozen at the start of the stage, or the live student",
        choices=("ema", "frozen", "live"),
    )
    ema_alpha: float = option(
        0.01, "share of the student in the average after each optimizer step", above=0, max=1
    )
    rollouts: int = option(1, "completions sampled for each prompt", min=1, max=10_000)


class SDFT(Method):
    Config = SDFTConfig
    config: SDFTConfig
    needs = ()  # ``check`` asks for what the teacher is shown

    def check(self, order: OrderView, place: str) -> None:
        check_teacher(order, self.config.teacher_context, place)
        check_on_policy(order, self.config, place)

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            alpha = {"ema": config.ema_alpha, "frozen": 0, "live": 1}[config.teacher]
            teacher = Teacher(stage, alpha, trainer.limit, trainer.place)
            for step in stage.steps():
                prompts = [stage.prompt_tokens(e) for e in step.examples]
                teacher_prompts = [
                    stage.teacher_tokens(e, config.teacher_context) for e in step.examples
                ]
                groups = stage.answers(step.examples, n=config.rollouts, seed=step.seed)
                answers = [c for group in groups for c in group]
                logged = distil(
                    trainer,
                    teacher,
                    stage.rows(step.examples, prompts, groups),
                    stage.rows(step.examples, teacher_prompts, groups),
                    config,
                    [c.logprobs for c in answers],
                )
                step.log(
                    **logged,
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                    **trainer.update(),
                )
                teacher.follow(trainer.masters)

    def work(self, outlook: Outlook) -> Work:
        answers = self.config.rollouts
        answer_tokens = answers * outlook.answer
        return Work(
            learned=outlook.prompt + answer_tokens,
            scored=outlook.teacher_prompt(self.config.teacher_context) + answer_tokens,
            read=outlook.prompt,
            answers=answers,
            sampled=outlook.answer,
            copies=int(self.config.teacher != "live"),
            averaged=self.config.teacher == "ema",
        )
