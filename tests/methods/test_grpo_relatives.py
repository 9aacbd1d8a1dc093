"""GRPO's relatives against TRL's trainers: ratios, clips and baselines under several updates."""

import copy
import dataclasses

import pytest
import torch
from datasets import Dataset

from harness.learning.lessons import Lesson
from harness.learning.step import Step
from harness.learning.trainer import Trainer
from methods.grpo import GRPO, GRPOConfig, Rollouts, advantages
from tests.learning.test_training import assert_close, make_stage
from tests.methods.test_methods import PLAIN, Recorder, Signal, padded, quiet

SETTINGS = {**PLAIN, "learning_rate": 2e-4, "group_size": 4, "micro_batch_tokens": 100}


class Lengths(Signal):
    """Every question has a signal."""

    def load(self, split):
        return [dataclasses.replace(e, reference=1) for e in super().load(split)]


class Updates:
    """GRPO in which each update's weights before it and gradients are kept."""

    def __init__(self, tiny_model, monkeypatch, skill=None, prompts=6, **options):
        model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
        self.weights, self.gradients, self.logs, self.losses = [], [], [], []
        self.sampler = Recorder(model, tokenizer)
        self.sampler.stops = self.sampler.stops | set(range(25))
        update, backward = Trainer.update, Trainer.backward

        def spied(trainer):
            self.weights.append(copy.deepcopy(model.state_dict()))
            self.gradients.append(
                {
                    n: torch.zeros_like(m) if m.grad is None else m.grad.clone()
                    for n, m in trainer.masters.items()
                }
            )
            return update(trainer)

        def valued(trainer, rows, loss, **more):
            self.losses.append(backward(trainer, rows, loss, **more))
            return self.losses[-1]

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", spied)
            patch.setattr(Trainer, "backward", valued)
            self.stage = make_stage(
                model,
                tokenizer,
                sampler=self.sampler,
                skill=skill or Lengths(),
                prompts=prompts,
                batch_size=6,
                temperature=0.9,
                on_step=lambda stage, step: self.logs.append(step.logged),
            )
            GRPO(GRPOConfig(**{**SETTINGS, **options})).learn(self.stage)

    def batch(self, first, last, old):
        """TRL's batch of the step's groups from ``first`` to ``last``; old: the model at first."""
        prompts, groups = self.sampler.kept[0]
        drawn = self.stage.draws()[:6]
        examples = [self.stage.examples[i] for i in drawn]
        rewards = torch.tensor(
            [
                [Signal().reward(c.text, e.reference) for c in g]
                for e, g in zip(examples, groups, strict=True)
            ]
        )
        prompt_ids, prompt_mask = padded([p for p in prompts for _ in range(4)], "left")
        completion_ids, mask = padded([c.token_ids for g in groups for c in g], "right")
        rows = slice(4 * first, 4 * last)
        found = {
            "prompt_ids": prompt_ids[rows],
            "prompt_mask": prompt_mask[rows],
            "completion_ids": completion_ids[rows],
            "completion_mask": mask[rows],
            "advantages": advantages(rewards).flatten()[rows],
            "num_items_in_batch": mask[rows].sum(),
        }
        with torch.no_grad():
            logits = old(
                torch.cat([found["prompt_ids"], found["completion_ids"]], 1),
                attention_mask=torch.cat([found["prompt_mask"], found["completion_mask"]], 1),
            ).logits
        logprobs = (logits[:, prompt_ids.shape[1] - 1 : -1] / 0.9).log_softmax(-1)
        found["old_per_token_logps"] = logprobs.gather(2, found["completion_ids"][..., None])[
            ..., 0
        ]
        return found


