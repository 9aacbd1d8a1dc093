"""Grader of multiple choice that takes the usual ways in which models write one letter."""

import re
import unicodedata
from functools import cache

from harness.skills.words import normalise

LETTERS = ("A", "B", "C", "D")
OPTION = re.compile(r"^[ \t]*\(?([A-D])\)?[ \t]*[:.)][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
TEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit)\s*\{([^{}]*)\}|\\[()\[\]]|\$")
MARKUP = r"[\s*_`]*"
AROUND = " \t\r\n*_`\"'“”‘’.,;:!"  # nothing of an answer


class Letter(str):
    """The letter of the right option. ``options``: {letter: its text}, {} where it is not known."""

    options: dict[str, str]

    def __new__(cls, letter, options=None):
        self = super().__new__(cls, letter)
        self.options = options or {}
        return self


def options_of(question):
    """{letter: text} of the options that a question lists, {} unless it lists each once."""
    options = OPTION.findall(question)
    return dict(options) if [letter for letter, _ in options] == list(LETTERS) else {}


@cache
def _one_letter(letters):
    """The pattern of one of ``letters``, in either case, with the words around it."""
    one = f"[{''.join(letters)}]"
    return re.compile(
        r"(?:(?:so|thus|therefore|hence),?\s+)?(?:(?:the|my)\s+)?"
        r"(?:(?:correct|right|best|final)\s+)*"
        rf"(?:(?:answer|option|choice|letter)\b(?:\s+is\b)?\s*:?{MARKUP})*"
        rf"(?:\((?P<round>{one})\)|\[(?P<square>{one})\]|(?P<bare>{one})\)?)"
        r"(?:\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|option|choice))?)?",
        re.IGNORECASE,
    )


def letter_of(answer, options, letters=LETTERS):
    """The one of ``letters`` that an answer gives, in upper case; None where it gives none or two.

    A letter, bare or in brackets, Markdown or TeX, behind words such as "Option" or "The answer
    is". Behind a colon, full stop, dash or bracket the text of the same option may follow.
    """
    answer = _plain(answer)
    match = _one_letter(letters).match(answer)
    if match is None:
        return None
    letter = next(filter(None, match.groups())).upper()
    following = answer[match.end() :]
    if following.strip(AROUND) in ("", ")", "]") or _is_text_of(
        letter, following, match[0], options
    ):
        return letter
    return None


def boxed_letter(text, options):
    """The letter in the ``\\boxed{}`` of a text; None where a box or its line names another."""
    boxes = list(BOXED.finditer(text))
    letter = letter_of(boxes[-1][1], options)
    start = text.rfind("\n", 0, boxes[-1].start()) + 1
    line = BOXED.sub("", text[start:].split("\n", 1)[0])
    others = {letter_of(box[1], options) for box in boxes} - {None}
    others |= set(re.findall(r"(?<!\w)[A-D](?!\w)", line))
    return letter if others == {letter} else None


def _is_text_of(letter, following, before, options):
    """Whether what follows a letter is the text of its option and of no other."""
    gap = re.match(rf"{MARKUP}[:.,–—-]?{MARKUP}", following)[0]
    if not re.search(r"[:.,–—\n-]", gap) and not before.endswith((")", "]")):
        return False
    for form in (str, normalise):
        text = form(_one_line(following[len(gap) :]))
        same = {a for a, option in options.items() if form(_one_line(option)) == text}
        if same:
            return same == {letter}
    return False


def _plain(text):
    """A text in Unicode's form NFKC, without TeX's commands, and without marks around it."""
    text = BOXED.sub(r"\1", unicodedata.normalize("NFKC", text))
    return TEX.sub(lambda match: match[1] or "", text).strip(AROUND)


def _one_line(text):
    return " ".join(_plain(text).split())
