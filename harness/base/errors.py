"""The error that a user can mend: a command prints it in one line and exits with code 2."""

import argparse
import difflib
import errno
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from harness.base.stopping import Stopped, heard
from harness.base.streams import steady_streams

FULL_DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
NO_MORE_WRITES = FULL_DISK | {errno.EACCES, errno.EPERM}
IMPOSSIBLE_PATHS = frozenset([errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG])

MOST_OF_A_VALUE = 80  # characters that a line quotes of one value
LONGEST_PATH = 300  # characters without a blank that may be a path
MOST_OF_A_PART = 800  # characters of place, problem or remedy
# A quoted value: no apostrophe within a word begins or ends one.
QUOTED = re.compile(r"""(?<!\w)(['"])(?:\\.|(?!\1).)*\1(?!\w)""", re.DOTALL)
UNBROKEN = re.compile(rf"\S{{{LONGEST_PATH + 1},}}")

# What PyTorch, whose errors this module does not import, and other libraries say of a full memory.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"
)
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")


class UserError(Exception):
    """Something outside the code is wrong.

    place: the file, key or option; problem: what is wrong there; remedy: what helps. The message is
    one line, which quotes the beginning and the end of a long value.
    """

    def __init__(self, place: object, problem: str, remedy: str = "") -> None:
        self.place, self.problem, self.remedy = str(place), problem, remedy
        text = f"{one_line(self.place)}: {one_line(problem)}"
        super().__init__(text + (f"; {one_line(remedy)}" if remedy else ""))


class WrongAnswer(UserError):
    """A plug-in returned another kind of thing than is wanted."""

    def at(self, place: str) -> UserError:
        """The same at ``place``, where the order names the plug-in."""
        return UserError(place, f"{self.place} {self.problem}", self.remedy)


class Parser(argparse.ArgumentParser):
    """A parser of a command's options that prints its errors in one line as well.

    An empty word is no value of any option: it is what a shell makes of a variable that is not set,
    and would read as if the option were left out.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse has it."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            if not word or (word.startswith("--") and word.endswith("=")):
                option = word or (before if before.startswith("-") else "a word")
                self.error(f"{option.rstrip('=')} is empty")
        return super().parse_known_args(args, namespace)

    def check_use(self, args: argparse.Namespace, what: str, used: Container[str]) -> None:
        """Ends with an error where an option was given that ``what`` makes no use of.

        used: the options with a use, by their names in ``args``.
        """
        for action in self._actions:
            is_given = getattr(args, action.dest, action.default) != action.default
            if is_given and action.dest not in used:
                name = action.option_strings[-1] if action.option_strings else action.dest
                self.error(f"{name} does not go with {what}")

    def error(self, message: str) -> NoReturn:
        line = f"error: {self.prog}: {one_line(message)}"
        self.exit(2, f"{line}; {self.prog} --help lists every option\n")


def did_you_mean(word: object, choices: Iterable[object]) -> str:
    """A remedy for an unknown word: the nearest of ``choices``, and all of them."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(word), names, n=1)
    known = "known: " + ", ".join(sorted(names))
    return (f"did you mean {near[0]!r}? " if near else "") + known


