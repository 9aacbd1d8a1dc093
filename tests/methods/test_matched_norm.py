"""Matched norm: against a loop in float64, and in an order beside the method that it copies."""

import copy

import pytest
import torch

from harness.base.errors import UserError
from harness.learning.part import Part, PartConfig
from harness.learning.trainer import TrainingConfig, learning_rate
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from methods.parts.matched_norm import MatchedNorm, MatchedNormConfig, nearest_root
from methods.psft import PSFT, PSFTConfig
from methods.sft import SFT
from tests.conftest import read_lines, write_rows
from tests.learning.test_training import make_stage
from tests.methods.test_agem import mean_loss
from tests.methods.test_penalties import SETTINGS, model

__all__ = ["model"]  # a fixture
CONFIG = TrainingConfig(**SETTINGS)


def other_run(folder, rows):
    """Where a stage finds what the method ``other`` logged in its first stage."""
    stage = folder / "runs/other-seed1/stage-1"
    stage.mkdir(parents=True)
    write_rows(stage / "training.jsonl", rows)
    own = folder / "runs/own-seed1/stage-1.partial/method"
    own.mkdir(parents=True)
    return own


def taught(base, tokenizer, part, folder):
    live, logs = copy.deepcopy(base), []
    stage = make_stage(
        live,
        tokenizer,
        parts=[part],
        folder=folder,
        load_start=lambda of: copy.deepcopy(base),
        on_step=lambda stage, step: logs.append(step.logged),
    )
    part.begin(stage)
    SFT(CONFIG).learn(stage)
    return live, stage, logs


def flat(weights):
    return torch.cat([weight.detach().flatten() for weight in weights])


def naive(model, stage, factor):
    """(Weights, sizes of updates, distances) in float64: factor(step, rate, u, away) -> c."""
    model = copy.deepcopy(model).double()
    adamw = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    weights, indices = list(model.parameters()), stage.draws()
    start, norms, distances = flat(weights), [], []
    for step in range(3):
        rows = stage.demonstration_rows(stage.examples[i] for i in indices[4 * step : 4 * step + 4])
        model.zero_grad()
        mean_loss(model, rows).backward()
        torch.nn.utils.clip_grad_norm_(weights, CONFIG.max_grad_norm)
        before = [weight.detach().clone() for weight in weights]
        adamw.param_groups[0]["lr"] = rate = learning_rate(CONFIG, step, 3)
        adamw.step()
        with torch.no_grad():
            u = flat(weights) - flat(before)
            c = factor(step, rate, u, flat(before) - start)
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old + c * (weight - old))
        norms.append(abs(c) * u.norm().item())
        distances.append((flat(weights) - start).norm().item())
    return dict(model.named_parameters()), norms, distances


