"""Replay: what is kept and when it comes back, by counts, simulation and naive references."""

import copy
import itertools
import json
import math
from collections import Counter
from fractions import Fraction
from itertools import chain

import pytest
import torch

from harness.learning.lessons import Lesson
from harness.learning.stage import Stage
from harness.sampling.sampler import Completion
from harness.skills.skill import Example, Skill
from methods.parts.replay import GENERAL, Replay, ReplayConfig
from methods.psft import PSFT, PSFTConfig
from tests.learning.test_training import make_stage


class Many(Skill):
    """``size`` short questions; the reward is what the reference says."""

    splits = ("train",)
    metrics = {"a": lambda completion, reference: float(reference)}

    def __init__(self, name, size):
        self.name, self.size = name, size

    def load(self, split):
        return [
            Example(str(i), [{"role": "user", "content": f"{i}"}], f"d{i}", (7 * i % 10) / 10)
            for i in range(self.size)
        ]


class Silent:
    """A sampler that answers at once; every third answer is cut off."""

    end = 256

    def __init__(self):
        self.asked = []

    def sample(self, prompts, n, seed, **settings):
        self.asked.append((len(prompts), settings))
        return [
            [Completion([1, 2], [-1.0 - i % 4, -1.0], i % 3 > 0, f"own {i}", f"own {i}")]
            for i, _ in enumerate(prompts)
        ]

    def rest(self):
        pass


def stages(tiny_model, folder, part, sizes, prompts=None, batch_size=4, seed=1):
    """The stages of skills of these sizes, with what each step learned: [(stage, steps)]."""
    folder.mkdir(exist_ok=True)
    model, tokenizer = tiny_model
    done, lessons = [], [Lesson(Many(f"s{k}", size), 5) for k, size in enumerate(sizes)]
    for index, lesson in enumerate(lessons, 1):
        stage = make_stage(
            model,
            tokenizer,
            sampler=Silent(),
            skill=lesson.skill,
            index=index,
            seed=seed,
            prompts=prompts or lesson.skill.size,
            batch_size=batch_size,
            max_new_tokens=5,
            earlier=lessons[: index - 1],
            later=len(sizes) - index,
            parts=[part],
            folder=folder,
        )
        part.begin(stage)
        steps = [[(e.skill, e.id) for e in step.examples] for step in stage.steps()]
        assert len(steps) == stage.steps_in_all
        assert stage.prompts_drawn == sum(map(len, steps))
        part.end(stage)
        done.append((stage, steps))
    return done


def replay(**options):
    return Replay(ReplayConfig(**options))


def kept(part):
    return Counter(example.skill for example in part.memory)


# ---- what is kept -------------------------------------------------------------------------------


def test_a_reservoir_keeps_each_example_with_the_same_chance(tiny_model, tmp_path):
    """Of 6 + 12 examples 4 are kept: each with 4/18, and all pairs alike."""
    runs, counts, pairs = 1500, Counter(), Counter()
    for seed in range(runs):
        part = replay(rows=4, selection="reservoir")
        for size, name in ((6, "a"), (12, "b")):
            examples = [Example(f"{name}{i}", [], None, None) for i in range(size)]
            part._into_reservoir(examples, 1000 * seed + size)
        ids = sorted(example.id for example in part.memory)
        assert part.seen == 18 and len(set(ids)) == 4
        counts.update(ids)
        pairs.update(itertools.combinations(ids, 2))
    expected = runs * 4 / 18
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 18 and chi2 < 45  # its 99.97% point with 17 degrees of freedom
    of_pairs = runs * math.comb(4, 2) / math.comb(18, 2)
    assert len(pairs) == 153
    assert sum((n - of_pairs) ** 2 / of_pairs for n in pairs.values()) < 220  # 99.97%: 215 of 152


def test_a_reservoir_is_never_offered_what_it_gave(tiny_model, tmp_path):
    part = replay(rows=5, selection="reservoir")
    stages(tiny_model, tmp_path, part, [8, 8, 8])
    assert part.seen == 16 and len(part.memory) == 5
    assert all(example.skill in ("s0", "s1") for example in part.memory)


