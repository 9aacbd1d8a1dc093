"""The log of a results folder: every line with its time, those of later starts behind it."""

import io
from pathlib import Path
from typing import Any

from harness.base.console import PlainLines
from harness.base.errors import UserError

LOG = "log.txt"


class LogFile(PlainLines):
    """Lines in ``log.txt`` of the results folder, kept in memory until the folder is there.

    Processes that work in one folder write into one file; a line is written at once.
    """

    def __init__(self) -> None:
        super().__init__(io.StringIO())

    def opened(self, folder: Path, about: dict[str, Any]) -> None:
        assert isinstance(self.stream, io.StringIO)
        before = self.stream.getvalue()
        self.stream = open(folder / LOG, "a", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.stream.write(before)
        self.stream.flush()

    def closed(self, error: BaseException | None = None) -> None:
        super().closed(error)
        if isinstance(error, UserError):
            self.said(f"error: {error}")
        elif error is not None:
            self.said(f"ends by {type(error).__name__} {error}".rstrip())
        if not isinstance(self.stream, io.StringIO):
            self.stream.close()
