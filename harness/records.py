"""The results folder: what a run writes, and nothing else; see docs/results.md for every file and key.

A stage commits by one atomic rename of its folder. ``records.jsonl`` beside ``runs/`` is rebuilt from the committed stages,
again by a rename, so that a reader never sees half a line.
"""

import json
import os
import shutil
from pathlib import Path

from harness.errors import UserError

VERSION = 1


def write_json(path, value):
    """Write JSON by an atomic rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_jsonl(path, rows):
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_lines(path):
    path = Path(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


class Results:
    """A results folder, opened for writing."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def open(self, about):
        """Create the folder or go on with it. Raises UserError if it belongs to another version or another order.

        about: what results.json holds. What must not change between two starts of one folder: all of it but the methods
        and the seeds, to which a later start may add.
        """
        path = self.folder / "results.json"
        if path.exists():
            try:
                old = read_json(path)
            except ValueError:
                raise UserError(path, "is not JSON", "move the folder away and start anew") from None
            if old.get("version") != VERSION:
                raise UserError(path, f"is of version {old.get('version')}, not {VERSION}",
                                "move the folder away, or give another one with --out")
            for part in ("model", "skills", "retention", "evaluate", "budget", "rollout"):
                if old.get(part) != about[part]:
                    raise UserError(path, f"`{part}` was {_short(old.get(part))} and is now {_short(about[part])}",
                                    "give another folder with --out, or move this one away")
            for label, method in old["methods"].items():
                if label in about["methods"] and about["methods"][label] != method:
                    raise UserError(path, f"`methods.{label}` was {_short(method)} and is now {_short(about['methods'][label])}",
                                    "give the changed method another label, or another folder with --out")
            about = {**about, "methods": {**old["methods"], **about["methods"]},
                     "seeds": sorted({*old["seeds"], *about["seeds"]})}
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(self.folder, "is not empty and holds no results.json", "give another folder with --out")
        write_json(path, about)

    def protocol(self, key, meaning):
        """Put a protocol on record, once."""
        path = self.folder / "protocols.json"
        known = read_json(path) if path.exists() else {}
        if key not in known:
            write_json(path, dict(sorted({**known, key: meaning}.items())))

    def evaluation(self, key):
        """An evaluation made before, or None."""
        path = self.folder / "evaluations" / f"{key}.json"
        return read_json(path) if path.exists() else None

    def save_evaluation(self, key, evaluation):
        write_json(self.folder / "evaluations" / f"{key}.json", evaluation)

    def run(self, name):
        return self.folder / "runs" / name

    def stage(self, run, stage):
        return self.run(run) / f"stage-{stage}"

    def committed(self, run, stage):
        return (self.stage(run, stage) / "stage.json").exists()

    def commit(self, partial, run, stage):
        """The stage is done: its folder takes its name."""
        final = self.stage(run, stage)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self.rebuild()

    def rebuild(self):
        """records.jsonl from the committed stages of all runs, in the order of run and stage."""
        files = self.folder.glob("runs/*/stage-*/records.jsonl")
        files = sorted((f for f in files if (f.parent / "stage.json").exists()),
                       key=lambda f: (f.parent.parent.name, int(f.parent.name.split("-")[1].split(".")[0])))
        files = [f for f in files if not f.parent.name.endswith(".partial")]
        write_text(self.folder / "records.jsonl", "".join(f.read_text(encoding="utf-8") for f in files))


def _short(value):
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 90 else text[:87] + "..."
