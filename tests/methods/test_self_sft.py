"""SFT on own right answers: what is learned in which step, and what a round leaves out."""

import copy
import sys

import pytest
import torch

from harness.learning.rewards import accepted
from harness.learning.trainer import Trainer
from harness.sampling.sampler import Completion
from methods.self_sft import SelfSFT, SelfSFTConfig
from methods.sft import SFT
from tests.learning.test_training import Letters, assert_close, make_stage, naive

PLAIN = {"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant", "max_grad_norm": 1e9}


class Quiz(Letters):
    """The reward is that of the scripted answer: right where it begins with R."""

    name = "quiz"

    def reward(self, completion, reference):
        return float(completion.startswith("R"))


class Scripted:
    """Answers prompt i with ``right[i]`` right answers of ``n``, and counts its calls."""

    def __init__(self, sampler, right):
        self.sampler, self.right, self.calls = sampler, right, []

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def sample(self, prompts, n=1, **settings):
        groups = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt).split("?")[0].split()[-1]
            number = int(text)
            answers = [
                f"R{number}.{len(self.calls)}.{k}" if k < self.right(number) else "no"
                for k in range(n)
            ]
            ids = [self.tokenizer(a + "<|end|>")["input_ids"] for a in answers]
            groups.append(
                [Completion(i, [0.0] * len(i), True, a) for i, a in zip(ids, answers, strict=True)]
            )
        self.calls.append(len(prompts))
        return groups


def learned(tiny_model, right, monkeypatch, prompts=12, **options):
    """(texts that each step learned, log lines, the sampler, the stage)."""
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    texts, logs = [], []
    mean = Trainer.token_mean

    def spied(trainer, rows, total):
        texts.append([tokenizer.decode(r.completion, skip_special_tokens=True) for r in rows])
        return mean(trainer, rows, total)

    stage = make_stage(
        model, tokenizer, skill=Quiz(), prompts=prompts, on_step=lambda s, t: logs.append(t.logged)
    )
    stage.sampler = Scripted(stage.sampler, right)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "token_mean", spied)
        SelfSFT(SelfSFTConfig(**PLAIN, **options)).learn(stage)
    return texts, logs, stage.sampler, stage


def test_prompts_without_a_right_answer_give_their_place(tiny_model, monkeypatch):
    """Twelve prompts in three steps; a third of them has one right answer of four."""
    texts, logs, sampler, stage = learned(tiny_model, lambda i: int(i % 3 == 0), monkeypatch)
    assert [len(t) for t in texts] == [4, 4, 4] and sampler.calls == [12]
    places = {e.id: i for i, e in enumerate(stage.examples)}
    drawn = [stage.examples[i].id for i in stage.draws()]
    flat = [t for step in texts for t in step]
    for id, text in zip(drawn, flat, strict=True):
        number = int(text[1:].split(".")[0])
        assert number % 3 == 0 and (places[id] % 3 or number == places[id])
    # The eight places of the others are shared out evenly among the four that have one
    counts = [sum(t.startswith(f"R{i}.") for t in flat) for i in (0, 3, 6, 9)]
    assert counts == [3, 3, 3, 3]
    assert logs[0]["yield"] == pytest.approx(4 / 48) and logs[0]["answered"] == pytest.approx(1 / 3)
    assert stage.prompts_drawn == 12


def test_a_prompt_that_comes_again_learns_its_next_answer(tiny_model, monkeypatch):
    texts, _, sampler, _ = learned(tiny_model, lambda i: 3, monkeypatch, prompts=36)
    turns = {}
    for text in [t for step in texts for t in step]:
        number, _, turn = text[1:].split(".")
        turns.setdefault(number, []).append(turn)
    assert all(each == ["0", "1", "2"] for each in turns.values()) and len(turns) == 12
    assert sampler.calls == [12]


