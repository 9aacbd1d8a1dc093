"""The page of an order that goes on: drawn again after its stages, in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

from harness.base.console import Listener, Progress
from harness.base.files import ROOT

PAUSE, TIMES = 60.0, 10  # at least so many seconds between two drawings, and times what one took


class PageRedrawer(Listener):
    """Draws the page of ``folder`` after each stage but the ``last``, behind which it is final.

    Another process draws, and the order waits for it: what the stages measure of time and memory
    stays theirs. A drawing that fails is told by the one at the end. Short stages share one.
    """

    def __init__(self, folder: Path, last: tuple[str, int], progress: Progress) -> None:
        """last: run and number of the order's last stage."""
        self.folder, self.last, self.progress = folder, last, progress
        self.due = time.monotonic() + PAUSE

    def stage_over(self, run: str, stage: int) -> None:
        start = time.monotonic()
        if (run, stage) == self.last or start < self.due:
            return
        self.progress.show("draws the page")
        subprocess.run(
            [sys.executable, ROOT / "report.py", self.folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the order, which ends this process
            check=False,
        )
        end = time.monotonic()
        self.due = end + max(PAUSE, TIMES * (end - start))
