"""SFT + re-invoke: SFT, then on-policy distillation from the base policy on general prompts.

    1. L = - mean over tokens of log p(y_t | x, y_<t),    y the demonstration of x
    2. L = mean over answers y ~ p(. | g) and tokens t of D(p_0(. | g, y_<t), p(. | g, y_<t))

g is a general prompt, p_0 the base policy, D the divergence: KL(p || p_0) by default.

A baseline of arXiv 2601.19897, after Lu and Thinking Machines Lab ("On-Policy Distillation", 2025):
the second phase brings back what SFT has overwritten, on prompts that have nothing to do with the
skill. A stage has two phases, each a training of its own (warm-up, schedule, optimizer):

1. SFT (methods/sft.py) on the whole budget, as every method;
2. ``reinvoke_prompts`` general prompts on top of it, as many as the budget if left out. The student
   samples an answer, and is pulled on its tokens towards the base policy, which sees the same
   prompt. No demonstration and no label is used. The records count the extra prompts, tokens and
   steps like all others.

Conventions
* The base policy is the model at the start of the stage. The paper has the method on one skill at a
  time only, where that is the base model too. Later in a sequence the model at the start of the run
  would take back the earlier skills as well.
* The divergence is ``reverse`` by default, as Lu's, here over the full vocabulary (``estimator:
  sampled`` is Lu's own).
* No token is skipped: there is no demonstration that could leave artifacts.

State: nothing between stages. Cost: that of `sft`, then for each general prompt an answer, a pass
forward and backward and one of the base policy over it, and a second copy of the weights.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.base.files import write_json
from harness.base.settings import option
from harness.learning.checks import check_on_policy
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.general_prompts import DEFAULT_PROMPTS, general_prompts
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import cross_entropy, learning
from harness.models.chat import chat_tokens
from harness.skills.templates import Message


@dataclass
class ReinvokeConfig(DistillationConfig):
    divergence: str = option(
        "reverse", "KL direction of the second phase", choices=("forward", "reverse", "mixture")
    )
    skip_tokens: int = option(0, "completion tokens without loss in the second phase", min=0)
    general_prompts: str | None = option(
        None,
        "JSONL file with `prompt` (a text or chat messages) in each row; the project's "
        "own if left out",
        path=True,
    )
    reinvoke_prompts: int | None = option(
        None, "general prompts drawn in a stage; as many as the budget if left out", min=1
    )


class SFTReinvoke(Method):
    Config = ReinvokeConfig
    config: ReinvokeConfig
    joins = ("examples", "weights", "demonstrations")  # in the first phase

    def check(self, order: OrderView, place: str) -> None:
        general_prompts(self.config.general_prompts)
        check_on_policy(order, self.config, place)

    def conversations(self, order: OrderView) -> Iterable[list[Message]]:
        return general_prompts(self.config.general_prompts)

    def phases(self, prompts: int) -> list[int]:
        return [prompts, self.config.reinvoke_prompts or prompts]

    def learn(self, stage: Stage) -> None:
        config = self.config
        path = Path(config.general_prompts or DEFAULT_PROMPTS)
        general = general_prompts(path)
        write_json(
            stage.folder / "general_prompts.json",
            {
                "file": path.name,
                "rows": len(general),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            },
        )
        with learning(stage, config) as trainer:
            base = Teacher(stage, 0, trainer.limit)
            for step in stage.steps():
                rows = stage.demonstration_rows(step.examples)
                step.log(phase=1, **trainer.token_mean(rows, cross_entropy), **trainer.update())
            for step in stage.steps(phase=1, examples=general):
                prompts = [stage.message_tokens(messages) for messages in step.examples]
                answers = [c for (c,) in stage.sample(prompts, seed=step.seed)]
                rows = [Row(p, c.token_ids) for p, c in zip(prompts, answers, strict=True)]
                step.log(
                    phase=2,
                    **distil(trainer, base, rows, rows, config, [c.logprobs for c in answers]),
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                    **trainer.update(),
                )

    def work(self, outlook: Outlook) -> Work:
        general = general_prompts(self.config.general_prompts)
        lengths = [len(chat_tokens(outlook.tokenizer, messages)) for messages in general]
        prompt = sum(lengths) / len(lengths)
        answer = outlook.limit  # nothing says how long answers to general prompts are
        share = self.phases(outlook.prompts)[1] / outlook.prompts
        return Work(
            learned=outlook.prompt + outlook.demonstration + share * (prompt + answer),
            scored=share * (prompt + answer),
            read=share * prompt,
            answers=share,
            sampled=answer,
            copies=1,
        )