def test_an_epoch_is_answered_again(tiny_model, monkeypatch):
    texts, _, sampler, stage = learned(
        tiny_model, lambda i: 4, monkeypatch, prompts=30, resample="epoch"
    )
    assert sampler.calls == [12, 12, 6]
    rounds = [{t.split(".")[1] for t in step} for step in texts]
    assert rounds == [{"0"}] * 3 + [{"1"}] * 3 + [{"2"}] * 2
    assert stage.tokens > 0 and stage.prompts_drawn == 30


def test_without_any_right_answer_nothing_is_learned(tiny_model, monkeypatch):
    texts, logs, _, stage = learned(tiny_model, lambda i: 0, monkeypatch)
    assert texts == [] and len(logs) == 3 and logs[0]["yield"] == 0
    for weight, start in zip(stage.model.parameters(), tiny_model[0].parameters(), strict=True):
        assert torch.equal(weight, start)


def test_the_loss_is_sfts_on_the_answers(either, monkeypatch):
    """The gradient of the first step is that of the token mean in float64."""
    gradients, kept = [], []
    update, mean = Trainer.update, Trainer.token_mean

    def spied(trainer):
        gradients.append({n: m.grad.clone() for n, m in trainer.masters.items()})
        return update(trainer)

    def seen(trainer, rows, total):
        kept.append(rows)
        return mean(trainer, rows, total)

    monkeypatch.setattr(Trainer, "update", spied)
    monkeypatch.setattr(Trainer, "token_mean", seen)
    _, logs, _, _ = learned(either, lambda i: i % 2, monkeypatch)
    rows = kept[0]
    count = sum(len(row.completion) for row in rows)

    def each(logits, row):
        tokens = torch.tensor(row.completion)
        return torch.nn.functional.cross_entropy(logits, tokens, reduction="sum") / count

    loss, wanted = naive(either[0], rows, each)
    assert logs[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(gradients[0], wanted, 1e-4)
    assert set(SFT.joins) - set(SelfSFT.joins) == {"demonstrations"}


def test_a_joint_run_answers_as_often_as_its_stages(tiny_model, monkeypatch):
    """Examples that stand in it once for each draw: rounds go by the different ones."""

    class Twice(Quiz):
        def __init__(self):
            self.keep("train", 2 * self.load("train"))

    monkeypatch.setattr(sys.modules[__name__], "Quiz", Twice)
    texts, logs, sampler, stage = learned(
        tiny_model, lambda i: 3, monkeypatch, prompts=24, resample="epoch"
    )
    assert len(stage.examples) == 24 and len(sampler.calls) == 2
    assert all(log["yield"] == 0.75 for log in logs)
    turns = {}
    for text in [t for step in texts for t in step]:
        number, call, turn = text[1:].split(".")
        turns.setdefault(number, []).append((call, turn))
    assert len(turns) == 12  # each of the 24 draws learns an answer that the one before did not
    assert all([turn for _, turn in each] == ["0", "1"] for each in turns.values())


def test_a_pass_that_ends_within_a_step_goes_on_to_the_next_answer(tiny_model, monkeypatch):
    class Ten(Quiz):
        def load(self, split):
            return super().load(split)[:10]

    monkeypatch.setattr(sys.modules[__name__], "Quiz", Ten)
    texts, *_ = learned(tiny_model, lambda i: 3, monkeypatch, prompts=20)
    turns = {}
    for text in [t for step in texts for t in step]:
        number, _, turn = text[1:].split(".")
        turns.setdefault(number, []).append(turn)
    assert turns == {str(i): ["0", "1"] for i in range(10)}


def test_a_reward_is_as_good_as_itself():
    """Rewards are float32: some fractions are a little less there than in float64."""
    for number in range(101):
        reward = number / 100
        rewards = torch.tensor([[reward, max(0.0, reward - 0.01), min(1.0, reward + 0.01)]])
        right = accepted(rewards, reward)
        assert right == [[True, number == 0, True]]
