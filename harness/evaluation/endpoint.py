"""Chat completions of an OpenAI-compatible server: kept on disk by content, retried with back-off,
counted.

For judges and for making data. The standard library alone; temperature 0 unless a caller asks for
another.
"""

import email.utils
import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.settings import build, option

LONGEST_WAIT = 120.0  # seconds between two attempts, whatever the server asks for
LARGEST_BODY = 16 << 20
ONE_REQUEST = (400, 413, 422)  # this request is refused; others may be answered
WORTH_ANOTHER_TRY = (408, 409, 425, 429)  # and all from 500 on


@dataclass
class EndpointConfig:
    base_url: str | None = option(
        None, "such as http://localhost:8000/v1; $JUDGE_BASE_URL if left out"
    )
    model: str | None = option(None, "the server's name of the model; $JUDGE_MODEL if left out")
    api_key: str = option(
        "$JUDGE_API_KEY",
        "the key, or $NAME for an environment variable; none is sent where that is not set",
    )
    max_tokens: int = option(1024, "longest reply", min=1)
    concurrency: int = option(8, "requests at a time", min=1, max=256)
    attempts: int = option(6, "tries of a request before the server counts as down", min=1)
    pause: float = option(
        1.0, "seconds before the second try; doubled before each further one", min=0
    )
    timeout: float = option(
        120.0, "seconds without a byte after which a request counts as failed", above=0
    )


class EndpointDown(Exception):
    """No answers are to be had from the server now; what it said last."""


class Refused(Exception):
    """The server refuses this one request, and would do so again."""


@dataclass(frozen=True)
class Reply:
    """text: the message ("" where there is none); finish: the server's reason to stop ("length" is
    a reply cut short).
    """

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int


def endpoint_config(mapping, place):
    """EndpointConfig of an order's section or of the environment alone ({}); None where neither
    names a server.

    Raises UserError: a wrong key or value, or a server without a model.
    """
    config = build(EndpointConfig, mapping, place)
    config.base_url = config.base_url or os.environ.get("JUDGE_BASE_URL") or None
    config.model = config.model or os.environ.get("JUDGE_MODEL") or None
    if config.base_url is None and config.model is None and not mapping:
        return None
    for key in ("base_url", "model"):
        if getattr(config, key) is None:
            raise UserError(
                f"{place}: {key}",
                "is missing",
                f"give it there or as JUDGE_{key.upper()} in the environment",
            )
    if not _is_address(config.base_url):
        raise UserError(
            f"{place}: base_url",
            f"{config.base_url!r} is no address",
            "give one such as http://localhost:8000/v1",
        )
    _key(config)
    return config


def _key(config):
    """The key itself, "" for none. Raises UserError for one that cannot stand in a header."""
    key = (
        os.environ.get(config.api_key[1:], "") if config.api_key.startswith("$") else config.api_key
    )
    if not key.isascii() or not key.isprintable() or " " in key:
        named = f" of {config.api_key}" if config.api_key.startswith("$") else ""
        raise UserError(
            f"the key{named}",
            "holds a blank or a letter that no key has",
            "give the key and nothing else",
        )
    return key


def _is_address(url):
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    # a name and a key in an address would be written down
    plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and plain
        and url.isprintable()
        and " " not in url
    )


