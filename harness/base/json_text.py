"""JSON texts: numbers that can be counted by, characters that are whole."""

import json
import re
import sys
from typing import Any

from harness.base.errors import UserError

MOST_DIGITS = sys.float_info.max_10_exp  # of a whole number that has a float
HUGE = re.compile(f"[0-9]{{{MOST_DIGITS}}}")


class HugeNumber(ValueError):
    """A whole number that no float is near to: whoever counts by it would fail."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, HugeNumber of them, RecursionError."""
    text = text if isinstance(text, str) else text.decode()
    # A function for whole numbers makes parsing slow: where no digits stand so close, none is huge.
    return json.loads(text, parse_int=_whole if HUGE.search(text) else None)


def _whole(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MOST_DIGITS:
        raise HugeNumber(f"a whole number of {digits:,} digits")
    return int(text)


def has_halves(text: str) -> bool:
    """Whether JSON of a UTF-8 file may hold half a character, which only an escape can be."""
    return "\\ud" in text.lower()


def check_characters(value: Any, place: str) -> None:
    """Raises UserError at ``place`` where a text in ``value`` holds half a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        problem = f"holds half a character ({error.object[error.start]!r})"
        raise UserError(place, problem, "write both halves, or the character itself") from None
