"""JSON texts whose numbers can be counted by."""

import json
import re
import sys
from typing import Any

MOST_DIGITS = sys.float_info.max_10_exp  # of a whole number that has a float
HUGE = re.compile(rb"\d{%d}" % MOST_DIGITS)


class HugeNumber(ValueError):
    """A whole number that no float is near to: whoever counts by it would fail."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, HugeNumber of them, RecursionError."""
    data = text.encode() if isinstance(text, str) else text
    # A function for whole numbers makes parsing slow: where no digits stand so close, none is huge.
    if HUGE.search(data):
        return json.loads(data.decode(), parse_int=_whole)
    return json.loads(data.decode())


def _whole(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MOST_DIGITS:
        raise HugeNumber(f"a whole number of {digits:,} digits")
    return int(text)
