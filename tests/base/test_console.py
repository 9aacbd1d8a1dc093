"""What a person sees: bars that are painted over on a terminal, whole lines in a log file."""

import io
import os
import re
import subprocess
import sys
import time

import pytest

from harness.base import console
from harness.base.console import Listener, Progress, Rate, Screen, clock
from harness.base.files import ROOT
from harness.base.forecast import Expected, Forecast
from tests.conftest import unwritable

# What rich would interpret: markup, an emoji code, a link, a number, and half of a tag.
ODD = "[red]sft[/red] [b] :smile: https://x.y/z 3.14 'text' [/"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


def painted(progress, width=80):
    """The lines that the bars take, and what is under them, without their colours."""
    (screen,) = progress.listeners
    screen.console.width = width
    with screen.console.capture() as capture:
        screen.console.print(screen.painted())
    return re.sub(r"\x1b\[[\d;]*m", "", capture.get()).rstrip("\n").split("\n")


@pytest.fixture
def on_the_way(monkeypatch):
    """A progress in the second of two stages of a run of three."""
    monkeypatch.setattr(Screen, "_start", lambda self: None)
    progress = Progress(stream=Terminal())
    stages = [Expected("", 0, 4), Expected("sft", 10, 6), Expected("sft", 10, 6)]
    runs = {f"sft-seed{k}": [Expected(*vars(s).values()) for s in stages] for k in range(3)}
    progress.forecast = Forecast(runs)
    progress.forecast.over_before("sft-seed0", 3)
    progress.forecast.over_before("sft-seed1", 1)
    progress.at("run 2/3 sft-seed1", "stage 1/2 vowels")
    progress.forecast.enter("sft-seed1", 1, learned=0.5)
    progress.show("step 5/10, 2.0 s/step loss 1.2")
    return progress


def test_bars_say_what_where_and_how_long(on_the_way):
    order, run, stage, line = painted(on_the_way)
    assert re.fullmatch(r"order [━╸╺]{19,20} +42% 1:0\d left +", order)
    assert re.fullmatch(r"run +[━╸╺]{19,20} +25% 0:2\d left run 2/3 sft-seed1 *", run)
    assert re.fullmatch(r"stage [━╸╺]{19,20} +31% 0:1\d left stage 1/2 vowels *", stage)
    assert line == "0:00 step 5/10, 2.0 s/step loss 1.2"
    said = rf"run 2/3 sft-seed1, stage 1/2 vowels: {re.escape(on_the_way.text)}; "
    assert re.fullmatch(said + r"42% of the order, about 1:0\d left", on_the_way.line)


@pytest.mark.parametrize("width", [10, 20, 40, 59, 60, 200])
def test_nothing_wraps_at_any_width(on_the_way, width):
    on_the_way.text = "x" * 300 + "\nsecond 語"
    lines = painted(on_the_way, width)
    assert len(lines) == 4 and all(len(line) < width for line in lines), lines
    on_the_way.text = "語" * 200
    assert painted(on_the_way, width)[-1].count("語") == (width - 6) // 2  # two columns each


def test_elsewhere_lines_are_whole_and_have_the_time():
    progress = Progress(every=0, stream=io.StringIO())
    progress.show("x" * 200)
    progress.say("y" * 200 + "  ")
    said = progress.listeners[0].stream.getvalue()
    assert re.fullmatch(f"{STAMP}x{{200}}\n{STAMP}y{{200}}  \n", said)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_texts_are_printed_as_they_are(stream, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(Screen, "_start", lambda self: None)
    out = stream()
    progress = Progress(every=0, stream=out)
    progress.say(ODD)
    progress.show(ODD)
    if stream is Terminal:
        assert out.getvalue() == f"[0:00] {ODD}\n" and painted(progress) == [f"0:00 {ODD}"]
    else:
        assert re.fullmatch(f"({STAMP}{re.escape(ODD)}\n){{2}}", out.getvalue())


def test_a_dumb_terminal_gets_a_line_now_and_then(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    progress = Progress(every=1000, stream=out)
    progress.say("a line")
    progress.show("not yet")
    assert re.fullmatch(f"{STAMP}a line\n", out.getvalue())


def test_what_takes_a_second_is_said_and_no_forecast_is_made_for_it():
    """By a thread: an import says nothing more. What is over before leaves no line."""
    written = []
    for is_long in (True, False):
        out = io.StringIO()
        progress = Progress(stream=out)
        progress.listeners[0].first = 0.2
        progress.expect(lambda: pytest.fail("takes seconds"), at_once=False)
        progress.show("begins")
        progress.show("loads")
        if is_long:
            time.sleep(0.5)
        progress.close()
        time.sleep(0.3)
        written.append(out.getvalue())
    assert re.fullmatch(f"{STAMP}loads\n", written[0]) and written[1] == ""


def test_a_line_in_so_many_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    out = io.StringIO()
    progress = Progress(stream=out)
    for now in (101.0, 119.0, 121.0, 130.0, 3741.0):
        progress.show(f"at {now:.0f}")
    assert re.fullmatch("".join(f"{STAMP}at {k}\n" for k in (101, 121, 3741)), out.getvalue())


def test_a_listener_that_fails_is_told_once_and_stops_nothing():
    class Failing(Listener):
        def learned(self, run, row):
            raise ValueError("so")

    out = io.StringIO()
    progress = Progress(stream=out)
    progress.listeners.append(Failing())
    for _ in range(2):
        progress.learned("sft-seed0", {"step": 1})
    assert re.fullmatch(f"{STAMP}Failing is off: ValueError: so\n", out.getvalue())


def test_clock_and_rate(monkeypatch):
    assert [clock(s) for s in (0, 7.9, 187, 3599, 3765)] == [
        "0:00",
        "0:07",
        "3:07",
        "59:59",
        "1:02:45",
    ]
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    rate = Rate(10, done=2)
    now = 5.0
    assert rate.text(4) == "step 4/10, 2.5 s/step"
    now = 0.5
    assert rate.text(4) == "step 4/10, 4.0 steps/s"


@pytest.mark.parametrize("target", ["full", "pipe"])
def test_progress_that_cannot_be_written_stops_nothing(target):
    """A full disk behind a log, a pipe whose reader is gone: exit 0, and nothing is complained."""
    code = (
        "import sys\n"
        "from harness.base.console import Progress\n"
        "from harness.base.streams import steady_streams\n"
        "with steady_streams():\n"
        "    for _ in range(3):\n"
        "        Progress().say('x' * 9999)\n"
        "        print('y' * 9999, flush=True)\n"
    )
    with unwritable(target) as out:
        for streams in ({"stdout": out, "stderr": out}, {"stdout": out, "stderr": subprocess.PIPE}):
            found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, **streams)
            assert found.returncode == 0 and b"Error" not in (found.stderr or b"")


def test_closed_streams_are_filled():
    """Else the number of a closed one goes to the next file, which gets what libraries print."""
    code = (
        "import os, sys; from harness.base.errors import UserError, reported\n"
        "with reported():\n"
        "    assert os.open(sys.argv[1], os.O_RDWR | os.O_CREAT) > 2\n"
        "    print('x', file=sys.stderr); os.write(2, b'y'); os.write(1, b'z'); sys.stdin.read()\n"
        "    raise UserError('place', 'problem')\n"
    )
    for closed in ("<&-", ">&-", "2>&-", ">&- 2>&-"):
        line = f'"$0" -c "$1" "$2" {closed}'
        words = ["bash", "-c", line, sys.executable, code, os.devnull]
        assert subprocess.run(words, cwd=ROOT, check=False).returncode == 2, closed
