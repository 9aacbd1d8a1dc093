"""Self-distillation fine-tuning (SDFT), "Self-Distillation Enables Continual Learning", arXiv
2601.19897.

One model in two roles. The student sees the question and samples an answer. The teacher, an average
of the student's weights over the steps, sees the question and a demonstration. On every token of
the student's own answer the student's next-token distribution is pulled towards the teacher's. No
reward is used.

    L = mean over answers y ~ p(. | x) and tokens t of D(q(. | x, d, y_<t), p(. | x, y_<t))

x is the question, d the demonstration, q the teacher and p the student.

Conventions
* harness/learning/distillation.py has the loss, its KL direction and the estimators of its
  gradient. The defaults are the paper's: forward KL over the full vocabulary on the student's own
  tokens, without the first three of an answer.
* Both distributions are taken at the rollout temperature.
* With ``rollouts`` above 1 every prompt is sampled that often; the paper has one.
* ``teacher``: the paper's is the average ``ema``. ``run_start``, the model before the first stage,
  is the one that did best after twenty updates in a row in arXiv 2607.11020, and ``frozen`` the one
  of OPSD (arXiv 2601.18734; ``preset: opsd``). ``trust_region`` is SDPO's (arXiv 2601.20802).
* ``teacher_context`` changes what the teacher is shown, in the style of the skill's template; if
  left out, the template decides.

State: nothing between stages; each has a new teacher. Cost: ``rollouts`` answers to each prompt, a
pass forward and backward and one of the teacher over each (two with ``trust_region``), and a second
copy of the weights but for ``live``, with ``ema`` a float32 average as well.
"""

from dataclasses import dataclass

from harness.base.settings import only_with, option
from harness.learning.checks import check_on_policy, check_teacher
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherOption
from harness.learning.outlook import Outlook, Work
from harness.learning.stage import Stage
from harness.learning.teacher import SelfTeacherOption
from harness.learning.trainer import learning


@dataclass
class SDFTConfig(TeacherOption, SelfTeacherOption, DistillationConfig):
    rollouts: int = option(1, "completions sampled for each prompt", min=1, max=10_000)

    def check_effects(self) -> None:
        super().check_effects()
        only_with(self, self.has_share, "teacher: ema or trust_region", "ema_alpha")


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
            teacher = config.make_teacher(stage, trainer.limit, trainer.place)
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
        config = self.config
        answer_tokens = config.rollouts * outlook.answer
        shown = outlook.teacher_prompt(config.teacher_context)
        return Work(
            learned=outlook.prompt + answer_tokens,
            scored=config.passes * (shown + answer_tokens),
            read=outlook.prompt,
            answers=config.rollouts,
            sampled=outlook.answer,
            **config.models,
        )
