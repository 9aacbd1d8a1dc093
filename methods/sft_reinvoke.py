"""SFT + re-invoke: supervised fine-tuning, then on-policy distillation from the base policy on
general prompts.

The paper's baseline after Lu and Thinking Machines Lab ("On-Policy Distillation", 2025): what SFT
has overwritten is taken back from the model as it was before, on prompts that have nothing to do
with the skill. Two phases a stage, each a training of its own (warm-up, schedule, optimizer):

1. SFT (methods/sft.py) on the whole budget, as every method;
2. on top of it ``reinvoke_prompts`` general prompts, as many as the budget if left out: the student
   samples an answer, and is pulled on its tokens towards the base policy, which sees the same
   prompt. No demonstration, no label is used. The extra prompts, tokens and steps are counted on
   the records like all others.

The base policy is the model at the start of the stage. The paper has the method on one skill at a
time only, where that is the base model as well; later in a sequence the model at the start of the
run would take back the earlier skills too.

The divergence is ``reverse`` by default, as Lu's, here over the full vocabulary (``estimator:
sampled`` is Lu's own), and no token is skipped: there is no demonstration that could leave
artifacts. The base sees what the student sees, so it needs no weights of its own but those it had.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import read_jsonl, write_json
from harness.base.settings import option
from harness.learning.distillation import DistillationConfig, distil
from harness.learning.method import Method
from harness.learning.outlook import Work
from harness.learning.packing import Row
from harness.learning.teacher import Teacher
from harness.learning.teacher_samples import check_on_policy
from harness.learning.trainer import cross_entropy, learning
from harness.models.chat import chat_tokens
from harness.skills.files import chat_prompt

DEFAULT_PROMPTS = Path(__file__).with_name("general_prompts.jsonl")  # written for this project


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


def general_prompts(file):
    """The chat messages of each row of ``file``, or of the project's own prompts. Raises UserError
    naming a row that is wrong.
    """
    path = Path(file or DEFAULT_PROMPTS)
    found = [chat_prompt(row, f"{path}, row {number}") for number, row in read_jsonl(path)]
    if not found:
        raise UserError(path, "has no rows")
    return found


class SFTReinvoke(Method):
    Config = ReinvokeConfig

    def check(self, order, place):
        general_prompts(self.config.general_prompts)
        check_on_policy(order, self.config, place)

    def phases(self, prompts):
        return [prompts, self.config.reinvoke_prompts or prompts]

    def learn(self, stage):
        config = self.config
        path, general = (
            Path(config.general_prompts or DEFAULT_PROMPTS),
            general_prompts(config.general_prompts),
        )
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
                rows = [
                    Row(stage.prompt_tokens(e), stage.demonstration_tokens(e))
                    for e in step.examples
                ]
                step.log(phase=1, **trainer.token_mean(rows, cross_entropy), **trainer.update())
            for step in stage.steps(phase=1, examples=general):
                prompts = [chat_tokens(stage.tokenizer, messages) for messages in step.examples]
                answers = [c for (c,) in stage.sample(prompts, seed=step.seed)]
                rows = [Row(p, c.token_ids) for p, c in zip(prompts, answers)]
                step.log(
                    phase=2,
                    **distil(trainer, base, rows, rows, config, [c.logprobs for c in answers]),
                    cut_off=sum(not c.finished for c in answers) / len(answers),
                    **trainer.update(),
                )

    def work(self, outlook):
        lengths = [
            len(chat_tokens(outlook.tokenizer, m))
            for m in general_prompts(self.config.general_prompts)
        ]
        prompt, share = (
            sum(lengths) / len(lengths),
            self.phases(outlook.prompts)[1] / outlook.prompts,
        )
        answer = outlook.limit  # nothing says how long answers to general prompts are
        return Work(
            learned=outlook.prompt + outlook.demonstration + share * (prompt + answer),
            scored=share * (prompt + answer),
            read=share * prompt,
            answers=share,
            sampled=answer,
            copies=1,
        )
