"""The results folder: what a run writes, and nothing else.

docs/reference/results.md lists files and keys.

A stage commits by one atomic rename of its folder, whose SHA256SUMS has the hash of each file; JSON
files hold their own. ``records.jsonl`` beside ``runs/`` is rebuilt from the committed stages, again
by a rename, so that a reader never sees half a line. While runs go on this happens as often as
takes a fiftieth of the time, and once at their end. Several processes, on one machine or on
several, may work on different runs of one folder: each holds a lease on its run, and on what it
measures at the moment.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from harness.base.errors import UserError
from harness.base.files import (
    LOCK,
    StrPath,
    is_partial,
    locked,
    look_again,
    read_json,
    read_jsonl,
    refuse_links,
    write_sealed,
    write_text,
)
from harness.base.leases import LOOK, Lease, Leases
from harness.base.places import check_folder
from harness.base.sums import check_sum, check_sums, has_sums, sum_folder, write_summed
from harness.results.agreement import continued
from harness.results.formats import (
    EVALUATION_KEY,
    Evaluation,
    GridChoice,
    Record,
    check_place,
    evaluation_file,
)
from harness.results.questions import AskedQuestion, save_questions
from harness.results.selection import grid_selection
from harness.results.status import LEASES, PLAN

SMALL = 1_000_000  # bytes of a records.jsonl that is rebuilt at every commit, in some milliseconds
PAUSE = 50  # a larger one rests so many times as long as its rebuilding took
EVALUATION_KEYS = [key for key in Evaluation.__annotations__ if key in Evaluation.__required_keys__]
AGAIN = "remove it: it is measured again"
BEFORE = (
    "put back a whole copy, or remove this stage's folder and those of later stages: they run again"
)


class ResultsWriter:
    """A results folder, opened for writing.

    asked: keys of the evaluations that a judge was asked about since this was opened; owners:
    leases on runs; measured: on keys of evaluations; lease: on the run that this process works on
    now; rebuilds: whether it brings records.jsonl up to date after a stage, or another process
    does. Raises UserError for a folder with a symbolic link in it.
    """

    def __init__(self, folder: StrPath) -> None:
        self.folder = Path(folder)
        refuse_links(self.folder)
        self.asked: set[str] = set()
        self.owners = Leases(self.folder / LEASES / "runs")
        self.lease: Lease | None = None
        self.rebuilds = True
        self.measured = Leases(self.folder / LEASES / "evaluations")
        # By time.monotonic(), when refresh rebuilds again. At once at first: a killed process may
        # have left stages that records.jsonl does not hold.
        self._due = 0.0

    # ---- the folder and its order ----------------------------------------------------------------

    def check(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What results.json becomes if this order goes on here.

        about: what results.json holds for the order. What the numbers depend on must not change
        between two starts in one folder; a later start may add methods and seeds. Raises UserError
        if it has changed, and for a folder with other things in it.
        """
        path = self.folder / "results.json"
        check_folder(self.folder)
        if not path.exists():
            self._check_unused()
            return dict(about)
        return continued(
            read_json(path, remedy="move the folder away and start again"), about, path
        )

    def _check_unused(self) -> None:
        """Raises UserError if a folder without results.json holds more than a killed start left."""
        names = os.listdir(self.folder) if self.folder.exists() else []
        # --check-teacher writes its own folder before the first start, --workers a probe file.
        if any(
            name not in (LOCK, "teacher_check", LEASES) and not is_partial(name, of="results.json")
            for name in names
        ):
            raise UserError(
                self.folder,
                "is not empty and holds no results.json",
                "give another folder with --out",
            )

    def open(self, about: Mapping[str, Any]) -> None:
        """Create the folder or go on with it; see check."""
        self.check(about)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            write_sealed(self.folder / "results.json", self.check(about))

    def plan(self, runs: Mapping[str, int], dashboard: str = "") -> None:
        """Put on record which runs are asked for, {name: stages}, beside those of other starts.

        dashboard: the address of Ray's, where it works on them.
        """
        path = self.folder / LEASES / PLAN
        with self._alone():
            before = read_json(path, "runs")["runs"] if path.exists() else {}
            write_sealed(path, {"runs": {**before, **runs}, "dashboard": dashboard})

    def _alone(self) -> AbstractContextManager[None]:
        """Nobody else reads and then writes what all runs share."""
        return locked(self.folder / LOCK)

    # ---- evaluations -----------------------------------------------------------------------------

    def protocol(self, key: str, meaning: Mapping[str, Any]) -> None:
        """Put on record what the protocol ``key`` stands for, once."""
        path = self.folder / "protocols.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            meanings = read_json(path) if path.exists() else {}
            if key not in meanings:
                write_sealed(path, dict(sorted({**meanings, key: meaning}.items())))

    def evaluation(self, key: str) -> Evaluation | None:
        """The evaluation of this key, None if it is not made yet."""
        path = self.evaluation_path(key)
        if not path.exists():
            return None
        return cast(Evaluation, read_json(path, *EVALUATION_KEYS, remedy=AGAIN))

    def save_evaluation(self, key: str, evaluation: Mapping[str, Any]) -> None:
        """Keep an ``Evaluation``, in the place of one that was packed."""
        path = self.evaluation_path(key)
        plain = path.with_suffix("") if path.suffix == ".gz" else path
        write_sealed(plain, evaluation)
        if path != plain:
            path.unlink(missing_ok=True)

    def unmeasured(
        self, keys: Iterable[str], waits: Callable[[str], object] | None = None
    ) -> Generator[str, None, None]:
        """Each of ``keys`` without an evaluation, which nobody else measures meanwhile.

        Those that another process is measuring come last, if it ends without them; this waits for
        it. waits: is told which process that is; it may raise, where there is something else to do.
        """
        left = dict.fromkeys(keys)
        while left:
            before, others = len(left), ""
            for key in list(left):
                path = self.evaluation_path(key)
                lease = None if path.exists() else self.measured.claim(key)
                if lease:
                    try:
                        look_again(path.parent)  # for what others measured a moment ago
                        if not path.exists():
                            yield key
                    finally:
                        lease.release(done=True)
                if lease or path.exists():
                    del left[key]
                elif holder := self.measured.holder(key):
                    others = holder.text
            if len(left) == before:
                if waits and others:
                    waits(others)
                time.sleep(LOOK)

    def tidy_leases(self) -> None:
        """Remove the leases that killed processes have left on what is measured."""
        for key in self.measured.names():
            if self.evaluation_path(key).exists():
                self.measured.remove(key)

    def save_questions(self, protocol: str, questions: Sequence[AskedQuestion]) -> None:
        """Keep what a retention task asks, see harness/results/questions.py."""
        save_questions(self.folder, protocol, questions)

    def evaluation_path(self, key: str) -> Path:
        """The file of an evaluation. Raises UserError for a key that is no file's name."""
        if not EVALUATION_KEY.fullmatch(key):
            place = self.folder / "records.jsonl"
            raise UserError(place, f"{key[:60]!r} is no key of an evaluation", BEFORE)
        return evaluation_file(self.folder, key)

    # ---- stages ----------------------------------------------------------------------------------

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / name

    def stage(self, run: str, stage: int) -> Path:
        """Folder of a committed stage."""
        return self.run(run) / f"stage-{stage}"

    def committed(self, run: str, stage: int) -> bool:
        """Whether a stage is over and on record."""
        return (self.stage(run, stage) / "stage.json").exists()

    def commit(self, partial: StrPath, run: str, stage: int) -> None:
        """The stage is done: its folder takes its name, once the disk has all that is in it.

        Raises UserError if another process has taken over the run.
        """
        sum_folder(partial, without=["checkpoint"])  # which goes now
        final = self.stage(run, stage)
        if self.lease:
            self.lease.check()
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self.refresh()

    def rows(self, stage: Path, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file of a committed stage, checked."""
        check_sum(stage / name, BEFORE)
        return [row for _, row in read_jsonl(stage / name)]

    def save_judged(self, stage: Path, text: str) -> None:
        """Write a judge's records of a committed stage, JSONL."""
        if has_sums(stage):
            write_summed(stage / "judged.jsonl", text)
        else:  # of the first version
            write_text(stage / "judged.jsonl", text)

    def check_kept(self, stage: Path, memory: bool = True) -> None:
        """Raises UserError unless weights and memory of a committed stage are those it wrote.

        memory: whether it has one; the last stage of a run has none.
        """
        if memory and not (stage / "method.pt").is_file():
            raise UserError(stage / "method.pt", "is not there", BEFORE)
        if memory:
            check_sum(stage / "method.pt", BEFORE)
        check_sums(stage, "weights", BEFORE)

    # ---- what is made from all stages ------------------------------------------------------------

    def refresh(self) -> None:
        """``rebuild``, unless a large records.jsonl was rebuilt a short time ago.

        So the cost of many stages grows with their time, not with their square.
        """
        if self.rebuilds and time.monotonic() >= self._due:
            self.rebuild()

    def rebuild(self) -> None:
        """Write records.jsonl, and selection.json for an order with a grid, from all stages.

        records.jsonl holds the records of committed stages in the order of run and stage, those of
        a judge behind the measured ones.
        """
        with self._alone():
            start = time.monotonic()
            text = "".join(self._texts_of_records())
            write_summed(self.folder / "records.jsonl", text)
            self._write_selection()
        end = time.monotonic()
        pause = PAUSE * (end - start) if len(text) > SMALL else 0.0
        self._due = end + pause

    def _texts_of_records(self) -> Iterator[str]:
        """Texts of the files of records in all committed stages, in the order of records.jsonl."""
        stages = [
            path.parent
            for path in self.folder.glob("runs/*/stage-*/records.jsonl")
            if re.fullmatch(r"stage-\d+", path.parent.name)
            and (path.parent / "stage.json").exists()
        ]
        stages.sort(key=lambda stage: (stage.parent.name, int(stage.name.removeprefix("stage-"))))
        for stage in stages:
            for name in ("records.jsonl", "judged.jsonl"):
                if name == "records.jsonl" or (stage / name).exists():
                    yield self._text_of_records(stage / name)

    @staticmethod
    def _text_of_records(path: Path) -> str:
        """The text of a JSONL file of a committed stage. Raises UserError where it is damaged."""
        check_sum(path, BEFORE)
        check_place(path)
        text = path.read_text(encoding="utf-8", errors="replace")
        if not has_sums(path.parent):
            for _ in read_jsonl(path):  # which names a row that is none
                pass
            if text and not text.endswith("\n"):
                raise UserError(path, "ends within a line", BEFORE)
        return text

    def _write_selection(self) -> None:
        about = read_json(self.folder / "results.json", "methods")
        if any("grid" in method for method in about["methods"].values()):
            records = (cast(Record, row) for _, row in read_jsonl(self.folder / "records.jsonl"))
            write_sealed(self.folder / "selection.json", grid_selection(about, records))

    def selection(self) -> dict[str, GridChoice]:
        """What the grids have selected so far, {} where there is no grid; see grid_selection."""
        path = self.folder / "selection.json"
        return read_json(path) if path.exists() else {}
