"""Graders that a user's own JSONL skill can name: ``f(completion, reference) -> float in [0, 1]``.

A reference is one right answer or a list of right answers. A right answer that is no text is
compared as JSON. Nothing equals nothing: an answer of which nothing is left is wrong.
docs/reference/graders.md has answers that each grader accepts and refuses.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NoReturn

from harness.base.errors import UserError
from harness.skills.words import normalise


def right_answers(reference: Any) -> list[Any]:
    """The right answers that a reference names: itself, or the entries of a list."""
    return reference if isinstance(reference, list) else [reference]


def exact_match(completion: str, reference: Any) -> float:
    """1 if the completion equals a right answer, apart from white space at the ends."""
    return float(any(_equals(completion, answer) for answer in right_answers(reference)))


def normalised_match(completion: str, reference: Any) -> float:
    """1 if the completion equals a right answer after ``normalise``."""
    words = normalise(completion)
    return float(
        any(
            (bool(words) and words == normalise(_text(answer))) or _equals_json(completion, answer)
            for answer in right_answers(reference)
        )
    )


def contains(completion: str, reference: Any) -> float:
    """1 if a right answer occurs in the completion as whole words, after ``normalise``."""
    words = f" {normalise(completion)} "
    wanted = [normalise(_text(answer)) for answer in right_answers(reference)]
    return float(any(bool(answer) and f" {answer} " in words for answer in wanted))


def answer_tag(completion: str, reference: Any) -> float:
    """1 if the text of the last ``<answer>...</answer>``, stripped, equals a right answer.

    This is the grader of Science Q&A in arXiv 2601.19897.
    """
    tags = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return exact_match(tags[-1], reference) if tags else 0.0


def token_f1(completion: str, reference: Any) -> float:
    """SQuAD's F1 over normalised words; the best F1 over all right answers."""
    scores = (_word_f1(completion, _text(answer)) for answer in right_answers(reference))
    return max(scores, default=0.0)


def _word_f1(completion: str, answer: str) -> float:
    words = normalise(completion).split()
    wanted = normalise(answer).split()
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


GRADERS: dict[str, Callable[[str, Any], float]] = {
    grader.__name__: grader
    for grader in (exact_match, normalised_match, contains, answer_tag, token_f1)
}
# The graders that compare texts as they are; the others compare what ``normalise`` leaves.
LITERAL = ("exact_match", "answer_tag")


# ---- JSON ----------------------------------------------------------------------------------------


def _equals(completion: str, answer: Any) -> bool:
    """Whether a completion is the text ``answer``, or the JSON value."""
    if not isinstance(answer, str):
        return _equals_json(completion, answer)
    text = _canonical(completion)
    return bool(text) and text == _canonical(answer)


def _canonical(text: str) -> str:
    """Without white space at the ends; an accent is written in one way (Unicode's form NFC)."""
    return unicodedata.normalize("NFC", text).strip()


def _equals_json(completion: str, answer: Any) -> bool:
    """Whether a completion is the JSON value ``answer``, which is no text."""
    if isinstance(answer, str):
        return False
    try:
        return comparable(JSON.decode(completion)) == comparable(answer)
    except (ValueError, RecursionError):
        return False


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


JSON = json.JSONDecoder(parse_constant=_refuse)


def comparable(value: Any) -> Hashable:
    """A hashable form in which two JSON values are equal exactly if they are the same.

    Objects have no order; 1 is 1.0 but not true. Raises RecursionError for what is nested deeply.
    """
    if isinstance(value, dict):
        return "object", frozenset((key, comparable(each)) for key, each in value.items())
    if isinstance(value, list):
        return "list", tuple(map(comparable, value))
    return type(value).__name__ if isinstance(value, bool | str) else "number", value


# ---- references ----------------------------------------------------------------------------------


def check_reference(reference: Any, grader: str, place: str) -> None:
    """Raises UserError at ``place`` for a reference that no answer can equal."""
    answers = right_answers(reference)
    if not answers:
        raise UserError(place, "`reference` is an empty list", "name at least one right answer")
    for answer in answers:
        if answer is None:
            where = "is" if reference is None else "holds"
            raise UserError(place, f"`reference` {where} null", "give the right answer")
        if isinstance(answer, float) and not math.isfinite(answer):
            raise UserError(place, "`reference` holds a number that JSON has not", "give a text")
        text = _text(answer)
        if not text.strip():
            raise UserError(place, "`reference` is an empty text", "give the right answer")
        if grader not in LITERAL and not normalise(text):
            raise UserError(
                place,
                f"`reference` {text[:40]!r} holds no word, and {grader} compares words",
                "grade such answers by exact_match or answer_tag",
            )
