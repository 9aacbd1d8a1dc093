"""The words of a text, by which graders and the search for repeated questions compare."""

import functools
import re
import unicodedata

ARTICLES = {"a", "an", "the"}
# Scripts that set no blanks between words: each of their characters is a word.
WITHOUT_BLANKS = (
    "CJK ",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "BOPOMOFO",
    "YI ",
    "THAI",
    "LAO ",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "JAVANESE",
    "BALINESE",
    "TAI ",
    "NEW TAI",
)
LONG_DASHES = "—―⸺⸻"  # between clauses; the shorter ones also stand for a minus
ARABIC = {"٫": ".", "٬": ","}  # decimal point and thousands comma
KEPT = "+.,#"  # until it is known whether they belong to a number or a word
# NFKC would make 102 of 10² and 31/2 of 3½.
SMALL_DIGITS = re.compile(r"(?<=\d)(?=[²³¹⁰⁴-⁹⁺⁻¼-¾⅐-⅞↉])")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
OTHER = r"[^\s\-+.,#$]"  # a letter, digit or mark
WORD = re.compile(
    r"(?:(?<![^\s$,])(?P<minus>-)\$?(?=\.?\d))?"
    r"(?:"
    rf"(?<![\d.])\d+(?:\.\d+)?[eE][-+]?\d+(?!{OTHER})|"  # 1.5e-3
    rf"(?<![\d.])\d+\.\d+(?!\.?\d){OTHER}*|"  # 1.5, 1.5kg, but not 1.5.2026
    rf"(?<![^\s$,-])\.\d+(?!\.?\d){OTHER}*|"  # .5
    rf"(?<!{OTHER})[A-Z][A-Za-z0-9]{{0,2}}[-+#]+(?![^\s,.$])|"  # A-, Na+, C++, C#
    rf"{OTHER}+)"
)


def normalise(text: str) -> str:
    """The words of a text in one case, without articles, with single blanks between them.

    After SQuAD's rule (Rajpurkar et al. 2016, arXiv 1606.05250), with these differences. Unicode is
    in form NFKC; punctuation and symbols of all scripts become a blank. Each character of a script
    without blanks is a word.

    Sign, decimal point and thousands commas belong to a number (-5, 1.5, 1,000), and so do ``+``,
    ``-`` and ``#`` to a short word that they end (A-, Na+, C++, C#). What only looks like an
    article stays: the last word ("the answer is A"), and a capital A behind another word
    ("Hepatitis A is a virus").
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", SMALL_DIGITS.sub(" ", text))
    text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), text.translate(_TABLE))
    words = [word for chunk in text.split() for word in _words(chunk)]
    last = len(words) - 1
    kept = (
        word
        for i, word in enumerate(words)
        if word.lower() not in ARTICLES or i == last or (word == "A" and i > 0)
    )
    return " ".join(kept).casefold()


@functools.lru_cache(1 << 16)
def _words(chunk: str) -> tuple[str, ...]:
    """The words of what stands between two blanks; most texts repeat most of theirs."""
    return tuple(_word(match) for match in WORD.finditer(chunk))


def _word(match: re.Match[str]) -> str:
    """A number with its sign and without the blank of a currency; other words as they are."""
    word = match[0].replace("$", "")
    bare = word.removeprefix("-") if match["minus"] else word
    return word[: len(word) - len(bare)] + ("0" + bare if bare.startswith(".") else bare)


class _Table(dict[int, str]):
    """What ``str.translate`` makes of each character, by its category; filled as they occur."""

    def __missing__(self, code: int) -> str:
        self[code] = _replacement(chr(code))
        return self[code]


def _replacement(letter: str) -> str:
    category = unicodedata.category(letter)
    if letter in KEPT or letter in ARABIC:
        return ARABIC.get(letter, letter)
    if letter == "−" or (category == "Pd" and letter not in LONG_DASHES):
        return "-"
    if category == "Sc":
        return "$"
    if category == "Nd":
        return str(unicodedata.decimal(letter))
    name = unicodedata.name(letter, "")
    # What has no shape of its own (zero-width, soft hyphen), or only gives another one a shape.
    if category in ("Cf", "Me") or name.startswith("VARIATION SELECTOR"):
        return ""
    if category[0] in "LNM" or category in ("Cn", "Co"):
        return f" {letter} " if name.startswith(WITHOUT_BLANKS) else letter
    return " "


_TABLE = _Table()
