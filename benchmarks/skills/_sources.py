"""Where the data of the paper's skills come from: a local folder, the authors' repository at a
pinned commit, or the hub at pinned revisions. Shared by tooluse, science, medical and wiki (arXiv
2601.19897, section 4).

Rows keep the authors' columns; each skill turns its own rows into examples and refuses those that
do not fit.
"""

import hashlib
import http.client
import json
import os
import urllib.request
from functools import wraps
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import read_jsonl
from harness.skills.skill import Skill

# The authors' repository has moved; both names lead to the same commits, of 12 March 2026. Files
# are pinned by git's own blob ids.
REPOSITORIES = ("Continual-Intelligence/Self-Distillation", "idanshen/Self-Distillation")
COMMIT = "0570f07ed34f568e2662a8d5caa4624364bff62c"
SERVER = "https://raw.githubusercontent.com"

SEED = 42  # of every split that is made here
SPLITS = {  # split: names that a file (before its ending) or a folder of ``datasets`` may have
    "train": ("train_data", "train"),
    "validation": ("validation_data", "val_data", "validation", "val"),
    "test": ("eval_data", "test_data", "eval", "test"),
    "ood": ("ood_data", "ood"),
}
ENDINGS = (".jsonl", ".json", ".parquet", ".arrow")


class PaperSkill(Skill):
    """A skill in the authors' columns.

    path: a folder with one file (JSONL, JSON, Parquet, Arrow) or one ``save_to_disk`` folder a
    split, a clone of the authors' repository, or a folder with the files of the hub; without it the
    data are fetched. holdout: train questions that become the validation split, where the source
    has none. source: ``hub`` or ``released``, where a skill has both; the second by default.

    A subclass gives ``example(row, split, number, place)``, and ``from_hub(split)`` where it names
    files of the hub.
    """

    options = ("path", "holdout")
    max_new_tokens = 2048  # greedy; a shorter limit changes the score
    released: dict = {}  # split: (file in the authors' repository, git's blob id)
    hub: dict = {}  # file: (dataset of the hub, revision)
    wanted = "train.jsonl and test.jsonl"

    def __init__(self, path=None, holdout=None, source=None):
        self.path, self.holdout = None if path is None else Path(os.path.expanduser(path)), holdout
        place = f"skill {self.name}"
        self.source, self._files = source or ("released" if self.released else "hub"), {}
        if self.path is not None and source != "hub":
            self._files = find_splits(self.path, self.name, place)
        if self.path is not None and not self._files:
            if not self.hub or not all(map(self._local, self.hub)):
                files = f" or {' and '.join(self.hub)}" if self.hub else ""
                raise UserError(
                    f"{place}: path",
                    f"{self.path} holds no data of {self.name}",
                    f"it must hold {self.wanted}{files}",
                )
            self.source = "hub"
        if self._files or self.source == "released":
            self.splits = tuple(self._files or self.released)
        if holdout is not None:
            if "validation" in self.splits or "train" not in self.splits:
                has = (
                    "has a validation split"
                    if "validation" in self.splits
                    else "has no train split"
                )
                raise UserError(f"{place}: holdout", f"the source {has}", "leave it out")
            self.splits = ("train", "validation", *self.splits[1:])

    def example(self, row, split, number, place):
        """The Example of a row of the source. Raises UserError naming ``place`` and the column that
        does not fit.
        """
        raise TypeError(f"skill {self.name!r} has no example()")

    def from_hub(self, split):
        """Examples of a split made from the files of ``hub``."""
        raise UserError(
            f"skill {self.name}",
            "has no data of its own",
            f"set `path` to a folder with {self.wanted}",
        )

    def load(self, split):
        if not self.holdout or split not in ("train", "validation"):
            return self._read(split)
        rows = self._read("train")
        questions = draw(question_of(e) for e in rows)
        if self.holdout >= len(questions):
            raise UserError(
                f"skill {self.name}: holdout",
                f"is {self.holdout} of {len(questions)} questions",
                "leave some to train on",
            )
        # by question, so that one that stands twice is not in both splits
        held = set(questions[: self.holdout])
        return [e for e in rows if (question_of(e) in held) == (split == "validation")]

    def reference(self, row, place):
        """``reference`` itself, or what the skill's own columns say."""
        return (
            row["reference"]
            if "reference" in row
            else self.example(row, "test", 0, place).reference
        )

    def _read(self, split):
        if self._files:
            file = self._files[split]
        elif self.source == "released":
            file = fetch_released(*self.released[split], f"skill {self.name}")
        else:
            return self.from_hub(split)
        rows = [
            self.example(row, split, number, f"{file}, row {number}")
            for number, row in read_rows(file)
        ]
        if not rows:
            raise UserError(file, "has no rows")
        return rows

    def _local(self, file):
        """A file of the hub below ``path``, in its place or at the top; None if it is not there."""
        return next(
            (p for p in (self.path / file, self.path / Path(file).name) if p.is_file()), None
        )

    def hub_file(self, file):
        """Path of a file of ``hub``: from ``path`` or the hub's cache, else downloaded."""
        return (
            self._local(file)
            if self.path is not None
            else fetch_hub(*self.hub[file], file, f"skill {self.name}")
        )


def question_of(example):
    """The text of the question, by which splits are kept apart."""
    return example.prompt[-1]["content"]


