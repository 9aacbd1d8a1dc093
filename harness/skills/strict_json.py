"""JSON as a model writes it, read strictly: no NaN, and no key twice in an object.

Of two values of one key a decoder keeps the last.
"""

import json
from typing import Any, NoReturn

from harness.base.files import object_of


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=object_of)


def decoded(text: str) -> Any:
    """The value of a text. Raises ValueError or RecursionError where it is no JSON."""
    return _DECODER.decode(text)


def decoded_start(text: str) -> Any:
    """The value with which a text begins, whatever follows. Raises as ``decoded``."""
    return _DECODER.raw_decode(text)[0]
