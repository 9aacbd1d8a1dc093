"""Where a command may write: the folders and files that its user names.

They are looked at before the command does anything else.
"""

import errno
import os
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import StrPath

LONGEST_NAME = 255  # bytes of a file's name, on all file systems that matter
HEAD = "results.json"  # what makes a folder a results folder
# What the runs of a results folder read again, or write into.
OF_RUNS = frozenset(
    [
        HEAD,
        "SHA256SUMS",
        "evaluations",
        "leases",
        "log.txt",
        "protocols.json",
        "questions",
        "records.jsonl",
        "runs",
    ]
)


def check_folder(path: StrPath, remedy: str = "give a folder with --out") -> None:
    """Raises UserError if ``path`` is not, and cannot become, a folder that can be written to.

    Nor may it lie among the files of a results folder's runs; a results folder itself it may be.
    """
    try:
        nearest = _nearest_existing(Path(path).absolute())
    except OSError as error:
        raise UserError(path, f"cannot be a folder ({error.strerror})", remedy) from None
    if not nearest.is_dir():
        raise UserError(nearest, "is a file", remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(nearest, "cannot be written to", remedy)
    _check_apart(path, remedy)


def check_file(path: StrPath, remedy: str = "give a file with --out") -> None:
    """Raises UserError if no file can be written there, or what is there is no plain file.

    A write takes the place of what has the name: a device or a pipe would be gone.
    """
    place = Path(path)
    check_folder(place.absolute().parent, remedy)
    if len(os.fsencode(place.name)) > LONGEST_NAME:
        raise UserError(path, f"cannot be a file ({os.strerror(errno.ENAMETOOLONG)})", remedy)
    _check_apart(path, remedy)
    if place.is_symlink() or (place.exists() and not place.is_file()):
        raise UserError(path, "is a folder" if place.is_dir() else "is no plain file", remedy)


def check_export(path: StrPath, *folders: str) -> None:
    """Raises UserError if ``path`` cannot become a folder of other things than runs.

    folders: those that are made in it. A results folder is none: its lock and names are of runs.
    """
    for part in ("", *folders):
        check_folder(Path(path) / part)
    if (Path(path) / HEAD).exists():
        raise UserError(path, "is a results folder", "give a folder in it or beside it with --out")


def _check_apart(path: StrPath, remedy: str) -> None:
    place = Path(path).resolve()
    for folder in place.parents:
        if place.relative_to(folder).parts[0] in OF_RUNS and (folder / HEAD).is_file():
            raise UserError(path, f"lies among the files of the runs of {folder}", remedy)


def _nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists. Raises OSError for a name too long."""
    for part in path.parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), part)
    while not path.exists():
        path = path.parent
    return path
