"""The time that is left: right on machines of any speed, and small jumps on the way."""

import random

import pytest

from harness.base import forecast
from harness.base.forecast import BETWEEN, LEARNING, MEASURING, Expected, Forecast

STEPS, PIECES = 20, {"vowels": 3.0, "digits": 2.0, "retention": 5.0}


class Time:
    now = 0.0


@pytest.fixture
def time(monkeypatch):
    clock = Time()
    monkeypatch.setattr(forecast.time, "monotonic", lambda: clock.now)
    return clock


def order():
    """Two methods, of which one takes thrice as long, through two stages."""
    return {
        "sft-seed0": [
            Expected("", 0, 10, PIECES),
            *(Expected("sft", 20, 10, PIECES) for _ in range(2)),
        ],
        "grpo-seed0": [
            Expected("", 0, 0, PIECES),
            *(Expected("grpo", 60, 10, PIECES) for _ in range(2)),
        ],
    }


def seconds(speed, first=0):
    """What the order takes in all from stage ``first`` of the first run on."""
    whole = {"sft": 20, "grpo": 60, "": 0}
    stages = [stage for run in order().values() for stage in run][first:]
    learning = sum(whole[stage.label] * speed[stage.label] for stage in stages)
    return learning + sum(stage.measuring for stage in stages) * speed["measuring"]


def run(time, speed, first=0, noise=None):
    """Run the order; yields (seconds so far, share, seconds left) whenever something is told."""
    runs = order()
    made = Forecast(runs)
    made.over_before("sft-seed0", first)
    start = time.now

    def told():
        share, left = made.of_order
        return time.now - start, share, left

    for name, stages in runs.items():
        for number, stage in enumerate(stages):
            if name == "sft-seed0" and number < first:
                continue
            made.enter(name, number)
            made.doing(LEARNING)
            for step in range(1, STEPS + 1):
                wobble = noise.choice([0.5, 1, 1, 1.5]) if noise else 1
                time.now += stage.learning * speed[stage.label] / STEPS * wobble
                made.learned(step / STEPS)
                yield told()
            made.doing(MEASURING)
            for piece, of_model in PIECES.items() if stage.measuring else ():
                made.measures(piece)
                for tenth in range(1, 11):
                    time.now += of_model * speed["measuring"] / 10
                    made.measured(tenth / 10)
                    yield told()
            made.doing(BETWEEN)
            made.over()
            yield told()


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_the_time_of_any_machine_and_does_not_jump(time, seed):
    """Factors from 0.2 to 5, other ones for each method: what it says in all moves from the
    model's word to the truth, by little each time.
    """
    random_ = random.Random(seed)
    speed = {key: 10 ** random_.uniform(-0.7, 0.7) for key in ("sft", "grpo", "measuring")}
    speed[""] = 1.0
    truth, model = seconds(speed), seconds(dict.fromkeys(speed, 1.0))
    low, high = (f(speed.values()) for f in (min, max))
    before, shares, errors = model, [], []
    for so_far, share, left in run(time, speed, noise=random_):
        assert 0.8 * min(low, 1) * model <= so_far + left <= 1.3 * max(high, 1) * model
        assert 0.4 <= (so_far + left) / before <= 2.5
        before = so_far + left
        shares.append(share)
        errors.append(abs(so_far + left - truth) / truth)
    assert max(errors[-30:]) < 0.15  # the last stage
    assert shares == sorted(shares) and shares[-1] == 1 and left == pytest.approx(0, abs=1e-6)


def test_what_an_earlier_start_did_counts_as_done_and_moves_nothing(time):
    speed = {"sft": 1.0, "grpo": 1.0, "measuring": 1.0, "": 1.0}
    first = 2  # the base model and the first stage
    (so_far, share, left), *_, last = run(time, speed, first)
    assert share == pytest.approx((10 + 30 + so_far) / seconds(speed))
    assert left == pytest.approx(seconds(speed, first) - so_far)
    assert last[1:] == (1.0, pytest.approx(0))


def test_measurements_on_record_do_not_make_the_machine_look_fast(time):
    runs = order()
    made = Forecast(runs)
    made.enter("sft-seed0", 0)
    made.doing(MEASURING)
    for piece in PIECES:
        made.measures(piece)  # found at once: nobody says how far it is
    made.over()
    assert made.of_order.left == pytest.approx(
        seconds({"sft": 1, "grpo": 1, "": 1, "measuring": 1}, 1)
    )


def test_proportions_tell_no_time_before_something_is_done(time):
    made = Forecast({"sft-seed0": [Expected("", 0, 1), Expected("sft", 1, 1)]}, is_timed=False)
    made.enter("sft-seed0", 1)
    made.doing(LEARNING)
    assert made.of_order == (0.0, None)
    time.now += 50
    made.learned(0.5)
    assert made.of_order.left == pytest.approx(150 + 100, rel=0.2)  # the base's too


def test_a_forecast_that_is_made_later_knows_the_place(time):
    first = Forecast()
    first.enter("sft-seed0", 1)
    first.doing(LEARNING)
    first.learned(0.5)
    time.now += 20
    made = Forecast(order())
    made.over_before("sft-seed0", 1)
    made.take_over(first)
    time.now += 1
    made.learned(0.55)
    assert made.of_stage.done == pytest.approx(11 / 30)
    assert made.of_order.left == pytest.approx(9 + 10 + 30 + 140)
