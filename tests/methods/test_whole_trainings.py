"""SDFT and GRPO over several steps against loops in float64 that replay their own answers."""

import copy

import pytest
import torch

from harness.learning.packing import Row
from harness.learning.trainer import learning_rate
from methods.grpo import GRPO, GRPOConfig, advantages
from methods.sdft import SDFT, SDFTConfig
from tests.learning.test_training import assert_near, naive
from tests.methods.test_methods import Learned, Signal, naive_divergences, replay

STEPS = 3
SETTINGS = {"learning_rate": 3e-3, "warmup_steps": 1, "micro_batch_tokens": 100}


def followed(found, config, work):
    """(what the loop ends with, its losses): work(student, step) -> rows and each, as ``naive``."""
    student = copy.deepcopy(found.start).double()
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        loss, gradients = naive(student, *work(student, step))
        losses.append(loss)
        for name, weight in student.named_parameters():
            weight.grad = gradients[name]
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step, STEPS)
        optimizer.step()
    return dict(student.named_parameters()), losses


def assert_followed(found, config, work):
    expected, losses = followed(found, config, work)
    assert [log["loss"] for log in found.logs] == pytest.approx(losses, rel=2e-3, abs=2e-5)
    first = dict(found.start.named_parameters())
    for name, weight in found.weights[-1].items():
        assert_near(weight, expected[name])
        assert (weight - first[name]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["forward", "reverse", "mixture"])
def test_sdft_with_an_average_as_the_teacher(either, monkeypatch, kind):
    config = SDFTConfig(
        **SETTINGS, divergence=kind, mixture_weight=0.3, ema_alpha=0.4, skip_tokens=2
    )
    found = Learned(SDFT(config), *either, monkeypatch, steps=STEPS, temperature=0.8)
    teacher = copy.deepcopy(found.start).double()
    examples, rollouts = found.examples, found.rollouts

    def work(student, step):
        with torch.no_grad():
            for mean, weight in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.copy_(0.4 * weight + 0.6 * mean)
        found.examples, found.rollouts = examples[step:], rollouts[step:]
        cases = replay(found)
        shown = {id(completion): prompt for _, prompt, completion in cases}

        def each(logits, row):
            prompt = shown[id(row.completion)]
            tokens = naive_divergences(logits, teacher, prompt, row.completion, kind)[2:]
            return tokens.sum() / max(1, len(tokens)) / len(cases)

        return [Row(prompt, completion) for prompt, _, completion in cases], each

    assert_followed(found, config, work)


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_grpo_with_a_reference(either, monkeypatch, beta):
    config = GRPOConfig(**SETTINGS, group_size=4, normalise="tokens", kl_beta=beta)
    options = {"skill": Signal(), "temperature": 0.9}
    found = Learned(GRPO(config), *either, monkeypatch, steps=STEPS, **options)
    reference = copy.deepcopy(found.start).double()

    def work(student, step):
        prompts, groups = found.rollouts[step]
        rewards = torch.tensor(
            [
                [Signal().reward(answer.text, example.reference) for answer in group]
                for example, group in zip(found.examples[step], groups, strict=True)
            ]
        )
        rows = [
            Row(prompt, answer.token_ids)
            for prompt, group in zip(prompts, groups, strict=True)
            for answer in group
        ]
        pairs = zip(rows, advantages(rewards).flatten().double(), strict=True)
        weights = {id(row): advantage for row, advantage in pairs}
        count = sum(len(row.completion) for row in rows)

        def each(logits, row):
            tokens = torch.tensor(row.completion)[:, None]
            logprob = (logits / 0.9).log_softmax(-1).gather(1, tokens)[:, 0]
            with torch.no_grad():
                old = reference(torch.tensor([row.prompt + row.completion])).logits
                old = old[0, len(row.prompt) - 1 : -1] / 0.9
                gap = old.log_softmax(-1).gather(1, tokens)[:, 0]
            gap = gap - logprob
            value = -weights[id(row)] * (1 + logprob - logprob.detach())
            return (value + beta * (gap.exp() - gap - 1)).sum() / count

        return rows, each

    assert_followed(found, config, work)
