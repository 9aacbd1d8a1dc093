"""What a person sees: on a terminal one line that is written over, which it can be only as long as
it does not wrap.
"""

import io

from harness.base.console import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_does_not_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress(stream=Terminal())
    progress.show("x" * 200)
    progress.show("short")
    progress.say("stays")
    shown = progress.stream.getvalue().split("\r")
    assert shown[:3] == ["", "x" * 79, "short".ljust(79)] and all(len(line) < 80 for line in shown)


def test_elsewhere_lines_are_whole():
    progress = Progress(every=0, stream=io.StringIO())
    progress.show("x" * 200)
    assert "x" * 200 + "\n" in progress.stream.getvalue()
