"""The results folder: what a run writes, and nothing else; see docs/results.md for every file and key.

A stage commits by one atomic rename of its folder. ``records.jsonl`` beside ``runs/`` is rebuilt from the committed stages,
again by a rename, so that a reader never sees half a line: while runs go on as often as takes a fiftieth of the time, and at their
end. Several processes may work on different runs of one folder.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from harness import metrics
from harness.errors import UserError
from harness.skills import read_jsonl

VERSION = 1
# What the results of an order may be for: a figure or table of arXiv 2601.19897 (figure 4 shows what table 5 holds).
EXPERIMENTS = ("figure_2_right", "figure_3", "figure_5_left", "figure_5_right", "figure_6", "figure_7", "figure_8",
               "table_1", "table_2", "table_5")
ORACLE = "oracle_"  # before the name of a metric: of the base model with the question's source in its prompt
SMALL = 1_000_000  # bytes of a records.jsonl that is rebuilt at every commit, in some milliseconds
LONGEST_NAME = 255  # bytes of a file's name, on all file systems that matter
PAUSE = 50  # a larger one rests so many times as long as its rebuilding took
# Keys of a skill or a retention task in results.json that folders from before they were written lack; compared where they are there.
LATER = ("evaluated", "graders", "num_fewshot", "chat_template", "limit", "max_gen_toks")
LEFT_BEFORE_RESULTS = (".lock", ".results.json.partial", "teacher_check")  # what a killed start or a look beforehand leaves


def write_json(path, value):
    """Write JSON by an atomic rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path, text):
    """Write a text by an atomic rename; what a killed process left of the same file is written over."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with locked(path.parent):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def locked(path, wait=True):
    """Hold the lock of a folder or a file, across processes; it ends with the process that holds it, however that ends.

    Raises BlockingIOError if it is held by another and ``wait`` is false. A file system without locks grants all.
    """
    handle = os.open(path, os.O_RDONLY if Path(path).is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def write_jsonl(path, rows):
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path, *keys, remedy="put back a whole copy of it, or move the folder away and start anew"):
    """The object in a JSON file. Raises UserError if there is none, or none with these ``keys``."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, "is not there", remedy) from None
    except (ValueError, RecursionError):
        raise UserError(path, "is not JSON", remedy) from None
    if not isinstance(value, dict):
        raise UserError(path, "is not a JSON object", remedy)
    for key in keys:
        if key not in value:
            raise UserError(path, f"has no `{key}`", remedy)
    return value


