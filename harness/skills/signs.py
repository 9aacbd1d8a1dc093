"""Characters that stand for several words, such as ½, ㎧ and ㍿: they count as a whole alone.

Unicode's form NFKC makes a 1, a slash and a 2 of ½, which would be the words 1 and 2, so that ½
would hold the answer 2. The same holds for a sign that loses a part: ℃ would be C. Other characters
of this kind stay what NFKC makes of them: ﬁ is fi, ㎏ is kg, Ⅳ is IV, ⑫ is 12, and ⑴, in brackets,
is 1.

The graders that compare words are those of graders.py behind ``alike``; ``GRADERS`` has them all.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from harness.skills.graders import GRADERS as PLAIN
from harness.skills.graders import contains as plain_contains
from harness.skills.graders import normalised_match as plain_match
from harness.skills.graders import right_answers
from harness.skills.graders import token_f1 as plain_f1
from harness.skills.words import SMALL_DIGITS, WITHOUT_BLANKS, normalise

PRIVATE = (0xF0000, 0x100000 - 0x10000)  # planes of letters that Unicode gives no meaning
SLASHES = str.maketrans({"⁄": "/", "∕": "/"})


def contains(completion: str, reference: Any) -> float:
    """1 if a right answer occurs in the completion as whole words, after ``normalise``."""
    return _best(plain_contains, completion, reference)


def token_f1(completion: str, reference: Any) -> float:
    """SQuAD's F1 over normalised words; the best F1 over all right answers."""
    return _best(plain_f1, completion, reference)


def normalised_match(completion: str, reference: Any) -> float:
    """1 if the completion equals a right answer after ``normalise``."""
    if " " in normalise(completion) and plain_match(completion, reference):
        return 1.0  # all parts of a sign and of what is beside it
    return _best(plain_match, completion, reference)


GRADERS = {
    **PLAIN,
    **{grader.__name__: grader for grader in (normalised_match, contains, token_f1)},
}


def _best(grader: Callable[[str, Any], float], completion: str, reference: Any) -> float:
    """The score of the right answer that fits best, each compared ``alike``."""
    scores = (
        grader(*alike(completion, answer))
        if isinstance(answer, str)
        else grader(completion, [answer])
        for answer in right_answers(reference)
    )
    return max(scores, default=0.0)


def alike(completion: str, answer: str) -> tuple[str, str]:
    """Both texts with a private letter between blanks for each sign that stands for several words.

    Where one of them has such a sign and the other one its long form, as ½ and 1/2, both have the
    letter. Texts without signs stay as they are.
    """
    if completion.isascii() and answer.isascii():
        return completion, answer
    signs = [{letter for letter in text if is_sign(letter)} for text in (completion, answer)]
    if not any(signs):
        return completion, answer
    return _with_signs(completion, signs[1]), _with_signs(answer, signs[0])


@functools.cache
def is_sign(letter: str) -> bool:
    """Whether a character stands for several words, or for one and a symbol that is no word.

    Letters of a script without blanks, whose every character is a word, are as always.
    """
    if letter.isascii():
        return False
    long = unicodedata.normalize("NFKC", letter)
    if len(long) == 1 or long == unicodedata.normalize("NFC", letter):
        return False
    if _kind(letter) in "LM" and _is_word(letter):
        return False
    spaced = (f" {x} " if _is_word(x) else x if _kind(x) in "LMN" else " " for x in long)
    words = len("".join(spaced).split())
    return words > 1 or (words == 1 and any(_kind(x) == "S" for x in long))


def _kind(letter: str) -> str:
    return unicodedata.category(letter)[0]


def _is_word(letter: str) -> bool:
    """Whether a character is a word, in a script without blanks."""
    return unicodedata.name(letter, "").startswith(WITHOUT_BLANKS)


def _with_signs(text: str, others: set[str]) -> str:
    """A text in which each sign is a private letter between blanks, as are those of ``others``
    where the text has their long forms.
    """
    text = "".join(_private(letter) if is_sign(letter) else letter for letter in text)
    text = unicodedata.normalize("NFKC", SMALL_DIGITS.sub(" ", text))
    for sign in sorted(others, key=lambda sign: (-len(_long(sign)), sign)):
        text = _pattern(sign).sub(_private(sign), text.translate(SLASHES))
    return text


def _private(sign: str) -> str:
    code = ord(sign)
    return f" {chr(code + PRIVATE[code > 0xFFFF])} "


def _long(sign: str) -> str:
    return unicodedata.normalize("NFKC", sign).translate(SLASHES)


@functools.cache
def _pattern(sign: str) -> re.Pattern[str]:
    """The long form of a sign, where it is no part of a longer word or number."""
    long = _long(sign)
    before, after = (edge.isalnum() and not _is_word(edge) for edge in (long[0], long[-1]))
    return re.compile(r"(?<![\w.,])" * before + re.escape(long) + r"(?![\w/])(?![.,]\d)" * after)
