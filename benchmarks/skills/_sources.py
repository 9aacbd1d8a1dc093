"""Data of the paper's skills (arXiv 2601.19897, section 4): tooluse, science, medical and wiki.

The data come from a local folder, from the authors' repository at a pinned commit, or from the hub
at pinned revisions. Rows keep the authors' columns. Each skill turns its own rows into examples and
refuses rows that do not fit.
"""

import hashlib
import http.client
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import object_of, read_jsonl
from harness.base.json_text import check_characters, has_halves
from harness.skills.graders import check_reference
from harness.skills.skill import Example, Metric, Skill
from harness.skills.templates import Message, is_chat

# The authors' repository has moved. Both names lead to the same commits, of 12 March 2026. Git's
# blob ids pin the files.
REPOSITORIES = ("Continual-Intelligence/Self-Distillation", "idanshen/Self-Distillation")
COMMIT = "0570f07ed34f568e2662a8d5caa4624364bff62c"
SERVER = "https://raw.githubusercontent.com"

SEED = 42  # of every split that this file draws
SPLITS = {  # split: names that a file (before its ending) or a folder of ``datasets`` may have
    "train": ("train_data", "train"),
    "validation": ("validation_data", "val_data", "validation", "val"),
    "test": ("eval_data", "test_data", "eval", "test"),
    "ood": ("ood_data", "ood"),
}
ENDINGS = (".jsonl", ".json", ".parquet", ".arrow")


def held_out(examples: Sequence[Example], count: int, split: str, place: str) -> list[Example]:
    """The ``split`` train or validation of train examples: ``count`` questions are validation.

    By question, so that one that occurs twice is not in both. Raises UserError at ``place`` where
    none is left to train on.
    """
    questions = draw(map(question_of, examples))
    if count >= len(questions):
        raise UserError(
            place, f"is {count} of {len(questions)} questions", "leave some to train on"
        )
    out = set(questions[:count])
    return [e for e in examples if (question_of(e) in out) == (split == "validation")]


