"""Offline distillation: SDFT's teacher and divergence on a fixed set of the teacher's own answers.

    L = mean over answers y ~ q(. | x, d) and tokens t of D(q(. | x, d, y_<t), p(. | x, y_<t))

x is the question, d what the teacher is shown, q the teacher at the start of the stage, p the
student, D the divergence: KL(q || p) by default.

The first off-policy comparison of figure 6 in arXiv 2601.19897. At the start of the stage the
teacher, the model as it is under the teacher's prompt, answers the first ``generations`` prompts
that the stage draws, once each; its weights stay frozen. The student then learns on these answers
alone, off its own policy. As the answers are the teacher's, the ``forward`` divergence is, in the
mean, the KL of whole sequences.

``generations`` is the x axis of figure 6; SDFT samples one answer for each prompt drawn. Left out,
or above the budget, it is that number too, and the stage has the prompts that every method has, in
their order. Below the budget, the first pass is over those prompts, and the answers come again,
shuffled in each further pass, until the budget is spent.

State: nothing between stages. Cost: ``generations`` answers at the start of a stage, a pass forward
and backward and one of the teacher over each row, and a second copy of the weights.
"""

from dataclasses import dataclass

from harness.learning.checks import check_teacher
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherSamplesOptions
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.teacher_samples import TeacherSamples
from harness.learning.trainer import learning


@dataclass
class OfflineConfig(TeacherSamplesOptions, DistillationConfig):
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator in ("sampled", "rao_blackwell"):
            raise ValueError(
                f"estimator: {self.estimator} wants completions of the student; "
                "these are the teacher's"
            )
        if self.importance_cap:
            raise ValueError(
                "importance_cap goes with completions of the student; these are the teacher's"
            )


class OfflineDistillation(Method):
    Config = OfflineConfig
    config: OfflineConfig
    needs = ()  # ``check`` asks for what the teacher is shown
    joins = ()  # Answers are sampled before the first step, to the stage's own draws.

    def check(self, order: OrderView, place: str) -> None:
        check_teacher(order, self.config.teacher_context, place)

    def learn(self, stage: Stage) -> None:
        config = self.config
        samples = TeacherSamples(stage, config.generations, config.teacher_context)
        with learning(stage, config) as trainer:
            teacher = Teacher(stage, 0, trainer.limit)
            for step in stage.steps():
                pairs = samples.of(step)
                rows = [Row(stage.prompt_tokens(e), answer) for e, answer in pairs]
                teacher_rows = [
                    Row(stage.teacher_tokens(e, config.teacher_context), answer)
                    for e, answer in pairs
                ]
                step.log(**distil(trainer, teacher, rows, teacher_rows, config), **trainer.update())

    def work(self, outlook: Outlook) -> Work:
        teacher_prompt = outlook.teacher_prompt(self.config.teacher_context)
        answers = self.config.answers_per_prompt(outlook.prompts)
        return Work(
            learned=outlook.prompt + outlook.answer,
            scored=teacher_prompt + outlook.answer,
            read=teacher_prompt * answers,
            beforehand=answers,
            sampled=outlook.answer,
            copies=1,
        )
