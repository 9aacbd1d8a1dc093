"""What the runs of a folder do at the moment: in the terminal, and on a page that redraws itself.

The page is a file, which a browser loads again every few seconds; nothing listens to a port.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness.base.files import write_text
from harness.base.leases import Leases
from harness.base.places import check_folder
from harness.report.html import environment
from harness.results.status import HEADS, LEASES, FolderStatus, status_of

EVERY = 5.0  # seconds between two drawings
PAGE = "watch.html"


def watch(folder: Path, out: Path | None = None, every: float = EVERY) -> None:
    """Draw the state of ``folder`` into ``out`` every so many seconds, until all runs are over.

    out: by default the folder of the report. Raises UserError where no run was asked for yet.
    """
    page = Path(out or folder / "report") / PAGE
    leases = Leases(folder / LEASES / "runs")
    status = status_of(folder, leases)
    check_folder(page.parent)
    print(f"page: {os.path.relpath(page)}; Ctrl-C ends the watching, and no run")
    shown = 0
    while True:
        write_text(page, render(status, every))
        if sys.stdout.isatty():
            lines = [*status.lines(), status.summary()]
            print(f"\x1b[{shown}F\x1b[J" * bool(shown) + "\n".join(lines))
            shown = len(lines)
        else:
            print(f"{time.strftime('%H:%M:%S')} {status.summary()}")
        if status.is_over:
            return
        time.sleep(every)
        status = status_of(folder, leases)


def _tables(status: FolderStatus) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(state, heads, rows) of the runs in each state, of all columns that have something to say."""
    for state in ("failed", "running", "waiting", "done"):
        rows = [run.cells() for run in status.runs if run.state == state]
        told = [i for i, head in enumerate(HEADS) if head != "state" and any(r[i] for r in rows)]
        if rows:
            yield state, [HEADS[i] for i in told], [[row[i] for i in told] for row in rows]


def render(status: FolderStatus, every: float) -> str:
    """The page, which loads itself again unless all runs are over."""
    return (
        environment()
        .get_template("watch.html")
        .render(
            status=status,
            tables=[*_tables(status)],
            again=None if status.is_over else round(every),
            at=time.strftime("%Y-%m-%d %H:%M:%S"),
        )
    )
