"""A client of OpenAI-compatible servers: chat completions for judges and for making data.

Replies are kept on disk by content. A request that fails is tried again with a growing pause, and
tokens are counted. The temperature is 0 unless a caller asks for another. httpx is imported when a
server is asked for the first time: most commands never ask one.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.settings import build, option
from harness.evaluation.replies import (
    Key,
    Reply,
    error_message,
    parse_reply,
    read_reply,
    retry_after,
    shown,
)

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 120.0  # seconds between two attempts, even where the server asks for more
LARGEST_BODY = 16 << 20  # bytes of a reply
GRACE = 1.0  # seconds after its deadline in which a request may still end by itself
LAST_WAIT = 2.0  # seconds after an error in which replies to other requests may still come
REFUSALS = (400, 413, 422)  # the server refuses this request and may answer others
TRANSIENT = (408, 409, 425, 429)  # worth another attempt, as all from 500 on are


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
    deadline: float = option(
        900.0, "seconds of a request in all its tries before the server counts as down", above=0
    )


class EndpointDown(Exception):
    """The server gives no answers now; the text is its last error."""


class Refused(Exception):
    """The server refuses this one request, and would refuse it again."""


def endpoint_config(mapping: dict[str, Any] | None, place: str) -> EndpointConfig | None:
    """EndpointConfig of an order's section, with what is left out taken from the environment.

    Returns None where neither the section nor the environment names a server. Raises UserError: a
    wrong key or value, or a server without a model.
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
    if not _is_address(config.base_url or ""):
        raise UserError(
            f"{place}: base_url",
            f"{config.base_url!r} is no address",
            "give one such as http://localhost:8000/v1",
        )
    _api_key(config)
    return config


def _api_key(config: EndpointConfig) -> str:
    """The key, "" for none. Raises UserError for a key that a header cannot hold."""
    variable = config.api_key if config.api_key.startswith("$") else None
    key = os.environ.get(variable[1:], "") if variable else config.api_key
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"the key of {variable}" if variable else "the key",
            "holds a blank or a letter that no key has",
            "give the key and nothing else",
        )
    return key


