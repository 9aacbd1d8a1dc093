"""Evaluation of one split of a skill: answers, grades and their means."""

from collections.abc import Callable, Sequence
from typing import Any

from harness.base.metrics import mean_and_stderr
from harness.base.seeds import seed_for
from harness.evaluation.settings import Evaluate
from harness.evaluation.subject import Subject
from harness.sampling.sampler import Completion
from harness.skills.skill import Example, Skill
from harness.skills.templates import Message, turn_text

Messages = list[Message]  # a prompt: [{"role", "content"}, ...]


def sample_of(examples: list[Example], count: int | None) -> list[Example]:
    """The first ``count`` examples (skills put them in a representative order), or all."""
    return examples if count is None else examples[:count]


def decoding(temperature: float, top_p: float, seed: int) -> str:
    """How answers are sampled, as protocols say it."""
    return f"temperature {temperature}, top-p {top_p}, seed {seed}"


def message_text(messages: Messages) -> str:
    """A prompt as one text for people, with the role of each message."""
    return "\n".join(f"[{message['role']}] {turn_text(message)}" for message in messages)


def evaluate_skill(
    subject: Subject,
    skill: Skill,
    examples: Sequence[Example],
    prompts: Sequence[Messages],
    settings: Evaluate,
    max_new_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """{"n", "metrics", "items"} of one answer to each prompt, graded by all of the skill's metrics.

    prompts: what the subject reads for each example, which may hold more than the example's prompt.
    ``metrics`` are {name: (mean, standard error)}, with ``response_tokens`` beside the skill's.
    """
    completions = subject.sampler.sample(
        [subject.tokens(messages) for messages in prompts],
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed_for(settings.seed, "evaluation"),
        progress=progress,
    )
    items = [
        _item(skill, example, messages, completion)
        for example, messages, (completion,) in zip(examples, prompts, completions, strict=True)
    ]
    metrics = {
        name: mean_and_stderr([item["scores"][name] for item in items]) for name in skill.metrics
    }
    metrics["response_tokens"] = mean_and_stderr([item["tokens"] for item in items])
    return {"n": len(items), "metrics": metrics, "items": items}


def _item(
    skill: Skill, example: Example, messages: Messages, completion: Completion
) -> dict[str, Any]:
    """One graded answer, as the items of an evaluation hold it.

    completion: with its thoughts; answer: without, where it has any.
    """
    return {
        "id": example.id,
        "prompt": message_text(messages),
        "completion": completion.whole,
        **({"answer": completion.text} if completion.text != completion.whole else {}),
        "tokens": len(completion.token_ids),
        "finished": completion.finished,
        "reference": example.reference,
        "scores": {
            name: skill.score(name, completion, example.reference) for name in skill.metrics
        },
    }
