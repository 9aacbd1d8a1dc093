"""pass@k of a skill: the chance that one of k sampled answers is right (Chen et al. 2021)."""

from collections.abc import Callable, Sequence
from typing import Any

from harness.base.metrics import mean_and_stderr, pass_at_k
from harness.base.seeds import seed_for
from harness.evaluation.settings import PassAtK
from harness.evaluation.skills import decoding, message_text
from harness.evaluation.subject import Subject
from harness.sampling.sampler import Completion
from harness.skills.skill import Example, Skill, examples_fingerprint


def pass_at_k_protocol(
    skill_protocol: dict[str, Any],
    skill: Skill,
    examples: list[Example],
    settings: PassAtK,
    seed: int,
) -> dict[str, Any]:
    """The protocol of a pass@k: that of the skill's evaluation with its own examples and draws."""
    return {
        **skill_protocol,
        "measure": "pass@k",
        "examples": len(examples),
        "data": examples_fingerprint(examples),
        "samples": settings.samples,
        "right": f"{skill.metric} is 1",
        "decoding": decoding(settings.temperature, settings.top_p, seed),
    }


def evaluate_pass_at_k(
    subject: Subject,
    skill: Skill,
    examples: Sequence[Example],
    settings: PassAtK,
    seed: int,
    max_new_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """{"n", "items", "sampled_tokens", "metrics"} for k = 1, 2, 4, ... and the number of samples.

    An answer is right if the metric that counts is 1. The items hold every answer and how many are
    right, from which any other k follows. ``metrics`` are {"pass@K": (mean, standard error over
    prompts)}.
    """
    groups = subject.sampler.sample(
        [subject.tokens(example.prompt) for example in examples],
        n=settings.samples,
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed_for(seed, "pass@k"),
        progress=progress,
    )
    powers = {2**i for i in range(settings.samples.bit_length())}
    ks = sorted(powers | {settings.samples})
    items = [
        _item(skill, example, completions, ks)
        for example, completions in zip(examples, groups, strict=True)
    ]
    return {
        "n": len(items),
        "items": items,
        "sampled_tokens": sum(answer["tokens"] for item in items for answer in item["completions"]),
        "metrics": {
            name: mean_and_stderr([item["scores"][name] for item in items])
            for name in map("pass@{}".format, ks)
        },
    }


def _item(
    skill: Skill, example: Example, completions: Sequence[Completion], ks: Sequence[int]
) -> dict[str, Any]:
    """All answers to one prompt with their scores, and each pass@k."""
    scores = [skill.score(skill.metric, c, example.reference) for c in completions]
    samples = len(completions)
    right = sum(score == 1 for score in scores)
    answers = [
        {
            "completion": completion.whole,
            "tokens": len(completion.token_ids),
            "finished": completion.finished,
            "score": score,
        }
        for completion, score in zip(completions, scores, strict=True)
    ]
    return {
        "id": example.id,
        "prompt": message_text(example.prompt),
        "reference": example.reference,
        "right": right,
        "samples": samples,
        "completions": answers,
        "scores": {f"pass@{k}": float(pass_at_k(samples, right, k)) for k in ks},
    }
