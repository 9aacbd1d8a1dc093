"""No weights are trained: demonstrations of the skill stand in the prompt (Brown et al. 2020).

    y ~ p_0(. | x_1, d_1, ..., x_k, d_k, x)    for the k examples (x_i, d_i) that are shown

    in_context: {demonstrations: 4, selection: bm25}

A stage keeps training examples that its budget draws. The base model is asked with
`demonstrations` of them before each question, as turns of the conversation: prompt, demonstration,
prompt, demonstration, question. `selection`:

* `bm25`: those whose prompts are nearest to the question's, the nearest next to it (Liu et al.
  2022, arXiv 2101.06804, by BM25 in place of embeddings);
* `random`: drawn again for each question, from the run's seed (GPT-3, arXiv 2005.14165, section
  2.4);
* `fixed`: the first ones that the stage draws, for all questions; other seeds draw others.

BM25 (Robertson and Zaragoza 2009) with the idf of Lucene, `ln(1 + (N - n + 0.5) / (n + 0.5))`, k1 =
1.2 and b = 0.75, in float64. Equal scores go to the example that was drawn first. It is plain code:
`rank-bm25` gives words of more than half of all prompts a weight that is not their own formula's,
and `bm25s` ranks in float32 without a rule for ties.

State: the examples kept, with their gold demonstrations: `demonstrations` of a skill for `fixed`,
all different ones drawn for the others. Cost: no training; each answer reads a longer prompt. The
records of a skill have `prompt_tokens` (read for an answer), `demonstrations` (shown) and
`demonstrations_dropped`, means over questions.

What it is measured by:

* A skill that was learned is asked with its own demonstrations: the method is told which skill a
  question is of. A skill still to come is asked without any, as the base is.
* Protocols are those of all methods, so rows are compared. The key of an evaluation also holds the
  prompts; its items hold them as they were read.
* Retention and drift are asked without demonstrations, and the weights are the base's: both are the
  base's own numbers. pass@k and the KL to the base are of the prompts with demonstrations.
* A demonstration that does not fit the model's positions, beside an answer and the demonstrations
  nearer to the question, is dropped. An example with the question's own prompt is never shown.
* A demonstration's system message is left out; that of the question comes first.

Options that train (`learning_rate`, ...), `with` and `parameters` are refused.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy

from harness.base.seeds import seed_for
from harness.base.settings import option
from harness.learning.method import Asked, Method, OrderView
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.stage import Stage
from harness.learning.trainer import TrainingConfig
from harness.skills.skill import Example, Skill
from harness.skills.templates import Message

ACTS = ("batch_size", "epochs")  # of the options of every method
K1, B = 1.2, 0.75


@dataclass
class InContextConfig(TrainingConfig):
    demonstrations: int = option(4, "shown before a question", min=1)
    selection: str = option(
        "bm25", "which of those kept are shown", choices=("bm25", "random", "fixed")
    )

    def __post_init__(self) -> None:
        for field in fields(TrainingConfig):
            if field.name not in ACTS and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} trains weights, and in_context has none to train")


class InContext(Method):
    Config = InContextConfig
    config: InContextConfig
    joins = ()
    has_own_loop = True
    trains = False

    def __init__(self, config: InContextConfig) -> None:
        super().__init__(config)
        self.kept: dict[str, list[Example]] = {}  # by skill, in the order in which they were drawn
        self.seed = 0  # of the run

    # ---- a stage -------------------------------------------------------------------------------

    def learn(self, stage: Stage) -> None:
        self.seed = stage.seed
        taught: dict[str, list[Example]] = {}  # by skill: a joint run teaches several
        for step in stage.steps():
            for example in step.examples:
                name = stage.lesson(example).skill.name
                kept = taught[name] = self.kept.setdefault(name, [])
                if self.wants(len(kept)) and all(example.id != other.id for other in kept):
                    kept.append(example)
            step.log(kept=sum(map(len, taught.values())))

    def wants(self, kept: int) -> bool:
        """Whether a skill of which so many examples are kept needs another one."""
        return self.config.selection != "fixed" or kept < self.config.demonstrations

    def gold_rows(self) -> int:
        return sum(map(len, self.kept.values()))

    def state_dict(self) -> dict[str, Any]:
        rows = {name: [asdict(e) for e in examples] for name, examples in self.kept.items()}
        return {"seed": self.seed, "kept": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed = state["seed"]
        self.kept = {name: [Example(**e) for e in rows] for name, rows in state["kept"].items()}

    # ---- the prompt ----------------------------------------------------------------------------

    def questions(
        self,
        skill: Skill,
        examples: Sequence[Example],
        fits: Callable[[list[Message]], bool],
    ) -> list[Asked] | None:
        kept = self.kept.get(skill.name)
        if not kept:
            return None
        retrieves = self.config.selection == "bm25"
        ranked = BM25([words(example.prompt) for example in kept]) if retrieves else None
        return [self._asked(example, kept, ranked, fits) for example in examples]

    def _asked(
        self,
        example: Example,
        kept: Sequence[Example],
        ranked: "BM25 | None",
        fits: Callable[[list[Message]], bool],
    ) -> Asked:
        order: Iterable[int] = range(len(kept))
        if self.config.selection == "random":
            seed = seed_for(self.seed, "in context", example.skill, example.id)
            order = numpy.random.default_rng(seed).permutation(len(kept)).tolist()
        elif ranked:
            order = ranked.nearest(words(example.prompt))
        others = [kept[i] for i in order if kept[i].prompt != example.prompt]
        chosen = others[: self.config.demonstrations]
        shown = list(chosen)
        if not fits(conversation(chosen, example.prompt)):
            shown = []
            for other in chosen:
                if fits(conversation([*shown, other], example.prompt)):
                    shown.append(other)
        messages = conversation(shown, example.prompt)
        return Asked(messages, len(shown), len(chosen) - len(shown))

    # ---- before anything loads -----------------------------------------------------------------

    def conversations(self, order: OrderView) -> Iterable[list[Message]]:
        """Short ones of the same roles: demonstrations that do not fit are dropped later."""
        short = Example("", [{"role": "user", "content": "Ask."}], "Answer.", None)
        for skill in order.skills:
            first = skill.examples("train")[0]
            yield conversation([short], [*_system(first.prompt), *short.prompt])

    def longest(self, lengths: Lengths) -> int:
        return lengths.prompt

    def work(self, outlook: Outlook) -> Work:
        def drawn(each: Outlook) -> int:
            return min(each.prompts, len(each.skill.examples("train")))

        kept, rows, most = 0.0, 0, self.config.demonstrations
        for each in (*outlook.earlier, outlook):  # all of them are asked again
            count = min(most, drawn(each)) if self.config.selection == "fixed" else drawn(each)
            kept += count * each.example_bytes
            rows += count
        return Work(
            shown=min(most, drawn(outlook)) * (outlook.prompt + outlook.demonstration),
            kept=kept * (outlook.later > 0),
            gold_rows=rows,
        )


class BM25:
    """Okapi BM25 over texts as lists of words."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self.counts = [Counter(text) for text in texts]
        mean = sum(map(len, texts)) / len(texts)
        self.norms = [K1 * (1 - B + B * len(text) / (mean or 1)) for text in texts]
        having = Counter(word for counts in self.counts for word in counts)
        self.idf = {
            word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in having.items()
        }

    def scores(self, query: Sequence[str]) -> list[float]:
        """The score of each text; a word that the query has twice counts twice."""
        return [
            math.fsum(
                self.idf[word] * counts[word] * (K1 + 1) / (counts[word] + norm)
                for word in query
                if word in counts
            )
            for counts, norm in zip(self.counts, self.norms, strict=True)
        ]

    def nearest(self, query: Sequence[str]) -> list[int]:
        """Indices of the texts, best first; of equal ones the earlier comes first."""
        scores = self.scores(query)
        return sorted(range(len(scores)), key=lambda i: -scores[i])


def words(prompt: Sequence[Message]) -> list[str]:
    """The words of a prompt's turns, system messages apart, without case."""
    text = " ".join(turn["content"] for turn in prompt[len(_system(prompt)) :])
    return re.findall(r"\w+", text.casefold())


def conversation(shown: Sequence[Example], prompt: Sequence[Message]) -> list[Message]:
    """Demonstrations as turns before a prompt; the first of ``shown`` stands next to it."""
    system = _system(prompt)
    turns: list[Message] = []
    for example in reversed(shown):
        turns += example.prompt[len(_system(example.prompt)) :]
        turns.append({"role": "assistant", "content": example.demonstration or ""})
    return [*system, *turns, *prompt[len(system) :]]


def _system(prompt: Sequence[Message]) -> list[Message]:
    """The system messages with which a prompt begins."""
    count = 0
    while prompt[count]["role"] == "system":
        count += 1
    return list(prompt[:count])
