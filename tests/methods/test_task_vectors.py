"""Task arithmetic, TIES and DARE over several stages against PEFT's mergers and hand-made sums."""

import copy

import pytest
import torch
from peft.utils.merge_utils import task_arithmetic, ties

from harness.learning.trainer import TrainingConfig
from methods.parts.dare import DARE, DAREConfig
from methods.parts.sfa import SFA, SFAConfig
from methods.parts.task_arithmetic import TaskArithmetic
from methods.parts.ties import TIES, TIESConfig, largest
from methods.sft import SFT
from tests.learning.test_training import Letters, make_stage
from tests.methods.test_averages import Steps
from tests.methods.test_penalties import SETTINGS, model, moved

__all__ = ["model"]  # a fixture
CONFIG = TrainingConfig(**SETTINGS)


def flat(weights):
    """One float64 vector of weights by name."""
    return torch.cat([weights[name].detach().double().flatten() for name in sorted(weights)])


class Part2(Letters):
    """Other prompts for each stage."""

    def __init__(self, number):
        self.number = number

    def load(self, split):
        examples = super().load(split)
        return examples[3 * self.number :] + examples[: 3 * self.number]


def sequence(base, tokenizer, part, folder, stages=3):
    """Of each stage: the flat weights at its end, its task vector and where training began."""
    live, found = copy.deepcopy(base), []
    for index in range(1, stages + 1):
        steps, before = Steps(), copy.deepcopy(live)
        start = {"run": base, "stage": before}
        stage = make_stage(
            live,
            tokenizer,
            skill=Part2(index),
            parts=[steps, part],
            folder=folder,
            index=index,
            later=stages - index,
            load_start=lambda of, start=start: copy.deepcopy(start[of]),
        )
        for each in (steps, part):
            each.begin(stage)
        SFT(CONFIG).learn(stage)
        for each in (steps, part):
            each.end(stage)
        vector = flat(steps.weights[-1]) - flat(steps.weights[0])
        found.append((flat(dict(live.named_parameters())), vector, flat(steps.weights[0])))
        # The next process has what was kept
        state = copy.deepcopy(part.state_dict())
        part = type(part)(part.config)
        part.load_state_dict(state)
    return found


def assert_merged(found, base, begin, scale, merged, where=slice(None)):
    """Each stage ends with base + scale merged(the task vectors so far)."""
    base = flat(dict(base.named_parameters()))
    last = base
    for number, (end, _, first) in enumerate(found, 1):
        began = base if begin == "base" else last
        torch.testing.assert_close(first[where], began[where], rtol=0, atol=1e-7)
        wanted = base + scale * merged([vector for _, vector, _ in found[:number]])
        torch.testing.assert_close(end[where], wanted[where], rtol=0, atol=1e-6)
        last = end


@pytest.mark.parametrize("begin", ["base", "merged"])
@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_task_arithmetic_is_pefts(model, tmp_path, begin, scale):
    base, tokenizer = model
    config = TaskArithmetic.Config(scale=scale, begin=begin)
    found = sequence(base, tokenizer, TaskArithmetic(config), tmp_path)
    assert_merged(
        found,
        base,
        begin,
        scale,
        lambda vectors: task_arithmetic(vectors, torch.ones(len(vectors))),
    )


@pytest.mark.parametrize("begin", ["base", "merged"])
@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.55, 0.5), (1.0, 1.0)])
def test_ties_are_pefts(model, tmp_path, begin, density, scale):
    base, tokenizer = model
    part = TIES(TIESConfig(scale=scale, density=density, begin=begin))
    found = sequence(base, tokenizer, part, tmp_path)

    def merged(vectors):
        """In float32, as the weights: what is near the threshold falls on the same side."""
        return ties([v.float() for v in vectors], torch.ones(len(vectors)), density).double()

    # Of entries that tie at the threshold PEFT keeps some and the part keeps all.
    ties_at = torch.zeros(len(found[0][0]), dtype=torch.bool)
    for _, vector, _ in found:
        sizes = vector.float().abs()
        ties_at |= sizes == sizes.sort(descending=True).values[int(density * len(sizes)) - 1]
    assert ties_at.sum() < 20 or density == 1
    assert_merged(found, base, begin, scale, merged, ~ties_at)


