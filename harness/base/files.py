"""Files: atomic writes, locks, and JSON and JSONL with errors that name the row.

Both writes and locks hold on a cluster, where processes of several machines share a folder over NFS
or Lustre. A write needs no lock: each one goes to a partial file with a name of its own, which then
takes the name of the file. A lock is exclusive or it is an error, never a silent grant. Neither
follows a symbolic link that somebody left in the place of its file.

JSON holds no NaN and no infinity, which other readers refuse: they become null.
"""

import errno
import functools
import gzip
import hashlib
import json
import math
import os
import re
import secrets
import socket
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from harness.base.errors import UserError
from harness.base.json_text import HugeNumber, check_characters, has_halves, parse_json

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
LONGEST_ROW = 10_000_000  # characters of a row of a JSONL file: no model reads as many
MOST_UNPACKED = 1 << 30  # bytes of a compressed file: few bytes can unpack to any number
LOCK = ".lock"  # name of a folder's lock file
PARTIAL = ".partial"  # end of the name of a file that is being written
SEAL = "file_sha256"  # key of a JSON file: the hash of all lines below it
_SEALED = re.compile(rb'\{\n "' + SEAL.encode() + rb'": "([0-9a-f]{64})",?\n')
# What a file system says that gives a file one name alone.
NO_LINKS = frozenset([errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
StrPath = str | os.PathLike[str]


# ---- writing -------------------------------------------------------------------------------------


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of ``value``, in which a number that is not finite is null."""
    write = functools.partial(json.dumps, indent=indent, ensure_ascii=False, default=str)
    try:
        return write(value, allow_nan=False)
    except ValueError:
        return write(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    """``value`` with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def write_json(path: StrPath, value: Any) -> None:
    """Write JSON by an atomic rename."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_sealed(path: StrPath, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own SHA-256, which ``read_json`` checks, by an atomic rename.

    The hash is the first key, and is that of all lines below it.
    """
    below = to_json(value, indent=1).removeprefix("{").removeprefix("\n") + "\n"
    digest = hashlib.sha256(below.encode()).hexdigest()
    write_text(path, f'{{\n "{SEAL}": "{digest}"{"," if value else ""}\n{below}')


def write_jsonl(path: StrPath, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line by an atomic rename."""
    write_text(path, jsonl(rows))


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(to_json(row) + "\n" for row in rows)


def write_text(path: StrPath, text: str) -> None:
    """Write a text by an atomic rename, see ``write_file``."""
    data = text.encode()
    write_file(path, lambda file: file.write(data))


def write_file(
    path: StrPath,
    write: Callable[[BinaryIO], object],
    sync: bool = False,
    whole: Callable[[Path], object] | None = None,
) -> None:
    """Let ``write`` fill a file by an atomic rename.

    A reader sees the old file or the new one, whole. Several processes may write the same file at
    once: the last rename counts. A write removes the partial files that killed processes left of
    this file. sync: whether the disk has the content before the file takes its name: without that
    a power cut could leave the name with nothing behind it. whole: called with the partial file
    once all of it is written, before it takes the file's name.
    """
    with _partial(Path(path)) as partial:
        with open(partial, "xb") as file:  # x: never through a link of this name
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if whole:
            whole(partial)
        os.replace(partial, path)


def create_text(path: StrPath, text: str) -> bool:
    """Write a text unless a file has its name; whether this call wrote it, all of it at once.

    Of several processes, on one machine or on several, one alone is told so.
    """
    with _partial(Path(path)) as partial:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno in NO_LINKS:
                return _create_in_place(Path(path), text)
            # Over NFS a request whose answer is lost is sent again, and then refused: what counts
            # is whether the partial file has the other name as well.
            if partial.stat().st_nlink == 2:
                return True
            if error.errno != errno.EEXIST:
                raise
            return False
        return True


def _create_in_place(path: Path, text: str) -> bool:
    """``create_text`` where files have one name alone: a reader may see an empty file at first."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """The name of a partial file of ``path``, which is gone at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    writer = f"{machine()}.{os.getpid()}.{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{writer}{PARTIAL}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def look_again(folder: StrPath) -> None:
    """Forget what this machine remembers of a folder over NFS, as that a file is not there.

    NFS asks the server again after some seconds, or at once after a change of its own.
    """
    with _partial(Path(folder) / "look") as partial:
        partial.touch()


def is_partial(name: str, of: str) -> bool:
    """Whether ``name`` is that of a partial file of the file ``of``."""
    return name.startswith(f".{of}.") and name.endswith(PARTIAL)


@functools.cache
def machine() -> str:
    """Names the process table in which the pid of this process means this process.

    The name of the host, for a person who reads it, and a hash of the boot and of the namespace:
    two containers may have the same name of a host, and yet each its own processes.
    """
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    digest = hashlib.blake2b("/".join(parts).encode(), digest_size=4).hexdigest()
    return f"{socket.gethostname()}-{digest}"


def _remove_leftovers(path: Path) -> None:
    """Remove partial files of ``path`` whose writers ran on this machine and are dead."""
    for left in left_by_the_dead(path.parent, f".{path.name}.", PARTIAL):
        with suppress(OSError):  # Another process removed it first, or owns it.
            left.unlink()


def left_by_the_dead(folder: Path, start: str, end: str) -> Iterator[Path]:
    """What dead processes of this machine left: names are ``start``, machine, dot, pid ... end."""
    start = f"{start}{machine()}."
    for name in os.listdir(folder):
        if name.startswith(start) and name.endswith(end):
            pid = name.removeprefix(start).partition(".")[0]
            if pid.isdecimal() and not alive(int(pid)):
                yield folder / name


def alive(pid: int) -> bool:
    """Whether a process of this machine, or of this container, has this pid."""
    try:
        os.kill(pid, 0)  # Signal 0 is not sent: the call checks the pid alone.
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


# ---- locks ---------------------------------------------------------------------------------------


class _LockFileRemoved(Exception):
    """The lock is on a file that its last holder has removed."""


@contextmanager
def locked(path: StrPath, wait: bool = True, remove: bool = False) -> Iterator[None]:
    """Hold the lock of a folder or a file, across processes and machines.

    The lock ends with the process that holds it, however the process ends. A process that forks
    does not share it.

    path: the lock file, or a folder, whose lock file is ``.lock`` in it; remove: whether to remove
    the lock file at the end, which suits a folder where it would be in the way. Raises
    BlockingIOError if another holds the lock and ``wait`` is false, and UserError if the file
    system grants no locks.
    """
    file = Path(path)
    if file.is_dir():
        file = file / LOCK
    lock = _acquire(file, wait)
    try:
        yield
    finally:
        if remove:
            with suppress(OSError):
                file.unlink()
        lock.release()


def _acquire(file: Path, wait: bool) -> FileLock:
    # FileLock opens the file for writing: over NFS an exclusive lock needs such a handle. Where the
    # file system has no locks it would turn to a marker file, which outlives a killed process.
    lock = FileLock(
        file,
        blocking=wait,
        fallback_to_soft=False,
        on_acquired=functools.partial(_check_in_place, file),
    )
    while True:
        if file.is_symlink():
            raise UserError(file, "is a symbolic link, and no lock file is", "remove it")
        try:
            lock.acquire()
        except Timeout:
            raise BlockingIOError(errno.EAGAIN, "another process holds it", str(file)) from None
        except _LockFileRemoved:
            continue
        except FileNotFoundError:  # The last holder removed the folder as well.
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ESTALE:  # NFS: another machine removed the open file.
                continue
            if error.filename is not None:  # The file could not be opened: no matter of locks.
                raise
            raise UserError(
                file,
                f"the file system grants no locks ({error.strerror or error})",
                "give a folder on another file system, or mount this one with locks "
                "(Lustre: -o flock)",
            ) from None
        else:
            return lock


def _check_in_place(file: Path, handle: int) -> None:
    """Raises _LockFileRemoved unless ``file`` is still the file that ``handle`` has open."""
    try:
        in_place = os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        in_place = False
    if not in_place:
        raise _LockFileRemoved


# ---- reading -------------------------------------------------------------------------------------


def read_json(
    path: StrPath,
    *keys: str,
    remedy: str = "put back a whole copy of it, or move the folder away and start again",
) -> dict[str, Any]:
    """The object in a JSON file, without its seal; a file that ends in .gz is unpacked.

    Raises UserError if there is none, none with these ``keys``, or another than ``write_sealed``
    wrote.
    """
    check_plain(path, remedy)
    try:
        packed = Path(path).suffix == ".gz"
        data = _unpacked(Path(path), remedy) if packed else Path(path).read_bytes()
        value = parse_json(data)
    except FileNotFoundError:
        raise UserError(path, "is not there", remedy) from None
    except HugeNumber as error:
        raise UserError(path, f"holds {error}", remedy) from None
    except (ValueError, RecursionError, EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(path, "is not JSON", remedy) from None
    if not isinstance(value, dict):
        raise UserError(path, "is not a JSON object", remedy)
    if value.pop(SEAL, None) is not None:
        seal = _SEALED.match(data)
        if not seal or hashlib.sha256(data[seal.end() :]).hexdigest() != seal[1].decode():
            raise UserError(path, f"is not what was written (its {SEAL} is another)", remedy)
    for key in keys:
        if key not in value:
            raise UserError(path, f"has no `{key}`", remedy)
    return value


def read_jsonl(path: StrPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 1, object) of a JSONL file; blank lines count and are left out.

    A byte order mark, which Windows' programs write, is no part of the text.

    Raises UserError for a file that is not UTF-8, for a row that is not a JSON object, and for one
    in which a key stands twice, at any depth.
    """
    remedy = "give a JSONL file in UTF-8"
    check_plain(path, remedy)
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number in count(1):
                line = file.readline(LONGEST_ROW + 2)  # one letter too many, and the line's end
                if len(line.rstrip("\n")) > LONGEST_ROW:
                    problem = f"has more than {LONGEST_ROW:,} characters"
                    raise UserError(f"{path}, row {number}", problem, "give shorter texts")
                if not line:
                    return
                if line.strip():
                    yield number, _json_object(line.rstrip("\n"), f"{path}, row {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({type(error).__name__})", remedy) from None


def check_plain(path: StrPath, remedy: str) -> None:
    """Raises UserError for what is neither a file nor missing.

    A pipe would be waited for, a device read without end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(path, "is no plain file", remedy)


def _unpacked(path: Path, remedy: str) -> bytes:
    """The content of a gzip file. Raises UserError beyond MOST_UNPACKED."""
    with gzip.open(path) as file:
        data = file.read(MOST_UNPACKED + 1)
    if len(data) > MOST_UNPACKED:
        raise UserError(path, f"unpacks to more than {MOST_UNPACKED:,} bytes", remedy)
    return data


class RepeatedKey(ValueError):
    """A key that stands twice in one JSON object; ``json`` alone would keep the last value."""

    def __init__(self, key: str) -> None:
        super().__init__(f"key {key[:40]!r} stands twice in one object")


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` for ``json.loads``: raises RepeatedKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKey(key)
            seen.add(key)
    return found


def _json_object(line: str, place: str) -> dict[str, Any]:
    """The object of one line. Raises UserError naming ``place`` if the line holds another thing."""
    try:
        row = json.loads(line, object_pairs_hook=object_of)
        if has_halves(line):
            check_characters(row, place)
    except json.JSONDecodeError as error:
        problem = f"is not JSON ({error.msg} at column {error.colno})"
        raise UserError(place, problem) from None
    except RepeatedKey as error:
        raise UserError(place, str(error), "name it once") from None
    except (ValueError, RecursionError) as error:  # A number of thousands of digits, deep lists.
        raise UserError(place, f"cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise UserError(place, "is not a JSON object")
    return row


def refuse_links(folder: StrPath) -> None:
    """Raises UserError if anything in ``folder`` is a symbolic link; ``folder`` itself may be one.

    What is written below it, or deleted, would otherwise be somebody else's file.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if os.path.islink(path):
                raise UserError(
                    path,
                    "is a symbolic link, and nothing is written or deleted through one",
                    "put the real file or folder in its place, or remove the link",
                )


def spelling(name: str) -> str:
    """What is the same for names that some file system, or a reader, takes for one name.

    Some join capital and small letters, and the forms that Unicode has for one letter.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
