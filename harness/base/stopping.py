"""Ctrl-C, SIGTERM, a closed terminal: a command ends at a good moment, by a second signal at once.

A signal raises ``Stopped`` where the command is, unless the code there has asked to be let on to
its next good moment (``SIGNALS.waits``): it then looks at ``SIGNALS.pending`` itself.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 0.1  # seconds in which a signal counts once: a launcher may hand it on beside the terminal


class Stopped(KeyboardInterrupt):
    """A signal ends the command; kept: what is kept and what is lost, in words."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.kept = kept
        self.exit_code = 128 + number


class Signals:
    """The signals of this process.

    pending: the number of the first signal, None before it; waits: whether the code that runs now
    looks at ``pending`` by itself, soon; tell: shows a line from within a handler, where a screen
    is painted, else the line goes to stderr.
    """

    tell: Callable[[str], None] | None = None

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin again: no signal has come."""
        self.pending: int | None = None
        self.waits = False
        self.since = 0.0
        self.process = os.getpid()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls on a signal."""
        if os.getpid() != self.process:  # a forked child, which has this handler as well
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.pending is not None:
            if time.monotonic() - self.since < ECHO:
                return
            _say("ended at once")
            os._exit(128 + number)
        self.pending = number
        self.since = time.monotonic()
        if not self.waits:
            raise Stopped(number)
        (self.tell or _say)("stops after this step and a checkpoint; a second signal ends at once")


SIGNALS = Signals()


def _say(text: str) -> None:
    """Write a line to stderr by the system's own call: Python's buffer may be in use just now."""
    start = "\n" if os.isatty(2) else ""  # behind the terminal's ^C
    with suppress(OSError):  # The terminal may be gone.
        os.write(2, f"{start}{text}\n".encode())


@contextmanager
def heard() -> Iterator[None]:
    """Hear the signals meanwhile. One that the process was started to ignore stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    SIGNALS.start()
    before = {number: signal.getsignal(number) for number in HEARD}
    heard_now = [number for number, how in before.items() if how != signal.SIG_IGN]
    for number in heard_now:
        signal.signal(number, SIGNALS.handle)
    try:
        yield
    finally:
        for number in heard_now:
            signal.signal(number, before[number])
        SIGNALS.start()
