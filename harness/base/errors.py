"""The error that a user can mend: a command prints it in one line and exits with code 2."""

import argparse
import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

NO_MORE_WRITES = frozenset(
    [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS]
)
IMPOSSIBLE_PATHS = frozenset([errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG])


class UserError(Exception):
    """Something outside the code is wrong.

    place: the file, key or option; problem: what is wrong there; remedy: what helps.
    """

    def __init__(self, place: object, problem: str, remedy: str = "") -> None:
        text = f"{place}: {problem}" + (f"; {remedy}" if remedy else "")
        super().__init__(_one_line(text))  # The message of a library may have several lines.


class Parser(argparse.ArgumentParser):
    """A parser of a command's options that prints its errors in one line as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}; {self.prog} --help lists every option\n")


def did_you_mean(word: object, choices: Iterable[object]) -> str:
    """A remedy for an unknown word: the nearest of ``choices``, and all of them."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(word), names, n=1)
    known = "known: " + ", ".join(sorted(names))
    return (f"did you mean {near[0]!r}? " if near else "") + known


@contextmanager
def reported(written: object = "disk") -> Iterator[None]:
    """Wrap the body of a command: print the errors that a user can mend, and exit.

    A UserError, a disk that takes no more and a lack of memory print one line and exit with 2;
    Ctrl-C exits with 130. All other errors pass.

    written: the folder or file that the command writes. It is named where the error of the disk
    names no file.
    """
    # On a terminal the cursor may be behind the progress line or the terminal's own ^C.
    start = "\n" if sys.stderr.isatty() else ""
    try:
        yield
    except UserError as error:
        print(f"{start}error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"{start}stopped; the same command goes on from the last committed point",
            file=sys.stderr,
        )
        sys.exit(130)
    except Exception as error:
        reason = _lack_of_memory(error) or _refused_write(error, written)
        if reason is None:
            raise
        print(f"{start}error: {_one_line(reason)}", file=sys.stderr)
        sys.exit(2)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _lack_of_memory(error: Exception) -> str | None:
    """What helps against an OutOfMemoryError of PyTorch, which this module does not import."""
    if type(error).__name__ != "OutOfMemoryError":
        return None
    return (
        f"{error}; docs/how-to/gpus.md names what trades memory for time; "
        "with such a change another label or --out"
    )


def _refused_write(error: BaseException, written: object) -> str | None:
    """Place, reason and remedy if ``error`` comes from a file that could not be written, else None.

    safetensors hides the error of the system in a text of its own. torch.save raises a RuntimeError
    while it handles the error of the system.
    """
    cause: BaseException | None = error
    while cause is not None:
        code = _error_code(cause)
        if code is not None:
            where = f"{getattr(cause, 'filename', None) or written}: {os.strerror(code)}"
            if code in NO_MORE_WRITES:
                return (
                    f"{where}; make room or give another folder, and start the same command again: "
                    "it goes on from the last committed point"
                )
            if code in IMPOSSIBLE_PATHS:
                return f"{where}; give another path, or move away what stands there"
        cause = cause.__context__ if isinstance(cause, RuntimeError) else None
    return None


def _error_code(error: BaseException) -> int | None:
    """The system's number of an error: its own, or the one that a library wrote into its text."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else None
