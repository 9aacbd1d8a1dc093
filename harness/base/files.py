"""Reading and writing of files: atomic writes, locks, JSON and JSONL with errors that name the row."""

import errno
import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path

from harness.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
LONGEST_NAME = 255  # bytes of a file's name, on all file systems that matter


def write_json(path, value):
    """Write JSON by an atomic rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path, text):
    """Write a text by an atomic rename; what a killed process left of the same file is written
    over.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with locked(path.parent):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def locked(path, wait=True):
    """Hold the lock of a folder or a file, across processes; it ends with the process that holds
    it, however that ends.

    Raises BlockingIOError if it is held by another and ``wait`` is false. A file system without
    locks grants all.
    """
    handle = os.open(path, os.O_RDONLY if Path(path).is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def write_jsonl(path, rows):
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(
    path, *keys, remedy="put back a whole copy of it, or move the folder away and start anew"
):
    """The object in a JSON file. Raises UserError if there is none, or none with these ``keys``."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, "is not there", remedy) from None
    except (ValueError, RecursionError):
        raise UserError(path, "is not JSON", remedy) from None
    if not isinstance(value, dict):
        raise UserError(path, "is not a JSON object", remedy)
    for key in keys:
        if key not in value:
            raise UserError(path, f"has no `{key}`", remedy)
    return value


def check_folder(path, remedy="give a folder with --out"):
    """Raises UserError if ``path`` is not a folder in which files can be written, and cannot become
    one.
    """
    nearest = Path(path).absolute()
    try:
        if too_long := next(
            (part for part in nearest.parts if len(os.fsencode(part)) > LONGEST_NAME), None
        ):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), too_long)
        while not nearest.exists():
            nearest = nearest.parent
    except OSError as error:
        raise UserError(path, f"cannot be a folder ({error.strerror})", remedy) from None
    if not nearest.is_dir():
        raise UserError(nearest, "is a file", remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(nearest, "cannot be written to", remedy)


def read_jsonl(path):
    """Yields (row number from 1, object) of a JSONL file. Raises UserError for a row that is not a
    JSON object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            path, f"cannot be read ({error.__class__.__name__})", "give a JSONL file in UTF-8"
        ) from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                if "\\ud" in line.lower():  # in a UTF-8 file only an escape can be half a character
                    json.dumps(row, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, row {number}", f"is not JSON ({error.msg} at column {error.colno})"
                ) from None
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{path}, row {number}",
                    f"holds half a character ({error.object[error.start]!r})",
                    "write both halves, or the character itself",
                ) from None
            except (
                ValueError,
                RecursionError,
            ) as error:  # thousands of digits, or of lists in lists
                raise UserError(f"{path}, row {number}", f"cannot be read ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {number}", "is not a JSON object")
            yield number, row
