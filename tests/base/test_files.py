"""Writes and locks as several processes on a cluster need them, and what the readers refuse.

The file systems are simulated: NFS refuses an exclusive lock on a handle that is open for reading
alone, and a file system without locks refuses each of them.
"""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from harness.base import files
from harness.base.errors import UserError
from harness.base.files import is_partial, locked, read_json, read_jsonl, write_json, write_text

# forkserver would import pytest's main module, fork would copy the threads of torch.
CONTEXT = multiprocessing.get_context("spawn")


def start(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


# ---- writes --------------------------------------------------------------------------------------


def write_often(path, writer, count):
    for turn in range(count):
        write_json(path, {"writer": writer, "turn": turn, "items": [writer] * 5000})


def test_many_processes_write_one_file_while_others_read_it(tmp_path):
    """800 writes by four processes: none fails, no reader sees half a file, nothing is left."""
    path = tmp_path / "evaluations" / "key.json"
    write_json(path, {"writer": -1, "turn": 0, "items": [-1] * 5000})
    writers = [start(write_often, path, writer, 200) for writer in range(4)]
    seen = set()
    while any(process.is_alive() for process in writers):
        value = read_json(path, "writer", "turn", "items")
        assert value["items"] == [value["writer"]] * 5000
        seen.add(value["writer"])
    assert [process.exitcode for process in writers] == [0] * 4
    assert len(seen) > 1
    assert os.listdir(path.parent) == ["key.json"]


def write_until_killed(path):
    """Ends itself between the writing of the partial file and its rename."""
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    write_text(path, "half")


def test_a_write_removes_what_a_killed_process_left_of_the_same_file(tmp_path):
    for name in ("a.json", "b.json"):
        process = start(write_until_killed, tmp_path / name)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2 and is_partial(left[0], "a.json") and is_partial(left[1], "b.json")
    write_text(tmp_path / "a.json", "whole")
    assert sorted(os.listdir(tmp_path)) == [left[1], "a.json"]


def test_a_write_keeps_partial_files_of_living_processes_and_of_other_machines(tmp_path):
    ended = start(time.sleep, 0)
    ended.join()
    machine = files.machine()
    dead = f".a.json.{machine}.{ended.pid}.aa.partial"
    elsewhere = [f".a.json.{name}.{ended.pid}.aa.partial" for name in ("node2-00", f"{machine}0")]
    living = [f".a.json.{machine}.{pid}.aa.partial" for pid in (os.getpid(), os.getppid(), 1)]
    odd = [".a.json.partial", f".a.json.{machine}.text.aa.partial", f".a.json.{machine}.partial"]
    for name in (*elsewhere, *living, *odd, dead):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.json", "whole")
    assert set(os.listdir(tmp_path)) == {*elsewhere, *living, *odd, "a.json"}


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "a.json", "text")
    assert os.listdir(tmp_path) == ["a.json"]


# ---- locks ---------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "nfs"])
def file_system(request, monkeypatch):
    if request.param == "nfs":
        refuse_read_only_handles(monkeypatch)


def refuse_read_only_handles(monkeypatch):
    """NFS makes a flock a lock of bytes, and an exclusive one of those needs a writable handle."""
    for name in ("flock", "lockf"):
        real = getattr(fcntl, name)

        def over_nfs(handle, operation, *rest, real=real):
            mode = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
            if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return real(handle, operation, *rest)

        monkeypatch.setattr(fcntl, name, over_nfs)


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_lock_excludes(kind, remove, tmp_path, file_system):
    path = tmp_path if kind == "folder" else tmp_path / "my.lock"
    with (
        locked(path, remove=remove),
        pytest.raises(BlockingIOError),
        locked(path, wait=False, remove=remove),
    ):
        raise AssertionError("granted twice")
    with locked(path, wait=False, remove=remove):
        pass
    lock_file = {"folder": ".lock", "file": "my.lock"}[kind]
    assert os.listdir(tmp_path) == ([] if remove else [lock_file])


