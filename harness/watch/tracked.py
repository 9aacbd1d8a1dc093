"""The process of one tracker: it reads what an order does, a JSON object a line, and logs it.

    python -m harness.watch.tracked NAME FOLDER

It answers each line with one of its own on its stdout, empty or with what went wrong; what the
tracker's libraries print goes nowhere. A tracker that hangs, raises or takes the process down takes
nothing else with it, and draws no random number of a run.
"""

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from harness.base.errors import one_line, raised
from harness.base.files import LOCK, locked, read_json, write_text
from harness.watch.trackers import TRACKERS, Tracker

IDENTITY = "tracking.txt"  # in the results folder: tells its runs from those of others
REPORT = "report"  # name of the run that has the report's tables
LEFT_OUT = ("records", "curves")  # tables of single measurements, which the runs have as curves


class Log:
    """Sends a tracker what it does not have yet, run after run."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.tracker, self.folder = tracker, folder
        self.run, self.is_begun = "", False
        self.known: set[tuple[str, int]] = set()  # (name, step)

    def take(self, event: dict[str, Any]) -> None:
        """One line of the order's process."""
        if event["run"] != self.run:
            self.finish()
            self.run = event["run"]
            points = self.tracker.points(self.run, key_of(self.folder, self.run))
            self.known = {(name, step) for name, step, _ in points}
        if "tables" in event:
            self._tables(Path(event["tables"]))
            return
        step = event["step"]
        new = {
            name: value for name, value in event["values"].items() if (name, step) not in self.known
        }
        if new:
            self._begin()
            self.tracker.log(step, new)
            self.known |= {(name, step) for name in new}

    def _begin(self) -> None:
        if not self.is_begun:
            self.tracker.begin(self.run, key_of(self.folder, self.run), self._config())
            self.is_begun = True

    def _config(self) -> dict[str, Any]:
        """What results.json and run.json say, and where the results are."""
        found: dict[str, Any] = {"results_folder": str(self.folder.resolve())}
        found["page"] = str((self.folder / "report" / "index.html").resolve())
        for path in (self.folder / "results.json", self.folder / "runs" / self.run / "run.json"):
            if path.exists():
                found[path.stem] = read_json(path)
        return found

    def _tables(self, folder: Path) -> None:
        self._begin()
        for path in sorted(folder.glob("*.csv")):
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            if rows and path.stem not in LEFT_OUT:
                self.tracker.table(path.stem, rows)

    def finish(self) -> None:
        """The run has nothing more."""
        if self.is_begun:
            self.tracker.finish()
        self.is_begun = False


def key_of(folder: Path, run: str) -> str:
    """The name of a run that no other has, of any folder."""
    identity = (folder / IDENTITY).read_text(encoding="utf-8").strip()
    return re.sub(r"[^\w-]", "_", f"{run}-{identity}")[-100:]


def identify(folder: Path) -> None:
    """Give a results folder a name that no other has, once."""
    with locked(folder / LOCK):  # several processes may begin at once
        if not (folder / IDENTITY).exists():
            write_text(folder / IDENTITY, os.urandom(4).hex() + "\n")


def main() -> None:
    """Log what comes on stdin until it ends."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        log = Log(TRACKERS[name](folder.resolve().name, folder), folder)
        for line in sys.stdin:
            log.take(json.loads(line))
            print(file=answers, flush=True)
        log.finish()
    except Exception as error:
        print(one_line(raised(error)), file=answers, flush=True)
        os._exit(1)  # not by way of what a broken library does at its end


if __name__ == "__main__":
    main()
