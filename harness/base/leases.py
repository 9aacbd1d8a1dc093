"""Leases: who works on what in a folder that processes of many machines share.

A lease is a file NAME.N. It names its holder, and is written again every few seconds: its
heartbeat. A released or stale lease is followed by NAME.N+1, which one process alone can create;
the highest number counts. So a stale lease is taken over once, by one, and a holder that was away
can see that it was. Nothing here needs a lock of the file system or clocks that agree.

A lease is stale at once if its process ran on this machine and is gone, else if nobody has seen its
heartbeat for ``STALE`` seconds. Whoever wants to know watches for so long: after a file server was
away all heartbeats are old, and all holders live.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import alive, create_text, machine, to_json, write_text

BEAT, STALE = 5.0, 60.0  # seconds between heartbeats, and without one until a lease is stale
LOOK = 0.5  # seconds between two looks of who waits


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says.

    machine: a name of the process table in which ``pid`` is the holder; born: when the process
    started, in ticks since the boot, 0 where nobody knows; started: when it took the lease, UTC;
    told: what the holder tells of its work; quiet: seconds since it told something else, at its
    last heartbeat; is_released: whether it has ended its work; beat: the time of its last
    heartbeat, by the file system's clock, in nanoseconds.
    """

    host: str
    machine: str
    pid: int
    born: int
    started: str
    told: Mapping[str, Any]
    quiet: float
    is_released: bool
    beat: int

    @property
    def text(self) -> str:
        """Where the holder runs, for a reader."""
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """Whether its process ran on this machine and is there no more."""
        if self.machine != machine():
            return False
        return not alive(self.pid) or (self.born != 0 and self.born != _born(self.pid))


class Lease:
    """What this process holds."""

    def __init__(self, leases: "Leases", name: str, number: int, about: Mapping[str, Any]) -> None:
        self.name = name
        self._told: dict[str, Any] = {}
        self._since = time.monotonic()
        self._leases, self._number, self._about = leases, number, about
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()

    def tell(self, told: dict[str, Any]) -> None:
        """What others see of the work, from the next heartbeat on."""
        self._told, self._since = told, time.monotonic()

    def check(self) -> None:
        """Raises UserError if another process has taken over: this one gave no sign for long."""
        if self._leases.highest(self.name)[0] != self._number:
            raise UserError(
                self._leases.folder / self.name,
                "another process has taken over, as this one gave no sign of life",
                "the same command goes on with what is left",
            )

    def release(self, done: bool = False) -> None:
        """End it; done: nobody has to work on this any more, so that no file is left."""
        self._end.set()
        self._thread.join()
        with suppress(OSError):  # of a full disk: the end of the process ends the lease as well
            if self._leases.highest(self.name)[0] != self._number:
                return
            if done:
                self._leases.remove(self.name)
            else:
                self._write(released=True)

    def _beats(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(OSError):  # A full disk, a server that is away: the next one may get in.
                if self._leases.highest(self.name)[0] == self._number:
                    self._write()

    def _write(self, **more: Any) -> None:
        about = {**self._about, "told": self._told, "quiet": time.monotonic() - self._since, **more}
        write_text(self._leases.path(self.name, self._number), to_json(about) + "\n")


class Leases:
    """The leases in one folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # {(name, number): (heartbeat, when this process first saw it, by time.monotonic(), whether
        # it had seen another one before)}
        self._seen: dict[tuple[str, int], tuple[int, float, bool]] = {}

    def claim(self, name: str) -> Lease | None:
        """Hold ``name`` from now on; None while another does, or seems to."""
        number, holder = self.highest(name)
        if number and not self._is_over(name, number, holder):
            return None
        about = {
            "host": os.uname().nodename if hasattr(os, "uname") else "",
            "machine": machine(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        number += 1
        if not create_text(self.path(name, number), to_json(about) + "\n"):
            return None
        if self.highest(name)[0] != number:  # It was decided on an old view of the folder.
            self.path(name, number).unlink(missing_ok=True)
            return None
        for old, _ in self._files(name):
            if old < number:
                self.path(name, old).unlink(missing_ok=True)
        return Lease(self, name, number, about)

    def claim_if_dead(self, name: str) -> Lease | None:
        """``claim``, which watches its holder until it is alive for sure or stale."""
        while (lease := self.claim(name)) is None and not self.is_held_for_sure(name):
            time.sleep(LOOK)
        return lease

    def holder(self, name: str) -> Holder | None:
        """Who holds ``name`` or seems to, None if nobody does."""
        number, holder = self.highest(name)
        return None if holder is None or self._is_over(name, number, holder) else holder

    def holders(self) -> dict[str, Holder]:
        """{name: who holds it or seems to}."""
        names = {name for _, name in self._files()}
        found = {name: self.holder(name) for name in sorted(names)}
        return {name: holder for name, holder in found.items() if holder}

    def is_held_for_sure(self, name: str) -> bool:
        """Whether its holder is alive: on this machine, or by a sign while this one watched."""
        number, holder = self.highest(name)
        if holder is None or self._is_over(name, number, holder):
            return False
        return holder.machine == machine() or self._seen[name, number][2]

    def highest(self, name: str) -> tuple[int, Holder | None]:
        """(the number that counts, 0 without any; who its file names, None if it is unreadable)."""
        number = max((number for number, _ in self._files(name)), default=0)
        return number, _read(self.path(name, number)) if number else None

    def path(self, name: str, number: int) -> Path:
        """The file of a lease."""
        return self.folder / f"{name}.{number}"

    def remove(self, name: str) -> None:
        """Remove all leases of ``name``, the highest one last."""
        for number, _ in sorted(self._files(name)):
            self.path(name, number).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Of all leases that have a file."""
        return {name for _, name in self._files()}

    def _files(self, name: str | None = None) -> Iterator[tuple[int, str]]:
        """(number, name) of each file, of one name or of all."""
        try:
            files = os.listdir(self.folder)
        except FileNotFoundError:
            return
        for file in files:
            stem, _, number = file.rpartition(".")
            if number.isdecimal() and name in (None, stem):
                yield int(number), stem

    def _is_over(self, name: str, number: int, holder: Holder | None) -> bool:
        """Whether the lease is released or stale. A file that is being written is neither."""
        if holder is not None and (holder.is_released or holder.is_gone()):
            return True
        beat, now = holder.beat if holder else 0, time.monotonic()
        seen, since, moved = self._seen.get((name, number), (beat, now, False))
        if seen != beat:
            since, moved = now, True
        self._seen[name, number] = beat, since, moved
        return now - since >= STALE


def _read(path: Path) -> Holder | None:
    """The holder that a lease's file names; None for one that is gone or not whole."""
    try:
        # Opened, not looked at: NFS asks the server then, and not its memory of the file.
        with open(path, encoding="utf-8") as file:
            about, beat = json.load(file), os.fstat(file.fileno()).st_mtime_ns
        return Holder(
            host=str(about["host"]),
            machine=str(about["machine"]),
            pid=int(about["pid"]),
            born=int(about["born"]),
            started=str(about["started"]),
            told=dict(about.get("told") or {}),
            quiet=float(about.get("quiet") or 0.0),
            is_released=bool(about.get("released")),
            beat=beat,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _born(pid: int) -> int:
    """When a process of this machine started, in ticks since the boot.

    0 where nobody knows, -1 for one that has ended, and whose parent has not looked at that yet.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *numbers = text.rpartition(")")[2].split()
        return -1 if state in "ZX" else int(numbers[18])
    except (OSError, IndexError, ValueError):
        return 0