def count_up(folder, turns, remove, over_nfs):
    """Adds one to a number, as often as ``turns`` says: a turn without exclusion loses others'."""
    with pytest.MonkeyPatch.context() as patch:
        if over_nfs:
            refuse_read_only_handles(patch)
        for _ in range(turns):
            with locked(folder / "lock", remove=remove):
                number = int((folder / "number").read_text())
                time.sleep(0.001)
                (folder / "number").write_text(str(number + 1))


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("over_nfs", [False, True])
def test_processes_take_turns(over_nfs, remove, tmp_path):
    (tmp_path / "number").write_text("0")
    processes = [start(count_up, tmp_path, 10, remove, over_nfs) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert (tmp_path / "number").read_text() == "30"


def test_threads_take_turns(tmp_path):
    """Also on lock files that their holders remove, and with a folder that one of them removes."""
    folder = tmp_path / "folder"
    (tmp_path / "number").write_text("0")

    def turn(_):
        with locked(folder / ".lock", remove=True):
            number = int((tmp_path / "number").read_text())
            time.sleep(0.001)
            (tmp_path / "number").write_text(str(number + 1))
        with suppress(OSError):
            folder.rmdir()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(turn, range(40)))
    assert (tmp_path / "number").read_text() == "40"


def hold(folder):
    with locked(folder):
        (folder / "held").touch()
        time.sleep(60)


def test_the_lock_ends_with_the_process(tmp_path):
    process = start(hold, tmp_path)
    wait_for(tmp_path / "held")
    with pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
        pass
    process.kill()
    process.join()
    with locked(tmp_path, wait=False):
        pass


def hold_and_fork(folder):
    with locked(folder):
        child = os.fork()
        if child:
            write_text(folder / "held", str(child))
        time.sleep(60)


def test_a_fork_of_the_holder_does_not_keep_the_lock(tmp_path):
    """A worker may outlive the run that has forked it."""
    process = start(hold_and_fork, tmp_path)
    wait_for(tmp_path / "held")
    worker = int((tmp_path / "held").read_text())
    process.kill()
    process.join()
    try:
        os.kill(worker, 0)  # it lives
        with locked(tmp_path, wait=False):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_said_and_nothing_is_granted(
    number, wait, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError) as refused, locked(tmp_path, wait=wait):
        raise AssertionError("granted")
    line = str(refused.value)
    assert line.startswith(
        f"{tmp_path}/.lock: the file system grants no locks ({os.strerror(number)})"
    )
    assert "another file system" in line and "-o flock" in line and "\n" not in line


def test_a_folder_that_cannot_be_written_to_is_no_matter_of_locks(tmp_path, monkeypatch):
    real = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PermissionError), locked(tmp_path):
        raise AssertionError("granted")


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, problem",
    [
        (
            "{",
            r"row 2: is not JSON \(Expecting property name enclosed in double quotes at column 2",
        ),
        ("[1]", "row 2: is not a JSON object"),
        ('{"a": "\\ud800"}', r"row 2: holds half a character \('\\ud800'\); write both halves"),
        ("9" * 5000, r"row 2: cannot be read \("),
        ("[" * 99_999, r"row 2: cannot be read \("),
        ('{"a": 1, "a": 1}', "row 2: key 'a' stands twice in one object; name it once"),
        ('{"b": [{"c": {"a": 1, "\\u0061": 2}}]}', "row 2: key 'a' stands twice in one object"),
        (f'{{"{"x" * 500}": 1, "{"x" * 500}": 2}}', "row 2: key 'x{40}' stands twice"),
    ],
)
def test_a_row_that_is_no_object_is_named(text, problem, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{text}\n')
    with pytest.raises(UserError, match=f"{re.escape(str(path))}, {problem}"):
        list(read_jsonl(path))


def test_rows_have_the_numbers_of_their_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "\\ud83d\\ude00\u2028"}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": "\U0001f600\u2028"})]
    path.write_text('{"a": {"a": 1}, "A": [{"a": 1}, {"a": 2}]}')  # once in each object
    assert list(read_jsonl(path)) == [(1, {"a": {"a": 1}, "A": [{"a": 1}, {"a": 2}]})]
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot be read \(UnicodeDecodeError\); give a JSONL"):
        list(read_jsonl(path))


def test_json_is_written_as_it_is_read(tmp_path):
    value = {"text": "é\u2028", "path": tmp_path}
    write_json(tmp_path / "new" / "a.json", value)
    assert read_json(tmp_path / "new" / "a.json") == {**value, "path": str(tmp_path)}
    assert json.loads((tmp_path / "new" / "a.json").read_bytes())["text"] == value["text"]
