"""Trackers hear of an order through processes of their own (tracked.py)."""

import importlib.util
import json
import math
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.console import Listener, ListenerOff, Progress
from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.watch.tracked import REPORT, identify
from harness.watch.trackers import TRACKERS

PATIENCE = 30.0  # seconds without an answer after which a tracker is given up
STOPPING = 5.0  # such seconds when the order is stopped


def check_installed(names: Iterable[str], place: str) -> None:
    """Raises UserError at ``place`` for a tracker whose package is not installed."""
    for name in names:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            remedy = f"pip install {package}, or leave it out"
            raise UserError(place, f"{name} is not installed", remedy)


def plain(name: str) -> str:
    """A name that all trackers take."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def track(names: Iterable[str], progress: Progress) -> None:
    """Let these trackers hear of the order, if they do not yet."""
    listening = [listener.name for listener in progress.listeners]
    progress.listeners += [Tracking(name, progress) for name in names if name not in listening]


class Tracking(Listener):
    """One tracker: what is to be logged goes to its process, and nothing waits for that.

    name: of the tracker; sent, answered: lines. An answer is awaited at the end alone.
    """

    wants_history = True

    def __init__(self, name: str, progress: Progress) -> None:
        self.name, self.progress = name, progress
        self.sent = self.answered = 0
        self.problem = ""
        self.heard = time.monotonic()
        self.process: subprocess.Popen[str] | None = None
        self.reader: threading.Thread  # there is one as soon as there is a process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def opened(self, folder: Path, about: dict[str, Any]) -> None:
        identify(folder)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.watch.tracked", self.name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the order, which closes this process
        )
        self.reader, writer = (
            threading.Thread(target=work, args=(self.process,), daemon=True)
            for work in (self._read, self._write)
        )
        self.reader.start()
        writer.start()

    def learned(self, run: str, row: dict[str, Any]) -> None:
        values = {f"train/{key}": value for key, value in row.items() if key != "step"}
        self._send(run, row["step"], values)

    def measured(self, run: str, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            kind, name, split = record["kind"], record["name"], record["split"]
            place = f"{name}/{split}" if kind == "skill" else name
            self._send(run, record["step"], {f"{kind}/{place}/{record['metric']}": record["value"]})

    def reported(self, page: Path) -> None:
        self._put({"run": REPORT, "tables": str(page.parent / "tables")})

    def closed(self, error: BaseException | None = None) -> None:
        if self.process is None:
            return
        self._lines.put(None)
        patience = PATIENCE if error is None else STOPPING
        if self.problem == "" and self.process.poll() is None:
            self.progress.show(f"waits for {self.name}")
        while self.process.poll() is None:
            if time.monotonic() - self.heard > patience:
                self._give_up()
            time.sleep(0.02)
        self._check()

    # ---- the process -----------------------------------------------------------------------------

    def _send(self, run: str, step: int, values: dict[str, Any]) -> None:
        numbers = {
            plain(name): value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if numbers:
            self._put({"run": run, "step": step, "values": numbers})

    def _put(self, event: dict[str, Any]) -> None:
        self._check()
        if self.sent == self.answered:
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > PATIENCE:
            self._give_up()
        self.sent += 1
        self._lines.put(json.dumps(event))

    def _check(self) -> None:
        """Raises ListenerOff for what the process has told, or for its death."""
        process = self.process
        code = process.poll() if process else None
        if code and not self.problem:
            self.reader.join(1.0)  # The process may have told why before it ended.
            self.problem = self.problem or f"its process ended with code {code}"
        if self.problem:
            raise ListenerOff(self.problem)

    def _give_up(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        raise ListenerOff(f"no answer in {time.monotonic() - self.heard:.0f} seconds")

    def _write(self, process: subprocess.Popen[str]) -> None:
        """A thread: the pipe may be full, and then nobody but this waits."""
        assert process.stdin is not None
        with suppress(OSError):  # The process is gone: its end tells why.
            while (line := self._lines.get()) is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        """A thread: answers, in the order of what was sent."""
        assert process.stdout is not None
        for line in process.stdout:
            self.heard = time.monotonic()
            self.answered += 1
            self.problem = self.problem or line.strip()
