"""questions/PROTOCOL.json.gz: what a retention task asked, kept once for all its evaluations.

An evaluation of a task holds answers and scores. Its questions are the same whatever model answers:
they are part of the protocol. So they are kept apart, compressed, and in bounds: a suite may hold
more text than all that a folder is for.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from harness.base.errors import UserError
from harness.base.files import write_file
from harness.results.formats import EVALUATION_KEY, Shape, check_shape

MOST_OF_A_FILE = 2_000_000  # bytes, compressed
MOST_OF_ALL = 20_000_000  # bytes of all files of a results folder
MOST_UNPACKED = 200_000_000  # bytes of a file that a reader takes
LETTERS = (None, 4000, 1000, 300, 100)  # kept of a text, the most that fits
REMEDY = "remove it: a report goes without these questions"


class AskedQuestion(TypedDict):
    """One document of a retention task.

    choices: the texts whose likelihoods were compared; reference: the right answer, or the text
    whose likelihood was measured.
    """

    id: str
    prompt: str
    reference: NotRequired[str]
    choices: NotRequired[list[str]]


SHAPE: Shape = [{"id": str, "prompt": str, "reference?": str, "choices?": [str]}]


def save_questions(folder: Path, protocol: str, questions: Sequence[AskedQuestion]) -> None:
    """Keeps the questions of a protocol in a results folder, unless they are there already.

    Texts are cut where the file would be larger than MOST_OF_A_FILE. Nothing is kept where even
    that does not help, or where the folder's files would be larger than MOST_OF_ALL.
    """
    path = _path(folder, protocol)
    if path.exists():
        return
    data = _packed(questions)
    if data is not None:
        others = sum(file.stat().st_size for file in path.parent.glob("*.json.gz"))
        if others + len(data) <= MOST_OF_ALL:
            write_file(path, lambda file: file.write(data))


def read_questions(folder: Path, protocol: object) -> dict[str, AskedQuestion]:
    """{item id: question} of a protocol, {} where none are kept.

    Raises UserError for a file that is not of this form.
    """
    if not isinstance(protocol, str) or not EVALUATION_KEY.fullmatch(protocol):
        return {}
    path = _path(folder, protocol)
    if not path.is_file():
        return {}
    try:
        with gzip.open(path) as file:
            data = file.read(MOST_UNPACKED + 1)
        questions = json.loads(data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        raise UserError(path, "is damaged or too large", REMEDY) from None
    check_shape(path, questions, SHAPE, "")
    return {question["id"]: question for question in questions}


def _path(folder: Path, protocol: str) -> Path:
    return folder / "questions" / f"{protocol}.json.gz"


def _packed(questions: Sequence[AskedQuestion]) -> bytes | None:
    """The bytes of a file with the longest texts that it has room for, None where it has none."""
    for letters in LETTERS:
        texts = questions if letters is None else [_cut(each, letters) for each in questions]
        # ASCII: half of a pair of surrogates is an escape. No time: the same texts, the same bytes.
        data = gzip.compress(json.dumps(texts).encode("ascii"), compresslevel=6, mtime=0)
        if len(data) <= MOST_OF_A_FILE:
            return data
    return None


def _cut(question: AskedQuestion, letters: int) -> AskedQuestion:
    """The end of the prompt, which asks, and the beginnings of the other texts."""
    cut: AskedQuestion = {**question, "prompt": _shortened(question["prompt"], letters, end=True)}
    if "reference" in question:
        cut["reference"] = _shortened(question["reference"], letters)
    if "choices" in question:
        cut["choices"] = [_shortened(choice, letters) for choice in question["choices"]]
    return cut


def _shortened(text: str, letters: int, end: bool = False) -> str:
    if len(text) <= letters:
        return text
    gone = f"({len(text) - letters:,} letters left out)"
    return f"{gone} … {text[-letters:]}" if end else f"{text[:letters]} … {gone}"
