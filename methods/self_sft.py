"""Supervised fine-tuning on the model's own right answers (self-SFT; RFT, RAFT, "Self-Output").

    L = - mean over tokens of log p(y_t | x, y_<t),    y ~ p_0(. | x) with R(y) >= accept

p_0 is the model at the start of the stage, or of the pass over the examples, R the reward.

The model answers each prompt of the budget ``answers`` times. Answers whose reward is at least
``accept`` are kept, and learned by the cross-entropy of methods/sft.py. No demonstration is used.

* ``resample: stage``: all answers come from the model at the start of the stage (rejection-sampling
  fine-tuning, arXiv 2308.01825; the Self-Output of arXiv 2501.14315).
* ``resample: epoch``: the live model answers in each pass over the skill's examples, which is
  approximately on-policy (arXiv 2510.18874; RAFT, arXiv 2304.06767).

Budget
* Prompts come in the order of every method. One without a right answer drops out for that round of
  answers, and a prompt that has one takes its place: steps, batches and prompts drawn are those of
  SFT. Where no prompt has a right answer a step learns nothing.
* A prompt that comes again learns its next right answer. All prompts weigh the same, however many
  right answers they have.
* Sampled tokens and their time are on the stage's record. A prompt of the budget that is answered
  is not counted as drawn a second time, as with SDFT and GRPO.

A step logs ``yield``, the share of answers that were accepted, and ``answered``, the share of
prompts that have a right one. A prompt that replay brings back is answered by the live model at its
step, graded by its own skill, and left out without a right answer.

State: nothing between stages; the round's answers are in the stage's checkpoints. Cost: ``answers``
completions of each prompt. An answer that was cut off at the limit has no end to learn.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.method import Method
from harness.learning.outlook import Outlook, Work
from harness.learning.packing import Row
from harness.learning.rewards import accepted, group_rewards
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from harness.skills.skill import Example

BLOCK = 256  # prompts that are answered between two lines of progress


@dataclass
class SelfSFTConfig(TrainingConfig):
    answers: int = option(4, "completions sampled for each prompt", min=1, max=10_000)
    accept: float = option(1.0, "reward from which on an answer is learned", min=0, max=1)
    resample: str = option(
        "stage",
        "when the model answers: at the start of the stage, or of each pass over the examples",
        choices=("stage", "epoch"),
    )


class SelfSFT(Method):
    Config = SelfSFTConfig
    config: SelfSFTConfig
    needs = ()
    joins = ("examples", "weights")
    graded = True

    def learn(self, stage: Stage) -> None:
        with learning(stage, self.config) as trainer:
            own = OwnAnswers(stage, self.config)
            for step in stage.steps():
                rows = own.rows(step)
                logged = trainer.token_mean(rows, cross_entropy) if rows else {}
                step.log(**own.diagnostics(), **logged, **trainer.update())
                own.renew(step.index + 1)

    def work(self, outlook: Outlook) -> Work:
        share = min(1.0, len(outlook.skill.examples("train")) / outlook.prompts)
        if self.config.resample == "epoch":
            share = 1.0
        return Work(
            learned=outlook.prompt + outlook.answer,
            read=outlook.prompt * share,
            beforehand=self.config.answers * share,
            sampled=outlook.answer,
        )


class OwnAnswers:
    """Right answers of the model to the prompts of a round of steps.

    steps: that draw prompts of the budget; span: those of a round; times: how often the prompt of
    each draw has come before it; round: the present one; right: {id of an example: token ids of
    each of its right answers}, of all prompts of the round; sampled: answers of the round in all.
    """

    def __init__(self, stage: Stage, config: SelfSFTConfig) -> None:
        self.stage, self.config = stage, config
        self.steps = stage.steps_for(stage.phases[0])
        self.span = self.steps
        self.examples = {example.id: example for example in stage.examples}
        if config.resample == "epoch":  # a joint run has an example once for each draw of it
            self.span = stage.steps_for(len(self.examples))
        self.times: list[int] = []
        come: Counter[str] = Counter()
        for place in stage.draws():
            id = stage.examples[place].id
            self.times.append(come[id])
            come[id] += 1
        self.round = -1
        self.sampled = 0
        self.right: dict[str, list[list[int]]] = {}
        stage.keep(own_answers=self)
        self.renew(stage.step)

    def renew(self, step: int) -> None:
        """Let the live model answer the prompts of the round that ``step`` is the first of."""
        stage = self.stage
        if step // self.span == self.round or step >= self.steps:
            return
        self.round = step // self.span
        self.right, self.sampled = {}, 0
        first = self.round * self.span * stage.batch_size
        drawn = stage.draws()[first : first + self.span * stage.batch_size]
        examples = list({stage.examples[i].id: stage.examples[i] for i in drawn}.values())
        for start in range(0, len(examples), BLOCK):
            block = examples[start : start + BLOCK]
            seed = seed_for(stage.seed, stage.index, "own answers", self.round, start)
            for example, answers in zip(block, self._accepted(block, seed), strict=True):
                self.right[example.id] = answers
            stage.show("own answers", start + len(block), len(examples))
        self.sampled = len(examples) * self.config.answers
        self._order()

    def _accepted(self, examples: Sequence[Example], seed: int) -> list[list[list[int]]]:
        """The token ids of the answers to each example that its skill's reward accepts."""
        stage, config = self.stage, self.config
        groups = stage.answers(examples, n=config.answers, seed=seed)
        right = accepted(group_rewards(stage, examples, groups), config.accept)
        return [
            [c.token_ids for c, is_right in zip(group, row, strict=True) if is_right]
            for group, row in zip(groups, right, strict=True)
        ]

    def _order(self) -> None:
        """Which prompts have a right answer, shuffled, and the place of each that has none."""
        self.kept = [id for id, answers in self.right.items() if answers]
        seed = seed_for(self.stage.seed, self.stage.index, "own answers again", self.round)
        random.Random(seed).shuffle(self.kept)
        dropped = [id for id, answers in self.right.items() if not answers]
        self.dropped = {id: place for place, id in enumerate(dropped)}

    def rows(self, step: Step) -> list[Row]:
        """The rows of a step: a right answer to each of its prompts, or to one in its place."""
        stage = self.stage
        times = iter(self.times[step.index * stage.batch_size :])
        rows, others = [], []
        for example in step.examples:
            if not stage.is_own(example):
                others.append(example)
            elif chosen := self._answer(example.id, next(times)):
                rows.append(chosen)
        if others:
            answers = self._accepted(others, seed_for(step.seed, "replayed"))
            rows += [
                Row(stage.prompt_tokens(example), right[0])
                for example, right in zip(others, answers, strict=True)
                if right
            ]
        return rows

    def _answer(self, id: str, times: int) -> Row | None:
        """The right answer that a prompt which came so many times before learns; None without."""
        if not self.kept:
            return None
        turn = times
        if id in self.dropped:
            further, place = divmod(self.dropped[id] + times * len(self.dropped), len(self.kept))
            id = self.kept[place]
            turn += 1 + further
        answers = self.right[id]
        return Row(self.stage.prompt_tokens(self.examples[id]), answers[turn % len(answers)])

    def diagnostics(self) -> dict[str, float]:
        """What a step logs of the round's answers."""
        return {
            "yield": sum(map(len, self.right.values())) / max(1, self.sampled),
            "answered": len(self.kept) / max(1, len(self.right)),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round, "sampled": self.sampled, "right": self.right}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.round, self.sampled = state["round"], state["sampled"]
        self.right = dict(state["right"])
        self._order()
