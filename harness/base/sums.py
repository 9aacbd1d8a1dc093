"""SHA256SUMS: the hashes of a folder's files, so that what is read is what was written.

The file is that of ``sha256sum``, which checks it as well. A file that changes while readers come
has two lines for the moment of the change, so that neither a reader nor a killed writer finds it
with another hash: ``write_summed``.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from harness.base.errors import UserError
from harness.base.files import StrPath, write_file

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

Sums = dict[str, list[str]]  # {path in the folder: hashes that its file may have}


def sum_folder(folder: StrPath, without: Sequence[str] = ()) -> None:
    """Write SHA256SUMS of all files in ``folder`` and below, once the disk has them.

    without: names of folders at its top whose files are left out.
    """
    folder = Path(folder)
    sums: Sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != SUMS and name.partition("/")[0] not in without:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            sums[name] = [_digest(path)]
    _write(folder, sums, sync=True)


def write_summed(
    path: StrPath, content: str | Callable[[BinaryIO], object], sync: bool = False
) -> None:
    """Write a file by an atomic rename, with its hash in its folder's SHA256SUMS.

    content: its text, or what fills it; sync: as in ``write_file``.
    """
    path = Path(path)
    sums = _lines(path.parent)
    write = content if callable(content) else partial(_write_bytes, content.encode())

    def announce(file: Path) -> None:
        sums[path.name] = [_digest(file), *sums.get(path.name, ())]
        _write(path.parent, sums, sync)

    write_file(path, write, sync, announce)
    _write(path.parent, {**sums, path.name: sums[path.name][:1]}, sync)


def _write_bytes(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def check_sum(path: StrPath, remedy: str, folder: StrPath | None = None) -> None:
    """Raises UserError unless a file has the hash that SHA256SUMS of ``folder`` says.

    A folder without SHA256SUMS, as those of the first version, is not checked. folder: that of the
    file if left out.
    """
    path = Path(path)
    folder = Path(folder or path.parent)
    name = path.relative_to(folder).as_posix()
    if not has_sums(folder):
        return
    for _ in range(3):  # A writer may replace file and hashes between the two readings.
        if not path.is_file():
            raise UserError(path, "is not there", remedy)
        digest = _digest(path)
        listed = _lines(folder).get(name)
        if listed and digest in listed:
            return
    if not listed:
        raise UserError(folder / SUMS, f"holds no hash of {name}", remedy)
    raise UserError(path, f"is not what was written (its SHA-256 is not that of {SUMS})", remedy)


def check_sums(folder: StrPath, below: str, remedy: str) -> None:
    """``check_sum`` of all files that are or should be in ``folder`` under the path ``below``."""
    folder = Path(folder)
    if not has_sums(folder):
        return
    files = [path for path in (folder / below).rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in files}
    names |= {name for name in _lines(folder) if name.startswith(f"{below}/")}
    for name in sorted(names) or [below]:
        check_sum(folder / name, remedy, folder)


def has_sums(folder: StrPath) -> bool:
    """Whether the files of ``folder`` have hashes to check."""
    return (Path(folder) / SUMS).exists()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(folder: Path) -> Sums:
    """What SHA256SUMS says; a line that says nothing is left out, and so its file has no hash."""
    sums: Sums = {}
    path = folder / SUMS
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if match := _LINE.fullmatch(line):
                sums.setdefault(match[2], []).append(match[1])
    return sums


def _write(folder: Path, sums: Sums, sync: bool = False) -> None:
    lines = [f"{digest}  {name}\n" for name, digests in sums.items() for digest in digests]
    write_file(folder / SUMS, partial(_write_bytes, "".join(lines).encode()), sync)
