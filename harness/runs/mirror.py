"""The results folder of a run on several ranks: rank 0 alone writes in it.

All ranks run the same program, and what it writes and reads again is the same on all of them. So
each of the others keeps its own files, in a temporary folder that begins as a copy of the small
files of the real one, and is thrown away at the end. Weights and checkpoints, which are large, are
rank 0's alone, or of all ranks together: ``ranks.real`` says where they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.models import ranks
from harness.results.status import LEASES
from harness.results.writer import ResultsWriter

LARGE = ("weights", "checkpoint")  # folders of a stage whose files are not copied


@contextmanager
def folder_of_rank(folder: Path) -> Iterator[Path]:
    """The folder in which this rank writes what it takes for the results folder ``folder``."""
    if not ranks.index():
        ranks.wait()  # the others have copied what there is
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="harness-rank-") as place:
        mirror = Path(place).resolve() / folder.name
        _copy(folder, mirror)
        ranks.set_mirror(folder, mirror)
        ranks.wait()
        yield mirror


def _copy(folder: Path, mirror: Path) -> None:
    for place, folders, files in os.walk(folder):
        there = mirror / Path(place).relative_to(folder)
        there.mkdir(parents=True, exist_ok=True)
        if there.name in LARGE:
            folders.clear()
            continue
        for name in files:
            if not name.startswith("."):  # a lock, or half a file
                shutil.copyfile(Path(place) / name, there / name)
        folders[:] = [name for name in folders if name != LEASES]


class MirrorWriter(ResultsWriter):
    """The mirror of a results folder, opened for writing; rank 0 checks the weights."""

    def check_kept(self, stage: Path, memory: bool = True) -> None:
        """Nothing: the files are rank 0's."""


def writer_of_rank(folder: str | Path) -> ResultsWriter:
    """The results folder as this rank writes it."""
    return MirrorWriter(folder) if ranks.index() else ResultsWriter(folder)
