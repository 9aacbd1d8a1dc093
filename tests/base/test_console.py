"""What a person sees: one line that is rewritten on a terminal, whole lines in a log file."""

import io
import os
import re
import subprocess
import sys

import pytest

from harness.base import console
from harness.base.console import Progress, Rate, clock
from harness.base.files import ROOT

# What rich would interpret: markup, an emoji code, a link, a number, and half of a tag.
ODD = "[red]sft[/red] [b] :smile: https://x.y/z 3.14 'text' [/"


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines that a terminal shows: \\r goes to the start, ESC [2K empties the line."""
        lines, column = [""], 0
        for part in re.findall(r"\r|\n|\x1b\[2K|[^\r\n\x1b]+", self.getvalue()):
            if part == "\n":
                lines.append("")
                column = 0
            elif part == "\r":
                column = 0
            elif part == "\x1b[2K":
                lines[-1] = ""
            else:
                lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
                column += len(part)
        assert "\x1b" not in self.getvalue().replace("\x1b[2K", "")
        return lines


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


def test_the_line_does_not_wrap():
    progress = Progress(stream=Terminal())
    progress.show("x" * 200)
    assert progress.stream.screen() == ["x" * 79]
    progress.show("short")
    assert progress.stream.screen() == ["short"]
    progress.say("stays")
    assert progress.stream.screen() == ["[0:00] stays", ""]
    progress.show("two\nlines")
    assert progress.stream.screen() == ["[0:00] stays", "two lines"]


def test_a_line_is_cut_by_the_width_of_its_characters():
    progress = Progress(stream=Terminal())
    progress.show("語" * 200)
    assert progress.stream.screen()[0].strip() == "語" * 39  # two columns each


def test_elsewhere_lines_are_whole():
    progress = Progress(every=0, stream=io.StringIO())
    progress.show("x" * 200)
    progress.say("y" * 200 + "  ")
    assert progress.stream.getvalue() == f"[0:00] {'x' * 200}\n[0:00] {'y' * 200}  \n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_texts_are_printed_as_they_are(stream, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    progress = Progress(every=0, stream=stream())
    progress.say(ODD)
    progress.show(ODD)
    if stream is Terminal:
        assert progress.stream.screen() == [f"[0:00] {ODD}", ODD]
    else:
        assert progress.stream.getvalue() == f"[0:00] {ODD}\n" * 2


def test_a_dumb_terminal_gets_a_line_now_and_then(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(every=1000, stream=Terminal())
    progress.show("not yet")
    progress.say("a line")
    assert progress.stream.getvalue() == "[0:00] a line\n"


def test_a_line_in_so_many_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    progress = Progress(stream=io.StringIO())
    for now in (101.0, 119.0, 121.0, 130.0, 3741.0):
        progress.show(f"at {now:.0f}")
    assert progress.stream.getvalue() == "[0:21] at 121\n[1:00:41] at 3741\n"


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
    assert rate.text(4) == "step 4/10, 2.5 s/step, 0:15 left"
    now = 0.5
    assert rate.text(4) == "step 4/10, 4.0 steps/s, 0:01 left"


@pytest.mark.parametrize("target", ["full", "pipe"])
def test_progress_that_cannot_be_written_stops_nothing(target):
    """A full disk behind a log, a pipe whose reader is gone: exit 0, and nothing is complained."""
    code = (
        "import sys\n"
        "from harness.base.console import Progress, steady_streams\n"
        "with steady_streams():\n"
        "    for _ in range(3):\n"
        "        Progress().say('x' * 9999)\n"
        "        print('y' * 9999, flush=True)\n"
    )
    if target == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    with os.fdopen(writer, "wb") as out:
        for streams in ({"stdout": out, "stderr": out}, {"stdout": out, "stderr": subprocess.PIPE}):
            found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, **streams)
            assert found.returncode == 0 and b"Error" not in (found.stderr or b"")


def test_closed_streams_are_filled():
    """Else the number of a closed one goes to the next file, which gets what libraries print."""
    code = (
        "import os, sys; from harness.base.errors import UserError, reported\n"
        "from harness.base.console import steady_streams\n"
        "with steady_streams(), reported():\n"
        "    assert os.open(sys.argv[1], os.O_RDWR | os.O_CREAT) > 2\n"
        "    print('x', file=sys.stderr); os.write(2, b'y'); os.write(1, b'z'); sys.stdin.read()\n"
        "    raise UserError('place', 'problem')\n"
    )
    for closed in ("<&-", ">&-", "2>&-", ">&- 2>&-"):
        line = f'"$0" -c "$1" "$2" {closed}'
        words = ["bash", "-c", line, sys.executable, code, os.devnull]
        assert subprocess.run(words, cwd=ROOT, check=False).returncode == 2, closed
