"""Two skills that interfere: the same kind of question, answers of two kinds that contradict.

A later stage on the one teaches its labels or its form for questions that look like the other's.
All rows of a pair are drawn from one seeded generator, and no question occurs twice in it: neither
in two splits nor in both skills.
"""

import random
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from difflib import SequenceMatcher
from functools import cache
from typing import Any, ClassVar, NamedTuple

from harness.skills.graders import exact_match
from harness.skills.skill import Example, Skill

SIZES = {"train": 480, "validation": 100, "test": 200}
# A turn of our own is shorter than the one that the embedded model's template puts in its place.
SYSTEM = {"role": "system", "content": "Answer with nothing else."}


class Drawn(NamedTuple):
    """A question that was drawn.

    Attributes:
        key: what makes the question this one; no two rows of a pair share it.
        question: the last user turn.
        reference: with the demonstration as its ``answer``.
    """

    key: Hashable
    question: str
    reference: dict[str, Any]


def accuracy(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the completion is the answer, apart from white space at the ends."""
    return exact_match(completion, reference["answer"])


class PairSkill(Skill):
    """One skill of a pair, named PAIR_TASK; both are the ``tasks`` of a file.

    A subclass names ``pair``, ``seed``, ``tasks`` and ``pinned``, and defines ``draw``.
    """

    pair: ClassVar[str]
    seed: ClassVar[int]
    pinned: ClassVar[Mapping[str, Mapping[str, str]]] = {}  # task: checksums of its splits
    teacher_template = "three_turn"
    overlap_note = "all questions of a pair of skills share their instruction"
    metrics = {"accuracy": accuracy}

    def __init__(self, task: str) -> None:
        self.task = task
        self.name = f"{self.pair}_{task}"
        self.checksums = self.pinned.get(task, {})

    @classmethod
    @abstractmethod
    def draw(cls, rng: random.Random, task: str, place: int) -> Drawn:
        """A question of ``task``, the ``place``-th of its split from 0."""

    def load(self, split: str) -> list[Example]:
        return list(_rows(type(self))[self.task, split])

    def reward(self, completion: str, reference: Mapping[str, Any]) -> float:
        """1 if right; otherwise up to 0.5 by how much of its text is that of the answer.

        difflib's ratio: twice the characters in common over those of both texts.
        """
        if self.grade(completion, reference):
            return 1.0
        near = SequenceMatcher(None, completion.strip(), reference["answer"], autojunk=False)
        return 0.5 * near.ratio()


@cache
def _rows(pair: type[PairSkill]) -> Mapping[tuple[str, str], list[Example]]:
    """{(task, split): examples} of both skills of a pair."""
    rng = random.Random(pair.seed)
    seen: set[Hashable] = set()
    rows: dict[tuple[str, str], list[Example]] = {}
    for split, size in SIZES.items():
        for task in pair.tasks:
            mine = rows.setdefault((task, split), [])
            while len(mine) < size:
                drawn = pair.draw(rng, task, len(mine))
                if drawn.key in seen:
                    continue
                seen.add(drawn.key)
                prompt = [dict(SYSTEM), {"role": "user", "content": drawn.question}]
                mine.append(
                    Example(
                        f"{split}/{len(mine)}", prompt, drawn.reference["answer"], drawn.reference
                    )
                )
    return rows
