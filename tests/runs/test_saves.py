"""Checkpoints that a thread writes: what they hold, when one is due, and what an error does."""

import threading
from types import SimpleNamespace

import pytest
import torch

from harness.base.errors import UserError
from harness.runs import checkpoints
from harness.runs.checkpoints import CPU, Saves, host_copy, load_state


@pytest.fixture
def saves(tmp_path, monkeypatch):
    """A function from minutes to the Saves of a stage, in the background as on a GPU."""
    monkeypatch.setattr(checkpoints, "in_background", lambda device: True)

    def make(minutes=10.0):
        weights = torch.zeros(3)
        model = SimpleNamespace(device=weights.device, parameters=lambda: iter([weights]))
        section = SimpleNamespace(checkpoints=SimpleNamespace(minutes=minutes))
        live = SimpleNamespace(run=SimpleNamespace(label="sft"), order=section, model=model)
        return Saves(tmp_path, live, step=4)

    return make


def state_of(tensor, **more):
    return {"model": {"w": tensor, "tied": tensor}, "stage": {"kept": {}, **more}, "log": [1]}


def held(monkeypatch):
    """(an event that lets the writing go on, the states that were written)."""
    real, go_on, written = checkpoints.save_state, threading.Event(), []

    def save(folder, state, place):
        assert go_on.wait(10)
        written.append(state)
        real(folder, state, place)

    monkeypatch.setattr(checkpoints, "save_state", save)
    return go_on, written


def test_what_is_written_is_what_was(saves, monkeypatch, tmp_path):
    """The stage goes on while the thread writes; tensors that are one are written once."""
    go_on, written = held(monkeypatch)
    keeper, weights, log = saves(), torch.arange(4.0), [1]
    state = {**state_of(weights), "log": log}
    keeper.save(state, 5, wait=False)
    weights.zero_()
    log.append(2)
    assert not keeper.is_due() and keeper.saved == 4 and not written
    go_on.set()
    keeper.wait()
    found = load_state(tmp_path, CPU)
    assert torch.equal(found["model"]["w"], torch.arange(4.0)) and found["log"] == [1]
    assert found["model"]["w"].data_ptr() == found["model"]["tied"].data_ptr()
    assert keeper.saved == 5 and keeper.lost == 0
    # The next one takes the same memory.
    before = [copy.data_ptr() for copy in keeper._copies]
    keeper.save(state_of(weights), 6, wait=False)
    keeper.wait()
    assert [copy.data_ptr() for copy in keeper._copies] == before and keeper.saved == 6
    assert not load_state(tmp_path, CPU)["model"]["w"].any()


def test_there_are_never_two_at_once(saves, monkeypatch):
    go_on, written = held(monkeypatch)
    keeper = saves(1e-9)
    keeper.save(state_of(torch.ones(2)), 5, wait=False)
    assert not keeper.is_due()
    threading.Timer(0.05, go_on.set).start()
    keeper.save(state_of(torch.zeros(2)), 6, wait=True)  # as a stop does
    assert [state["model"]["w"].sum().item() for state in written] == [2, 0]
    assert keeper.saved == 6 and keeper.cost >= 0.04


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("x", "y")])
def test_an_error_of_the_thread_is_told_once(saves, monkeypatch, error):
    def fail(*_):
        raise error

    keeper = saves(1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_state", fail)
        for meet in (keeper.is_due, keeper.wait):
            keeper.save(state_of(torch.ones(2)), 5, wait=False)
            keeper.join()
            with pytest.raises(type(error)) as caught:
                meet()
            assert caught.value is error
        with pytest.raises(type(error)):
            keeper.save(state_of(torch.ones(2)), 5, wait=True)
    keeper.wait()
    assert keeper.saved == 4


def test_one_is_due_after_fifty_times_what_it_costs(saves, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    keeper = saves(1.0)
    for after, due in ((59, False), (61, True)):
        now[0] = 1000.0 + after
        assert keeper.is_due() is due
    keeper.cost = 3.0  # seconds in which the stage stood still
    for after, due in ((61, False), (149, False), (151, True)):
        now[0] = 1000.0 + after
        assert keeper.is_due() is due
    always = saves(0)
    always.cost = 3.0
    assert always.is_due() and not always.in_background


def test_without_room_it_is_written_at_once(saves, monkeypatch, tmp_path):
    keeper, weights = saves(), torch.ones(1000)
    for free, at_once in ((4 * 4000 - 1, True), (4 * 4000, False)):
        monkeypatch.setattr(checkpoints, "free_memory", lambda device, free=free: free)
        keeper.save(state_of(weights), 5, wait=False)
        assert (keeper._thread is None) is at_once
        keeper.wait()
    assert load_state(tmp_path, CPU)["model"]["w"].sum() == 1000


def test_a_copy_keeps_the_form_of_a_state():
    whole = torch.arange(6.0).view(2, 3)
    state = {"a": [whole, whole.T, (whole[0], 1)], "b": {"c": None, "d": "text", "e": whole}}
    copies = []
    found = host_copy(state, copies)
    assert torch.equal(found["a"][1], whole.T) and torch.equal(found["a"][2][0], whole[0])
    assert found["a"][2][1] == 1 and found["b"]["c"] is None and found["b"]["d"] == "text"
    assert found["a"][0] is found["b"]["e"] and len(copies) == 3
    assert isinstance(found["a"][2], tuple) and found["a"][0].data_ptr() != whole.data_ptr()


def test_a_checkpoint_of_another_kind_of_device_is_refused(saves, tmp_path):
    """Masters and averages are kept in another way there."""
    saves(0.0).save({**state_of(torch.ones(2)), "device": "cuda"}, 1, wait=True)
    assert load_state(tmp_path, torch.device("cuda"))["log"] == [1]
    with pytest.raises(UserError, match="is a checkpoint of a cuda, and this is a cpu; remove it"):
        load_state(tmp_path, CPU)
