"""How far a model has gone from the base policy: KL(base || model) on fixed prompts, in nats.

The prompts are ``general`` ones that no skill teaches, or those of the split that counts of the
skill just learned (``new``) and of each earlier one (``old``).

The base answers fixed prompts once, at temperature 1, and its log-probabilities of these answers
are kept; no second model is in memory afterwards. With d = log p_base - log p_model of a token that
the base sampled, ``exp(-d) - 1 + d`` has the divergence of the two next-token distributions as its
mean (exp(-d) has the mean 1 under the base), is never negative and varies less than d: the
estimator k3 of Schulman 2020, "Approximating KL divergence". Its sum over an answer has the KL of
answers cut at the limit as its mean (chain rule).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from harness.base.files import ROOT, read_jsonl
from harness.base.metrics import mean_and_stderr, ratio_and_stderr
from harness.base.seeds import seed_for
from harness.evaluation.settings import Drift
from harness.evaluation.skills import decoding, sample_of
from harness.evaluation.subject import Subject
from harness.learning.logprobs import token_logprobs
from harness.learning.packing import Row, chunks, completion_states, micro_batches
from harness.models.forward import output_head, unrecorded
from harness.skills.skill import Example, Skill, examples_fingerprint

PROMPTS = ROOT / "benchmarks" / "retention" / "drift_prompts.jsonl"  # written for this project
NAME = "general_prompts"
TOKENS = 2048  # of a pass of the model


def drift_prompts(count: int) -> list[Example]:
    """The first ``count`` of the prompts."""
    rows = [row for _, row in read_jsonl(PROMPTS)]
    return [
        Example(str(number), [{"role": "user", "content": row["prompt"]}], None, None)
        for number, row in enumerate(rows[:count])
    ]


def skill_prompts(
    skill: Skill, split: str, settings: Drift, limit: int
) -> tuple[list[Example], Drift]:
    """The first prompts of a skill, and the settings with its own ``limit`` where that is lower."""
    most = min(limit, settings.max_new_tokens)
    examples = sample_of(skill.examples(split), settings.prompts)
    return examples, replace(settings, max_new_tokens=most)


def drift_protocol(
    subject: Subject,
    examples: Sequence[Example],
    settings: Drift,
    seed: int,
    name: str,
    split: str,
) -> dict[str, Any]:
    """What the measurement depends on, the weights apart: JSON values.

    name, split: of the skill whose prompts they are, ``NAME`` and ``test`` of general ones.
    """
    template = subject.chat_template
    return {
        "kind": "drift",
        "name": name,
        "split": split,
        "measure": "KL(base || model), k3",
        "examples": len(examples),
        "data": examples_fingerprint(examples),
        "chat_template": hashlib.sha256(template.encode()).hexdigest()[:12],
        "decoding": decoding(1, 1, seed),
        "max_new_tokens": settings.max_new_tokens,
        "dtype": subject.dtype,
        **subject.chat.protocol(template),
        **subject.reading,
    }


def answer_as_base(
    base: Subject,
    examples: Sequence[Example],
    settings: Drift,
    seed: int,
    progress: Callable[..., object] | None = None,
) -> dict[str, Any]:
    """{"n", "metrics", "items"}: the base's answers with their log-probabilities; no metrics.

    seed: the order's ``evaluate.seed``.
    """
    completions = base.sampler.sample(
        [base.tokens(example.prompt) for example in examples],
        max_new_tokens=settings.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        seed=seed_for(seed, "drift"),
        progress=progress,
    )
    answers = [answer.token_ids for (answer,) in completions]
    logprobs = answer_logprobs(base.model, _rows(base, examples, answers))
    items = [
        {
            "id": example.id,
            "prompt": example.prompt[-1]["content"],
            "completion": completion.whole,
            "token_ids": answer,
            "logprobs": of_answer,
        }
        for example, (completion,), answer, of_answer in zip(
            examples, completions, answers, logprobs, strict=True
        )
    ]
    return {"n": len(items), "metrics": {}, "items": items}


def measure_drift(
    subject: Subject, examples: Sequence[Example], base_items: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The divergence of ``subject`` from the base, whose answers ``base_items`` holds.

    ``kl_forward_sequence`` is the mean sum of an answer, ``kl_forward_token`` the mean over all
    tokens; standard errors are over answers.
    """
    answers = [item["token_ids"] for item in base_items]
    found = answer_logprobs(subject.model, _rows(subject, examples, answers))
    sums, lengths = [], [len(answer) for answer in answers]
    for item, of_model in zip(base_items, found, strict=True):
        d = np.array(item["logprobs"]) - np.array(of_model)
        sums.append(float(np.sum(np.expm1(-d) + d)))
    items = [
        {"id": item["id"], "forward": total, "forward_tokens": length}
        for item, total, length in zip(base_items, sums, lengths, strict=True)
    ]
    return {
        "n": len(items),
        "metrics": {
            "kl_forward_token": ratio_and_stderr(sums, lengths),
            "kl_forward_sequence": mean_and_stderr(sums),
        },
        "items": items,
    }


def _rows(subject: Subject, examples: Sequence[Example], answers: Sequence[list[int]]) -> list[Row]:
    prompts = [subject.tokens(example.prompt) for example in examples]
    return [Row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


@unrecorded()
def answer_logprobs(model: PreTrainedModel, rows: Sequence[Row]) -> list[list[float]]:
    """Log-probabilities, in nats, of every completion's tokens, at temperature 1; float32."""
    found: list[list[float]] = [[0.0] * len(row.completion) for row in rows]
    head = output_head(model)
    vocabulary = model.config.get_text_config().vocab_size
    for batch in micro_batches(model, rows, TOKENS):
        states, positions = completion_states(model, rows, batch)
        for chunk in chunks(len(states), vocabulary, states.device):
            logits = head(states[chunk]).float()
            values = token_logprobs(logits, positions.tokens[chunk]).tolist()
            for (row, offset), value in zip(positions.places[chunk], values, strict=True):
                found[row][offset] = value
    return found
