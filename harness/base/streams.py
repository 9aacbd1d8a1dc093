"""Standard streams that a parent process has closed, and those that cannot be written any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast


def fill_streams() -> None:
    """Open what is closed of stdin, stdout and stderr on nothing, as services and ``2>&-`` do.

    Python has None in place of such a stream. The next file that is opened would get its number,
    and what a library prints there would land in the file. Output in an encoding without some
    character has its number in its place, as errors have.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number is this one.
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class Steady:
    """A stream that no full disk and no closed pipe behind it stops: what it cannot write is lost.

    Progress and logs go through it, also those of libraries; a training goes on without them.
    lost: the first error of the system, None so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._noted():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noted():
            self._stream.flush()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except ValueError:  # It is closed.
            pass
        except OSError as error:
            self.lost = self.lost or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[Steady]:
    """Output and errors of this process are Steady meanwhile; a pipe that closed stays silent.

    Yields the output.
    """
    fill_streams()
    streams = sys.stdout, sys.stderr
    output = Steady(streams[0])
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, Steady(streams[1]))
    try:
        yield output
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
