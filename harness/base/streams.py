"""Standard streams that a parent process has closed, as services and ``2>&-`` do."""

import os
import sys


def fill_streams() -> None:
    """Open what is closed of stdin, stdout and stderr on nothing.

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