def without_secrets(config):
    """The settings as they may be written down: a key that stands in the order itself is left out."""
    named = {"api_key": config.api_key} if config.api_key.startswith("$") else {}
    return {k: v for k, v in asdict(config).items() if k != "api_key"} | named


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another server; it is an error like any other."""

    def redirect_request(self, *_):
        return None


class Endpoint:
    """One server and model. ``counts``: asked, cached, retries, prompt_tokens, completion_tokens
    (of what was asked).
    """

    def __init__(self, config, cache):
        """cache: folder of the replies. Raises UserError for a key that cannot stand in a header."""
        self.config, self.cache, self.counts = config, Path(cache), Counter()
        key = _key(config)
        self.headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }
        self._open = urllib.request.build_opener(_NoRedirects).open
        self._lock, self._stop = threading.Lock(), threading.Event()

    def ask_all(self, prompts, purpose, progress=None, temperature=0):
        """A Reply or a Refused for each text of ``prompts``, in their order; equal texts are asked
        once.

        purpose: name and version of what the prompts are for, part of the content that replies are
        kept by; progress: ``f(done, of all)``. Raises EndpointDown after the last attempt; replies
        that came before are kept.
        """
        self._stop.clear()
        found, different = {}, list(dict.fromkeys(prompts))
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = {
                pool.submit(self._ask, prompt, purpose, temperature): prompt for prompt in different
            }
            try:
                left = set(futures)
                while left:
                    done, left = wait(left, timeout=1.0, return_when=FIRST_EXCEPTION)
                    found |= {futures[f]: f.result() for f in done}
                    if progress:
                        progress(len(different) - len(left), len(different))
            finally:
                self._stop.set()  # nobody waits for another try of what is lost
                pool.shutdown(cancel_futures=True)
        return [found[prompt] for prompt in prompts]

    def summary(self):
        c = self.counts
        return (
            f"{self.config.model}: {c['asked'] + c['cached']:,} replies, {c['cached']:,} of them kept from before, "
            f"{c['prompt_tokens']:,} + {c['completion_tokens']:,} tokens paid, {c['retries']:,} retries"
        )

    def _ask(self, prompt, purpose, temperature):
        content = {
            "purpose": purpose,
            "model": self.config.model,
            "max_tokens": self.config.max_tokens,
            "prompt": prompt,
        }
        if temperature:
            content["temperature"] = temperature
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        try:
            reply = Reply(**json.loads(path.read_text(encoding="utf-8"))["reply"])
            self._count(cached=1)
            return reply
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or not whole
        try:
            reply = self._post(
                {
                    "model": self.config.model,
                    "messages": [{"role": "user", "content": prompt}],
                    "temperature": temperature,
                    "max_tokens": self.config.max_tokens,
                }
            )
        except Refused as refused:
            return refused
        self._count(
            asked=1, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens
        )
        if reply.text.strip() and reply.finish != "length":  # else worth another try, one day
            write_json(path, {**content, "reply": asdict(reply)})
        return reply

    def _count(self, **more):
        with self._lock:
            self.counts.update(more)

    def _post(self, body):
        """The server's Reply. Raises Refused and EndpointDown."""
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), self.headers)
        for attempt in range(1, self.config.attempts + 1):
            asked_to_wait = 0.0
            try:
                with self._open(request, timeout=self.config.timeout) as response:
                    return _read_reply(response.read(LARGEST_BODY))
            except urllib.error.HTTPError as error:
                with error:
                    said = f"HTTP {error.code}: {_said(error)}"
                    asked_to_wait = _retry_after(error.headers.get("Retry-After"))
                if error.code in ONE_REQUEST:
                    raise Refused(said) from None
                if error.code not in WORTH_ANOTHER_TRY and error.code < 500:
                    raise EndpointDown(said) from None
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
            ) as error:  # no connection, none in time, or not an answer
                said = f"{getattr(error, 'reason', None) or error}" or type(error).__name__
            if attempt == self.config.attempts or self._stop.is_set():
                break
            self._count(retries=1)
            # not all at the same time
            pause = self.config.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            if self._stop.wait(min(max(pause, asked_to_wait), LONGEST_WAIT)):
                break
        raise EndpointDown(f"{said} ({attempt} attempt{'s' if attempt > 1 else ''})")


def _read_reply(body):
    """Raises ValueError for anything that is not a chat completion."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text, usage = choice["message"].get("content"), answer.get("usage") or {}
        if not isinstance(text, str | None):
            raise TypeError
        tokens = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
        return Reply(text or "", choice.get("finish_reason"), *tokens)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"not a chat completion: {body[:200].decode(errors='replace')!r}"
        ) from None


def _said(error):
    """The server's own words, short."""
    try:
        body = error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        body = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(str(body).split())[:300] or error.reason


def _retry_after(value):
    """Seconds of a Retry-After header: a number or a date; 0 for none."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
