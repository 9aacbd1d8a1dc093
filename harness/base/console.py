"""What a person sees while a run goes on: stage, step, rate, time left."""

import os
import sys
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from harness.base.streams import fill_streams

START_OF_EMPTY_LINE = ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)


def clock(seconds: float) -> str:
    """3:07, or 1:02:45 from an hour on."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Steady:
    """A stream that no full disk and no closed pipe behind it stops: what it cannot write is lost.

    Progress and logs go through it, also those of libraries; a training goes on without them.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed.
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def padded(rows: Sequence[Sequence[str]], left: Container[int]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as their widest cell, two blanks between them.

    left: places of the columns that are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


@contextmanager
def steady_streams() -> Iterator[None]:
    """Output and errors of this process are Steady meanwhile; a pipe that closed stays silent."""
    fill_streams()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, Steady(streams[0])), cast(TextIO, Steady(streams[1]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            try:
                stream.flush()
            except (OSError, ValueError):
                _silence(stream)


def _silence(stream: TextIO) -> None:
    """Send what a stream still holds nowhere: Python would complain about it at the exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


class Progress:
    """One line that is rewritten on a terminal, and a line now and then where there is none.

    Texts are printed as they are: labels and answers of models may hold what rich takes for markup,
    emoji codes or numbers to highlight.
    """

    def __init__(self, every: float = 20.0, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.every = every  # seconds between two lines where there is no terminal
        # A line is rewritten by control codes alone, which rich does not send to a dumb terminal.
        is_terminal = self.stream.isatty()
        self.console = Console(
            file=self.stream,
            force_terminal=is_terminal,  # whatever FORCE_COLOR and its like say of a log file
            force_jupyter=False,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.live = is_terminal and not self.console.is_dumb_terminal
        self.started = time.monotonic()
        self.last = self.started  # when a line was last printed to stay

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        self.console.out(f"[{clock(time.monotonic() - self.started)}] {text}")
        self.last = time.monotonic()

    def show(self, text: str) -> None:
        """Print a line that the next one replaces; without a terminal, one in ``every`` seconds."""
        if self.live:
            # A line that wraps could not be written over. The last column stays free: behind it
            # some terminals wrap at once.
            line = Text(text.replace("\n", " "))
            line.truncate(self.console.width - 1, overflow="crop")
            with self.console:  # One write, which does not flicker.
                self._clear()
                self.console.print(line, end="", no_wrap=True, crop=False)
        elif time.monotonic() - self.last >= self.every:
            self.say(text)

    def _clear(self) -> None:
        if self.live:
            self.console.control(Control(*START_OF_EMPTY_LINE))


class Rate:
    """The rate of steps since this was made, and the time that the others take at that rate."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.first = done  # steps that an earlier start did
        self.start = time.monotonic()

    def text(self, done: int) -> str:
        """``step 3/10, 2.5 s/step, 0:17 left`` after ``done`` steps."""
        spent = time.monotonic() - self.start
        each = spent / max(1, done - self.first)
        rate = f"{each:.1f} s/step" if each >= 1 else f"{1 / each:.1f} steps/s"
        return f"step {done}/{self.total}, {rate}, {clock(each * (self.total - done))} left"
