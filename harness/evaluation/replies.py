"""What a server sends: whatever it is, it is read as a Reply, or a ValueError says what it is not.

A server may be broken, of another kind or ill-meaning. Nothing that it says is shown or kept
before the key, which it may echo, is blanked.
"""

from __future__ import annotations

import base64
import email.utils
import html
import json
import math
import re
import time
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

LARGEST_ERROR = 4096  # bytes of an error's body that are read
LONGEST_MESSAGE = 300  # letters of a server's error that are shown
BLANK = "***"
SECRET = 8  # letters; a shorter key, as EMPTY, is blanked as a word of its own alone


@dataclass(frozen=True)
class Reply:
    """An answer of the server.

    text: the message ("" where there is none); finish: the server's reason to stop ("length" is a
    reply that was cut short).
    """

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int


class Key:
    """The key of a server, and what hides it in texts that a server sends."""

    def __init__(self, key: str) -> None:
        quoted = urllib.parse.quote(key, safe="")
        coded = base64.b64encode(key.encode()).decode().rstrip("=")
        forms = {key, quoted, html.escape(key), json.dumps(key)[1:-1], coded}
        pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
        if len(key) < SECRET:
            pattern = rf"(?<!\w)(?:{pattern})(?!\w)"
        self._pattern = re.compile(pattern, re.IGNORECASE) if key else None
        self._longest = max(map(len, forms)) if key else 0

    def blanked(self, text: str, is_cut: bool = False) -> str:
        """``text`` without the key. is_cut: the end is missing, and may hold a piece of the key."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(BLANK, text)
        return text[: -self._longest] if is_cut else text


def parse_reply(body: bytes, key: Key) -> Reply:
    """The Reply that a body holds. Raises ValueError for anything but a chat completion."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        usage = answer.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        return _checked_reply(
            choice["message"].get("content"),
            choice.get("finish_reason"),
            counts.get("prompt_tokens"),
            counts.get("completion_tokens"),
            key,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        beginning = shown(body.decode(errors="replace"), key)[:200]
        raise ValueError(f"not a chat completion: {beginning!r}") from None


def read_reply(path: Path) -> Reply | None:
    """A reply that was kept on disk; None where there is none or the file is broken."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["reply"]
        counts = kept["prompt_tokens"], kept["completion_tokens"]
        is_text = isinstance(kept["text"], str)
        return _checked_reply(kept["text"], kept["finish"], *counts, Key("")) if is_text else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _checked_reply(text: Any, finish: Any, prompt: Any, completion: Any, key: Key) -> Reply:
    """A Reply whose fields are what they should be. Raises TypeError where text or finish is not.

    Half a character, which no file can hold, becomes "?"; a count that is none becomes 0.
    """
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise TypeError
    return Reply(
        key.blanked(_whole(text or "")),
        None if finish is None else key.blanked(_whole(finish)),
        _count(prompt),
        _count(completion),
    )


def _whole(text: str) -> str:
    return text.encode(errors="replace").decode()


def _count(number: Any) -> int:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return int(number) if is_number and 0 <= number < 2**53 else 0


def error_message(response: httpx.Response, deadline: float, key: Key) -> str:
    """The beginning of the server's own message, else the standard reason of the status."""
    import httpx

    body = bytearray()
    is_cut = False
    try:
        for part in response.iter_bytes():
            body += part
            is_cut = len(body) >= LARGEST_ERROR or time.monotonic() > deadline
            if is_cut:
                break
    except (httpx.HTTPError, OSError):
        is_cut = True
    text = body[:LARGEST_ERROR].decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        said = json.loads(text)
        text = json.dumps(said, ensure_ascii=False)  # no letter in a form that hides a key
        text = str(said["error"]["message"])
    return shown(text, key, is_cut) or shown(response.reason_phrase, key)


def shown(text: object, key: Key, is_cut: bool = False) -> str:
    """The beginning of a text in one line, without the key and what would move a terminal."""
    seen = "".join(c if c.isprintable() else " " for c in key.blanked(_whole(str(text)), is_cut))
    return " ".join(seen.split())[:LONGEST_MESSAGE]


def retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which holds a number or a date; 0 for none."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)
