"""What a person sees while a run goes on: where it is, what it does, how long it still takes.

Who works tells a ``Progress``: a line that stays, or what goes on now. Its listeners show that, or
write it down: a ``Screen`` on a terminal, ``PlainLines`` elsewhere.
"""

import atexit
import datetime
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.base.forecast import Forecast, HowFar
from harness.base.stopping import SIGNALS

LONGEST = 24  # columns of a bar
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # of a plain line
NARROW, TINY = 60, 30  # columns below which rows have no names, and no bars


def clock(seconds: float) -> str:
    """3:07, or 1:02:45 from an hour on."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


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


class Listener:
    """Hears what an order does. A hook that is left out does nothing, and an error stops no run.

    name: what it is called where it is told that it is off; wants_history: whether it hears of what
    earlier starts did as well.
    """

    name = ""
    wants_history = False

    def said(self, text: str) -> None:
        """A line that stays."""

    def shown(self, progress: "Progress") -> None:
        """Another thing goes on now: ``progress.text`` at ``progress.places``."""

    def opened(self, folder: Path, about: dict[str, Any]) -> None:
        """The order's results folder is there; about: what results.json holds."""

    def learned(self, run: str, row: dict[str, Any]) -> None:
        """A step of a run, as a row of training.jsonl."""

    def measured(self, run: str, records: Sequence[dict[str, Any]]) -> None:
        """Records of a run."""

    def stage_over(self, run: str, stage: int) -> None:
        """A stage is on record."""

    def reported(self, page: Path) -> None:
        """The report of the whole order is written; ``tables`` beside the page has its tables."""

    def closed(self, error: BaseException | None = None) -> None:
        """Nothing more will come; error: what ended the order early."""


class ListenerOff(Exception):
    """Why a listener hears nothing any more, in words for the user."""


class PlainLines(Listener):
    """Plain lines with a time stamp.

    Those of what goes on come once in ``every`` seconds at most, the first after ``first`` seconds:
    an input that is refused at once leaves the line that says so alone.
    """

    def __init__(self, stream: TextIO, every: float = 20.0, first: float = 1.0) -> None:
        self.stream, self.every, self.first = stream, every, min(every, first)
        self.started = time.monotonic()
        self.last: float | None = None  # when a line was last written
        self.waiting: threading.Timer | None = None  # writes the first one, whatever takes so long

    def said(self, text: str) -> None:
        now = datetime.datetime.now().isoformat(" ", "seconds")
        self.last = time.monotonic()
        self.stream.write(f"{now} {text}\n")
        self.stream.flush()

    def shown(self, progress: "Progress") -> None:
        now = time.monotonic()
        if self.last is not None:
            if now - self.last >= self.every:
                progress.fit()
                self.said(progress.line)
        elif now - self.started >= self.first:
            self.said(progress.line)
        elif self.waiting is None:
            left = self.started + self.first - now
            self.waiting = threading.Timer(left, self._begin, [progress])
            self.waiting.daemon = True
            self.waiting.start()

    def _begin(self, progress: "Progress") -> None:
        if self.last is None:
            with suppress(OSError, ValueError):  # a stream that takes nothing: the next line tells
                self.said(progress.line)

    def closed(self, error: BaseException | None = None) -> None:
        if self.waiting is not None:
            self.waiting.cancel()