def found(u, away, target):
    """The c at which |away + c u| is the target, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (away + middle * u).norm() < target else (low, middle)
    return high


@pytest.mark.parametrize("kind", ["norm", "update", "distance", "none"])
def test_a_training_is_that_of_a_loop_in_float64(model, tmp_path, kind):
    base, tokenizer = model
    sizes = [0.05, 0.3, 0.11]
    key = "distance" if kind == "distance" else "update_norm"
    distances = [0.05, 0.2, 0.23]
    rows = [{key: size} for size in (distances if kind == "distance" else sizes)]
    folder = other_run(tmp_path, rows)
    options = {
        "norm": {"norm": 0.2},
        "update": {"like": "other"},
        "distance": {"like": "other", "of": "distance"},
        "none": {},
    }[kind]
    part = MatchedNorm(MatchedNormConfig(**options))
    live, stage, logs = taught(base, tokenizer, part, folder)
    if kind == "none":  # it changes no number
        free, _, _ = taught(base, tokenizer, Part(PartConfig()), folder)
        for name, weight in live.named_parameters():
            assert torch.equal(weight, free.get_parameter(name))
    factors = {
        "norm": lambda step, rate, u, away: 0.2 * rate / CONFIG.learning_rate / u.norm().item(),
        "update": lambda step, rate, u, away: sizes[step] / u.norm().item(),
        "distance": lambda step, rate, u, away: found(u, away, distances[step]),
        "none": lambda step, rate, u, away: 1.0,
    }
    expected, norms, reached = naive(base, stage, factors[kind])
    for name, weight in live.named_parameters():
        torch.testing.assert_close(weight.double(), expected[name], rtol=0, atol=1e-4)
    assert [log["update_norm"] for log in logs] == pytest.approx(norms, rel=1e-3)
    assert [log["distance"] for log in logs] == pytest.approx(reached, rel=1e-3)
    if kind == "distance":
        assert reached == pytest.approx(distances, rel=1e-6)
    elif kind == "update":
        assert norms == pytest.approx(sizes, rel=1e-6)
    assert (kind == "none") == all(log["stretch"] == 1 for log in logs)


@pytest.mark.parametrize(
    ("a", "b", "c", "root"),
    [
        (4, 0, -1, 0.5),
        (1, 3, 0, 0),  # there already
        (1, 3, -7, 1),
        (1, -2, 3, 1),  # of 1 and 3
        (1, -2, 5, 2),  # none: the least point
        (1, 2, 5, 0),  # none, and the least point is behind
        (1, 2, 3, 0),  # both behind
    ],
)
def test_the_nearest_root(a, b, c, root):
    assert nearest_root(a, b, c) == pytest.approx(root)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"update_norm": 1.0}] * 2, "it made 2 steps in stage 1, this one makes 3"),
        ([{"loss": 1.0}] * 3, "has no update_norm; give that method `with: {matched_norm: {}}`"),
        (None, "run else-seed1 has no stage 1 in the results folder"),
    ],
)
def test_another_run_that_does_not_fit_is_refused(model, tmp_path, rows, problem):
    base, tokenizer = model
    folder = other_run(tmp_path, rows or [])
    part = MatchedNorm(MatchedNormConfig(like="other" if rows else "else"))
    with pytest.raises(UserError) as error:
        taught(base, tokenizer, part, folder)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_a_control_learns_beside_its_method(order_file, tmp_path):
    """SFT with the distances of STM, in a sequence of two skills."""
    sft = {"method": "sft", "learning_rate": 1e-3}
    path = order_file(
        methods={
            "stm": {**sft, "with": {"stm": {"threshold": 300}, "matched_norm": None}},
            "control": {**sft, "with": {"matched_norm": {"like": "stm", "of": "distance"}}},
        },
        evaluate={"examples": 1},
        seeds=[3],
    )
    run_order(read_order(path), tmp_path / "out")
    for stage in (1, 2):
        measured, control = (
            read_lines(tmp_path / f"out/runs/{label}-seed3/stage-{stage}/training.jsonl")
            for label in ("stm", "control")
        )
        distances = [row["distance"] for row in measured]
        assert [row["distance"] for row in control] == pytest.approx(distances, rel=1e-4)
        assert all(row["stretch"] == 1 for row in measured)
        assert max(abs(row["stretch"] - 1) for row in control) > 0.01


def test_a_reference_run_follows_the_same_reference(model, tmp_path):
    """Not the stage of the sequence that teaches the same skill."""
    base, tokenizer = model
    sizes = {"other-seed1/stage-2": 9.0, "other.single-2-seed1/stage-1": 0.2}
    for place, size in sizes.items():
        stage = tmp_path / "runs" / place
        stage.mkdir(parents=True)
        write_rows(stage / "training.jsonl", [{"update_norm": size}] * 3)
    for reference, number, size in ((".single-2", 1, 0.2), ("", 2, 9.0)):
        part = MatchedNorm(MatchedNormConfig(like="other"))
        folder = tmp_path / f"runs/own{reference}-seed1/stage-{number}.partial/method"
        folder.mkdir(parents=True)
        stage = make_stage(
            copy.deepcopy(base),
            tokenizer,
            index=2,
            number=number,
            reference=reference,
            parts=[part],
            folder=folder,
        )
        part.begin(stage)
        assert part.targets == [size] * 3


def test_several_updates_a_step_match_none(model, tmp_path):
    base, tokenizer = model
    inner = PSFT(PSFTConfig(**SETTINGS, inner_batches=2))

    def learned(part, folder):
        logs = []
        stage = make_stage(
            copy.deepcopy(base),
            tokenizer,
            parts=[part],
            folder=folder,
            load_start=lambda of: copy.deepcopy(base),
            on_step=lambda stage, step: logs.append(step.logged),
        )
        part.begin(stage)
        inner.learn(stage)
        return logs

    folder = other_run(tmp_path, [{"update_norm": 0.1, "distance": 0.1}] * 3)
    for of in ("update", "distance"):
        with pytest.raises(UserError, match="like wants one update for each step"):
            learned(MatchedNorm(MatchedNormConfig(like="other", of=of)), folder)
    logs = learned(MatchedNorm(MatchedNormConfig()), folder)
    assert len(logs) == 3 and all("update_norm" not in log and log["distance"] > 0 for log in logs)