class PaperSkill(Skill):
    """A skill in the authors' columns.

    Args:
        path: a folder with one file (JSONL, JSON, Parquet, Arrow) or one ``save_to_disk`` folder a
            split, a clone of the authors' repository, or a folder with the files of the hub.
            Without it the data are fetched.
        holdout: how many train questions become the validation split, where the source has none.
        source: ``hub`` or ``released``, where a skill has both; ``released`` by default.

    A subclass defines ``example(row, split, number, place)``, and ``from_hub(split)`` where it
    names files of the hub.
    """

    options = ("path", "holdout")
    max_new_tokens = 2048  # greedy; a shorter limit changes the score
    released: Mapping[str, tuple[str, str]] = {}  # split: (file of the authors, git's blob id)
    hub: Mapping[str, tuple[str, str]] = {}  # file: (dataset of the hub, revision)
    wanted = "train.jsonl and test.jsonl"

    def __init__(
        self, path: str | None = None, holdout: int | None = None, source: str | None = None
    ) -> None:
        self.path = None if path is None else Path(os.path.expanduser(path))
        self.holdout = holdout
        self.source = source or ("released" if self.released else "hub")
        self._files: dict[str, Path] = {}
        place = f"skill {self.name}"
        if self.path is not None and source != "hub":
            self._files = find_splits(self.path, self.name, place)
        if self.path is not None and not self._files:
            self._check_hub_folder(place)
            self.source = "hub"
        if self._files or self.source == "released":
            self.splits = tuple(self._files or self.released)
        if holdout is not None:
            if "validation" in self.splits:
                raise UserError(
                    f"{place}: holdout", "the source has a validation split", "leave it out"
                )
            if "train" not in self.splits:
                raise UserError(
                    f"{place}: holdout", "the source has no train split", "leave it out"
                )
            self.splits = ("train", "validation", *self.splits[1:])

    def _check_hub_folder(self, place: str) -> None:
        """Raises UserError if ``path`` does not hold all files of the hub."""
        if self.hub and all(map(self._local, self.hub)):
            return
        files = f" or {' and '.join(self.hub)}" if self.hub else ""
        raise UserError(
            f"{place}: path",
            f"{self.path} holds no data of {self.name}",
            f"it must hold {self.wanted}{files}",
        )

    def example(self, row: Mapping[str, Any], split: str, number: int, place: str) -> Example:
        """The Example of a row of the source.

        Raises UserError naming ``place`` and the column that does not fit.
        """
        raise TypeError(f"skill {self.name!r} has no example()")

    def from_hub(self, split: str) -> list[Example]:
        """The examples of a split, made from the files of ``hub``."""
        raise UserError(
            f"skill {self.name}",
            "has no data of its own",
            f"set `path` to a folder with {self.wanted}",
        )

    def load(self, split: str) -> list[Example]:
        if not self.holdout or split not in ("train", "validation"):
            return self._read(split)
        return held_out(self._read("train"), self.holdout, split, f"skill {self.name}: holdout")

    def reference(self, row: Mapping[str, Any], place: str) -> Any:
        """``reference`` itself, or what the skill's own columns say."""
        if "reference" in row:
            return super().reference(row, place)
        return self.example(row, "test", 0, place).reference

    def _read(self, split: str) -> list[Example]:
        if self._files:
            file = self._files[split]
        elif self.source == "released":
            file = fetch_released(*self.released[split], f"skill {self.name}")
        else:
            return self.from_hub(split)
        examples = [
            self.example(row, split, number, f"{file}, row {number}")
            for number, row in read_rows(file)
        ]
        if not examples:
            raise UserError(file, "has no rows")
        return examples

    def _local(self, file: str) -> Path | None:
        """A file of the hub below ``path``, in its place or at the top; None if it is missing."""
        assert self.path is not None
        places = (self.path / file, self.path / Path(file).name)
        return next((place for place in places if place.is_file()), None)

    def hub_file(self, file: str) -> Path:
        """Path of a file of ``hub``: in ``path``, in the hub's cache, or downloaded."""
        local = self._local(file) if self.path is not None else None
        return local or fetch_hub(*self.hub[file], file, f"skill {self.name}")


def question_of(example: Example) -> str:
    """The text of the question, by which splits are separated."""
    return example.prompt[-1]["content"]


def draw(texts: Iterable[str]) -> list[str]:
    """The different texts in a random order that depends on SEED and the texts alone."""
    return sorted(set(texts), key=lambda text: hashlib.sha256(f"{SEED} {text}".encode()).digest())


def on_answer(grader: Metric) -> Metric:
    """``grader`` against the answer of a reference.

    The reference is ``{"question", "answer"}``, the form that a judge needs, or a plain text.
    """

    @wraps(grader)  # the protocol then names the grader's own source beside this one
    def grade(completion: str, reference: Any) -> float:
        return grader(completion, reference["answer"] if isinstance(reference, dict) else reference)

    return grade


# ---- columns ------------------------------------------------------------------------------------