class Screen(Listener):
    """Lines that stay, and below them bars of order, run and stage, which are painted over.

    Texts are printed as they are: labels and answers of models may hold what rich takes for markup,
    emoji codes or numbers to highlight.
    """

    def __init__(self, stream: TextIO, progress: "Progress") -> None:
        self.progress = progress
        self.notice = ""
        self.console = Console(
            file=stream,
            force_terminal=True,
            force_jupyter=False,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.below: list[RenderableType] = []  # what others show under the bars
        self.live = Live(
            get_renderable=self._painted_now,
            console=self.console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file stays out of this
        )
        self.streams = sys.stdout, sys.stderr  # before Live puts its own in their place
        os.register_at_fork(after_in_child=self._in_child)

    def said(self, text: str) -> None:
        since = clock(time.monotonic() - self.progress.started)
        self.console.out(f"[{since}] {text}")

    def shown(self, progress: "Progress") -> None:
        if not self.live.is_started:
            self._start()

    def _start(self) -> None:
        self.streams = sys.stdout, sys.stderr
        self.live.vertical_overflow = "crop"
        self.live.start()
        self.console.show_cursor(True)  # A process that is killed cannot bring it back.
        SIGNALS.tell = self._note
        atexit.register(self.closed)

    def _in_child(self) -> None:
        """A forked process has no thread that paints: what it prints must not wait for one."""
        if self.live.is_started:
            sys.stdout, sys.stderr = self.streams

    def _note(self, text: str) -> None:
        """What a signal means, in its handler: the painting thread prints it."""
        self.notice = text

    def closed(self, error: BaseException | None = None) -> None:
        """Leave the terminal as it was, with the lines that stay."""
        if self.live.is_started:
            SIGNALS.tell = None
            self.live.stop()
            atexit.unregister(self.closed)

    # ---- painting --------------------------------------------------------------------------------

    def _painted_now(self) -> RenderableType:
        """For the painting thread, which an error would end with a traceback on the screen."""
        try:
            return self.painted()
        except Exception:
            return Text("")

    def painted(self) -> RenderableType:
        """The bars, what goes on, and what a signal means."""
        width = self.console.width - 1  # Behind the last column some terminals wrap at once.
        rows = self.progress.shares
        lines: list[RenderableType] = []
        if width < TINY:
            lines += [
                _cut(f"{share.done:4.0%} {what or name}", width) for name, what, share in rows
            ]
        elif rows:
            lines.append(self._bars(rows, width))
        since = clock(time.monotonic() - self.progress.started)
        lines.append(_cut(f"{since} {self.progress.text}", width))
        if self.notice:
            lines.append(_cut(self.notice, width))
        return Group(*lines, *self.below)

    def _bars(self, rows: Sequence[tuple[str, str, HowFar]], width: int) -> RenderableType:
        names = width >= NARROW
        left = [f"{clock(s.left)} left" if s.left is not None else "" for _, _, s in rows]
        bar = min(LONGEST, width // 4)
        taken = bar + 5 + max(map(len, left)) + 2 + 6 * names
        grid = Table.grid(padding=(0, 1, 0, 0))
        for (name, what, share), rest in zip(rows, left, strict=True):
            grid.add_row(
                *([Text(name)] if names else []),
                ProgressBar(total=1.0, completed=share.done, width=bar),
                Text(f"{share.done:4.0%}"),
                Text(rest, justify="right"),
                _cut(what, width - taken - 1),
            )
        for column in grid.columns:
            column.no_wrap = True
        return grid


def _cut(text: str, width: int) -> Text:
    """A line that does not wrap."""
    line = Text(text.replace("\n", " "), no_wrap=True)
    line.truncate(max(width, 0), overflow="crop")
    return line


class Progress:
    """What works tells here what it does, and listeners show it.

    text: what goes on now; places: where, from the run to the stage; forecast: how much of it is
    done. every: seconds between two lines of what goes on, where there is no terminal; quiet: show
    nothing.
    """

    def __init__(
        self, every: float = 20.0, stream: TextIO | None = None, quiet: bool = False
    ) -> None:
        self.started = time.monotonic()
        self.text = ""
        self.places: list[str] = []
        self.forecast = Forecast()
        self._make: Callable[[], Forecast] | None = None
        self.listeners: list[Listener] = []
        stream = stream or sys.stderr
        if quiet:
            return
        # Lines are painted over by control codes, which no dumb terminal knows.
        if stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
            self.listeners.append(Screen(stream, self))
        else:
            self.listeners.append(PlainLines(stream, every))

    def say(self, text: str) -> None:
        """A line that stays."""
        self._tell("said", text)

    def show(self, text: str) -> None:
        """What goes on now, until something else does."""
        self.text = text
        self._tell("shown", self)

    def at(self, *places: str) -> None:
        """Where the order is: a run, and a stage of it; nowhere without any."""
        self.places = list(places)

    def expect(self, make: Callable[[], Forecast], at_once: bool) -> None:
        """The work that is to be done; ``make`` takes seconds, and is called when it is wanted.

        at_once: call it now, also where no bars are painted.
        """
        self._make = make
        if at_once or any(isinstance(listener, Screen) for listener in self.listeners):
            self.show("estimates the time that is left")
            self.fit()

    def fit(self) -> None:
        """Make the forecast that is expected, if it is not made yet."""
        if self._make is not None:
            make, self._make = self._make, None
            forecast = make()
            forecast.take_over(self.forecast)
            self.forecast = forecast

    def opened(self, folder: Path, about: dict[str, Any]) -> None:
        """See Listener."""
        self._tell("opened", folder, about)

    def learned(self, run: str, row: dict[str, Any]) -> None:
        """See Listener."""
        self._tell("learned", run, row)

    def measured(self, run: str, records: Sequence[dict[str, Any]]) -> None:
        """See Listener."""
        self._tell("measured", run, records)

    def stage_over(self, run: str, stage: int) -> None:
        """See Listener."""
        self._tell("stage_over", run, stage)

    def reported(self, page: Path) -> None:
        """See Listener."""
        self._tell("reported", page)

    @property
    def wants_history(self) -> bool:
        """Whether what earlier starts did is to be told as well."""
        return any(listener.wants_history for listener in self.listeners)

    def show_below(self, what: RenderableType) -> bool:
        """Paint something under the bars; False where none are painted."""
        screens = [listener for listener in self.listeners if isinstance(listener, Screen)]
        for screen in screens:
            screen.below.append(what)
        return bool(screens)

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more comes: leave the terminal clean. error: what ended the order early."""
        self._tell("closed", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def _tell(self, hook: str, *facts: Any) -> None:
        # The last one first: those before it still show what it says.
        for listener in reversed(self.listeners.copy()):
            try:
                getattr(listener, hook)(*facts)
            except Exception as error:
                self.listeners.remove(listener)
                name = listener.name or type(listener).__name__
                with suppress(Exception):
                    listener.closed(error)
                kind = "" if isinstance(error, ListenerOff) else f"{type(error).__name__}: "
                self.say(f"{name} is off: {kind}{error}")

    # ---- what is shown ---------------------------------------------------------------------------

    @property
    def shares(self) -> list[tuple[str, str, HowFar]]:
        """(name, place, share) of the bars of order, run and stage, outermost first."""
        forecast = self.forecast
        if not forecast.runs:
            return []
        rows = [("order", "", forecast.of_order)]
        for name, place in zip(("run", "stage"), self.places, strict=False):
            rows.append((name, place, forecast.of_run if name == "run" else forecast.of_stage))
        return rows

    @property
    def line(self) -> str:
        """All of it in one line."""
        where = f"{', '.join(self.places)}: " if self.places else ""
        if not self.forecast.runs:
            return where + self.text
        done, left = self.forecast.of_order
        rest = f", about {clock(left)} left" if left is not None else ""
        return f"{where}{self.text}; {done:.0%} of the order{rest}"


class Rate:
    """The rate of steps since this was made."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.first = done  # steps that an earlier start did
        self.start = time.monotonic()

    def each(self, done: int) -> float:
        """Seconds of a step, after ``done`` of them."""
        return (time.monotonic() - self.start) / max(1, done - self.first)

    def text(self, done: int) -> str:
        """``step 3/10, 2.5 s/step`` after ``done`` steps."""
        each = self.each(done)
        rate = f"{each:.1f} s/step" if each >= 1 else f"{1 / each:.1f} steps/s"
        return f"step {done}/{self.total}, {rate}"
