"""The one error that a user can mend: said in one line, exit code 2."""

import sys
from contextlib import contextmanager


class UserError(Exception):
    """Something outside the code is wrong: names the place, what is wrong there and what would be right."""

    def __init__(self, place, problem, remedy=""):
        self.place, self.problem, self.remedy = str(place), problem, remedy
        super().__init__(f"{place}: {problem}" + (f"; {remedy}" if remedy else ""))


def did_you_mean(word, choices):
    """A remedy for an unknown word: the nearest known one, and all of them."""
    import difflib

    near = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1)
    known = "known: " + ", ".join(sorted(str(c) for c in choices))
    return (f"did you mean {near[0]!r}? " if near else "") + known


@contextmanager
def reported():
    """Wrap a command's body: a UserError or a full disk prints one line and exits with 2; Ctrl-C exits with 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        print(f"error: {error.filename or 'disk'}: no space left; free some and start the same command again: "
              "it goes on from the last committed point", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last committed point", file=sys.stderr)
        sys.exit(130)
