"""Supervised fine-tuning on the teacher's own answers.

    L = - mean over tokens of log p(y_t | x, y_<t),    y ~ q(. | x, d)

q is the model at the start of the stage, d what it is shown as a teacher.

The second off-policy comparison of figure 6 in arXiv 2601.19897. The answers are those of
methods/offline_distillation.py, sampled once at the start of the stage from the model under the
teacher's prompt; the loss is the cross-entropy of methods/sft.py. An answer that was cut off at the
limit has no end to learn.

State: nothing between stages. Cost: ``generations`` answers at the start of a stage, then that of
`sft`.
"""

from dataclasses import dataclass

from harness.learning.checks import check_teacher
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherSamplesOptions
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.teacher_samples import TeacherSamples
from harness.learning.trainer import TrainingConfig, cross_entropy, learning


@dataclass
class FromTeacherConfig(TeacherSamplesOptions, TrainingConfig):
    pass


class SFTFromTeacher(Method):
    Config = FromTeacherConfig
    config: FromTeacherConfig
    needs = ()  # ``check`` asks for what the teacher is shown
    joins = ("weights",)  # Answers are sampled before the first step, to the stage's own draws.

    def check(self, order: OrderView, place: str) -> None:
        check_teacher(order, self.config.teacher_context, place)

    def learn(self, stage: Stage) -> None:
        samples = TeacherSamples(stage, self.config.generations, self.config.teacher_context)
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = [Row(stage.prompt_tokens(e), answer) for e, answer in samples.of(step)]
                step.log(**trainer.token_mean(rows, cross_entropy), **trainer.update())

    def work(self, outlook: Outlook) -> Work:
        answers = self.config.answers_per_prompt(outlook.prompts)
        return Work(
            learned=outlook.prompt + outlook.answer,
            read=outlook.teacher_prompt(self.config.teacher_context) * answers,
            beforehand=answers,
            sampled=outlook.answer,
        )