@pytest.mark.parametrize(
    ("options", "sizes", "expected"),
    [
        ({"ratio": 0.25}, [8, 10, 4], {"s0": 2, "s1": 3}),
        ({}, [8, 10, 4], {"s0": 1, "s1": 1}),
        ({"rows": 5}, [8, 10, 4], {"s0": 3, "s1": 2}),
        ({"rows": 5, "selection": "first"}, [8, 10, 4], {"s0": 3, "s1": 2}),
        ({"rows": 1}, [8, 10, 4], {"s0": 1}),
        ({"rows": 100}, [8, 10, 4], {"s0": 8, "s1": 10}),
        ({"ratio": 1}, [8, 10, 4], {"s0": 8, "s1": 10}),
    ],
)
def test_counts_are_those_by_hand(tiny_model, tmp_path, options, sizes, expected):
    part = replay(**options)
    done = stages(tiny_model, tmp_path, part, sizes)
    assert kept(part) == expected
    replayed = Counter(skill for step in done[2][1] for skill, _ in step)
    assert replayed == {**expected, "s2": 4}  # each kept row once
    if options.get("selection") == "first":
        assert [(e.skill, e.id) for e in part.memory] == [
            ("s0", "0"), ("s0", "1"), ("s0", "2"), ("s1", "0"), ("s1", "1"),
        ]  # fmt: skip


def test_only_what_was_learned_is_kept(tiny_model, tmp_path):
    """Five of 40 examples are drawn; inside the budget some of these give way to replayed ones."""
    for extra in ("on_top", "inside"):
        part = replay(ratio=1.0, extra=extra, share=0.4)
        done = stages(tiny_model, tmp_path, part, [40, 40, 40], prompts=5)
        for stage, steps in done[:2]:
            name = stage.skill.name
            learned = {id for step in steps for skill, id in step if skill == name}
            assert {e.id for e in part.memory if e.skill == name} == learned
            assert len(learned) == (3 if extra == "inside" and stage.index == 2 else 5)


def test_the_best_are_kept_by_reward_or_logprob(tiny_model, tmp_path):
    part = replay(rows=4, selection="best_scored", temperature=0.1)
    done = stages(tiny_model, tmp_path, part, [10, 10, 3])
    rewards = [(e.skill, e.reference) for e in part.memory]
    assert rewards == [("s0", 0.9), ("s0", 0.8), ("s1", 0.9), ("s1", 0.8)]
    asked = [(count, s["temperature"]) for count, s in done[1][0].sampler.asked]
    assert sum(count for count, _ in asked) == 4 + 10 and {t for _, t in asked} == {0.1}
    assert done[1][0].prompts_drawn == 10 + 4 + 14  # its own, the memory, the scored
    part = replay(ratio=0.3, selection="best_scored", score="logprob")
    stages(tiny_model, tmp_path, part, [10, 3], batch_size=10)
    order = make_stage(*tiny_model, skill=Many("s0", 10), prompts=10, seed=1).draws()
    assert [e.id for e in part.memory] == [str(order[i]) for i in (0, 4, 8)]  # log p -1, first ones


# ---- own answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["balanced", "reservoir", "first", "best_scored"])
def test_content_and_selection_are_independent(tiny_model, tmp_path, selection):
    gold = replay(rows=6, selection=selection)
    own = replay(rows=6, selection=selection, content="own")
    for part in (gold, own):
        stages(tiny_model, tmp_path, part, [9, 9, 3], batch_size=9)
    assert [(e.skill, e.id) for e in gold.memory] == [(e.skill, e.id) for e in own.memory]
    assert all(row.demonstration.startswith("d") for row in gold.rows)
    texts = [row.demonstration for row in own.rows]
    finished = [i for i in range(6) if i % 3]  # others were cut off
    assert [texts[i] for i in finished] == [f"own {i}" for i in finished]
    assert [texts[i] for i in (0, 3)] == [f"d{own.memory[i].id}" for i in (0, 3)]
    assert json.loads((tmp_path / "replay.json").read_text())["own"] == 4


