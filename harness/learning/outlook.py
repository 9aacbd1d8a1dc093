"""What a method's ``work`` is asked for the estimate of --plan, and what it returns."""

import statistics
from dataclasses import dataclass

from harness.models.chat import chat_tokens
from harness.sampling.sampler import common_prefix
from harness.skills.skill import Skill


@dataclass
class Work:
    """Tokens per prompt drawn, as a method's ``work`` returns them. learned: through forward and
    backward; scored: through a forward pass; read: prompt tokens before sampling; answers:
    completions sampled at every step, beforehand: those sampled before the first one, of
    ``sampled`` tokens each. copies: of the model, beside the one that learns, that stay in memory;
    averaged: whether one of them is a moving average.
    """

    learned: float = 0
    scored: float = 0
    read: float = 0
    answers: float = 0
    beforehand: float = 0
    sampled: float = 0
    copies: int = 0
    averaged: bool = False


class Outlook:
    """What a method's ``work`` may ask about a skill: mean tokens of 32 training examples (prompt,
    demonstration), the limit of a rollout, the prompts of the budget; tokenizer and skill
    themselves.
    """

    def __init__(self, tokenizer, skill: Skill, template, limit, prompts):
        self.tokenizer, self.skill, self.template, self.limit, self.prompts = (
            tokenizer,
            skill,
            template,
            limit,
            prompts,
        )
        self.examples = skill.examples("train")[:32]
        asked = [chat_tokens(tokenizer, e.prompt) for e in self.examples]
        self.prompt, self.shared = statistics.fmean(map(len, asked)), common_prefix(asked)
        shown = [e.demonstration for e in self.examples if e.demonstration is not None]
        self.demonstration = (
            statistics.fmean(len(tokenizer(d)["input_ids"]) for d in shown) if shown else 0
        )

    def reading(self, rows, batch):
        """Tokens that ``rows`` prompts cost to read, whose common beginning is read once for
        ``batch`` of them.
        """
        return rows * (self.prompt - self.shared) + -(-rows // batch) * self.shared

    @property
    def answer(self):
        """Tokens of a sampled answer: they become as long as the demonstrations."""
        return min(self.limit, self.demonstration or self.limit)

    def teacher_prompt(self, context=None, template=None, split=None):
        examples = self.skill.examples(split)[:32] if split else self.examples
        asked = [self.skill.teacher_prompt(e, template or self.template, context) for e in examples]
        return statistics.fmean(len(chat_tokens(self.tokenizer, messages)) for messages in asked)
