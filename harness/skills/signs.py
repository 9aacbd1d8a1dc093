"""Characters that stand for several words, such as ½, ㎧ and ㍿: they count as a whole alone.

Unicode's form NFKC makes a 1, a slash and a 2 of ½, which would be the words 1 and 2, so that ½
would hold the answer 2. The same holds for a sign that loses a part: ℃ would be C. Other characters
of this kind stay what NFKC makes of them: ﬁ is fi, ㎏ is kg, Ⅳ is IV, ⑫ is 12, and ⑴, in brackets,
is 1.
"""

import functools
import re
import unicodedata

from harness.skills.words import SMALL_DIGITS, WITHOUT_BLANKS, normalise

PRIVATE = (0xF0000, 0x100000 - 0x10000)  # planes of letters that Unicode gives no meaning
SLASHES = str.maketrans({"⁄": "/", "∕": "/"})


def alike(completion: str, answer: str) -> tuple[str, str]:
    """Both texts after ``normalise``, in which a sign for several words is a word of its own.

    Where one of them has such a sign and the other one its long form, as ½ and 1/2, both have the
    sign.
    """
    if completion.isascii() and answer.isascii():
        return normalise(completion), normalise(answer)
    signs = [{letter for letter in text if is_sign(letter)} for text in (completion, answer)]
    if not any(signs):
        return normalise(completion), normalise(answer)
    return (
        normalise(_with_signs(completion, signs[1])),
        normalise(_with_signs(answer, signs[0])),
    )


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