def check_folder(path, remedy="give a folder with --out"):
    """Raises UserError if ``path`` is not a folder in which files can be written, and cannot become one."""
    nearest = Path(path).absolute()
    try:
        if too_long := next((part for part in nearest.parts if len(os.fsencode(part)) > LONGEST_NAME), None):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), too_long)
        while not nearest.exists():
            nearest = nearest.parent
    except OSError as error:
        raise UserError(path, f"cannot be a folder ({error.strerror})", remedy) from None
    if not nearest.is_dir():
        raise UserError(nearest, "is a file", remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(nearest, "cannot be written to", remedy)


class Results:
    """A results folder, opened for writing."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.asked = set()  # evaluations that a judge was asked about since this was opened
        self._due = 0.0  # by time.monotonic(), when refresh rebuilds again; at once at first: a killed process may have left stages

    def check(self, about):
        """What results.json becomes if this order goes on here. Raises UserError if the folder is another's.

        about: what results.json holds for the order. What must not change between two starts of one folder: all that the
        numbers depend on; to the methods and the seeds a later start may add.
        """
        path = self.folder / "results.json"
        check_folder(self.folder)
        if not path.exists():
            if self.folder.exists() and any(f.name not in LEFT_BEFORE_RESULTS for f in self.folder.iterdir()):
                raise UserError(self.folder, "is not empty and holds no results.json", "give another folder with --out")
            return about
        old = read_json(path, remedy="move the folder away and start anew")
        if old.get("version") != VERSION:
            raise UserError(path, f"is of version {old.get('version')}, not {VERSION}",
                            "move the folder away, or give another one with --out")
        methods, seeds = old.get("methods"), old.get("seeds")
        if not (isinstance(methods, dict) and all(isinstance(m, dict) for m in methods.values())
                and isinstance(seeds, list) and all(isinstance(s, int) for s in seeds)):
            raise UserError(path, "has no `methods` and `seeds` as a run writes them", "move the folder away and start anew")
        for part in ("model", "budget", "rollout", "evaluate", "skills", "retention"):
            _same(_undescribed(old.get(part)), _undescribed(_without_later(about[part], old.get(part))), part, path,
                  "give another folder with --out, or move this one away")
        for label in set(methods) & set(about["methods"]):
            for part, key in (("method", f"methods.{label}.method"), ("config", f"methods.{label}"), ("files", f"methods.{label}.files")):
                _same(methods[label].get(part), about["methods"][label].get(part), key, path,
                      "give the changed method another label, or another folder with --out")
        return {**about, "methods": {**methods, **about["methods"]}, "seeds": sorted({*seeds, *about["seeds"]})}

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
        return read_json(path, "protocol", "kind", "name", "split", "n", "metrics", "items", remedy="remove it: it is measured again")

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
        """``rebuild``, if a large records.jsonl has rested since: what many stages cost grows with their time, not with their square."""
        if time.monotonic() >= self._due:
            self.rebuild()

    def rebuild(self):
        """records.jsonl from the committed stages of all runs, in the order of run and stage, what was judged after what was measured."""
        with self._alone():
            start = time.monotonic()
            files = [f for f in self.folder.glob("runs/*/stage-*/records.jsonl")
                     if re.fullmatch(r"stage-\d+", f.parent.name) and (f.parent / "stage.json").exists()]
            files.sort(key=lambda f: (f.parent.parent.name, int(f.parent.name.removeprefix("stage-"))))
            judged = [f.with_name("judged.jsonl") for f in files]
            text = "".join(f.read_text(encoding="utf-8") for pair in zip(files, judged) for f in pair if f.exists())
            write_text(self.folder / "records.jsonl", text)
            about = read_json(self.folder / "results.json", "methods")
            if any("grid" in entry for entry in about["methods"].values()):
                write_json(self.folder / "selection.json", selection(about, (row for _, row in read_jsonl(self.folder / "records.jsonl"))))
        end = time.monotonic()
        self._due = end + PAUSE * (end - start) * (len(text) > SMALL)

    def selection(self):
        """What the grids have selected so far; {} where there is none. See the function of the same name."""
        path = self.folder / "selection.json"
        return read_json(path) if path.exists() else {}


def selection(about, records):
    """The choice of every grid, by validation records alone.

    A point of a grid is worth its mean own-stage validation accuracy: of each skill right after the stage that taught it, by
    the metric that counts, averaged over the skills, then over the seeds. For one skill that is the paper's rule (arXiv
    2601.19897, appendix). Only the ends of stages count, and nothing is selected before all points have run with all seeds. An
    answer that the judge gave no verdict on counts as wrong here, or a point would gain by its hard answers' missing ones.

    about: what results.json holds; records: dicts. Returns {label of the grid: {"rule", "selected": label of a point or None,
    "points": [{"label", "values", "validation": mean or None, "runs": {seed: mean over skills or None}}]}}.
    """
    records = list(records)
    seen = {(r["name"], r["metric"]) for r in records}
    metric = {}
    for skill in about["skills"]:  # where a judge has spoken, his metric is the one that counts
        judged = skill.get("judge", {}).get("metrics", [None])[0]
        metric[skill["name"]] = judged if (skill["name"], judged) in seen else skill["metric"]
    own, unjudged = {}, {}
    for r in records:
        if r["final"] and r["kind"] == "skill" and r["split"] == "validation" and r["name"] == r["skill"]:
            if r["metric"] == metric.get(r["name"]):
                own.setdefault((r["method"], r["seed"]), {})[r["name"]] = r["value"]
            elif r["metric"] == "judge_errors":
                unjudged[r["method"], r["seed"], r["name"]] = r["value"]

    def worth(run):
        if len(own.get(run, ())) == len(metric):
            return sum(value * (1 - unjudged.get((*run, name), 0.0)) for name, value in own[run].items()) / len(metric)

    out = {}
    for label, entry in about["methods"].items():
        if grid := entry.get("grid"):
            runs = {str(seed): worth((label, seed)) for seed in about["seeds"]}
            mean = None if None in runs.values() else sum(runs.values()) / len(runs)
            chosen = out.setdefault(grid["of"], {"rule": "highest mean own-stage validation accuracy", "selected": None, "points": []})
            chosen["points"].append({"label": label, "values": grid["values"], "validation": mean, "runs": runs})
    for chosen in out.values():
        chosen["selected"] = metrics.select({point["label"]: list(point["runs"].values()) for point in chosen["points"]})
    return out


def _undescribed(part):
    """A part of results.json without the descriptions of its entries, which are words for the reader."""
    if not isinstance(part, list):
        return part
    return [{k: v for k, v in entry.items() if k != "description"} if isinstance(entry, dict) else entry for entry in part]


def _without_later(new, old):
    """A part of results.json without the keys of LATER that the entry of ``old`` in the same place does not have."""
    if not (isinstance(new, list) and isinstance(old, list) and len(new) == len(old)):
        return new
    return [{k: v for k, v in entry.items() if k not in LATER or k in before} if isinstance(before, dict) else entry
            for entry, before in zip(new, old)]


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