def trl_trainer(tiny_model, tmp_path, weights, kind="GRPO", **options):
    """TRL's trainer on a model with ``weights``."""
    import trl

    model = copy.deepcopy(tiny_model[0])
    model.load_state_dict(weights)
    settings = {"loss_type": "dapo", "steps_per_generation": 1} if kind == "GRPO" else {}
    return getattr(trl, f"{kind}Trainer")(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=getattr(trl, f"{kind}Config")(
            **quiet(tmp_path),
            **{
                **settings,
                "beta": 0.0,
                "num_generations": 4,
                "max_completion_length": 10,
                "temperature": 0.9,
                "per_device_train_batch_size": 4,
                **options,
            },
        ),
        processing_class=tiny_model[1],
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}]}] * 4),
    )


def loss_of(trainer, batch):
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"clip_low": 0.05, "clip_high": 0.1}, {"epsilon": 0.05, "epsilon_high": 0.1}),
        (
            {"normalise": "sequences", "clip_low": 0.05, "clip_high": 0.02},
            {"loss_type": "grpo", "epsilon": 0.05, "epsilon_high": 0.02},
        ),
        (
            {"normalise": "sequences", "ratio": "sequence", "clip_low": 0.02, "clip_high": 0.03},
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon": 0.02,
                "epsilon_high": 0.03,
            },
        ),
        (
            {"ratio": "sequence", "clip_low": 0.02, "clip_high": 0.03},
            {"importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
        ),
        ({"clip": "cispo", "clip_high": 0.05}, {"loss_type": "cispo", "epsilon_high": 1.05}),
    ],
)
def test_the_last_inner_update_is_trls(either, monkeypatch, tmp_path, ours, theirs):
    """Two batches of three groups, twice: four updates; the last one off the policy, some clipped.

    The first inner batch has the plain policy gradient.
    """
    found = Updates(either, monkeypatch, inner_batches=2, inner_epochs=2, **ours)
    assert len(found.weights) == 4 and len(found.logs) == 1
    old = copy.deepcopy(either[0])
    for number, (first, last) in ((0, (0, 3)), (3, (3, 6))):
        trainer = trl_trainer(either, tmp_path, found.weights[number], **theirs)
        loss, gradients = loss_of(trainer, found.batch(first, last, old))
        assert found.losses[number] == pytest.approx(loss, rel=1e-3, abs=2e-6)
        assert_close(found.gradients[number], gradients, 2e-3)
    assert 0.02 < found.logs[0]["outside_clip"] < 0.9


def test_with_one_update_the_relatives_are_one(tiny_model, monkeypatch):
    """Ratio and clip change nothing, to the bit."""
    plain = Updates(tiny_model, monkeypatch)
    for changes in ({"ratio": "sequence"}, {"clip": "cispo"}, {"clip_low": 0, "clip_high": 0}):
        other = Updates(tiny_model, monkeypatch, **changes)
        for name, gradient in plain.gradients[0].items():
            assert torch.equal(gradient, other.gradients[0][name]), changes
    assert "outside_clip" not in plain.logs[0]


def test_rloo_is_trl_rloo(tiny_model, monkeypatch, tmp_path):
    """Advantages without the own reward; the loss of whole sequences but for the rollout limit."""
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.1], [0.3, 0.3, 0.3, 0.3]])
    others = [[(1.6 - r) / 3 for r in (0.0, 1.0, 0.5, 0.1)], [0.3] * 4]
    wanted = rewards - torch.tensor(others)
    torch.testing.assert_close(advantages(rewards, False, "others"), wanted)
    assert (advantages(rewards, True, "others")[1] == 0).all()
    found = Updates(
        tiny_model, monkeypatch, baseline="others", scale_rewards=False, normalise="constant"
    )
    batch = found.batch(0, 6, tiny_model[0])
    examples = [found.stage.examples[i] for i in found.stage.draws()[:6]]
    groups = found.sampler.kept[0][1]
    rewards = [
        [Signal().reward(c.text, e.reference) for c in g]
        for e, g in zip(examples, groups, strict=True)
    ]
    batch["advantages"] = advantages(torch.tensor(rewards), False, "others").flatten()
    mask = batch["completion_mask"]
    batch["old_logps"] = (batch.pop("old_per_token_logps") * mask).sum(1)
    trainer = trl_trainer(tiny_model, tmp_path, found.weights[0], "RLOO")
    _, gradients = loss_of(trainer, batch)
    assert_close(found.gradients[0], {n: g / 10 for n, g in gradients.items()}, 1e-3)