# ---- when it is replayed ------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["on_top", "inside"])
@pytest.mark.parametrize("mix", ["steps", "after"])
@pytest.mark.parametrize("prompts", [10, 12, 23])
@pytest.mark.parametrize("share", [None, 0.1, 0.5])
def test_steps_and_budget_are_those_by_hand(tiny_model, tmp_path, extra, mix, prompts, share):
    part = replay(rows=6, share=share, mix=mix, extra=extra)
    (_, plain), (_, steps) = stages(tiny_model, tmp_path, part, [12, 30], prompts=prompts)
    assert [len(step) for step in plain] == [4] * (prompts // 4) + [prompts % 4] * (prompts % 4 > 0)
    count = 6 if share is None else max(1, round(share * prompts))
    old = [[pair for pair in step if pair[0] == "s0"] for step in steps]
    new = [[pair for pair in step if pair[0] == "s1"] for step in steps]
    own = prompts - count * (extra == "inside")
    assert (sum(map(len, old)), sum(map(len, new))) == (count, own)
    assert Counter(pair for step in old for pair in step).most_common(1)[0][1] == -(-count // 6)
    if mix == "after":
        border = -(-own // 4)
        assert not any(old[:border]) and not any(new[border:])
        assert len(steps) == border + -(-count // 4)
    else:
        assert len(steps) == len(plain)
        done = 0
        for step, mine in zip(plain, old, strict=True):
            done += len(step)
            before = done - len(step)
            assert len(mine) == count * done // prompts - count * before // prompts
    # What the skill learns is the beginning of each batch that it has without replay.
    other = stages(tiny_model, tmp_path, replay(rows=1, share=0.01), [12, 30], prompts=prompts)
    drawn = [[pair for pair in step if pair[0] == "s1"] for step in other[1][1]]
    if mix == "steps":
        assert all(mine == all_[: len(mine)] for mine, all_ in zip(new, drawn, strict=True))
    else:
        assert [*chain(*new)] == [*chain(*drawn)][:own]


def test_a_repeated_memory_comes_in_shuffled_passes(tiny_model, tmp_path):
    part = replay(rows=5, share=1.5)
    (_, _), (_, steps) = stages(tiny_model, tmp_path, part, [5, 10])
    old = [id for step in steps for skill, id in step if skill == "s0"]
    passes = [old[i : i + 5] for i in range(0, 15, 5)]
    assert len(old) == 15 and all(sorted(each) == list("01234") for each in passes)
    assert len({tuple(each) for each in passes}) > 1


def test_seeds_keep_other_rows_and_a_seed_the_same(tiny_model, tmp_path):
    memories = []
    for seed in (1, 1, 2):
        part = replay(rows=4)
        stages(tiny_model, tmp_path, part, [30, 4], seed=seed)
        memories.append([e.id for e in part.memory])
    assert memories[0] == memories[1] != memories[2]


# ---- general data -------------------------------------------------------------------------------


def test_general_data_are_replayed_from_the_first_stage(tiny_model, tmp_path):
    file = tmp_path / "general.jsonl"
    rows = [{"prompt": f"p{i}", "demonstration": f"g{i}"} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = replay(rows=2, general=str(file), general_rows=3)
    (first, one), (_, two) = stages(tiny_model, tmp_path, part, [8, 8])
    counts = [Counter(skill for step in steps for skill, _ in step) for steps in (one, two)]
    assert counts == [{"s0": 8, GENERAL: 3}, {"s1": 8, "s0": 2, GENERAL: 3}]
    chosen = [{id for step in s for skill, id in step if skill == GENERAL} for s in (one, two)]
    assert chosen[0] == chosen[1] and all(e.skill == "s0" for e in part.memory)
    general = part.rows[-1]
    assert first.demonstration_rows([general])[0].completion[-1] == 256
    assert first.lesson(general).max_new_tokens == first.max_new_tokens
    assert general.demonstration in first.tokenizer.decode(first.teacher_tokens(general))


# ---- an example is taught as its own skill says -------------------------------------------------


def test_reward_template_and_limit_are_those_of_the_examples_skill(tiny_model):
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    old, new = Many("s0", 4), Many("s1", 4)
    shown = [{"role": "user", "content": "old: {question} {demonstration}"}]
    stage: Stage = make_stage(
        model, tokenizer, skill=new, earlier=[Lesson(old, 3, shown)], max_new_tokens=7
    )
    mixed = [new.examples("train")[0], old.examples("train")[1]]
    groups = stage.answers(mixed, seed=0, n=2)
    rows = stage.rows(mixed, [stage.prompt_tokens(e) for e in mixed], groups)
    assert [row.limit for row in rows] == [7, 7, 3, 3]
    assert all(len(row.completion) <= row.limit for row in rows)
    assert "old: 1 d1" in tokenizer.decode(stage.teacher_tokens(mixed[1]))
    assert "old:" not in tokenizer.decode(stage.teacher_tokens(mixed[0]))
    old.reward = lambda text, reference: 0.25
    assert [stage.reward(e, groups[0][0]) for e in mixed] == [0.0, 0.25]


class Sure(Silent):
    """Its log-probabilities are as at a low temperature, or are not known."""

    def __init__(self, logprob):
        super().__init__()
        self.logprob = logprob

    def sample(self, prompts, n, seed, **settings):
        super().sample(prompts, n, seed, **settings)
        return [
            [Completion([prompt[-2], 256], [self.logprob] * 2, True, "a", "a")]
            for prompt in prompts
        ]


@pytest.mark.parametrize(("temperature", "logprob"), [(0.1, 0.0), (None, math.nan)])
def test_logprobs_that_rank_answers_are_those_at_temperature_1(
    tiny_model, tmp_path, temperature, logprob
):
    part = replay(ratio=0.5, selection="best_scored", score="logprob", temperature=temperature)
    model, tokenizer = tiny_model
    stage = make_stage(
        model,
        tokenizer,
        sampler=Sure(logprob),
        skill=Many("s0", 12),
        parts=[part],
        later=1,
        folder=tmp_path,
    )
    part.begin(stage)
    part.end(stage)
    scores = {}
    for example in stage.examples:
        prompt = stage.prompt_tokens(example)
        answer = [prompt[-2], 256]
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        of_tokens = logits.double().log_softmax(-1)[range(2), answer]
        scores[example.id] = of_tokens.mean().item()
    order = [stage.examples[i].id for i in stage.draws()]
    assert len({round(score, 6) for score in scores.values()}) > 1
    kept = [scores[example.id] for example in part.memory]
    assert kept == pytest.approx(sorted(scores.values(), reverse=True)[:6], abs=1e-5)
    assert [example.id for example in part.memory] != order[:6]


# ---- in order, and by hand ----------------------------------------------------------------------


@pytest.mark.parametrize("inner", [1, 2, 4])
def test_inner_updates_learn_replayed_examples_among_the_others(tiny_model, tmp_path, inner):
    """With one update for a batch the order is that of methods without inner updates."""
    part, seen = replay(rows=12, share=1.0), []
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    first = stages(tiny_model, tmp_path, part, [12, 12])[0][0]
    part.memory = list(first.skill.examples("train"))
    stage = make_stage(
        model,
        tokenizer,
        skill=Many("s1", 12),
        index=2,
        earlier=[Lesson(first.skill, 5)],
        parts=[part],
        folder=tmp_path,
        on_step=lambda stage, step: seen.append([e.skill for e in step.examples]),
    )
    part.begin(stage)
    PSFT(PSFTConfig(learning_rate=0.0, inner_batches=inner)).learn(stage)
    assert [Counter(step) for step in seen] == [{"s1": 4, "s0": 4}] * 3
    in_order = [step == ["s1"] * 4 + ["s0"] * 4 for step in seen]
    assert all(in_order) if inner == 1 else not any(in_order)
    halves = [step[4:].count("s0") for step in seen]
    assert inner == 1 or all(0 < count < 4 for count in halves)
    again = make_stage(model, tokenizer, skill=Many("s1", 12), index=2, parts=[part])
    again.training = PSFTConfig(inner_batches=inner)
    again.add_lesson(Lesson(first.skill, 5))
    orders = [[e.id for e in step.examples] for step in again.steps()]
    again.step = 0
    assert orders == [[e.id for e in step.examples] for step in again.steps()]


@pytest.mark.parametrize(("ratio", "count"), [(0.07, 100), (0.1, 30), (0.29, 100), (0.57, 100)])
def test_a_ratio_that_gives_a_whole_number_keeps_that_number(ratio, count):
    exact = int(Fraction(str(ratio)) * count)
    assert replay(ratio=ratio)._of_all([count, count]) == 2 * exact
    assert replay(ratio=ratio)._of_all([count + 1]) == exact + 1
