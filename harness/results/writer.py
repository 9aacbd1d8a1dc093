"""The results folder: what a run writes, and nothing else; see docs/results.md for every file and
key.

A stage commits by one atomic rename of its folder. ``records.jsonl`` beside ``runs/`` is rebuilt
from the committed stages, again by a rename, so that a reader never sees half a line: while runs go
on as often as takes a fiftieth of the time, and at their end. Several processes may work on
different runs of one folder.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import check_folder, locked, read_json, read_jsonl, write_json, write_text
from harness.results.formats import LATER, VERSION
from harness.results.selection import grid_selection

SMALL = 1_000_000  # bytes of a records.jsonl that is rebuilt at every commit, in some milliseconds
PAUSE = 50  # a larger one rests so many times as long as its rebuilding took
# what a killed start or a look beforehand leaves
LEFT_BEFORE_RESULTS = (".lock", ".results.json.partial", "teacher_check")


class ResultsWriter:
    """A results folder, opened for writing."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.asked = set()  # evaluations that a judge was asked about since this was opened
        # by time.monotonic(), when refresh rebuilds again; at once at first: a killed process may
        # have left stages
        self._due = 0.0

    def check(self, about):
        """What results.json becomes if this order goes on here. Raises UserError if the folder is
        another's.

        about: what results.json holds for the order. What must not change between two starts of one
        folder: all that the numbers depend on; to the methods and the seeds a later start may add.
        """
        path = self.folder / "results.json"
        check_folder(self.folder)
        if not path.exists():
            if self.folder.exists() and any(
                f.name not in LEFT_BEFORE_RESULTS for f in self.folder.iterdir()
            ):
                raise UserError(
                    self.folder,
                    "is not empty and holds no results.json",
                    "give another folder with --out",
                )
            return about
        old = read_json(path, remedy="move the folder away and start anew")
        if old.get("version") != VERSION:
            raise UserError(
                path,
                f"is of version {old.get('version')}, not {VERSION}",
                "move the folder away, or give another one with --out",
            )
        methods, seeds = old.get("methods"), old.get("seeds")
        if not (
            isinstance(methods, dict)
            and all(isinstance(m, dict) for m in methods.values())
            and isinstance(seeds, list)
            and all(isinstance(s, int) for s in seeds)
        ):
            raise UserError(
                path,
                "has no `methods` and `seeds` as a run writes them",
                "move the folder away and start anew",
            )
        for part in ("model", "budget", "rollout", "evaluate", "skills", "retention"):
            _same(
                _undescribed(old.get(part)),
                _undescribed(_without_later(about[part], old.get(part))),
                part,
                path,
                "give another folder with --out, or move this one away",
            )
        for label in set(methods) & set(about["methods"]):
            for part, key in (
                ("method", f"methods.{label}.method"),
                ("config", f"methods.{label}"),
                ("files", f"methods.{label}.files"),
            ):
                _same(
                    methods[label].get(part),
                    about["methods"][label].get(part),
                    key,
                    path,
                    "give the changed method another label, or another folder with --out",
                )
        return {
            **about,
            "methods": {**methods, **about["methods"]},
            "seeds": sorted({*seeds, *about["seeds"]}),
        }

    def open(self, about):
        """Create the folder or go on with it; see check."""
        self.check(about)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            write_json(self.folder / "results.json", self.check(about))

    def _alone(self):
        """Nobody else reads and then writes what all runs share."""
        return locked(self.folder / ".lock")

    def protocol(self, key, meaning):
        """Put a protocol on record, once."""
        path = self.folder / "protocols.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = read_json(path) if path.exists() else {}
            if key not in known:
                write_json(path, dict(sorted({**known, key: meaning}.items())))

    def evaluation(self, key):
        """An evaluation made before, or None."""
        path = self.folder / "evaluations" / f"{key}.json"
        if not path.exists():
            return None
        return read_json(
            path,
            "protocol",
            "kind",
            "name",
            "split",
            "n",
            "metrics",
            "items",
            remedy="remove it: it is measured again",
        )

    def save_evaluation(self, key, evaluation):
        write_json(self.folder / "evaluations" / f"{key}.json", evaluation)

    def run(self, name):
        return self.folder / "runs" / name

    def stage(self, run, stage):
        return self.run(run) / f"stage-{stage}"

    def committed(self, run, stage):
        return (self.stage(run, stage) / "stage.json").exists()

    def commit(self, partial, run, stage):
        """The stage is done: its folder takes its name, once the disk has all that is in it."""
        for path in Path(partial).rglob("*"):
            if path.is_file() and path.parent.name != "checkpoint":  # which goes now
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        final = self.stage(run, stage)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self.refresh()

    def refresh(self):
        """``rebuild``, if a large records.jsonl has rested since: what many stages cost grows with
        their time, not with their square.
        """
        if time.monotonic() >= self._due:
            self.rebuild()

    def rebuild(self):
        """records.jsonl from the committed stages of all runs, in the order of run and stage, what
        was judged after what was measured.
        """
        with self._alone():
            start = time.monotonic()
            files = [
                f
                for f in self.folder.glob("runs/*/stage-*/records.jsonl")
                if re.fullmatch(r"stage-\d+", f.parent.name) and (f.parent / "stage.json").exists()
            ]
            files.sort(
                key=lambda f: (f.parent.parent.name, int(f.parent.name.removeprefix("stage-")))
            )
            judged = [f.with_name("judged.jsonl") for f in files]
            text = "".join(
                f.read_text(encoding="utf-8")
                for pair in zip(files, judged)
                for f in pair
                if f.exists()
            )
            write_text(self.folder / "records.jsonl", text)
            about = read_json(self.folder / "results.json", "methods")
            if any("grid" in entry for entry in about["methods"].values()):
                write_json(
                    self.folder / "selection.json",
                    grid_selection(
                        about, (row for _, row in read_jsonl(self.folder / "records.jsonl"))
                    ),
                )
        end = time.monotonic()
        self._due = end + PAUSE * (end - start) * (len(text) > SMALL)

    def selection(self):
        """What the grids have selected so far; {} where there is none. See the function of the same
        name.
        """
        path = self.folder / "selection.json"
        return read_json(path) if path.exists() else {}


def _undescribed(part):
    """A part of results.json without the descriptions of its entries, which are words for the
    reader.
    """
    if not isinstance(part, list):
        return part
    return [
        {k: v for k, v in entry.items() if k != "description"} if isinstance(entry, dict) else entry
        for entry in part
    ]


def _without_later(new, old):
    """A part of results.json without the keys of LATER that the entry of ``old`` in the same place
    does not have.
    """
    if not (isinstance(new, list) and isinstance(old, list) and len(new) == len(old)):
        return new
    return [
        {k: v for k, v in entry.items() if k not in LATER or k in before}
        if isinstance(before, dict)
        else entry
        for entry, before in zip(new, old)
    ]


def _same(old, new, key, path, remedy):
    """Raises UserError naming the first key whose value differs."""
    new = json.loads(json.dumps(new, default=str))  # as results.json would give it back
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        for name in new:
            _same(old[name], new[name], f"{key}.{name}", path, remedy)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new)):
            _same(*pair, f"{key}[{i}]", path, remedy)
    elif old != new:
        raise UserError(path, f"`{key}` was {_short(old)} and is now {_short(new)}", remedy)


def _short(value):
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 90 else text[:87] + "..."
