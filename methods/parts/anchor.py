"""Anchor: the model's answers stay near those of an earlier model, by a KL divergence.

    L = the method's loss + beta T^2 mean over tokens of D(p_ref, p_theta)

D is over the whole vocabulary: ``forward`` KL(p_ref || p_theta) or ``reverse`` KL(p_theta ||
p_ref), both at ``temperature`` T. The mean is over all completion tokens of the anchor's rows.
p_ref is the model at the start of the ``stage`` or of the ``run``, or with ``of: NAME`` another
model with the same tokenizer, a hub id or a folder (``of: ./run`` where it is called so). It reads
the same tokens. Results hold the hash of its folder, or its commit.

``along`` says along which completions:
* ``demonstrations`` of the step's examples, replayed ones included;
* ``own_answers``: the live model answers the prompts of the step's examples;
* ``old_prompts``: it answers training prompts of earlier skills, from the second stage on, without
  those that ``rollout.max_prompt_tokens`` leaves out;
* ``general_prompts``: it answers prompts that have nothing to do with a skill.

The first two want a method that learns from the examples of its steps: not `cpt`,
`offline_distillation` or `sft_from_teacher`.

Settings of the field: LwF (arXiv 1606.09282) is ``along: demonstrations, temperature: 2``; ASFT
(arXiv 2509.23753) is the method ``dft`` with ``of: run, beta: 0.1``; the KL to the base policy of
RL is ``along: own_answers, of: run, divergence: reverse``; RAD (arXiv 2608.20794) is near ``along:
general_prompts, of: run``. They are presets: `lwf`, `asft`, `kl_to_base`, `rad`. KL on the current
skill's data does not bound the drift on old ones, so the completions are an option. Some codes swap
the two models, leave T^2 out, or sum over padding.

Where ``share`` is 1 a step has as many old or general prompts as its batch has examples. Answers
are sampled as rollouts are, and count as such. With ``own_answers`` the prefix is fixed for the
gradient, as in SDFT's estimator ``full``.

State: nothing; p_ref is read from where the run keeps it. ``old_prompts`` reads all prompts of
earlier skills again, without their answers: their texts count as kept bytes. Cost: a second model
in memory, a pass of both over the anchor's rows, and their sampling; FLOPs count another model by
its own size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.base.settings import only_with, option
from harness.learning.distillation import divergence
from harness.learning.draws import draws
from harness.learning.general_prompts import general_prompts
from harness.learning.method import Method, OrderView
from harness.learning.outlook import Outlook, Work, prompt_bytes
from harness.learning.packing import Positions, Row
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.teacher import fixed_teacher
from harness.learning.trainer import Trainer
from harness.models.others import STARTS, check_vocabulary
from harness.skills.skill import Example
from harness.skills.templates import Message


@dataclass
class AnchorConfig(PartConfig):
    beta: float = option(0.1, "weight of the divergence", min=0, max=1e6)
    of: str = option(
        "stage", "p_ref: start of the stage or run, or another model's hub id or folder", model=True
    )
    divergence: str = option("forward", "KL direction", choices=("forward", "reverse"))
    along: str = option(
        "demonstrations",
        "along which completions",
        choices=("demonstrations", "own_answers", "old_prompts", "general_prompts"),
    )
    share: float = option(
        1.0, "old or general prompts for each example of a batch", above=0, max=100
    )
    temperature: float = option(1.0, "T, of both distributions", above=0, max=1000)
    prompts: str | None = option(
        None,
        "JSONL file of general prompts, `prompt` in each row; the project's own if left out",
        path=True,
    )

    def __post_init__(self) -> None:
        if self.prompts and self.along != "general_prompts":
            raise ValueError("prompts, a file, goes with along: general_prompts")

    def check_effects(self) -> None:
        drawn = self.along in ("old_prompts", "general_prompts")
        only_with(self, drawn, "along: old_prompts or general_prompts", "share")


class Anchor(Part):
    Config = AnchorConfig
    config: AnchorConfig
    kept = 0  # bytes of the prompts that later stages read again

    def check(self, order: OrderView, method: Method, place: str) -> None:
        along = self.config.along
        if why := self.refuses(type(method)):
            raise UserError(place, why, "take along: old_prompts or general_prompts")
        if along == "old_prompts" and len(order.skills) < 2:
            raise UserError(place, "an order of one skill has no old prompts")
        if along == "demonstrations":
            for skill in order.skills:
                if any(example.demonstration is None for example in skill.examples("train")):
                    raise UserError(place, f"along: demonstrations: {skill.name} has none")
        if self.config.of not in STARTS:
            model = order.model
            check_vocabulary(self.config.of, model.name, model.revision, f"{place}: of")
        self.conversations()

    def refuses(self, method: type[Method]) -> str:
        along = self.config.along
        if along in ("demonstrations", "own_answers") and "examples" not in method.joins:
            return f"along: {along} wants a method that learns from the examples of its steps"
        return ""

    def conversations(self) -> Iterable[list[Message]]:
        config = self.config
        return general_prompts(config.prompts) if config.along == "general_prompts" else []

    def begin(self, stage: Stage) -> None:
        self.reference = fixed_teacher(stage, self.config.of, stage.passes.tokens)
        self.pool: list[Example] = []
        self.kept = 0
        if self.config.along == "old_prompts":
            for lesson in stage.earlier:
                self.pool += lesson.examples
        for number, messages in enumerate(self.conversations()):
            self.pool.append(Example(str(number), messages, None, None))

    def end(self, stage: Stage) -> None:
        if self.config.along == "old_prompts" and stage.later:
            self.kept = sum(map(prompt_bytes, [*self.pool, *stage.examples]))
        del self.reference, self.pool

    def kept_bytes(self) -> int:
        return self.kept

    def loss(self, trainer: Trainer, step: Step) -> Mapping[str, float]:
        config, rows = self.config, self._rows(step)
        if not rows:
            return {}
        states = self.reference.states(rows)
        count, heat = sum(len(row.completion) for row in rows), config.temperature

        def anchored(logits: torch.Tensor, positions: Positions) -> torch.Tensor:
            targets = self.reference.logits_at(states, positions) / heat
            losses = divergence(logits / heat, targets, config.divergence)
            return losses.sum() * (config.beta * heat**2 / count)

        return {"anchor_loss": trainer.backward(rows, anchored)}

    def _rows(self, step: Step) -> list[Row]:
        """The completions of a step along which the divergence is taken."""
        stage, config = self.stage, self.config
        # A phase that draws something else than training examples has none.
        examples = [each for each in step.examples if isinstance(each, Example)]
        if config.along == "demonstrations":
            return stage.demonstration_rows(examples)
        if config.along != "own_answers":
            count = max(1, round(config.share * stage.batch_size)) if self.pool else 0
            seed = seed_for(stage.seed, stage.index, "anchor prompts")
            drawn = draws(len(self.pool), count * (step.index + 1), seed) if count else []
            examples = [self.pool[i] for i in drawn[count * step.index :]]
        if not examples:
            return []
        groups = stage.answers(examples, seed=seed_for(step.seed, "anchor"))
        return stage.rows(examples, [stage.prompt_tokens(e) for e in examples], groups)

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        """Old and general prompts as if they were the stage's own."""
        config = self.config
        sampled = config.along != "demonstrations"
        share = config.share if config.along in ("old_prompts", "general_prompts") else 1.0
        if config.along == "old_prompts" and not earlier:
            share = 0.0
        answer = outlook.answer if sampled else outlook.demonstration
        read_again = config.along == "old_prompts" and outlook.later > 0
        prompts = [len(o.skill.examples("train")) * o.prompt_bytes for o in (*earlier, outlook)]
        return replace(
            work.with_start(config.of, outlook),
            kept=work.kept + read_again * sum(prompts),
            learned=work.learned + share * (outlook.prompt + answer),
            scored=work.scored + share * (outlook.prompt + answer) * outlook.size_of(config.of),
            read=work.read + share * outlook.prompt * sampled,
            answers=work.answers + share * sampled,
            sampled=max(work.sampled, outlook.answer * sampled),
        )
