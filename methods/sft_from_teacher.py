"""Supervised fine-tuning on the teacher's own answers: the second off-policy comparison of the
paper's figure 6.

The answers are those of methods/offline_distillation.py, sampled once at the start of the stage
from the model under the teacher's prompt; the loss is the cross-entropy of methods/sft.py. An
answer that was cut off at the limit has no end to learn.
"""

from dataclasses import dataclass

from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.teacher_samples import TeacherSamples, check_teacher
from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from harness.skills.templates import TEACHER_CONTEXTS


@dataclass
class FromTeacherConfig(TrainingConfig):
    generations: int | None = option(
        None, "answers sampled from the teacher in a stage; one a prompt drawn if left out", min=1
    )
    teacher_context: str | None = option(
        None,
        "what the teacher is shown; what its template shows if left out",
        choices=TEACHER_CONTEXTS,
    )


class SFTFromTeacher(Method):
    Config = FromTeacherConfig
    needs = ()  # what the teacher is shown: see check

    def check(self, order, place):
        check_teacher(order, self.config.teacher_context, place)

    def learn(self, stage):
        samples = TeacherSamples(stage, self.config.generations, self.config.teacher_context)
        with learning(stage, self.config) as trainer:
            for step in stage.steps():
                rows = [Row(stage.prompt_tokens(e), answer) for e, answer in samples.of(step)]
                step.log(**trainer.token_mean(rows, cross_entropy), **trainer.update())

    def work(self, outlook):
        answer, share = (
            outlook.answer,
            min(1, (self.config.generations or outlook.prompts) / outlook.prompts),
        )
        return Work(
            learned=outlook.prompt + answer,
            read=outlook.teacher_prompt(self.config.teacher_context) * share,
            beforehand=share,
            sampled=answer,
        )
