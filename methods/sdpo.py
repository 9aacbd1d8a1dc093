"""Self-distillation policy optimisation (SDPO), "Reinforcement Learning via Self-Distillation",
arXiv 2601.20802.

    L = mean over answers y_i with something to show, and their tokens t, of
        D(q(. | x, y_j, f_i, y_i,<t), p(. | x, y_i,<t))
    y_1 ... y_G ~ p(. | x),    j: the first j != i with R(y_j) >= accept

x is the question, R the reward, f_i the feedback on y_i, q the teacher, p the student. D is the
Jensen-Shannon divergence by default.

On-policy distillation whose demonstration is the model's own success. Every prompt is sampled
``group_size`` times, and the reward tells which answers are right. The teacher reads the question
with a right answer of the same group, and the feedback that the skill gives on the answer itself;
on every token of that answer the student is pulled towards the teacher.

Conventions
* An answer never sees itself: it is shown the first other one of its group whose reward is at least
  ``accept``. A right answer is shown another right one.
* ``feedback``: what ``Skill.feedback`` says of an answer is shown where no other is right, always,
  or never. A skill says nothing unless it has such a method, as `countdown` and `ifeval_style`.
* An answer with neither is left out of the loss and of its mean. Where all are left out a step
  learns nothing. A step logs ``shown``, the share of answers that have a teacher.
* Only an answer tells how long its feedback is: the check before anything loads, whether rows fit
  the model's positions, is without it.
* Thoughts are cut from the answer that is shown. The words around it are those of the authors' code
  and of TRL's SDPOTrainer, not the order's ``teacher_template``.
* The defaults are those of the authors' code: Jensen-Shannon divergence with weight 1/2 on the
  student's 100 likeliest tokens and a bucket for the rest, the mean over tokens, an average with
  alpha 0.05, success from a reward of 0.5. ``teacher: trust_region`` is the paper's other choice.
  Its runs had 32 prompts of 8 answers and a learning rate of 1e-5.
* TRL's SDPOTrainer has other defaults (reverse KL of the sampled token, success at 1), takes the
  mean of each answer first, and counts answers without a teacher in the mean over answers.

State: nothing between stages. Cost: as `sdft` with ``group_size`` answers to each prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.base.errors import UserError
from harness.base.settings import only_with, option
from harness.learning.checks import check_on_policy
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.packing import Row
from harness.learning.rewards import accepted, alike, group_rewards
from harness.learning.stage import Stage
from harness.learning.teacher import SelfTeacherOption
from harness.learning.trainer import learning
from harness.models.chat import chat_tokens
from harness.sampling.sampler import Completion
from harness.skills.skill import Example, Skill
from harness.skills.templates import Message, last_user_turn

SOLUTION = "\nCorrect solution:\n\n{}\n\n"
FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}\n\n"
TASK = "\n\nCorrectly solve the original question.\n"
WORDS = 64  # tokens of these words, about


@dataclass
class SDPOConfig(SelfTeacherOption, DistillationConfig):
    divergence: str = option("mixture", "KL direction", choices=("forward", "reverse", "mixture"))
    estimator: str = option(
        "top_k",
        "of the gradient (appendix A.1 of arXiv 2601.19897)",
        choices=("full", "sampled", "rao_blackwell", "top_k"),
    )
    normalise: str | None = option(
        "tokens",
        "what the loss is averaged over",
        choices=("sequences", "tokens", "constant"),
    )
    skip_tokens: int = option(0, "completion tokens without loss", min=0)
    ema_alpha: float = option(
        0.05,
        "share of the student in the average after each optimizer step, or in the logits of "
        "trust_region",
        above=0,
        max=1,
    )
    group_size: int = option(8, "completions sampled for each prompt", min=2, max=10_000)
    accept: float = option(0.5, "reward from which on an answer is shown to others", min=0, max=1)
    feedback: str = option(
        "without_solution",
        "when the skill's words on an answer are shown",
        choices=("without_solution", "always", "never"),
    )

    def check_effects(self) -> None:
        super().check_effects()
        only_with(self, self.has_share, "teacher: ema or trust_region", "ema_alpha")


class SDPO(Method):
    Config = SDPOConfig
    config: SDPOConfig
    needs = ()
    graded = True

    def check(self, order: OrderView, place: str) -> None:
        check_on_policy(order, self.config, place)
        is_told = any(type(skill).feedback is not Skill.feedback for skill in order.skills)
        if self.config.feedback == "always" and not is_told:
            raise UserError(
                f"{place}: feedback",
                "no skill of the order says anything of an answer",
                "leave it out, or define feedback() of a skill of your own",
            )

    def conversations(self, order: OrderView) -> Iterable[list[Message]]:
        for skill in order.skills:
            for example in skill.examples("train"):
                yield reprompt(example, "an answer", None)

    def longest(self, lengths: Lengths) -> int:
        return max(super().longest(lengths), lengths.prompt + 2 * lengths.limit + WORDS)

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            teacher = config.make_teacher(stage, trainer.limit, trainer.place)
            for step in stage.steps():
                groups = stage.answers(step.examples, n=config.group_size, seed=step.seed)
                rewards = group_rewards(stage, step.examples, groups)
                answers = [c for group in groups for c in group]
                right = accepted(rewards, config.accept)
                rows, shown, logprobs = self._shown(stage, step.examples, groups, right)
                step.log(
                    reward=rewards.mean(),
                    groups_without_signal=alike(rewards).float().mean(),
                    shown=len(rows) / len(answers),
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                )
                if rows:
                    step.log(**distil(trainer, teacher, rows, shown, config, logprobs))
                step.log(**trainer.update())
                teacher.follow(trainer.masters)

    def _shown(
        self,
        stage: Stage,
        examples: Sequence[Example],
        groups: Sequence[Sequence[Completion]],
        right_ones: Sequence[Sequence[bool]],
    ) -> tuple[list[Row], list[Row], list[list[float]]]:
        """(the student's rows, the teacher's, log-probabilities by the sampler) of all answers that
        have something to be shown.
        """
        rows, shown, logprobs = [], [], []
        limits = stage.limits(examples)
        for example, group, marks, limit in zip(examples, groups, right_ones, limits, strict=True):
            right = [i for i, is_right in enumerate(marks) if is_right]
            prompt = stage.prompt_tokens(example)
            for number, answer in enumerate(group):
                others = [i for i in right if i != number]
                solution = group[others[0]].text if others else None
                feedback = self._feedback(stage, example, answer, solution)
                if solution is None and feedback is None:
                    continue
                messages = reprompt(example, solution, feedback)
                asked = chat_tokens(stage.tokenizer, messages, inputs=stage.teacher_chat)
                rows.append(Row(prompt, answer.token_ids, limit))
                shown.append(Row(asked, answer.token_ids, limit))
                logprobs.append(answer.logprobs)
        return rows, shown, logprobs

    def _feedback(
        self, stage: Stage, example: Example, answer: Completion, solution: str | None
    ) -> str | None:
        """What the skill says of an answer, where the teacher is to see it."""
        when = self.config.feedback
        if when == "never" or (when == "without_solution" and solution is not None):
            return None
        said = stage.lesson(example).skill.feedback(answer.text, example.reference)
        return said if said and said.strip() else None

    def work(self, outlook: Outlook) -> Work:
        """As if every answer were shown another one."""
        config, answer = self.config, outlook.answer
        shown = outlook.prompt + WORDS + 2 * answer
        return Work(
            learned=outlook.prompt + config.group_size * answer,
            scored=config.passes * config.group_size * shown,
            read=outlook.prompt,
            answers=config.group_size,
            sampled=answer,
            **config.models,
        )


def reprompt(example: Example, solution: str | None, feedback: str | None) -> list[Message]:
    """The chat messages that the teacher reads before an answer."""
    asked = last_user_turn(example.prompt)
    text = example.prompt[asked]["content"]
    if solution is not None:
        text += SOLUTION.replace("{}", solution)
    if feedback is not None:
        text += FEEDBACK.replace("{}", feedback)
    question: Message = {"role": "user", "content": text + TASK}
    return [*example.prompt[:asked], question, *example.prompt[asked + 1 :]]
