"""A task of a suite of the field: a folder or a repository, and an honest validation split.

The most copied suites have no validation data: their ``dev`` file is their ``test`` file. Here the
validation split is always drawn from the train file, by question, and no ``dev`` or ``eval`` file
is ever read for its rows. A train file that is the test file is refused.
"""

import csv
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.skills._sources import fetch_blob, held_out, question_of, read_rows
from harness.base.errors import UserError
from harness.skills.skill import Example, Skill

SHARE, MOST = 0.1, 500  # of the train questions become validation, where an order says nothing
FEW = 200  # test questions, below which the interval of an accuracy is told
Rows = Iterator[tuple[int, Mapping[str, Any]]]


class SuiteSkill(Skill):
    """One task of a suite.

    Args:
        task: one of ``tasks``.
        path: a folder with the suite in its released form, or a zip file, whose files the cache
            keeps. Without it the data come from where
            ``python -m benchmarks.fetch SUITE`` puts them, or are fetched.
        holdout: how many train questions become the validation split; a tenth of them, 500 at most,
            if it is left out.

    A subclass names ``suite``, ``tasks`` and ``folders`` (where each task stands in the release),
    and defines ``example``; ``rows`` where a file is no list of rows.
    """

    options = ("path", "holdout")
    overlap_note = "all questions of a task share its instruction, most words of a short one"
    suite: ClassVar[str] = ""
    folders: ClassVar[Mapping[str, str]] = {}
    # Folders of a release that may hold those of the tasks; the last is the repository's.
    roots: ClassVar[tuple[str, ...]] = ("",)
    second: ClassVar[str] = "dev"  # what the source calls its validation file
    forms: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
    # Where the release is a repository: its names, and the commit.
    repositories: ClassVar[tuple[str, ...]] = ()
    commit: ClassVar[str] = ""
    further: ClassVar[tuple[str, ...]] = ()  # files of a task beside train, second and test

    def __init__(self, task: str, path: str | None = None, holdout: int | None = None) -> None:
        self.task = task
        self.name = f"{self.suite}_{task}"
        self.path = None if path is None else self._release(Path(os.path.expanduser(path)))
        self.holdout = holdout

    # ---- what a subclass defines -------------------------------------------------------------

    def example(
        self, row: Mapping[str, Any], split: str, number: int, place: str
    ) -> Example | None:
        """The Example of a row of the train or test file, None for one that is left out.

        number: of the row, from 1. Raises UserError naming ``place`` and the column.
        """
        raise TypeError(f"skill {self.name!r} has no example()")

    def rows(self, file: Path) -> Rows:
        """(number from 1, row) of a file of the source."""
        return read_rows(file)

    @classmethod
    def place(cls, task: str, stem: str) -> str:
        """Where the file ``train``, ``test`` ... of a task stands in the release, no ending."""
        return f"{cls.folders[task]}/{stem}"

    @property
    def blobs(self) -> Mapping[str, str]:
        """{file: git's blob id} where the release is a repository."""
        return released_blobs(self.suite)

    def _release(self, path: Path) -> Path:
        """The folder of a release, of a zip file that in the cache."""
        if path.is_file():
            from benchmarks.fetch import keep_release

            stat = path.stat()
            target = data_folder(f"{self.suite}-{_digest(path, stat.st_size, stat.st_mtime_ns)}")
            return target if target.exists() else keep_release(type(self), path, target)
        if not path.is_dir():
            raise UserError(
                f"skill {self.name}: path",
                f"{path} is neither a folder nor a zip file",
                f"give a folder with {self.place(self.task, 'train')}{self.forms[0]}",
            )
        return path

    # ---- files -------------------------------------------------------------------------------

    def file(self, stem: str) -> Path:
        """The file ``train``, ``test`` ... of the task: local, or fetched and checked.

        Raises UserError where there is none.
        """
        if found := self.local(stem):
            return found
        wanted = f"{self.place(self.task, stem)}{self.forms[0]}"
        released = f"{self.roots[-1]}{wanted}"
        if self.path is None and released in self.blobs:
            blob = self.blobs[released]
            return fetch_blob(self.repositories, self.commit, released, blob, f"skill {self.name}")
        if self.path is not None:
            raise UserError(
                f"skill {self.name}: path", f"{self.path} has no {wanted}", "give the whole release"
            )
        raise UserError(
            f"skill {self.name}",
            "its data are not on this machine",
            f"--set data.{self.suite}=PATH names the authors' folder or zip file; python -m "
            f"benchmarks.fetch {self.suite} --from PATH keeps it",
        )

    def local(self, stem: str) -> Path | None:
        """The file in ``path``, or in the cache where ``path`` is not set; None without one."""
        base = self.path or data_folder(self.suite)
        for root in self.roots:
            for form in self.forms:
                if (file := base / f"{root}{self.place(self.task, stem)}{form}").is_file():
                    return file
        return None

    def second_is_test(self) -> bool:
        """Whether the source's validation file is its test file, by content or by git's ids."""
        if second := self.local(self.second):
            test = self.local("test")
            return test is not None and second.read_bytes() == test.read_bytes()
        if self.local("test"):
            return False
        names = (f"{self.place(self.task, stem)}.json" for stem in (self.second, "test"))
        second_blob, test_blob = (self.blobs.get(f"{self.roots[-1]}{name}") for name in names)
        return second_blob is not None and second_blob == test_blob

    # ---- splits ------------------------------------------------------------------------------

    def load(self, split: str) -> list[Example]:
        examples = self._read("test" if split == "test" else "train")
        if split == "test":
            self._check_apart()
            return examples
        questions = len(set(map(question_of, examples)))
        count = self.holdout or max(1, min(MOST, round(SHARE * questions)))
        return held_out(examples, count, split, f"skill {self.name}: holdout")

    def _read(self, stem: str) -> list[Example]:
        """The examples of a file, in an order that depends on their questions alone.

        A file may be sorted by label, and evaluations take the first questions of a split.
        """
        file = self.file(stem)
        rows = (
            self.example(row, stem, number, f"{file}, row {number}")
            for number, row in self.rows(file)
        )
        examples = [example for example in rows if example is not None]
        if not examples:
            raise UserError(file, "has no rows")
        return sorted(examples, key=lambda e: hashlib.sha256(question_of(e).encode()).digest())

    def _check_apart(self) -> None:
        """Raises UserError where the test file is the train file."""
        train, test = self.file("train"), self.file("test")
        if train.read_bytes() == test.read_bytes():
            raise UserError(
                test, f"is the same file as {train.name}", "a test holds what was not trained on"
            )

    def notes(self) -> list[str]:
        notes = []
        count = len(self.examples("test"))
        if count < FEW:
            notes.append(
                f"its test has {count} questions: at 50% the 95% interval of an accuracy is "
                f"±{half_of(count):.0f} points"
            )
        if self.second_is_test():
            notes.append(
                f"the source's {self.second} file is its test file, so validation is drawn from "
                "train"
            )
        return [f"skill {self.name}: {'; '.join(notes)}"] if notes else []


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    """The first digits of a file's SHA-256, read once as long as it does not change."""
    from harness.models.embedded import sha256

    return sha256(path)[:16]


def half_of(count: int) -> float:
    """Half of a 95% interval of an accuracy of 50% over so many questions, in points."""
    return 98 / math.sqrt(count)


def data_folder(suite: str) -> Path:
    """Where ``python -m benchmarks.fetch`` puts a suite that comes from a folder or an archive."""
    from harness.models.embedded import cache_folder

    return cache_folder() / "suites" / suite


@functools.cache
def released_blobs(suite: str) -> Mapping[str, str]:
    """{file: git's blob id} of a suite's repository, at the commit that its class names."""
    path = Path(__file__).with_name(f"{suite}.csv")
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as lines:
        return {row["file"]: row["blob"] for row in csv.DictReader(lines)}
