"""Signals: the first one stops at a good moment, a second one at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from harness.base.stopping import ECHO, SIGNALS, Stopped, heard
from tests.runs.refusals import ROOT


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_raises_where_the_command_is(number, code):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, heard():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert caught.value.exit_code == code and isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) == before


def test_code_may_ask_to_be_let_on():
    with heard():
        SIGNALS.waits = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert SIGNALS.pending == signal.SIGTERM
    assert SIGNALS.pending is None and not SIGNALS.waits  # the next command has none


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heard():
            os.kill(os.getpid(), signal.SIGINT)
            assert SIGNALS.pending is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_only_the_main_thread_hears():
    found = []

    def work():
        with heard():
            found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


STUCK = f"""
import os, signal, sys, time
from harness.base.errors import reported
from harness.base.stopping import SIGNALS
with reported():
    SIGNALS.waits = sys.argv[1] == "waits"
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # an echo
        print("goes on", flush=True)
        time.sleep(3 * {ECHO})
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        if sys.argv[1] == "hangs":
            time.sleep(3 * {ECHO})
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
"""


@pytest.mark.parametrize("how, out", [("waits", "goes on\n"), ("hangs", "")])
def test_a_second_signal_ends_at_once(how, out):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STUCK, how], capture_output=True, text=True, cwd=ROOT
    )
    assert time.monotonic() - start < 20
    assert (done.returncode, done.stdout) == (130, out)
    assert done.stderr.endswith("ended at once\n") and "Traceback" not in done.stderr


FORKED = """
import os, signal, time
from harness.base.stopping import heard
with heard():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_ends_as_any_process():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{int(signal.SIGTERM)}\n", done.stderr
