"""Standard streams that a parent process has closed, and those that cannot be written any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


def fill_streams() -> None:
    """Open what is closed of stdin, stdout and stderr on nothing, as services and ``2>&-`` do.

    Python has None in place of such a stream. The next file that is opened would get its number,
    and what a library prints there would land in the file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number is this one.
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


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
