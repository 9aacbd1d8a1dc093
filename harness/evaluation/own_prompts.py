"""Prompts that a method puts in the place of a skill's own when it is evaluated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.base.errors import UserError
from harness.base.metrics import mean_and_stderr
from harness.evaluation.subject import Subject
from harness.learning.method import Asked
from harness.models.context import positions
from harness.models.rope import answer_side, border_of
from harness.sampling.vllm import VLLMSampler
from harness.skills.skill import Example, Skill
from harness.skills.templates import Message

Fits = Callable[[list[Message]], bool]
Questions = Callable[[Skill, Sequence[Example], Fits], list[Asked] | None]  # Method.questions


@dataclass(frozen=True)
class OwnPrompts:
    """What a model reads of each example by a method's own prompt.

    examples: with that prompt in the place of their own; asked: as the method gave it.
    """

    examples: list[Example]
    asked: list[Asked]

    @cached_property
    def digest(self) -> str:
        """A hash of all that is read, so that other demonstrations are another evaluation."""
        text = json.dumps(self.asked, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def counted(self, subject: Subject, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """``evaluation`` with what the prompts cost: metrics, and numbers of each item."""
        costs = [
            {
                "prompt_tokens": len(subject.tokens(each.messages)),
                "demonstrations": each.shown,
                "demonstrations_dropped": each.dropped,
            }
            for each in self.asked
        ]
        items = [{**item, **c} for item, c in zip(evaluation["items"], costs, strict=True)]
        metrics = {name: mean_and_stderr([cost[name] for cost in costs]) for name in costs[0]}
        return {
            **evaluation,
            "metrics": {**evaluation["metrics"], **metrics},
            "items": items,
        }


def own_prompts(
    questions: Questions | None,
    subject: Subject,
    skill: Skill,
    examples: Sequence[Example],
    max_new_tokens: int,
) -> OwnPrompts | None:
    """What ``questions`` makes of the examples; None where they are asked as they are."""
    sampler = subject.sampler
    taken = sampler.engine.config.max_model_len if isinstance(sampler, VLLMSampler) else None
    limits = [limit for limit in (positions(subject.model.config), taken) if limit is not None]
    border = border_of(subject.model.config)

    def fits(messages: list[Message]) -> bool:
        tokens = len(subject.tokens(messages))
        try:
            answer_side(border, tokens, max_new_tokens)
        except UserError:
            return False
        return all(tokens + max_new_tokens <= limit for limit in limits)

    asked = questions(skill, examples, fits) if questions else None
    pairs = list(zip(asked, examples, strict=True)) if asked else []
    if all(a.messages == e.prompt and not a.dropped for a, e in pairs):
        return None
    return OwnPrompts([replace(e, prompt=a.messages) for a, e in pairs], [a for a, _ in pairs])
