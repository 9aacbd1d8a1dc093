"""EWC, L2-SP and the anchor against loops in float64 over whole trainings of several steps."""

import copy
import dataclasses
import json

import pytest
import torch

from harness.learning.lessons import Lesson
from harness.learning.trainer import TrainingConfig, learning_rate
from harness.models.load import load_model
from methods.parts.anchor import Anchor, AnchorConfig
from methods.parts.ewc import EWC, EWCConfig
from methods.parts.l2sp import L2SP, L2SPConfig
from methods.sft import SFT
from tests.conftest import save_tiny, save_tiny_qwen3
from tests.learning.test_training import Letters, assert_near, make_stage

SETTINGS = {"learning_rate": 3e-3, "warmup_steps": 1}


@pytest.fixture(scope="module", params=[save_tiny, save_tiny_qwen3])
def model(request, tmp_path_factory):
    """Tiny models of one layer: a Llama whose head is the embedding, a Qwen3 with its own."""
    folder = request.param(tmp_path_factory.mktemp("model"), num_hidden_layers=1)
    return load_model(str(folder), "float32", "cpu")


def moved(model, seed=5, size=0.01):
    """A copy with other weights."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return other


def row_loss(model, row):
    """-log p of a row's completion, in the model's dtype."""
    logits = model(torch.tensor([row.prompt + row.completion])).logits[0]
    predicted = logits[len(row.prompt) - 1 : -1].log_softmax(-1)
    return -predicted.gather(1, torch.tensor(row.completion)[:, None]).sum()


def naive_training(model, stage, config, pull, decoupled, extra=None):
    """SFT with a penalty in float64: pull(name, weight) = (strength F (theta - theta*), the
    penalty); extra(model, step): a further loss.
    """
    model = copy.deepcopy(model).double()
    weights = dict(model.named_parameters())
    decayed = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    indices = stage.draws()
    penalties = []
    for step in range(3):
        examples = [stage.examples[i] for i in indices[4 * step : 4 * step + 4]]
        rows = stage.demonstration_rows(examples)
        model.zero_grad()
        loss = sum(row_loss(model, row) for row in rows) / sum(len(r.completion) for r in rows)
        if extra:
            loss = loss + extra(model, step)
        loss.backward()
        if pull:
            penalties.append(sum(pull(n, w.detach())[1].item() for n, w in weights.items()))
        if pull and not decoupled:
            for name, weight in weights.items():
                weight.grad += pull(name, weight.detach())[0]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        rate = learning_rate(config, step, 3)
        decayed.param_groups[0]["lr"] = rate
        decayed.step()
        if decoupled:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(decoupled(name, weight, rate))
    return weights, penalties


def taught(model, tokenizer, part, start, config, folder, **changes):
    """What SFT with ``part`` makes of a copy of ``model``, the stage and the log."""
    live, logs = copy.deepcopy(model), []
    stage = make_stage(
        live,
        tokenizer,
        parts=[part],
        folder=folder,
        load_start=lambda of: copy.deepcopy(start[of]),
        on_step=lambda stage, step: logs.append(step.logged),
        **{"index": 2, "later": 1, **changes},
    )
    part.begin(stage)
    SFT(config).learn(stage)
    return live, stage, logs


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("name", ["stage", "run", "ewc"])
def test_a_training_is_that_of_a_loop_in_float64(model, tmp_path, name, coupled):
    base, tokenizer = model
    start = {"stage": base, "run": moved(base)}
    strength = 30.0 if coupled else 3e3
    generator = torch.Generator().manual_seed(0)
    fisher = {n: torch.rand(w.shape, generator=generator) for n, w in base.named_parameters()}
    if name == "ewc":
        part = EWC(EWCConfig(strength=strength, coupled=coupled))
        part.load_state_dict({"fisher": fisher})
        origin = "stage"
    else:
        part = L2SP(L2SPConfig(strength=strength, coupled=coupled, of=name))
        fisher, origin = {n: torch.ones_like(f) for n, f in fisher.items()}, name
    anchors = {n: w.detach().double() for n, w in start[origin].named_parameters()}

    def pull(key, weight):
        distance = weight - anchors[key]
        force = strength * fisher[key].double() * distance
        return force, (force * distance).sum() / 2

    def proximal(key, weight, rate):
        factor = rate * strength * fisher[key].double()
        return (weight + factor * anchors[key]) / (1 + factor)

    config = TrainingConfig(**SETTINGS)
    live, stage, logs = taught(base, tokenizer, part, start, config, tmp_path)
    expected, penalties = naive_training(base, stage, config, pull, None if coupled else proximal)
    free, _, _ = taught(base, tokenizer, L2SP(L2SPConfig(strength=0)), start, config, tmp_path)
    differs = 0.0
    for key, weight in live.named_parameters():
        assert_near(weight, expected[key])
        differs = max(differs, (free.get_parameter(key) - weight).abs().max().item())
    assert differs > 1e-3  # the penalty does something
    key = "ewc_loss" if name == "ewc" else "l2sp_loss"
    assert [log[key] for log in logs] == pytest.approx(penalties, rel=1e-3, abs=1e-9)


def test_a_strong_decoupled_pull_holds_the_weights(model, tmp_path):
    base, tokenizer = model
    start = {"stage": base, "run": base}
    part = L2SP(L2SPConfig(strength=1e9, coupled=False))
    live, _, _ = taught(base, tokenizer, part, start, TrainingConfig(**SETTINGS), tmp_path)
    for key, weight in base.named_parameters():
        torch.testing.assert_close(live.get_parameter(key), weight, rtol=0, atol=1e-6)


def naive_fisher(model, rows):
    """Squared gradients of whole sequences in float64, divided by their mean."""
    model = copy.deepcopy(model).double()
    squares = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for row in rows:
        model.zero_grad()
        row_loss(model, row).backward()
        for name, weight in model.named_parameters():
            squares[name] += weight.grad**2 / len(rows)
    mean = sum(s.sum() for s in squares.values()) / sum(s.numel() for s in squares.values())
    return {name: square / mean for name, square in squares.items()}, mean.item()


@pytest.mark.parametrize("kind", ["empirical", "sampled"])
@pytest.mark.parametrize("count", [5, 200])
def test_the_fisher_information_is_that_of_a_loop_in_float64(
    model, tmp_path, kind, count, monkeypatch
):
    base, tokenizer = model
    part = EWC(EWCConfig(fisher=kind, examples=count))
    config = TrainingConfig(**SETTINGS)
    live, stage, _ = taught(base, tokenizer, part, {}, config, tmp_path, index=1)
    rows, of_batch = [], part._rows
    monkeypatch.setattr(
        part, "_rows", lambda *arguments: rows.append(of_batch(*arguments)) or rows[-1]
    )
    before = (stage.tokens, stage.prompts_drawn)
    weights = {name: weight.clone() for name, weight in live.named_parameters()}
    part.end(stage)
    rows = [row for batch in rows for row in batch]
    assert len(rows) == min(count, 12) and stage.prompts_drawn - before[1] == len(rows)
    assert stage.tokens > before[0]
    drawn = list(dict.fromkeys(stage.draws()))[:count]
    examples = [stage.examples[i] for i in drawn]
    gold = stage.demonstration_rows(examples)
    assert [row.prompt for row in rows] == [row.prompt for row in gold]
    assert ([row.completion for row in rows] == [row.completion for row in gold]) == (
        kind == "empirical"
    )
    expected, mean = naive_fisher(live, rows)
    for name, fisher in part.fisher.items():
        torch.testing.assert_close(fisher.double(), expected[name], rtol=2e-3, atol=1e-5)
    assert json.loads((tmp_path / "fisher.json").read_text()) == {
        "sequences": len(rows),
        "mean": pytest.approx(mean, rel=1e-3),
    }
    everything = torch.cat([f.flatten().double() for f in part.fisher.values()])
    assert everything.mean().item() == pytest.approx(1, rel=1e-5)
    for name, weight in live.named_parameters():
        assert torch.equal(weight, weights[name]) and weight.grad is None


def test_the_sum_is_online(model, tmp_path):
    base, tokenizer = model
    config, folder = TrainingConfig(**SETTINGS), tmp_path
    single = EWC(EWCConfig(fisher="empirical"))
    _, stage, _ = taught(base, tokenizer, single, {}, config, folder, index=1)
    single.end(stage)
    online = EWC(EWCConfig(fisher="empirical", gamma=0.25))
    old = {name: torch.full_like(f, 8.0) for name, f in single.fisher.items()}
    _, stage, _ = taught(base, tokenizer, online, {}, config, folder, index=1)
    online.load_state_dict({"fisher": dict(old)})
    online.end(stage)
    for name, fisher in single.fisher.items():
        torch.testing.assert_close(online.fisher[name], fisher + 2)
    last = EWC(EWCConfig())
    _, stage, _ = taught(base, tokenizer, last, {}, config, folder, index=1, later=0)
    last.end(stage)
    assert not last.fisher  # no stage reads it


# ---- anchor -------------------------------------------------------------------------------------


class Old(Letters):
    name = "old"

    def load(self, split):
        return [
            dataclasses.replace(e, prompt=[{"role": "user", "content": f"old {e.id}"}])
            for e in super().load(split)
        ]


def naive_divergence(model, reference, row, kind, heat):
    """Sum over a row's completion tokens of the KL at a temperature, in float64."""
    ids = torch.tensor([row.prompt + row.completion])
    where = slice(len(row.prompt) - 1, -1)
    log_p = (model(ids).logits[0, where] / heat).log_softmax(-1)
    log_q = (reference(ids).logits[0, where] / heat).log_softmax(-1).detach()
    one, other = (log_q, log_p) if kind == "forward" else (log_p, log_q)
    return (one.exp() * (one - other)).sum()