def test_ties_by_hand():
    part = TIES(TIESConfig(density=0.5))
    vectors = [
        [4.0, -3.0, 0.1, 0.0, 2.0, -0.2],
        [-1.0, 1.0, 5.0, 0.5, -2.0, 0.0],
        [2.0, -4.0, -0.1, 0.2, 0.3, 9.0],
    ]
    merged = torch.zeros(6)
    for vector in vectors:
        given = {"w": torch.tensor(vector)}
        part.read(given)
        merged = part.add("w", given["w"].clone())
    # Trimmed: [4 -3 0 0 2 0], [-1 1 5 0 -2 0] (two of size 1), [2 -4 0 0 0 9]
    assert merged.tolist() == [3, -3.5, 5, 0, 2, 9]


@pytest.mark.parametrize("count", [1, 7, 500, 1199, 1200])
def test_the_largest_entries_are_found_exactly(count):
    generator = torch.Generator().manual_seed(count)
    numbers = torch.randn(1200, generator=generator)
    numbers[:300] = 0
    numbers[300:400] = 0.5
    numbers[400:405] *= 1e-41  # subnormal
    numbers[405:410] *= 1e37
    tensors = dict(enumerate(numbers[torch.randperm(1200, generator=generator)].split(170)))
    assert largest(tensors, count) == numbers.abs().sort(descending=True).values[count - 1]


@pytest.mark.parametrize("begin", ["base", "merged"])
def test_dare_drops_and_rescales(model, tmp_path, begin):
    base, tokenizer = model
    part = DARE(DAREConfig(scale=0.5, drop=0.75, begin=begin))
    found = sequence(base, tokenizer, part, tmp_path, stages=2)
    last, masks = flat(dict(base.named_parameters())), []
    for end, vector, _ in found:
        added = (end - last) / 0.5
        kept = added.abs() > vector.abs()  # four times as large, or nothing
        torch.testing.assert_close(added, torch.where(kept, 4 * vector, 0), rtol=0, atol=2e-6)
        moved = vector.abs() > 1e-5
        masks.append(kept[moved])
        share = masks[-1].double().mean().item()
        assert share == pytest.approx(0.25, abs=5 * 0.433 / int(moved.sum()) ** 0.5)
        last = end
    size = min(map(len, masks))
    assert (masks[0][:size] != masks[1][:size]).double().mean() > 0.3  # drawn again
    again = sequence(base, tokenizer, DARE(part.config), tmp_path, stages=2)
    assert torch.equal(again[1][0], found[1][0])
    nothing = sequence(base, tokenizer, DARE(DAREConfig(drop=0.0)), tmp_path, stages=2)
    plain = sequence(base, tokenizer, TaskArithmetic(TaskArithmetic.Config()), tmp_path, stages=2)
    torch.testing.assert_close(nothing[1][0], plain[1][0])


@pytest.mark.parametrize("begin", ["base", "merged"])
def test_the_start_of_a_stage_is_where_its_training_begins(model, tmp_path, begin):
    """For parts that ask for it, as SFA, which would count earlier task vectors again."""
    base, tokenizer = model
    starts = {"run": base, "stage": moved(base, size=0.05)}
    live = copy.deepcopy(starts["stage"])
    sfa = SFA(SFAConfig(of="stage", beta=0.5))
    part = TaskArithmetic(TaskArithmetic.Config(scale=1.0, begin=begin))
    stage = make_stage(
        live,
        tokenizer,
        parts=[sfa, part],
        folder=tmp_path,
        index=2,
        load_start=lambda of: copy.deepcopy(starts[of]),
    )
    for each in (sfa, part):
        each.begin(stage)
    wanted = starts["run" if begin == "base" else "stage"]
    for model in (stage.start("stage"), live):
        for one, other in zip(model.parameters(), wanted.parameters(), strict=True):
            assert torch.equal(one, other)
    SFT(TrainingConfig(**SETTINGS | {"learning_rate": 0.0})).learn(stage)
    # A stage that learns nothing adds nothing to the sum.
    merged, at = (flat(dict(model.named_parameters())) for model in (live, base))
    torch.testing.assert_close(merged, at, rtol=0, atol=1e-7)