@contextmanager
def reported(written: object = "disk", goes_on: bool = False) -> Iterator[None]:
    """Wrap the body of a command: print the errors that a user can mend, and exit.

    A UserError, a disk that takes no more, a lack of memory and a plug-in that calls sys.exit print
    one line and exit with 2. Ctrl-C, SIGTERM and SIGHUP exit with 130, 143 and 129; output
    whose reader has gone, as ``head`` does, with 141 at the end. All other errors pass.

    written: the folder or file that the command writes. It is named where the error of the disk
    names no file. goes_on: whether the command is worth its time without its output, which may then
    be lost.
    """
    with steady_streams() as output:
        # On a terminal the cursor may be behind the progress line or the terminal's own ^C.
        start = "\n" if sys.stderr.isatty() else ""
        try:
            with heard():
                yield
            output.flush()
        except UserError as error:
            print(f"{start}error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            kept = getattr(stop, "kept", "") or "what is committed is kept"
            print(f"{start}stopped: {kept}; go on with: {_command()}", file=sys.stderr)
            sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)
        except SystemExit as error:
            print(f"{start}error: {one_line(called_exit(error))}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:
            reason = lack_of_memory(error) or refused_write(error, written)
            if reason is None:
                raise
            print(f"{start}error: {one_line(reason)}", file=sys.stderr)
            sys.exit(2)
        if output.lost and not goes_on:
            if output.lost.errno == errno.EPIPE:
                sys.exit(128 + signal.SIGPIPE)
            print(f"error: output: {output.lost.strerror}; write it elsewhere", file=sys.stderr)
            sys.exit(2)


def _command() -> str:
    """The command line of this process, as a shell takes it."""
    words = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:
        machines = int(os.environ["GROUP_WORLD_SIZE"])
        on = ["--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
        on += [] if machines == 1 else ["--nnodes", str(machines)]
        words = ["torchrun", *on, *sys.argv]
    elif len(sys.argv) > 1 and words[1 - len(sys.argv) :] != sys.argv[1:]:
        words = ["python", *sys.argv]  # started by another program's machinery
    return shlex.join(words)


def exit_if_failed(failed: Mapping[str, str], runs: int) -> None:
    """Print what failed of so many runs, and exit with 1; failed: {run: reason in one line}."""
    for run, reason in failed.items():
        print(f"failed: {run}: {reason}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {runs} runs failed; runs/NAME/failed.txt has the traceback, and the "
            "same command tries again",
            file=sys.stderr,
        )
        sys.exit(1)


def one_line(text: str) -> str:
    """``text`` without line breaks, and with at most MOST_OF_A_VALUE characters of each value."""
    text = QUOTED.sub(lambda match: shortened(match[0], MOST_OF_A_VALUE + 2), text)
    text = UNBROKEN.sub(lambda match: shortened(match[0], MOST_OF_A_VALUE), text)
    return " ".join(shortened(text, MOST_OF_A_PART).splitlines())


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters: the beginning and the end of a longer text."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 3]}...{text[-end:]}"


def place_of(error: BaseException) -> str:
    """The file and line that raised an error; "" if it was not raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""


@contextmanager
def plug_in(place: str, what: str) -> Iterator[None]:
    """Turn whatever a plug-in raises into a UserError at ``place``, but for Ctrl-C.

    what: is asked of it, as ``phases()``. A UserError passes.
    """
    try:
        yield
    except WrongAnswer as error:
        raise error.at(place) from None
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        reason = called_exit(error) if isinstance(error, SystemExit) else raised(error)
        raise UserError(place, f"{what} fails", reason) from error


def raised(error: BaseException) -> str:
    """Where an error was raised, and what it says."""
    text, said = f"{place_of(error)}: {type(error).__name__}", text_of(error)
    return f"{text}: {said}" if said else text


def text_of(error: BaseException) -> str:
    """What an error says; "" for one of a plug-in's that cannot say it."""
    try:
        return str(error)
    except Exception:
        return ""


def called_exit(error: SystemExit) -> str:
    """What is said of a plug-in that ends the process."""
    return f"{place_of(error)}: calls sys.exit({error.code!r}); raise an exception there"


def lack_of_memory(error: BaseException) -> str | None:
    """What helps against an error of the GPU's or the CPU's allocator; None for another error."""
    is_lack = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not is_lack and not (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        return None
    asked = ASKED.search(str(error)) or re.search(r"tried to allocate (\d+ bytes)", str(error))
    amount = f" ({asked[1]} more were wanted)" if asked else ""
    return (
        f"out of memory{amount}; lower micro_batch_tokens, rollout.batch_size or "
        "evaluate.batch_size, or see docs/how-to/gpus.md; with such a change another label or --out"
    )


def refused_write(error: BaseException, written: object) -> str | None:
    """Place, reason and remedy if ``error`` comes from a file that could not be written, else None.

    safetensors hides the error of the system in a text of its own. torch.save raises a RuntimeError
    while it handles the error of the system.
    """
    for cause in _causes(error):
        code = _error_code(cause)
        if code is not None:
            where = f"{getattr(cause, 'filename', None) or written}: {os.strerror(code)}"
            if code in NO_MORE_WRITES:
                return (
                    f"{where}; make room or give another folder, and start the same command again: "
                    "it goes on from the last committed point"
                )
            if code in IMPOSSIBLE_PATHS or _cannot_be_made(cause, written):
                return f"{where}; give another path, or move away what stands there"
    return None


def _cannot_be_made(error: BaseException, written: object) -> bool:
    """Whether a file or folder was to be made in or beside ``written``, where none can be.

    The system then says that there is no such file, as in /proc. Other missing files are no matter
    of the path that the user gave.
    """
    if not isinstance(error, FileNotFoundError) or not error.filename:
        return False
    wanted, place = Path(str(written)).absolute(), Path(os.fsdecode(error.filename)).absolute()
    beside = place.parent == wanted.parent and wanted.name in place.name
    return not wanted.exists() and (beside or wanted in place.parents)


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error`` comes from a disk that takes no more."""
    return any(_error_code(cause) in FULL_DISK for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, and while they are RuntimeErrors the errors during whose handling they came."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__context__ if isinstance(cause, RuntimeError) else None


def _error_code(error: BaseException) -> int | None:
    """The system's number of an error: its own, or the one that a library wrote into its text."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else None
