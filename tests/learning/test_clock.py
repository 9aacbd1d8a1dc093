"""What a method does outside its steps is on the stage's clock and in its counts, once."""

import copy
import time

import pytest

from harness.learning.trainer import TrainingConfig, cross_entropy, learning
from tests.learning.test_training import CONFIG, fresh, make_stage, some_rows  # noqa: F401


def learn(stage, wait=0.0):
    """A pass over the examples before the steps and rollouts for a buffer after them."""
    with learning(stage, TrainingConfig(**CONFIG)) as trainer:
        for batch in stage.over(stage.examples, "Fisher"):
            rows = stage.demonstration_rows(batch)
            trainer.backward(rows, lambda logits, at: cross_entropy(logits, at.tokens))
            trainer.take_gradients()
        for step in stage.steps():
            step.log(**trainer.token_mean(some_rows(), cross_entropy), **trainer.update())
        for batch in stage.over(stage.examples[:5], "buffer"):
            stage.sample([stage.prompt_tokens(e) for e in batch], seed=0)
        time.sleep(wait)


def counts(stage):
    return stage.step, stage.prompts_drawn, stage.tokens


def test_tokens_prompts_time_and_progress(fresh):  # noqa: F811
    shown = []
    stage = make_stage(*fresh, on_work=lambda *what: shown.append(what))
    bare = make_stage(*fresh)
    with learning(bare, TrainingConfig(**CONFIG)) as trainer:
        for _ in bare.steps():
            trainer.token_mean(some_rows(), cross_entropy)
            trainer.update()
    stage.start_clock()
    start = time.perf_counter()
    learn(stage, wait=0.3)
    stage.read_clock()
    wall = time.perf_counter() - start
    assert stage.prompts_drawn == bare.prompts_drawn + 12 + 5
    assert stage.tokens > bare.tokens
    assert sum(stage.seconds.values()) == pytest.approx(wall, abs=0.05)
    assert stage.seconds["sampling"] > 0 and stage.seconds["training"] > 0.3
    assert shown == [
        ("Fisher", 4, 12),
        ("Fisher", 8, 12),
        ("Fisher", 12, 12),
        ("buffer", 4, 5),
        ("buffer", 5, 5),
    ]


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_resumed_stage_counts_nothing_twice(last, fresh):  # noqa: F811
    def stage(**changes):
        return make_stage(copy.deepcopy(fresh[0]), fresh[1], **changes)

    whole = stage()
    learn(whole)
    states = []

    class Cut(Exception):
        pass

    def cut(cut_stage, step):
        if cut_stage.step == last:
            states.append(copy.deepcopy(cut_stage.state_dict()))
            raise Cut

    with pytest.raises(Cut):
        learn(stage(on_step=cut))
    resumed = stage(restored=states[0])
    learn(resumed)
    assert counts(resumed) == counts(whole)


def test_evaluation_and_checkpoints_are_not_the_methods_time(fresh):  # noqa: F811
    stage = make_stage(*fresh, on_step=lambda *_: time.sleep(0.3))
    stage.start_clock()
    start = time.perf_counter()
    for _ in stage.steps():
        pass
    stage.read_clock()
    assert time.perf_counter() - start > 0.9
    assert stage.seconds["training"] < 0.3