def draw(texts):
    """The different texts in a random order that depends on SEED and on the texts alone, not on
    where they stood.
    """
    return sorted(set(texts), key=lambda text: hashlib.sha256(f"{SEED} {text}".encode()).digest())


def on_answer(grader):
    """``grader`` on what follows a completion's reasoning (``</think>``; nothing where that was cut
    off), against the answer of a reference ``{"question", "answer"}``, the form that a judge needs;
    or against a plain text.
    """

    @wraps(grader)  # so that the protocol names the grader's own source beside this one
    def grade(completion, reference):
        answer = completion.rpartition("</think>")[2].split("<think>")[0]
        return grader(answer, reference["answer"] if isinstance(reference, dict) else reference)

    return grade


# ---- columns ----------------------------------------------------------------------------------------------------


def text(row, names, place):
    """The first of the columns ``names`` that the row has: a text that is not empty. Raises
    UserError.
    """
    name = next((n for n in names if row.get(n) is not None), None)
    if name is None:
        raise UserError(
            f"{place}: {names[0]}",
            "is missing",
            "the columns are " + (", ".join(map(str, row)) or "none"),
        )
    if not isinstance(row[name], str) or not row[name].strip():
        raise UserError(f"{place}: {name}", "must be a text that is not empty")
    return row[name]


def chat(row, name, endings, place):
    """Column ``name`` as chat messages whose roles are one of ``endings``. Raises UserError."""
    turns = row.get(name)
    good = isinstance(turns, list) and all(
        isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str)
        for t in turns
    )
    if not good or [t["role"] for t in turns] not in endings or not turns[-1]["content"].strip():
        raise UserError(
            f"{place}: {name}",
            "must be chat messages [{role, content}, ...]",
            "their roles must be " + " or ".join(", ".join(e) for e in endings),
        )
    return [{"role": t["role"], "content": t["content"]} for t in turns]


# ---- files ------------------------------------------------------------------------------------------------------


def find_splits(folder, skill, place):
    """{split: file or folder} of the data of ``skill`` in ``folder``, ``folder/SKILL_data`` or
    ``folder/data/SKILL_data``.
    """
    if not folder.is_dir():
        raise UserError(
            f"{place}: path", f"{folder} is not a folder", "give a folder with the skill's data"
        )
    for root in (folder, folder / f"{skill}_data", folder / "data" / f"{skill}_data"):
        found = {}
        for split, stems in SPLITS.items():
            stems += tuple(f"{skill}_{stem}" for stem in stems)
            files = [root / s for s in stems if (root / s / "state.json").is_file()]
            files += [p for s in stems for e in ENDINGS if (p := root / f"{s}{e}").is_file()]
            if len(files) > 1:
                raise UserError(
                    f"{place}: path",
                    f"{files[0]} and {files[1].name} are both the {split} split",
                    "keep one of them",
                )
            if files:
                found[split] = files[0]
        if found:
            return found
    return {}


def read_rows(path):
    """Yields (row number from 1, object) of a data file or of a folder that ``datasets`` saved.
    Raises UserError.
    """
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    import pyarrow
    import pyarrow.parquet

    try:
        if path.is_dir():
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            rows = [row for file in state["_data_files"] for row in _arrow(path / file["filename"])]
        elif path.suffix == ".arrow":
            rows = _arrow(path)
        elif path.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            rows = json.loads(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        pyarrow.ArrowException,
    ) as error:
        raise UserError(path, f"cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(rows, list):
        raise UserError(path, "is not a list of JSON objects")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}", "is not a JSON object")
        yield number, row


def _arrow(path):
    """Rows of a file of ``datasets``, read without that package: what a version cannot name
    ("List") it cannot load.
    """
    import pyarrow

    with open(path, "rb") as file:
        return pyarrow.ipc.open_stream(file).read_all().to_pylist()


def blob_id(data):
    """Git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def fetch_released(file, blob, place):
    """Path of a file of the authors' repository at COMMIT, kept in the cache folder. Raises
    UserError.
    """
    # only here: it takes the seconds that PyTorch takes to import
    from harness.models.embedded import cache_folder

    target = cache_folder() / "released" / COMMIT[:12] / file
    if target.is_file():
        return target
    for repository in REPOSITORIES:
        url = f"{SERVER}/{repository}/{COMMIT}/{file}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            continue
        if blob_id(data) != blob:
            raise UserError(
                url,
                f"has the git id {blob_id(data)[:12]}, not {blob[:12]}",
                "give a clone of the repository as `path`",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(data)
        os.replace(part, target)
        return target
    raise UserError(
        place,
        f"the authors' data cannot be fetched ({reason})",
        f"without network, set `path` to a clone of {REPOSITORIES[0]} at {COMMIT[:12]}, or to a folder of your own",
    )


def fetch_hub(dataset, revision, file, place):
    """Path of a file of a dataset of the hub at a commit, in the hub's own cache. Raises UserError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=revision))
    except (
        Exception
    ) as error:  # the hub's client, its HTTP library and the cache each have errors of their own
        raise UserError(
            place,
            f"{file} of {dataset} cannot be had ({type(error).__name__})",
            f"with network, unset HF_HUB_OFFLINE; without, set HF_HOME to a cache that holds revision {revision[:12]}, or `path` to a "
            "folder with the file",
        ) from error
