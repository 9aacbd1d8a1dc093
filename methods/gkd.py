"""Generalised knowledge distillation (GKD), arXiv 2306.13649: from another model, or an older self.

    L = mean over tokens of D(q(. | x, y_<t), p(. | x, y_<t)),    y the demonstration or ~ p(. | x)

With the chance ``student_share`` (lambda) a step learns on the student's own answers, otherwise on
the demonstrations, as in the paper's algorithm 1. On every token the student is pulled towards the
teacher, which reads the same prompt and no demonstration.

Conventions
* ``teacher_model`` is a model with the same tokenizer: a hub id or a folder. If left out it is the
  model at the start of the run, which takes the student back to what it was: in the first stage it
  has nothing to teach.
* The paper's beta is ``mixture_weight`` under ``divergence: mixture``: beta KL(q || m) + (1 - beta)
  KL(p || m), m = beta q + (1 - beta) p. Its ends are ``forward`` (beta 0) and ``reverse`` (beta 1).
  TRL's GKDTrainer has the same beta, and beta = lambda = 0.5 by default, as here.
* The loss is the mean over tokens, at the rollout temperature (TRL's default is 0.9).
* Output heads may be padded to different sizes: rows that one of them lacks are no tokens, and are
  left out of the teacher's distribution.
* MiniLLM (arXiv 2306.08543) is near ``student_share: 1, divergence: reverse, estimator: sampled``.

State: nothing. Cost: a second model in memory, of whatever size, and its pass over each row;
--plan takes the teacher to be as large as the student.
"""

import random
from dataclasses import dataclass

import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.checks import check_on_policy
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.packing import Positions, TokenValues
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import learning
from harness.models.load import load_model, load_tokenizer


@dataclass
class GKDConfig(DistillationConfig):
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
    teacher_model: str | None = option(
        None, "hub id or folder of the teacher; the model at the start of the run if left out"
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
        name = self.config.teacher_model
        if name is not None:
            own = f"{place}: teacher_model"
            teacher, _ = load_tokenizer(name, place=own)
            student, _ = load_tokenizer(order.model.name, order.model.revision, place)
            if teacher.get_vocab() != student.get_vocab():
                raise UserError(
                    own,
                    f"{name} has another tokenizer than {order.model.name}",
                    "a teacher's probabilities are compared token by token: name a model of the "
                    "same family",
                )

    def longest(self, lengths: Lengths) -> int:
        share, prompt = self.config.student_share, lengths.prompt
        answer = max(lengths.demonstration * (share < 1), lengths.limit * (share > 0))
        return prompt + answer - 1

    def learn(self, stage: Stage) -> None:
        config = self.config
        with learning(stage, config) as trainer:
            teacher = self._teacher(stage, trainer.limit)
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

    def _teacher(self, stage: Stage, limit: int) -> Teacher:
        name = self.config.teacher_model
        if name is None:
            return Teacher(stage, 0, limit, model=stage.start("run"))
        dtype = str(stage.model.dtype).removeprefix("torch.")
        with torch.random.fork_rng():
            model, _ = load_model(name, dtype, str(stage.model.device), place="teacher_model")
        return OtherModel(stage, 0, limit, model=model.requires_grad_(False))

    def work(self, outlook: Outlook) -> Work:
        share = self.config.student_share
        tokens = outlook.prompt + share * outlook.answer + (1 - share) * outlook.demonstration
        other = self.config.teacher_model is not None
        return Work(
            learned=tokens,
            scored=tokens,
            read=outlook.prompt * share,
            answers=share,
            sampled=outlook.answer,
            copies=int(other),
            starts=frozenset(() if other else {"run"}),
        )


class OtherModel(Teacher):
    """A teacher of other weights and perhaps another size, with the student's tokens."""

    def logits_at(self, states: TokenValues, positions: Positions) -> torch.Tensor:
        width: int = self.stage.model.config.get_text_config().vocab_size
        logits = super().logits_at(states, positions)
        if logits.shape[1] < width:  # rows of the student's head that are no tokens
            logits = torch.nn.functional.pad(logits, (0, width - logits.shape[1]), value=-1e4)
        return logits[:, :width]
