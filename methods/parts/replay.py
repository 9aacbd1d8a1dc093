"""Experience replay: a stage learns from examples of earlier skills as well.

    L = mean over B and M of the method's own loss,    B from the skill, M from the memory

A replayed example is learned as the method learns one of its own skill: SFT from its demonstration,
SDFT and GRPO from answers that are sampled and taught again, with the template, reward and limit of
the example's skill.

What is kept. After a stage the memory takes training examples that the stage has drawn, never
replayed ones.
* ``ratio``: each skill keeps that share of them for good (TRACE, arXiv 2310.06762, keeps 10%).
  ``rows``: that many in all, whatever the number of skills.
* ``selection``: ``balanced`` draws them at random, and ``rows`` are divided evenly among the
  earlier skills; ``first`` divides alike and takes the first of each skill's file; ``best_scored``
  divides alike and takes the best by ``score``; ``reservoir`` gives every example drawn so far the
  same chance (Vitter's algorithm R), so that large skills keep more.
* ``best_scored``: the model answers each candidate once at the end of the stage; ``score`` is the
  ``reward`` of the answer or the mean ``logprob`` of its tokens, at temperature 1 whatever it was
  sampled at. Examples of older skills compete with their new scores. OPR (arXiv 2605.29495) scores
  in the same ways, but its code answers the whole training sets of all earlier skills to keep a few
  rows; here the memory is what it says.
* ``content``: ``gold`` demonstrations, or ``own`` answers of the model at the end of each stage to
  all that is kept (OPR: ``rows``, ``best_scored``, ``own``, ``temperature: 0.1``). An answer that
  was cut off or is empty leaves the gold one. Content and selection are independent.

When it is replayed.
* ``share`` of the budget's prompts are replayed. Left out, each kept row comes once a stage.
* ``mix: steps`` spreads them evenly over the stage's steps; ``after`` takes them in steps behind
  (TRACE), under the same schedule and optimizer.
* ``extra: on_top`` of the budget, or ``inside`` it, in place of the last own examples of a step.
* Draws go through the memory in shuffled passes.
* Where a method cuts a step into ``inner_batches``, replayed examples are shuffled among the step's
  own. Behind them they would fill its last updates, which have moved furthest from the rollouts.

``general`` names a JSONL file with ``prompt`` and ``demonstration`` in each row (TRACE mixes LIMA
in). Its rows are replayed from the first stage on, beside what is kept. They have no reward, so
methods that want rewards refuse them. `cpt`, `offline_distillation` and `sft_from_teacher`, whose
rows are fixed before the first step, refuse the whole part.

State: the kept examples and own answers, as texts. Cost: what the replayed examples take, and one
answer for each candidate (``best_scored``) and each kept example (``own``) at a stage's end.

The method's folder holds ``replay.json``: rows of each skill, and how many have own answers.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_jsonl, write_json
from harness.base.seeds import seed_for
from harness.base.settings import only_with, option
from harness.learning.draws import draws
from harness.learning.lessons import Lesson
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherOption
from harness.learning.outlook import Outlook, Work
from harness.learning.part import Part, PartConfig
from harness.learning.stage import Stage
from harness.learning.step import Step
from harness.learning.weighting import row_logprobs
from harness.sampling.sampler import Completion
from harness.skills.files import chat_prompt
from harness.skills.skill import Example, Skill
from harness.skills.templates import Message

GENERAL = " general data"  # no skill of an order is called so: a name begins with no blank


@dataclass
class ReplayConfig(PartConfig):
    ratio: float | None = option(
        None,
        "share kept of the examples that each stage drew; 0.1 if rows is left out",
        above=0,
        max=1,
    )
    rows: int | None = option(None, "examples kept in all, instead of ratio", min=1)
    selection: str = option(
        "balanced",
        "which examples are kept",
        choices=("balanced", "reservoir", "first", "best_scored"),
    )
    score: str = option("reward", "of best_scored", choices=("reward", "logprob"))
    content: str = option(
        "gold", "demonstrations, or answers of the model", choices=("gold", "own")
    )
    temperature: float | None = option(
        None, "of answers for content and score; the rollouts' if left out", above=0
    )
    share: float | None = option(
        None,
        "replayed examples for each prompt of the budget; each kept row once if left out",
        above=0,
        max=10,
    )
    mix: str = option("steps", "where they are learned", choices=("steps", "after"))
    extra: str = option("on_top", "of the budget or inside it", choices=("on_top", "inside"))
    general: str | None = option(
        None, "JSONL file with `prompt` and `demonstration` in each row", path=True
    )
    general_rows: int | None = option(None, "rows of it, drawn at random; all if left out", min=1)

    def __post_init__(self) -> None:
        if self.ratio is not None and self.rows is not None:
            raise ValueError("give ratio or rows, not both")
        if self.selection == "reservoir" and self.rows is None:
            raise ValueError("selection: reservoir has a fixed size; give rows")
        if self.extra == "inside" and (self.share or 0) >= 1:
            raise ValueError(
                "share must be below 1 where extra is inside: the skill needs the rest"
            )
        if self.general_rows and not self.general:
            raise ValueError("general_rows goes with general, a file")

    def check_effects(self) -> None:
        is_scored = self.selection == "best_scored"
        only_with(self, is_scored, "selection: best_scored", "score")
        answers = is_scored or self.content == "own"
        only_with(self, answers, "content: own or selection: best_scored", "temperature")


class GeneralRows(Skill):
    """Rows of a file that belong to no skill: to learn from, never graded."""

    name = GENERAL
    splits = ("train",)

    def __init__(self, path: str, most: int | None) -> None:
        self.path, self.most = path, most

    def load(self, split: str) -> list[Example]:
        examples = []
        for number, row in read_jsonl(self.path):
            place = f"{self.path}, row {number}"
            text = row.get("demonstration")
            if not isinstance(text, str) or not text.strip():
                raise UserError(place, "`demonstration` must be a text", "it is what is learned")
            examples.append(Example(str(number), chat_prompt(row, place), text, None))
        if not examples:
            raise UserError(self.path, "has no rows")
        if self.most and self.most < len(examples):
            examples = random.Random(seed_for("general data")).sample(examples, self.most)
        return examples

    def reward(self, completion: str, reference: Any) -> float:
        raise UserError(f"replay: {self.path}", "its rows have no reward")


class Replay(Part):
    Config = ReplayConfig
    config: ReplayConfig

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config)
        self.memory: list[Example] = []  # in the order in which they came; gold
        self.own: dict[str, str] = {}  # own answers, by skill and id of an example
        self.seen = 0  # examples that a reservoir was offered

    # ---- what can go together ------------------------------------------------------------------

    @cached_property
    def general(self) -> GeneralRows | None:
        """The general data, None without."""
        config = self.config
        return GeneralRows(config.general, config.general_rows) if config.general else None

    def check(self, order: OrderView, method: Method, place: str) -> None:
        config = self.config
        if len(order.skills) < 2 and not self.general:
            raise UserError(
                place, "an order of one skill has no earlier one to replay", "give general data"
            )
        if config.content == "own" and not method.reads_demonstrations():
            raise UserError(
                place,
                "content: own changes nothing where the method learns from no demonstration: it "
                "samples answers and grades them, or its teacher is shown none",
                "leave it out",
            )
        if self.general:
            self._check_general(self.general, method, f"{place}: general")
        drawn: list[int] = []
        for skill in order.skills:
            examples = skill.examples("train")
            prompts = method.phases(order.prompts(skill, method.config))[0]
            try:
                self.budget(prompts, drawn)
            except ValueError as error:
                raise UserError(place, f"skill {skill.name}: {error}") from None
            drawn.append(min(prompts, len(examples)))
            if config.content == "own" and any(e.demonstration is None for e in examples):
                raise UserError(place, f"content: own wants demonstrations; {skill.name} has none")

    def _check_general(self, general: GeneralRows, method: Method, place: str) -> None:
        """Raises UserError where the method asks for what general data do not have."""
        if method.graded:
            raise UserError(place, "its rows have no reward, which the method asks for")
        for example in general.examples("train"):
            for need in method.needs:
                if getattr(example, need) is None:
                    raise UserError(place, f"the method needs {need}s, which its rows do not have")
            if isinstance(method.config, TeacherOption):
                general.teacher_prompt(example, context=method.config.teacher_context)

    def conversations(self) -> Iterable[list[Message]]:
        return [e.prompt for e in self.general.examples("train")] if self.general else []

    # ---- when it is replayed -------------------------------------------------------------------

    def budget(self, prompts: int, earlier: Sequence[int]) -> tuple[int, int]:
        """Raises ValueError where ``extra: inside`` leaves the skill no prompt."""
        replayed = self._replayed(prompts, earlier)
        if self.config.extra == "inside" and replayed >= prompts:
            raise ValueError(
                f"{replayed} replayed examples inside a budget of {prompts} leave none for the "
                "skill; keep fewer rows, or give a share below 1"
            )
        if self.config.mix == "steps":
            return prompts, 0
        return prompts - replayed * (self.config.extra == "inside"), replayed

    def _replayed(self, prompts: int, earlier: Sequence[int]) -> int:
        """Examples replayed in a stage of so many prompts.

        earlier: examples that the stages before drew, for --plan; a run knows what it has kept.
        """
        kept = len(self.memory)
        if earlier and not kept:
            kept = self._kept(earlier)
        kept += len(self.general.examples("train")) if self.general else 0
        share = self.config.share
        return kept if share is None or not kept else max(1, round(share * prompts))

    def _kept(self, drawn: Sequence[int]) -> int:
        """Rows kept after stages that drew so many examples, for --plan."""
        rows = self.config.rows
        if rows is None:
            return self._of_all(drawn)
        if self.config.selection == "reservoir":
            return min(rows, sum(drawn))
        each, more = divmod(rows, len(drawn))
        return sum(min(count, each + (k < more)) for k, count in enumerate(drawn))

    def _of_all(self, drawn: Iterable[int]) -> int:
        """What ``ratio`` keeps of stages that drew so many examples, rounded up.

        0.07 x 100 is above 7 by a rounding, and keeps 7.
        """
        shares = ((self.config.ratio or 0.1) * count for count in drawn)
        return sum(math.ceil(round(share, 9)) for share in shares)

    def begin(self, stage: Stage) -> None:
        if self.general:
            stage.add_lesson(Lesson(self.general, stage.max_new_tokens))
        self.rows = [
            replace(e, demonstration=self.own.get(_key(e), e.demonstration)) for e in self.memory
        ]
        counts = Counter(example.skill for example in self.rows)
        if self.general:
            self.rows += self.general.examples("train")
            counts[GENERAL] = len(self.general.examples("train"))
        self.count = self._replayed(self.first_phase(stage), ())
        seed = seed_for(stage.seed, stage.index, "replay")
        self.order = draws(len(self.rows), self.count, seed) if self.rows else []
        write_json(
            stage.folder / "replay.json",
            {"rows": counts, "own": len(self.own), "replayed": self.count},
        )

    def first_phase(self, stage: Stage) -> int:
        """Prompts of the budget's first phase, before any was given to replay."""
        inside = self.config.extra == "inside" and self.config.mix == "after"
        return stage.phases[0] + (stage.behind if inside else 0)

    def examples(self, step: Step) -> Sequence[Example]:
        stage, own = self.stage, list(step.examples)
        if self.config.mix == "after":
            size = stage.batch_size
            first = (step.index - stage.steps_for(stage.phases[0])) * size
            taken = self.order[first : first + size] if not own else []
        else:
            first, last = self._between(step.index * stage.batch_size, len(own))
            taken = self.order[first:last]
            if self.config.extra == "inside":
                own = own[: len(own) - len(taken)]
        if taken:
            step.log(replayed=len(taken))
        mixed = [*own, *(self.rows[i] for i in taken)]
        if own and taken and getattr(stage.training, "inner_batches", 1) > 1:
            random.Random(seed_for(step.seed, "mix")).shuffle(mixed)
        return mixed

    def _between(self, done: int, own: int) -> tuple[int, int]:
        """Which draws of the memory go with the ``own`` prompts behind the first ``done``."""
        prompts = self.stage.phases[0]
        return self.count * done // prompts, self.count * (done + own) // prompts

    def _learned(self, stage: Stage) -> list[Example]:
        """The stage's own examples that it has learned from, each once, as they came."""
        drawn, size = stage.draws(), stage.batch_size
        if self.config.extra == "inside" and self.config.mix == "steps":
            kept: list[int] = []
            for done in range(0, len(drawn), size):
                own = drawn[done : done + size]
                first, last = self._between(done, len(own))
                kept += own[: len(own) - (last - first)]
            drawn = kept
        examples = [stage.examples[i] for i in dict.fromkeys(drawn)]
        return [replace(example, skill=stage.skill.name) for example in examples]

    # ---- what is kept --------------------------------------------------------------------------

    def end(self, stage: Stage) -> None:
        """Take examples of the stage's skill into the memory."""
        if not stage.later:
            return
        new = self._learned(stage)
        if self.config.selection == "reservoir":
            self._into_reservoir(new, seed_for(stage.seed, stage.index, "reservoir"))
        else:
            self._divide(stage, new)
        if self.config.content == "own":
            answers = self._answers(stage, self.memory, "own answers")
            self.own = {
                _key(example): answer.text
                for example, answer in zip(self.memory, answers, strict=True)
                if answer.finished and answer.text.strip()
            }

    def gold_rows(self) -> int:
        """With those that are replayed with own answers: the memory holds their gold ones too."""
        return len(self.memory)

    def _into_reservoir(self, new: Sequence[Example], seed: int) -> None:
        """Offer examples to a reservoir: the n-th is kept with the chance size / n."""
        generator, size = random.Random(seed), self.config.rows or 0
        for example in new:
            self.seen += 1
            if len(self.memory) < size:
                self.memory.append(example)
            elif (place := generator.randrange(self.seen)) < size:
                self.memory[place] = example

    def _divide(self, stage: Stage, new: list[Example]) -> None:
        """Keep the first of each skill, in the order of the selection."""
        config = self.config
        if config.selection == "first":
            positions = {e.id: i for i, e in enumerate(stage.examples)}
            new = sorted(new, key=lambda example: positions[example.id])
        elif config.selection == "balanced":
            random.Random(seed_for(stage.seed, stage.index, "replay memory")).shuffle(new)
        if config.rows is None:
            new = self._best(stage, new)
            self.memory += new[: self._of_all([len(new)])]
            return
        candidates = self._best(stage, [*self.memory, *new])
        names = [lesson.skill.name for lesson in [*stage.earlier, stage.own]]
        each, more = divmod(config.rows, len(names))
        self.memory = []
        for number, name in enumerate(names):
            size = each + (number < more)
            self.memory += [e for e in candidates if e.skill == name][:size]

    def _best(self, stage: Stage, candidates: list[Example]) -> list[Example]:
        """The candidates, the best first where scores select, equal ones in their order."""
        if self.config.selection != "best_scored":
            return candidates
        answers = self._answers(stage, candidates, "scores of the memory")
        scores = self._scores(stage, candidates, answers)
        order = sorted(range(len(candidates)), key=lambda i: -scores[i])
        return [candidates[i] for i in order]

    def _answers(self, stage: Stage, examples: Sequence[Example], what: str) -> list[Completion]:
        """One answer of the model to each example."""
        answers: list[Completion] = []
        for batch in stage.over(examples, what):
            seed = seed_for(stage.seed, stage.index, what, len(answers))
            groups = stage.answers(batch, seed=seed, temperature=self.config.temperature)
            answers += [answer for (answer,) in groups]
        return answers

    def _scores(
        self, stage: Stage, examples: Sequence[Example], answers: Sequence[Completion]
    ) -> list[float]:
        """The reward of each answer, or the mean log-probability of its tokens."""
        if self.config.score == "reward":
            return [stage.reward(*each) for each in zip(examples, answers, strict=True)]
        logprobs = [answer.logprobs for answer in answers]
        # At another temperature sure tokens round to 0, and vLLM may have no numbers at all.
        is_plain = (self.config.temperature or stage.temperature) == stage.top_p == 1
        if not is_plain or any(map(math.isnan, chain.from_iterable(logprobs))):
            prompts = [stage.prompt_tokens(example) for example in examples]
            rows = stage.rows(examples, prompts, [[answer] for answer in answers])
            logprobs = []
            for first in range(0, len(rows), stage.batch_size):
                scored = row_logprobs(stage, rows[first : first + stage.batch_size])
                logprobs += [each.tolist() for each in scored]
        return [math.fsum(each) / max(1, len(each)) for each in logprobs]

    # ---- cost and memory -----------------------------------------------------------------------

    def work(self, outlook: Outlook, work: Work, earlier: Sequence[Outlook]) -> Work:
        """As if a replayed example took what one of the stage's own skill takes."""
        config, prompts = self.config, outlook.prompts
        drawn = [min(each.prompts, len(each.skill.examples("train"))) for each in earlier]
        replayed = self._replayed(prompts, drawn)
        is_on_top = config.extra == "on_top"
        more = 1 + replayed * is_on_top / prompts
        own = prompts - replayed * (not is_on_top)
        new = min(own, len(outlook.skill.examples("train")))
        kept = self._kept([*drawn, new])
        answered = kept * (config.content == "own")
        if config.selection == "best_scored":
            answered += new + (self._kept(drawn) if config.rows and drawn else 0)
        if not outlook.later:
            kept = answered = 0
        # Steps behind the budget's have prompts of their own in the plan.
        further = answered + replayed * (is_on_top and config.mix == "steps")
        each = outlook.example_bytes + outlook.answer_bytes * (config.content == "own")
        return replace(
            work,
            learned=work.learned * more,
            scored=work.scored * more,
            read=work.read * more + answered * outlook.prompt / prompts,
            answers=work.answers * more,
            beforehand=work.beforehand + answered / prompts,
            sampled=work.sampled or outlook.answer,
            kept=work.kept + kept * each,
            gold_rows=work.gold_rows + kept,
            further=work.further + further,
        )

    def state_dict(self) -> dict[str, Any]:
        memory = [asdict(example) for example in self.memory]
        return {"memory": memory, "own": dict(self.own), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = [Example(**fields) for fields in state["memory"]]
        self.own, self.seen = dict(state["own"]), state["seen"]


def _key(example: Example) -> str:
    return f"{example.skill}/{example.id}"