class Rare(Signal):
    """Two of three questions have no signal."""

    def load(self, split):
        return [
            dataclasses.replace(e, reference=int(i % 3 == 0))
            for i, e in enumerate(super().load(split))
        ]


@pytest.mark.parametrize("rounds", [1, 50])
def test_groups_without_signal_are_replaced(tiny_model, monkeypatch, rounds):
    """With enough rounds a batch is full; prompts that were tried count as drawn."""
    found = Updates(tiny_model, monkeypatch, skill=Rare(), resample=rounds)
    log, calls = found.logs[0], found.sampler.kept
    tried = sum(len(prompts) for prompts, _ in calls)
    assert log["resampled"] == tried - 6 and found.stage.prompts_drawn == tried
    plain = Updates(tiny_model, monkeypatch, skill=Rare())
    assert log["reward"] == plain.logs[0]["reward"]
    assert log["groups_without_signal"] == plain.logs[0]["groups_without_signal"] > 0.4
    assert len(calls) == 2 if rounds == 1 else 2 < len(calls) <= 51
    lacking = 6
    for prompts, groups in calls:
        assert len(prompts) == lacking
        for prompt, group in zip(prompts, groups, strict=True):
            number = int(tiny_model[1].decode(prompt).split("?")[0].split()[-1])
            lengths = {len(c.text) for c in group}
            lacking -= number % 3 == 0 and len(lengths) > 1
    assert lacking == 0 or rounds == 1


def test_a_step_without_any_signal_learns_nothing(tiny_model, monkeypatch):
    class Flat(Signal):
        def reward(self, completion, reference):
            return 0.5

    found = Updates(tiny_model, monkeypatch, skill=Flat(), resample=2)
    assert found.logs[0]["resampled"] == 12 and found.logs[0]["grad_norm"] == 0


def test_replayed_prompts_without_signal_leave_no_place(tiny_model, monkeypatch):
    """Further prompts of the skill take the places of its own ones alone."""

    class Flat(Lengths):
        name = "flat"

        def reward(self, completion, reference):
            return 0.5

    old = [dataclasses.replace(e, skill="flat") for e in Flat().examples("train")[:4]]
    found = Updates(tiny_model, monkeypatch, skill=Rare())
    stage = found.stage
    stage.add_lesson(Lesson(Flat(), 10))
    method = GRPO(GRPOConfig(**SETTINGS, resample=30))
    asked = []

    def sampled(stage, examples, seed):
        asked.append(list(examples))
        signal = [e.skill != "flat" and e.reference == 1 for e in examples]
        rewards = torch.tensor([[0.0, float(s)] for s in signal])
        return Rollouts(list(examples), [[None, None] for _ in examples], rewards)

    monkeypatch.setattr(method, "_sampled", sampled)
    monkeypatch.setattr(method.config, "group_size", 2)
    own = stage.examples[:6]
    for examples, wanted in ((own + old, 6), (old, 0), (own, 6)):
        asked.clear()
        drawn = sampled(stage, examples, 0)
        asked.clear()
        step = Step(0, list(examples), 3)
        learned, _ = method._resampled(stage, step, drawn)
        assert len(learned.examples) == wanted
        assert all(e.reference == 1 and e.skill != "flat" for e in learned.examples)
        lacking = sum(e.skill != "flat" and e.reference != 1 for e in examples)
        assert [len(each) for each in asked][:1] == ([lacking] if lacking else [])
        assert step.logged["resampled"] == sum(map(len, asked))
