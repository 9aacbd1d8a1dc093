"""KL divergence between a model and the base policy, in nats, along sampled answers.

Forward is KL(base || model), along answers sampled from the base. Reverse is KL(model || base),
along the model's own answers. There is one answer to a prompt, at temperature 1 without top-p.

At every position of an answer the divergence is that of the two next-token distributions over the
full vocabulary, given the sampled prefix. The mean of its sum over an answer is the KL of answers
cut at the limit (chain rule); its variance is lower than that of the answers' log-ratio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.metrics import mean_and_stderr, ratio_and_stderr
from harness.base.seeds import seed_for
from harness.evaluation.settings import Evaluate
from harness.evaluation.skills import decoding, message_text
from harness.learning.packing import Row, chunks, completion_states
from harness.models.forward import output_head, unrecorded
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import Example, examples_fingerprint

Tokens = list[int]
# Keys of a skill's protocol that no sampled answer depends on.
UNSCORED = ("scorer", "thoughts", "engine")


@dataclass(frozen=True)
class Policy:
    """One side of the divergence: a model and the prompts that it reads.

    fingerprint: of the weights; prompts: token ids, one list an example; protocol: what the model's
    answers to them depend on, the weights apart.
    """

    model: PreTrainedModel
    fingerprint: str
    prompts: list[Tokens]
    protocol: dict[str, Any]

    def rows(self, answers: Sequence[Tokens]) -> list[Row]:
        """The answers behind this policy's prompts."""
        return [Row(p, answer) for p, answer in zip(self.prompts, answers, strict=True)]


def kl_protocol(
    skill_protocol: dict[str, Any], examples: list[Example], seed: int
) -> dict[str, Any]:
    """The protocol of the sampled answers: that of the skill's evaluation without its scoring.

    There is no engine in it: two models at once are always sampled by transformers.
    """
    answers = {k: v for k, v in skill_protocol.items() if k not in UNSCORED}
    return {
        **answers,
        "examples": len(examples),
        "data": examples_fingerprint(examples),
        "decoding": decoding(1, 1, seed),
    }


def sample_answers(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Evaluate,
    max_new_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """{"n", "metrics", "items"} of one answer of ``policy`` to each prompt; no metrics."""
    sampler = TransformersSampler(policy.model, tokenizer, settings.batch_size)
    completions = sampler.sample(
        policy.prompts,
        max_new_tokens=max_new_tokens,
        seed=seed_for(settings.seed, "kl"),
        progress=progress,
    )
    items = [
        {
            "id": example.id,
            "prompt": message_text(example.prompt),
            "completion": completion.whole,
            "finished": completion.finished,
            "token_ids": completion.token_ids,
        }
        for example, (completion,) in zip(examples, completions, strict=True)
    ]
    return {"n": len(items), "metrics": {}, "items": items}


def evaluate_kl(
    base: Policy,
    policy: Policy,
    examples: Sequence[Example],
    answers_of: Callable[[Policy], list[Tokens]],
    prefix: str = "",
) -> dict[str, Any]:
    """Both directions of the divergence between ``policy`` and ``base``.

    answers_of: the sampled answers of a policy; prefix: of the names of the metrics. The metrics
    ``kl_DIRECTION_sequence`` are the mean sum of an answer, ``kl_DIRECTION_token`` the mean over
    all tokens; standard errors are over answers. ``sampled_tokens`` counts the answers,
    ``scored_tokens`` all that the two models read for the divergence.
    """
    items: list[dict[str, Any]] = [{"id": example.id} for example in examples]
    values = {}
    sampled = 0
    for direction, p, q in (("forward", base, policy), ("reverse", policy, base)):
        answers = answers_of(p)
        sums = sequence_kl(p.model, p.rows(answers), q.model, q.rows(answers))
        lengths = [len(answer) for answer in answers]
        sampled += sum(lengths)
        values[f"{prefix}kl_{direction}_sequence"] = mean_and_stderr(sums)
        values[f"{prefix}kl_{direction}_token"] = ratio_and_stderr(sums, lengths)
        for item, total, length in zip(items, sums, lengths, strict=True):
            item[direction] = total
            item[f"{direction}_tokens"] = length
    # Each direction reads the prompts of both policies, and its answers by both.
    read = sum(map(len, base.prompts)) + sum(map(len, policy.prompts))
    return {
        "n": len(items),
        "base": base.fingerprint,
        "metrics": values,
        "items": items,
        "sampled_tokens": sampled,
        "scored_tokens": 2 * sampled + 2 * read,
    }


@unrecorded()
def sequence_kl(
    p: PreTrainedModel, rows_p: Sequence[Row], q: PreTrainedModel, rows_q: Sequence[Row]
) -> list[float]:
    """Sums over the completions of KL(p || q) between next-token distributions, in nats.

    p, q: models; rows_p, rows_q: Rows with the same completions, each after the prompt that its
    model reads. Returns one sum a row. One row at a time, and the vocabulary-sized tensors for one
    chunk of tokens; float32, summed in float64.
    """
    head_p = output_head(p)
    head_q = output_head(q)
    vocabulary = p.config.get_text_config().vocab_size
    totals = []
    for row_p, row_q in zip(rows_p, rows_q, strict=True):
        states_p, _ = completion_states(p, [row_p], [[0]])
        states_q, _ = completion_states(q, [row_q], [[0]])
        total = 0.0
        for chunk in chunks(len(states_p), vocabulary, states_p.device):
            log_p = head_p(states_p[chunk]).float().log_softmax(-1)
            log_q = head_q(states_q[chunk]).float().log_softmax(-1)
            divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
            total += divergence.double().sum().item()
        totals.append(total)
    return totals
