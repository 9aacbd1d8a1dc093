"""Leases: one holder at a time, stale ones are taken over once, and a holder sees that it was."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.base import leases
from harness.base.errors import UserError
from harness.base.leases import Leases

HOLDS = (
    "import sys, time; from pathlib import Path; from harness.base.leases import Leases\n"
    "lease = Leases(Path(sys.argv[1])).claim('run'); print(lease is not None, flush=True)\n"
    "time.sleep(60)"
)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "STALE", 0.4)
    monkeypatch.setattr(leases, "LOOK", 0.02)


@pytest.fixture
def elsewhere(monkeypatch):
    """A function that makes this process one of another machine."""

    def move():
        monkeypatch.setattr(leases, "machine", lambda: "another-0")

    return move


def test_one_holds_it_until_it_is_released(tmp_path):
    mine, others = Leases(tmp_path), Leases(tmp_path)
    lease = mine.claim("a.run")
    assert others.claim("a.run") is None and others.claim("another") is not None
    assert others.holders()["a.run"].pid == os.getpid()
    lease.release()
    assert others.holder("a.run") is None
    second = others.claim("a.run")
    assert second is not None and mine.claim("a.run") is None
    second.release(done=True)
    assert sorted(os.listdir(tmp_path)) == ["another.1"]


def test_what_it_tells_is_there_with_the_next_heartbeat(tmp_path, quick):
    lease = Leases(tmp_path).claim("run")
    lease.tell({"step": 3})
    end = time.monotonic() + 5
    while Leases(tmp_path).holder("run").told != {"step": 3}:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    assert Leases(tmp_path).claim("run") is None
    process.kill()
    while Leases(tmp_path).holder("run"):  # as soon as the system has ended it, a zombie or not
        time.sleep(0.01)
    assert Leases(tmp_path).claim("run") is not None
    process.wait()


def test_a_machine_that_is_gone_is_taken_over_once_and_one_that_lives_is_not(
    tmp_path, quick, elsewhere
):
    lease = Leases(tmp_path).claim("run")
    elsewhere()
    mine, others = Leases(tmp_path), Leases(tmp_path)
    start = time.monotonic()
    assert mine.claim_if_dead("run") is None and time.monotonic() - start < 0.3  # it has beaten
    lease._end.set()  # no heartbeat any more
    lease._thread.join()
    mine, others = Leases(tmp_path), Leases(tmp_path)
    assert mine.claim("run") is None and others.claim("run") is None  # both have begun to watch
    time.sleep(0.5)
    assert others.claim("run") is not None and mine.claim("run") is None
    with pytest.raises(UserError, match="run: another process has taken over"):
        lease.check()
    lease.release(done=True)  # which leaves the new holder's alone
    assert os.listdir(tmp_path) == ["run.2"]


def test_a_stopped_process_is_taken_over(tmp_path, quick):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    os.kill(process.pid, signal.SIGSTOP)
    mine = Leases(tmp_path)
    assert mine.claim_if_dead("run") is None and mine.claim("run") is None
    time.sleep(0.5)
    assert mine.claim("run") is not None
    process.kill()
    process.wait()


def test_a_file_that_is_being_written_is_not_free(tmp_path, quick):
    (tmp_path / "run.4").touch()
    mine = Leases(tmp_path)
    assert mine.claim("run") is None and mine.holder("run") is None
    time.sleep(0.5)  # its writer was killed
    lease = mine.claim("run")
    assert lease is not None and os.listdir(tmp_path) == ["run.5"]


def test_without_links_files_are_created_in_place(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    lease = Leases(tmp_path).claim("run")
    assert lease is not None and Leases(tmp_path).claim("run") is None
    assert os.listdir(tmp_path) == ["run.1"]
