"""Offline distillation: SDFT's teacher and divergence on a fixed set of the teacher's own answers
(the paper's figure 6).

At the start of the stage the teacher, the model as it is under the teacher's prompt, answers the
first ``generations`` prompts that the stage draws, once each; its weights stay frozen. The student
then learns on these answers alone, off its own policy. As the answers are the teacher's, the
``forward`` divergence is, in the mean, the KL of whole sequences.

``generations`` is the x axis of figure 6; SDFT makes one for each prompt drawn. Left out, or above
the budget, it is that number too, and the stage goes through the prompts that every method sees, in
their order. Below it, the first pass is over those prompts, and the answers come again, shuffled
anew in each further pass, until the budget is spent.
"""

from dataclasses import dataclass

from harness.base.settings import option
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.teacher_samples import TeacherSamples, check_teacher
from harness.learning.trainer import learning
from harness.skills.templates import TEACHER_CONTEXTS


@dataclass
class OfflineConfig(DistillationConfig):
    generations: int | None = option(
        None, "answers sampled from the teacher in a stage; one a prompt drawn if left out", min=1
    )
    teacher_context: str | None = option(
        None,
        "what the teacher is shown; what its template shows if left out",
        choices=TEACHER_CONTEXTS,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.estimator in ("sampled", "rao_blackwell"):
            raise ValueError(
                f"estimator: {self.estimator} wants completions of the student; these are the teacher's"
            )
        if self.importance_cap:
            raise ValueError(
                "importance_cap goes with completions of the student; these are the teacher's"
            )


class OfflineDistillation(Method):
    Config = OfflineConfig
    needs = ()  # what the teacher is shown: see check

    def check(self, order, place):
        check_teacher(order, self.config.teacher_context, place)

    def learn(self, stage):
        config = self.config
        samples = TeacherSamples(stage, config.generations, config.teacher_context)
        with learning(stage, config) as trainer:
            teacher = Teacher(stage, 0, trainer.limit)
            for step in stage.steps():
                chosen = samples.of(step)
                rows = [Row(stage.prompt_tokens(e), answer) for e, answer in chosen]
                shown = [
                    Row(stage.teacher_tokens(e, config.teacher_context), answer)
                    for e, answer in chosen
                ]
                step.log(**distil(trainer, teacher, rows, shown, config), **trainer.update())

    def work(self, outlook):
        answer, shown = outlook.answer, outlook.teacher_prompt(self.config.teacher_context)
        share = min(1, (self.config.generations or outlook.prompts) / outlook.prompts)
        return Work(
            learned=outlook.prompt + answer,
            scored=shown + answer,
            read=shown * share,
            beforehand=share,
            sampled=answer,
            copies=1,
        )