@pytest.mark.parametrize("kind", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("on", "of", "heat"),
    [
        ("demonstrations", "stage", 2.0),
        ("demonstrations", "run", 1.0),
        ("own_answers", "run", 1.0),
        ("old_prompts", "stage", 1.0),
        ("general_prompts", "run", 1.5),
    ],
)
def test_an_anchored_training_is_that_of_a_loop_in_float64(
    model, tmp_path, monkeypatch, kind, on, of, heat
):
    base, tokenizer = model
    # At p_ref itself the gradient would be noise, which AdamW blows up to the learning rate.
    start = {"stage": moved(base, 6, size=0.02), "run": moved(base, size=0.03)}
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"general {i}"}) + "\n" for i in range(3)))
    options = {"prompts": str(file)} if on == "general_prompts" else {}
    part = Anchor(
        AnchorConfig(
            beta=5.0, of=of, divergence=kind, along=on, temperature=heat, share=0.5, **options
        )
    )
    steps, of_step = [], part._rows
    monkeypatch.setattr(part, "_rows", lambda step: steps.append(of_step(step)) or steps[-1])
    config = TrainingConfig(**SETTINGS)
    old = Lesson(Old(), 4)
    live, stage, logs = taught(base, tokenizer, part, start, config, tmp_path, earlier=[old])
    reference = copy.deepcopy(start[of]).double()
    losses = []

    def extra(naive, number):
        rows = steps[number]
        total = sum(naive_divergence(naive, reference, row, kind, heat) for row in rows)
        losses.append(5 * heat**2 * total / sum(len(row.completion) for row in rows))
        return losses[-1]

    expected, _ = naive_training(base, stage, config, None, None, extra)
    free, _, _ = taught(base, tokenizer, L2SP(L2SPConfig(strength=0)), start, config, tmp_path)
    differs = 0.0
    for key, weight in live.named_parameters():
        assert_near(weight, expected[key])
        differs = max(differs, (free.get_parameter(key) - weight).abs().max().item())
    assert differs > 1e-3
    assert [log["anchor_loss"] for log in logs] == pytest.approx(
        [loss.item() for loss in losses], rel=1e-3, abs=1e-7
    )
    count = 4 if on in ("demonstrations", "own_answers") else 2
    assert [len(rows) for rows in steps] == [count] * 3
    prompts = [tokenizer.decode(row.prompt) for rows in steps for row in rows]
    mark = {"old_prompts": "old", "general_prompts": "general"}.get(on, "q")
    assert all(mark in prompt for prompt in prompts)
    if on == "old_prompts":
        assert all(len(row.completion) <= 4 for rows in steps for row in rows)


def test_without_old_prompts_the_first_stage_has_no_anchor(model, tmp_path):
    base, tokenizer = model
    part = Anchor(AnchorConfig(along="old_prompts"))
    start, config = {"run": base}, TrainingConfig(**SETTINGS)
    live, _, logs = taught(base, tokenizer, part, start, config, tmp_path, index=1)
    none = L2SP(L2SPConfig(strength=0))
    free, _, _ = taught(base, tokenizer, none, start, config, tmp_path, index=1)
    assert "anchor_loss" not in logs[0]
    for key, weight in live.named_parameters():
        torch.testing.assert_close(weight, free.get_parameter(key), rtol=0, atol=0)