def _is_address(url: str) -> bool:
    """Whether ``url`` is an HTTP address without a user name, a query or a fragment.

    These could hold a key, and the address is written down.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return False
    if "@" in parts.netloc or parts.query or parts.fragment:
        return False
    return url.isprintable() and " " not in url


def without_secrets(config: EndpointConfig) -> dict[str, Any]:
    """The settings as they may be written down: a key that the order itself holds is left out."""
    settings = asdict(config)
    if not config.api_key.startswith("$"):
        del settings["api_key"]
    return settings


class Endpoint:
    """One server and one of its models.

    ``counts`` holds asked, cached, retries, prompt_tokens and completion_tokens; the tokens are
    those of the requests that were asked.
    """

    def __init__(self, config: EndpointConfig, cache: str | os.PathLike[str]) -> None:
        """cache: folder of the replies. Raises UserError for a key that a header cannot hold."""
        self.config = config
        self.cache = Path(cache)
        self.url = (config.base_url or "").rstrip("/") + "/chat/completions"
        self.counts: Counter[str] = Counter()
        self.headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # a compressed reply could grow past any limit
        }
        if key := _api_key(config):
            self.headers["Authorization"] = f"Bearer {key}"
        self._key = Key(key)
        self._lock = threading.Lock()

    def ask_all(
        self,
        prompts: Iterable[str],
        purpose: str,
        progress: Callable[[int, int], object] | None = None,
        temperature: float = 0,
    ) -> list[Reply | Refused]:
        """A Reply or a Refused for each text of ``prompts``, in their order.

        Equal texts are asked once. purpose: name and version of what the prompts are for; it is
        part of the content that replies are kept by. progress: ``f(done, of all)``. Raises
        EndpointDown after the last attempt; replies that came before it are kept.
        """
        prompts = list(prompts)
        requests = {prompt: self._content(prompt, purpose, temperature) for prompt in prompts}
        replies: dict[str, Reply | Refused] = {}
        for prompt, content in requests.items():
            if (reply := read_reply(self._path(content))) is not None:
                replies[prompt] = reply
        self._count(cached=len(replies))
        missing = {prompt: c for prompt, c in requests.items() if prompt not in replies}
        if missing:
            replies |= self._ask_server(missing, progress, len(replies))
        elif progress:
            progress(len(replies), len(replies))
        return [replies[prompt] for prompt in prompts]

    def summary(self) -> str:
        """One line for people: replies, tokens and retries so far."""
        counts = self.counts
        return (
            f"{self.config.model}: {counts['asked'] + counts['cached']:,} replies, "
            f"{counts['cached']:,} of them kept from before, "
            f"{counts['prompt_tokens']:,} + {counts['completion_tokens']:,} tokens paid, "
            f"{counts['retries']:,} retries"
        )

    # --- replies on disk ---

    def _content(self, prompt: str, purpose: str, temperature: float) -> dict[str, Any]:
        """What a reply is kept by. The address of the server is no part of it."""
        content: dict[str, Any] = {
            "purpose": purpose,
            "model": self.config.model,
            "max_tokens": self.config.max_tokens,
            "prompt": prompt,
        }
        if temperature:
            content["temperature"] = temperature
        return content

    def _path(self, content: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"

    # --- the server ---

    def _ask_server(
        self,
        requests: dict[str, dict[str, Any]],
        progress: Callable[[int, int], object] | None,
        done_before: int,
    ) -> dict[str, Reply | Refused]:
        """The server's replies by prompt; requests: {prompt: its content}.

        The requests are made in daemon threads, which hold back neither Ctrl-C nor the end of the
        program: a request that hangs is left behind. After an error no request begins, and those
        that the server has are given LAST_WAIT seconds.
        """
        client = self._client()
        waiting: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[str, Reply | Refused | Exception]] = queue.SimpleQueue()
        started: dict[str, float] = {}
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    prompt, content = waiting.get_nowait()
                except queue.Empty:
                    return
                started[prompt] = time.monotonic()
                try:
                    answers.put((prompt, self._ask(client, content, stop)))
                except Exception as error:  # raised again where the answers are read
                    answers.put((prompt, error))

        for item in requests.items():
            waiting.put(item)
        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self.config.concurrency, len(requests)))
        ]
        for thread in threads:
            thread.start()
        replies: dict[str, Reply | Refused] = {}
        try:
            while len(replies) < len(requests):
                with suppress(queue.Empty):
                    prompt, answer = answers.get(timeout=1.0)
                    if isinstance(answer, Exception) and not isinstance(answer, Refused):
                        raise answer
                    replies[prompt] = answer
                    del started[prompt]
                self._check_deadline(list(started.values()))
                if progress:
                    progress(done_before + len(replies), done_before + len(requests))
        except EndpointDown:
            stop.set()
            until = time.monotonic() + LAST_WAIT
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            raise
        finally:
            stop.set()
        client.close()
        return replies

    def _check_deadline(self, started: list[float]) -> None:
        """Raises EndpointDown if one of the requests that began then is over its deadline.

        A request keeps its deadline itself where it can; not where headers come a byte at a time.
        """
        if started and time.monotonic() > min(started) + self.config.deadline + GRACE:
            raise EndpointDown(
                f"no whole reply in time (deadline {self.config.deadline:g} seconds)"
            )

    def _client(self) -> httpx.Client:
        """A client whose connections all requests of one call share. It follows no redirect.

        A redirect would carry the key to another server; it is an error like any other.
        Certificates are those of the system. Raises UserError for a proxy that cannot be used.
        """
        import httpx

        try:
            return httpx.Client(
                headers=self.headers,
                verify=ssl.create_default_context(),
                follow_redirects=False,
                limits=httpx.Limits(max_connections=self.config.concurrency),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise UserError(
                "the proxy that the environment names",
                f"cannot be used ({error})",
                "name an HTTP proxy, or put the server into NO_PROXY",
            ) from None

    def _ask(
        self, client: httpx.Client, content: dict[str, Any], stop: threading.Event
    ) -> Reply | Refused:
        """The server's reply to one request; a good one is kept."""
        body = {
            "model": content["model"],
            "messages": [{"role": "user", "content": content["prompt"]}],
            "temperature": content.get("temperature", 0),
            "max_tokens": content["max_tokens"],
        }
        try:
            reply = self._post(client, json.dumps(body).encode(), stop)
        except Refused as refusal:
            return refusal
        self._count(
            asked=1, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens
        )
        # An empty reply, or one that was cut short, is asked for again at another time.
        if reply.text.strip() and reply.finish != "length":
            write_json(self._path(content), {**content, "reply": asdict(reply)})
        return reply

    def _count(self, **numbers: int) -> None:
        with self._lock:
            self.counts.update({name: number for name, number in numbers.items() if number})

    def _post(self, client: httpx.Client, body: bytes, stop: threading.Event) -> Reply:
        """The server's Reply after one or more attempts. Raises Refused and EndpointDown.

        stop: set where nobody waits for another attempt.
        """
        deadline = time.monotonic() + self.config.deadline
        attempt = 1
        while True:
            try:
                return self._attempt(client, body, deadline)
            except _Failure as failure:
                problem = str(failure)
                # The random factor keeps requests that failed together from returning together.
                pause = self.config.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                pause = min(max(pause, failure.retry_after), LONGEST_WAIT)
            count = f"{attempt} attempt{'s' if attempt > 1 else ''}"
            if attempt == self.config.attempts or stop.is_set():
                break
            if time.monotonic() + pause >= deadline:
                count += f", deadline {self.config.deadline:g} seconds"
                break
            self._count(retries=1)
            if stop.wait(pause):
                break
            attempt += 1
        raise EndpointDown(f"{problem} ({count})")

    def _attempt(self, client: httpx.Client, body: bytes, deadline: float) -> Reply:
        """One attempt. Raises _Failure where another may help, else Refused or EndpointDown."""
        import httpx

        seconds = max(0.001, min(self.config.timeout, deadline - time.monotonic()))
        try:
            with client.stream("POST", self.url, content=body, timeout=seconds) as response:
                if response.is_success:
                    return parse_reply(_read_body(response, deadline), self._key)
                status = response.status_code
                problem = f"HTTP {status}: {error_message(response, deadline, self._key)}"
                pause = retry_after(response.headers.get("Retry-After"))
        except httpx.InvalidURL as error:
            raise EndpointDown(shown(error, self._key)) from None
        except Exception as error:
            # No connection, no answer in time, no chat completion, or bytes on which a library
            # that reads them fails in its own way: nothing that a server sends ends a run.
            raise _Failure(shown(error, self._key) or type(error).__name__) from None
        if status in REFUSALS:
            raise Refused(problem)
        if status not in TRANSIENT and status < 500:
            raise EndpointDown(problem)
        raise _Failure(problem, pause)


class _Failure(Exception):
    """An attempt failed and another may not; retry_after: seconds that the server asks to wait."""

    def __init__(self, problem: str, retry_after: float = 0.0) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


def _read_body(response: httpx.Response, deadline: float) -> bytes:
    """The whole body. Raises ValueError if it is too large, or not there by ``deadline``."""
    body = bytearray()
    for part in response.iter_bytes():
        body += part
        if len(body) > LARGEST_BODY:
            raise ValueError(f"the reply is larger than {LARGEST_BODY >> 20} MiB")
        if time.monotonic() > deadline:
            raise ValueError("the reply is not whole in time")
    return bytes(body)
