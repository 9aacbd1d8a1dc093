"""Weights of tokens and samples against loops in float64, over whole trainings with two passes."""

import copy
import math
import statistics

import pytest
import torch

from harness.base.files import ROOT
from harness.base.seeds import seed_for
from harness.learning.lessons import Lesson
from harness.learning.method import get_method
from harness.learning.part import lacking
from harness.learning.trainer import TrainingConfig, learning_rate
from methods.dft import DFT
from methods.parts.eaft import EAFT, EAFTConfig
from methods.parts.flow import Flow, FlowConfig
from methods.parts.random_mask import RandomMask, RandomMaskConfig
from methods.parts.replay import Replay, ReplayConfig
from methods.parts.stm import STM, STMConfig
from methods.parts.talr import TALR, TALRConfig
from methods.sft import SFT
from tests.learning.test_training import Letters, assert_near, make_stage
from tests.methods.test_penalties import SETTINGS, Old, model, moved

__all__ = ["model"]  # a fixture
CONFIG = TrainingConfig(**SETTINGS, micro_batch_tokens=40)
THRESHOLD = 300.0  # of the random model's tokens it leaves some


def logits_of(model, row):
    """Logits [completion tokens, vocabulary] of a row of its own."""
    return model(torch.tensor([row.prompt + row.completion])).logits[0, len(row.prompt) - 1 : -1]


def logprobs_of(model, row):
    tokens = torch.tensor(row.completion)[:, None]
    return logits_of(model, row).log_softmax(-1).gather(1, tokens)[:, 0]


def naive_training(model, steps, weigh, dft=False):
    """(Weights after, losses of) a training in float64 on the rows of ``steps``: weigh(model, rows)
    -> (weights of each row's tokens, what the weighted sum is divided by).
    """
    model = copy.deepcopy(model).double()
    adamw, losses = torch.optim.AdamW(model.parameters(), weight_decay=0.0), []
    for number, rows in enumerate(steps):
        model.zero_grad()
        with torch.no_grad():
            weights, count = weigh(model, rows)
        loss = 0
        for row, weight in zip(rows, weights, strict=True):
            logprobs = logprobs_of(model, row)
            factor = logprobs.detach().exp() if dft else 1
            loss = loss - (weight * factor * logprobs).sum() / count
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_grad_norm)
        adamw.param_groups[0]["lr"] = learning_rate(CONFIG, number, len(steps))
        adamw.step()
    return dict(model.named_parameters()), losses


def trained(base, tokenizer, parts, start, method=SFT, **changes):
    """(Model, rows of each step, losses, stage) of two passes over twelve examples."""
    live, steps, logs = copy.deepcopy(base), [], []
    stage = make_stage(
        live,
        tokenizer,
        parts=parts,
        load_start=lambda of: copy.deepcopy(start[of]),
        on_step=lambda stage, step: logs.append(step.logged["loss"]),
        **{"index": 2, "later": 1, "phases": [24], **changes},
    )
    of_examples = stage.demonstration_rows

    def spied(examples):
        rows = of_examples(examples)
        if stage.present is not None and examples is stage.present.examples:
            steps.append(rows)
        return rows

    stage.demonstration_rows = spied
    for part in parts:
        part.begin(stage)
    method(CONFIG).learn(stage)
    return live, steps, logs, stage


def total(rows):
    return sum(len(row.completion) for row in rows)


def stm(reference):
    def weigh(model, rows):
        masks = [(-logprobs_of(reference, row)).exp() <= THRESHOLD for row in rows]
        return masks, sum(int(mask.sum()) for mask in masks)

    return weigh


def talr(model, rows):
    losses = [-logprobs_of(model, row) for row in rows]
    tau = statistics.median(each.mean().item() for each in losses)
    return [torch.maximum(torch.exp(-e) ** (1 / tau), torch.tensor(0.05)) for e in losses], total(
        rows
    )


def eaft(renormalise):
    def weigh(model, rows):
        weights = []
        for row in rows:
            p = logits_of(model, row).softmax(-1).sort(descending=True).values[:, :7]
            p = p / p.sum(-1, keepdim=True) if renormalise else p
            weights.append((-p * p.log()).sum(-1) / math.log(7))
        return weights, total(rows)

    return weigh


def assert_trained(live, base, steps, logs, weigh, dft=False):
    expected, losses = naive_training(base, steps, weigh, dft)
    for name, weight in live.named_parameters():
        assert_near(weight, expected[name])
    assert logs == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "method"),
    [("stage", SFT), ("run", DFT), ("talr", SFT), ("eaft", DFT), ("eaft renormalised", SFT)],
)
def test_a_weighted_training_is_that_of_a_loop_in_float64(model, name, method):
    base, tokenizer = model
    start = {"stage": base, "run": moved(base, size=0.05)}
    part, weigh = {
        "talr": lambda: (TALR(TALRConfig(floor=0.05)), talr),
        "eaft": lambda: (EAFT(EAFTConfig(top=7)), eaft(False)),
        "eaft renormalised": lambda: (EAFT(EAFTConfig(top=7, renormalise=True)), eaft(True)),
    }.get(
        name,
        lambda: (
            STM(STMConfig(threshold=THRESHOLD, of=name)),
            stm(copy.deepcopy(start[name]).double()),
        ),
    )()
    live, steps, logs, stage = trained(base, tokenizer, [part], start, method)
    assert len(steps) == 6
    assert_trained(live, base, steps, logs, weigh, method is DFT)
    _, _, losses, free = trained(base, tokenizer, [], start, method)
    assert max(abs(a / b - 1) for a, b in zip(logs, losses, strict=True)) > 0.01
    scored = {"talr": 6, "eaft": 0, "eaft renormalised": 0}.get(name, 3)  # steps of scored rows
    assert free.tokens < stage.tokens or not scored
    assert stage.tokens <= free.tokens * (1 + scored / 6) and stage.prompts_drawn == 24


