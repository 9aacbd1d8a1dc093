"""The one error that a user can mend: said in one line, exit code 2."""

import argparse
import errno
import os
import re
import sys
from contextlib import contextmanager


class UserError(Exception):
    """Something outside the code is wrong: names the place, what is wrong there and what would be
    right.
    """

    def __init__(self, place, problem, remedy=""):
        text = f"{place}: {problem}" + (f"; {remedy}" if remedy else "")
        # one line, whatever a library's own message was
        super().__init__(" ".join(text.splitlines()))


class Parser(argparse.ArgumentParser):
    """Of a command's options: what is wrong with them is said in one line as well."""

    def error(self, message):
        self.exit(2, f"error: {self.prog}: {message}; {self.prog} --help lists every option\n")


def did_you_mean(word, choices):
    """A remedy for an unknown word: the nearest known one, and all of them."""
    import difflib

    near = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1)
    known = "known: " + ", ".join(sorted(str(c) for c in choices))
    return (f"did you mean {near[0]!r}? " if near else "") + known


@contextmanager
def reported(written="disk"):
    """Wrap a command's body: a UserError or a disk that takes no more prints one line and exits
    with 2; Ctrl-C with 130.

    written: the folder or file that the command writes, named where the disk's own error names
    none.
    """
    # leaves the progress line and the terminal's ^C behind
    line = "\n" if sys.stderr.isatty() else ""
    try:
        yield
    except UserError as error:
        print(f"{line}error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"{line}stopped; the same command goes on from the last committed point",
            file=sys.stderr,
        )
        sys.exit(130)
    except Exception as error:
        reason = _refused_write(error, written)
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported for it
            reason = f"{error}; docs/methods.md, Memory, names what trades memory for time; with such a change another label or --out"
        if reason is None:
            raise
        print(f"{line}error: {' '.join(reason.splitlines())}", file=sys.stderr)
        sys.exit(2)


def _refused_write(error, written):
    """Where, what the disk said and what helps if ``error`` comes from a file that could not be
    written, else None.

    safetensors hides the system's error in a text of its own, and torch.save raises a RuntimeError
    while it handles it.
    """
    while error is not None:
        hidden = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else None
        where = (
            f"{getattr(error, 'filename', None) or written}: {os.strerror(code)}" if code else ""
        )
        if code in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
        ):
            return (
                f"{where}; make room or give another folder, and start the same command again: it goes on from the last "
                "committed point"
            )
        if code in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            return f"{where}; give another path, or move away what stands there"
        error = error.__context__ if isinstance(error, RuntimeError) else None
    return None