def text(row: Mapping[str, Any], names: Sequence[str], place: str) -> str:
    """The first of the columns ``names`` that the row has.

    Raises UserError at ``place`` if there is none, or if it is not a text or empty.
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


def answer_text(row: Mapping[str, Any], names: Sequence[str], place: str) -> str:
    """``text`` of a column that graders compare by its words. Raises UserError if it has none."""
    answer = text(row, names, place)
    check_reference(answer, "contains", place)
    return answer


def chat(
    row: Mapping[str, Any], name: str, roles: tuple[list[str], ...], place: str
) -> list[Message]:
    """Column ``name`` as chat messages whose roles are one of ``roles``. Raises UserError."""
    turns = row.get(name)
    if (
        not isinstance(turns, list)
        or not is_chat(turns)
        or [turn["role"] for turn in turns] not in roles
        or not turns[-1]["content"].strip()
    ):
        raise UserError(
            f"{place}: {name}",
            "must be chat messages [{role, content}, ...]",
            "their roles must be " + " or ".join(", ".join(sequence) for sequence in roles),
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


# ---- files --------------------------------------------------------------------------------------


def find_splits(folder: Path, skill: str, place: str) -> dict[str, Path]:
    """{split: file or folder} of the data of ``skill``.

    Looks in ``folder``, ``folder/SKILL_data`` and ``folder/data/SKILL_data``. Raises UserError if
    ``folder`` is no folder or a split has two files.
    """
    if not folder.is_dir():
        raise UserError(
            f"{place}: path", f"{folder} is not a folder", "give a folder with the skill's data"
        )
    for root in (folder, folder / f"{skill}_data", folder / "data" / f"{skill}_data"):
        splits = {}
        for split, stems in SPLITS.items():
            names = (*stems, *(f"{skill}_{stem}" for stem in stems))
            files = [root / name for name in names if (root / name / "state.json").is_file()]
            candidates = (root / f"{name}{ending}" for name in names for ending in ENDINGS)
            files += [path for path in candidates if path.is_file()]
            if len(files) > 1:
                raise UserError(
                    f"{place}: path",
                    f"{files[0]} and {files[1].name} are both the {split} split",
                    "keep one of them",
                )
            if files:
                splits[split] = files[0]
        if splits:
            return splits
    return {}


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 1, object) of a data file or of a folder that ``datasets`` saved.

    Raises UserError for a file that cannot be read and for a row that is no object.
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
            rows = read_value(path)
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


def read_value(path: Path) -> Any:
    """The value in a JSON file.

    Raises UserError for a file that cannot be read, or in which a key stands twice in an object;
    naming the row for half a character.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=object_of)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(path, f"cannot be read ({type(error).__name__}: {error})") from None
    if has_halves(text):
        for number, row in enumerate(value if isinstance(value, list) else [], 1):
            check_characters(row, f"{path}, row {number}")
        check_characters(value, str(path))
    return value


def _arrow(path: Path) -> list[Any]:
    """Rows of a file of ``datasets``, read without that package.

    A version of ``datasets`` cannot load a feature that it does not know ("List").
    """
    import pyarrow

    with open(path, "rb") as file:
        return pyarrow.ipc.open_stream(file).read_all().to_pylist()


def blob_id(data: bytes) -> str:
    """Git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def fetch_released(file: str, blob: str, place: str) -> Path:
    """Path of a file of the authors' repository at COMMIT, kept in the cache folder.

    Raises UserError if it cannot be fetched or has another blob id.
    """
    return fetch_blob(REPOSITORIES, COMMIT, file, blob, place)


def fetch_blob(repositories: Sequence[str], commit: str, file: str, blob: str, place: str) -> Path:
    """Path of a file of a GitHub repository at a commit, kept in the cache folder.

    repositories: names that lead to the same commits; blob: git's id of the file. Raises UserError
    at ``place`` if the file cannot be fetched or has another id.
    """
    # Imported here, because it takes the seconds that PyTorch takes to import.
    from harness.models.embedded import cache_folder

    target = cache_folder() / "released" / commit[:12] / file
    if target.is_file():
        return target
    reason = ""
    for repository in repositories:
        url = f"{SERVER}/{repository}/{commit}/{urllib.parse.quote(file)}"
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
        f"without network, set `path` to a clone of {repositories[0]} at {commit[:12]}, or to a "
        "folder of your own",
    )


def fetch_hub(dataset: str, revision: str, file: str, place: str) -> Path:
    """Path of a file of a hub dataset at a commit, in the hub's own cache. Raises UserError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub's client, its HTTP library and cache have their own errors
        raise UserError(
            place,
            f"{file} of {dataset} cannot be had ({type(error).__name__})",
            "with network, unset HF_HUB_OFFLINE; without, set HF_HOME to a cache that holds "
            f"revision {revision[:12]}, or `path` to a folder with the file",
        ) from error