def test_stm_leaves_some_tokens_and_may_leave_none(model):
    base, tokenizer = model
    start = {"stage": base}
    _, steps, _, _ = trained(base, tokenizer, [STM(STMConfig(threshold=THRESHOLD))], start)
    reference = copy.deepcopy(base).double()
    masks = [mask for rows in steps for mask in stm(reference)(None, rows)[0]]
    assert 0.1 < torch.cat(masks).float().mean() < 0.9
    everything = STM(STMConfig(threshold=1))
    live, _, logs, _ = trained(base, tokenizer, [everything], start)
    assert logs == [0] * 6
    for name, weight in live.named_parameters():
        assert torch.equal(weight, base.get_parameter(name))
    nothing = STM(STMConfig(threshold=1e30))
    live, *_ = trained(base, tokenizer, [nothing], start)
    free, *_ = trained(base, tokenizer, [], start)
    for name, weight in live.named_parameters():
        torch.testing.assert_close(weight, free.get_parameter(name), rtol=0, atol=1e-6)


def test_a_random_mask_takes_as_many_tokens_of_each_row_as_stm(model):
    base, tokenizer = model
    start = {"stage": base}
    part = RandomMask(RandomMaskConfig(threshold=THRESHOLD))
    live, steps, logs, stage = trained(base, tokenizer, [part], start)
    stage.let_go(part.scores)
    part.begin(stage)
    other = STM(STMConfig(threshold=THRESHOLD))
    other.stage = stage
    other.begin(stage)
    rows = [row for each in steps[:3] for row in each]
    masks, masked = part.row_weights(rows), other.row_weights(rows)
    assert [int((m > 0).sum()) for m in masks] == [int((m > 0).sum()) for m in masked]
    assert any(not torch.equal(a > 0, b > 0) for a, b in zip(masks, masked, strict=True))
    again = part.row_weights(rows[5:])
    assert [(m > 0).tolist() for m in again] == [(m > 0).tolist() for m in masks[5:]]

    def weigh(model, rows):
        kept = [m > 0 for m in part.row_weights(rows)]
        return kept, sum(int(m.sum()) for m in kept)

    assert_trained(live, base, steps, logs, weigh)
    share = RandomMask(RandomMaskConfig(share=0.25))
    share.stage = stage
    rows = [type(row)(row.prompt, row.completion * 300) for row in rows]
    kept = torch.cat(share.row_weights(rows)) > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=5 * 0.433 / len(kept) ** 0.5)
    stage.seed += 1
    assert not torch.equal(kept, torch.cat(share.row_weights(rows)) > 0)
    assert seed_for(1, "random mask", "a") != seed_for(1, "random mask", "b")


@pytest.mark.parametrize(("how", "of"), [("mean", "stage"), ("sum", "run")])
def test_flow_weighs_samples_as_a_loop_in_float64(model, tmp_path, how, of):
    base, tokenizer = model
    start = {"stage": base, "run": moved(base, size=0.05)}
    part = Flow(FlowConfig(of=of, loss=how))
    old = Old()
    replay = Replay(ReplayConfig(rows=3))
    examples = [(e, "old") for e in old.examples("train")[:3]]
    replay.load_state_dict(
        {
            "memory": [{**vars(e), "skill": name} for e, name in examples],
            "own": {},
            "seen": 0,
        }
    )
    live, steps, logs, stage = trained(
        base,
        tokenizer,
        [replay, part],
        start,
        earlier=[Lesson(old, 5)],
        folder=tmp_path,
    )
    assert total([r for rows in steps for r in rows]) and len(steps) == 6
    own = stage.demonstration_rows(Letters().examples("train"))
    reference = copy.deepcopy(start[of]).double()
    with torch.no_grad():
        losses = [-getattr(logprobs_of(reference, row), how)().item() for row in own]
    tau = statistics.median(losses)
    assert part.tau == pytest.approx(tau, rel=1e-4)

    def weigh(model, rows):
        each = [-getattr(logprobs_of(reference, row), how)().item() for row in rows]
        return [math.exp(-loss / tau) for loss in each], total(rows)

    assert sum(map(len, steps)) == 27  # three replayed ones
    assert_trained(live, base, steps, logs, weigh)


def test_flow_joins_what_learns_demonstrations():
    """Own answers, a teacher's and source texts have other losses at the start."""
    methods = [path.stem for path in (ROOT / "methods").glob("[a-z]*.py")]
    assert len(methods) > 10
    joined = {name for name in methods if not lacking(Flow, get_method(name))}
    assert joined == {"sft", "dft", "sft_reinvoke", "psft"}
