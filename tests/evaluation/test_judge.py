"""The judge against a real HTTP server on loopback: what is sent, what is read, what fails, what is
kept, what is judged later.
"""

import json
import os
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.metrics import mean_and_stderr
from harness.evaluation.endpoint import (
    Endpoint,
    EndpointConfig,
    EndpointDown,
    Refused,
    Reply,
    endpoint_config,
)
from harness.evaluation.judge import judge, judge_folder, judged_protocol, prompt_for, verdict_of
from harness.evaluation.protocol import protocol_hash
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.skills.rubrics import JUDGES
from tests.conftest import read_lines, write_rows

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """An OpenAI-compatible server. ``answer(prompt, nth request)`` gives a text, (status, headers,
    body), or what to do with the socket.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.lock, self.busy, self.most = (
            answer,
            [],
            threading.Lock(),
            0,
            0,
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(
                        {
                            "path": self.path,
                            "headers": dict(self.headers),
                            "body": body,
                            "time": time.monotonic(),
                        }
                    )
                    number, outer.busy = len(outer.requests), outer.busy + 1
                    outer.most = max(outer.most, outer.busy)
                try:
                    said = outer.answer(body["messages"][-1]["content"], number)
                finally:
                    with outer.lock:
                        outer.busy -= 1
                if callable(said):
                    said(self)
                    self.close_connection = True
                    return
                status, headers, data = (
                    said if isinstance(said, tuple) else (200, {}, completion(said))
                )
                self.send_response(status)
                for key, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def completion(text, finish="stop", prompt_tokens=100, completion_tokens=7):
    return json.dumps(
        {
            "choices": [
                {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
            ],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        }
    ).encode()


@pytest.fixture
def serve(monkeypatch):
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def endpoint(server, cache, **changes):
    settings = {
        "base_url": server.url,
        "model": "judge-1",
        "pause": 0.01,
        "timeout": 10.0,
        **changes,
    }
    return Endpoint(EndpointConfig(**settings), cache)


# --- the client ---


def test_what_is_sent_and_what_comes_back(serve, tmp_path, monkeypatch):
    server = serve(lambda prompt, _: f"you said {prompt} ü")
    monkeypatch.setenv("MY_KEY", "sk-123")
    client = endpoint(server, tmp_path, api_key="$MY_KEY", max_tokens=33)
    assert client.ask_all(["a", "b {c}\n", "a"], "test/1") == [
        Reply(f"you said {p} ü", "stop", 100, 7) for p in ("a", "b {c}\n", "a")
    ]
    assert len(server.requests) == 2  # equal prompts are asked once
    request = next(r for r in server.requests if r["body"]["messages"][0]["content"] == "a")
    assert (
        request["path"] == "/v1/chat/completions"
        and request["headers"]["Authorization"] == "Bearer sk-123"
    )
    assert request["body"] == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0,
        "max_tokens": 33,
    }
    assert client.counts == {"asked": 2, "prompt_tokens": 200, "completion_tokens": 14}
    assert (
        client.summary()
        == "judge-1: 2 replies, 0 of them kept from before, 200 + 14 tokens paid, 0 retries"
    )
    assert not any("sk-123" in f.read_text() for f in tmp_path.rglob("*.json"))


def test_no_key_is_no_header(serve, tmp_path):
    server = serve(lambda *_: "ok")
    endpoint(server, tmp_path).ask_all(["a"], "test/1")
    assert "Authorization" not in server.requests[0]["headers"]


def test_replies_are_kept_by_content(serve, tmp_path):
    server = serve(lambda prompt, number: f"{number}")
    first = endpoint(server, tmp_path).ask_all(["a"], "test/1")
    again = endpoint(server, tmp_path)
    assert again.ask_all(["a"], "test/1") == first and again.counts == {"cached": 1}
    for changed, purpose in (
        ({"model": "judge-2"}, "test/1"),
        ({"max_tokens": 5}, "test/1"),
        ({}, "test/2"),
    ):
        assert endpoint(server, tmp_path, **changed).ask_all(["a"], purpose) != first
    assert endpoint(server, tmp_path).ask_all(["a "], "test/1") != first
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")  # a broken file is asked for again
    assert endpoint(server, tmp_path).ask_all(["a"], "test/1") != first
    for useless in ((200, {}, completion(" ")), (200, {}, completion("so", "length"))):
        server.answer = lambda *_, useless=useless: useless
        asked = len(server.requests)
        for _ in range(2):  # an empty reply, or one that is cut short, is not kept
            endpoint(server, tmp_path).ask_all(["b"], "test/1")
        assert len(server.requests) == asked + 2


def test_concurrency_is_used_and_bounded(serve, tmp_path):
    def slow(prompt, _):
        time.sleep(0.2)
        return prompt

    server = serve(slow)
    prompts = [str(i) for i in range(12)]
    assert [
        r.text for r in endpoint(server, tmp_path, concurrency=4).ask_all(prompts, "test/1")
    ] == prompts
    assert 2 <= server.most <= 4


def hang_up(handler):
    handler.connection.close()


def half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


FAILURES = {
    "500": (500, {}, b"oops"),
    "503": (503, {}, b'{"error": {"message": "overloaded"}}'),
    "429": (429, {}, b"slow down"),
    "408": (408, {}, b""),
    "html": (200, {}, b"<html>gateway</html>"),
    "not utf-8": (200, {}, b"\xff\xfe\x00"),
    "empty": (200, {}, b""),
    "no choices": (200, {}, b'{"choices": []}'),
    "error in 200": (200, {}, b'{"error": "busy"}'),
    "a list": (200, {}, b"[1, 2]"),
    "odd content": (200, {}, b'{"choices": [{"message": {"content": 5}}]}'),
    "hangs up": hang_up,
    "half a body": half,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_tried_again(serve, tmp_path, failure):
    server = serve(lambda prompt, number: FAILURES[failure] if number <= 2 else "well")
    client = endpoint(server, tmp_path)
    assert client.ask_all(["a"], "test/1")[0].text == "well"
    assert client.counts["retries"] == 2 and len(server.requests) == 3


def test_back_off_grows(serve, tmp_path):
    server = serve(lambda prompt, number: FAILURES["500"] if number <= 3 else "well")
    endpoint(server, tmp_path, pause=0.1).ask_all(["a"], "test/1")
    times = [r["time"] for r in server.requests]
    waits = [after - before for before, after in pairwise(times)]
    for wait, least in zip(waits, (0.075, 0.15, 0.3), strict=True):
        assert wait >= least


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(serve, tmp_path, form):
    # a date has whole seconds: at least 1 is left
    value = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    server = serve(
        lambda prompt, number: (429, {"Retry-After": value}, b"") if number == 1 else "well"
    )
    endpoint(server, tmp_path).ask_all(["a"], "test/1")
    assert server.requests[1]["time"] - server.requests[0]["time"] >= 0.5


def test_a_timeout_is_tried_again(serve, tmp_path):
    release = threading.Event()
    server = serve(lambda prompt, number: release.wait(20) and "late" if number == 1 else "well")
    try:
        assert endpoint(server, tmp_path, timeout=1.0).ask_all(["a"], "test/1")[0].text == "well"
    finally:
        release.set()


def trickle(handler):
    """A reply that never ends, a byte at a time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return
        time.sleep(0.05)


@pytest.mark.parametrize("failure", [trickle, FAILURES["500"], (429, {"Retry-After": "60"}, b"")])
def test_a_deadline_ends_a_request_in_all_its_attempts(serve, tmp_path, failure):
    """No byte is late and no attempt is the last, but the whole takes too long."""
    server, start = serve(lambda *_: failure), time.monotonic()
    client = endpoint(server, tmp_path, deadline=0.6, pause=0.2, attempts=50)
    with pytest.raises(EndpointDown, match=r"attempts?, deadline 0\.6 seconds\)"):
        client.ask_all(["a"], "test/1")
    assert time.monotonic() - start < 5 and len(server.requests) <= 4


def test_a_reply_that_is_too_large_is_an_error(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.evaluation.endpoint.LARGEST_BODY", 1 << 20)
    server = serve(lambda *_: "x" * (2 << 20))
    with pytest.raises(EndpointDown, match=r"larger than 1 MiB \(2 attempts\)"):
        endpoint(server, tmp_path, attempts=2).ask_all(["a"], "test/1")
    server.answer = lambda *_: "x" * 1000
    assert len(endpoint(server, tmp_path).ask_all(["a"], "test/1")[0].text) == 1000


def test_connections_are_used_again(serve, tmp_path):
    ports = set()

    def answer(prompt, _):
        return prompt

    server = serve(answer)
    handler, real = server.http.RequestHandlerClass, server.http.RequestHandlerClass.do_POST

    def do_post(self):
        ports.add(self.client_address)
        real(self)

    handler.do_POST = do_post
    endpoint(server, tmp_path, concurrency=2).ask_all([str(i) for i in range(20)], "test/1")
    assert len(server.requests) == 20 and len(ports) <= 2


def first_edition(folder):
    """The cache folder of the first edition after one question: names of files and their JSON."""
    digest = "4c9d21e8ab6887f6230575747e2876668ca731967a3fec11cba636d4d9fa0f6c"
    reply = {"text": "fine", "finish": "stop", "prompt_tokens": 3, "completion_tokens": 4}
    content = {"purpose": "test/1", "model": "judge-1", "max_tokens": 1024, "prompt": "a é?"}
    path = folder / "4c" / f"{digest}.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({**content, "reply": reply}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    return path


def test_replies_of_the_first_edition_are_found(serve, tmp_path):
    path = first_edition(tmp_path / "before")
    server = serve(lambda *_: (200, {}, completion("fine", "stop", 3, 4)))
    client = endpoint(server, tmp_path / "before")
    assert client.ask_all(["a é?"], "test/1") == [Reply("fine", "stop", 3, 4)]
    assert client.counts == {"cached": 1} and not server.requests
    endpoint(server, tmp_path / "now").ask_all(["a é?"], "test/1")
    [written] = (tmp_path / "now").rglob("*.json")
    assert written.relative_to(tmp_path / "now") == path.relative_to(tmp_path / "before")
    assert written.read_bytes() == path.read_bytes()


def test_httpx_is_imported_when_a_server_is_asked(tmp_path):
    """Commands that ask no server do not pay for it, nor do replies that are kept."""
    first_edition(tmp_path)
    code = (
        "import sys\n"
        "from harness.evaluation.endpoint import Endpoint, EndpointConfig\n"
        "client = Endpoint(EndpointConfig('http://127.0.0.1:9/v1', 'judge-1'), sys.argv[1])\n"
        "assert client.ask_all(['a é?'], 'test/1')[0].text == 'fine'\n"
        "assert 'httpx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, timeout=60)


def test_a_server_that_is_down(serve, tmp_path):
    server = serve(lambda *_: "x")
    client = endpoint(server, tmp_path, attempts=3)
    server.close()
    with pytest.raises(EndpointDown, match=r"refused.*3 attempts"):
        client.ask_all(["a"], "test/1")
    server.thread, server.http.shutdown = threading.Thread(), lambda: None
    server.thread.start()  # so that the fixture can close it again


def test_one_that_fails_ends_the_others(serve, tmp_path):
    """Nobody waits for another attempt once the server has failed; answers so far are kept."""
    said = {"a": "fine", "b": (503, {"Retry-After": "60"}, b""), "c": (401, {}, b"no")}
    server = serve(lambda prompt, _: said[prompt])
    client, start = endpoint(server, tmp_path, concurrency=3), time.monotonic()
    client.ask_all(["a"], "test/1")
    with pytest.raises(EndpointDown, match="HTTP 401: no"):
        client.ask_all(["a", "b", "c"], "test/1")
    assert time.monotonic() - start < 20
    assert (
        endpoint(server, tmp_path).ask_all(["a"], "test/1")[0].text == "fine"
        and len(server.requests) <= 4
    )


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404])
def test_some_errors_are_not_tried_again(serve, tmp_path, status):
    elsewhere = serve(lambda *_: "caught")
    server = serve(
        lambda *_: (status, {"Location": elsewhere.url}, b'{"error": {"message": "no such model"}}')
    )
    with pytest.raises(EndpointDown, match=rf"HTTP {status}: no such model"):
        endpoint(server, tmp_path, api_key="sk-1").ask_all(["a"], "test/1")
    assert len(server.requests) == 1 and not elsewhere.requests  # the key goes nowhere else


def test_a_request_that_is_refused_stops_no_other(serve, tmp_path):
    server = serve(
        lambda prompt, _: (
            (400, {}, b'{"error": {"message": "too long"}}') if prompt == "b" else "fine"
        )
    )
    first, second, third = endpoint(server, tmp_path).ask_all(["a", "b", "c"], "test/1")
    assert (
        first.text == third.text == "fine"
        and isinstance(second, Refused)
        and str(second) == "HTTP 400: too long"
    )


@pytest.mark.parametrize(
    ("mapping", "environment", "said"),
    [
        ({"base_url": "localhost:8000"}, {"JUDGE_MODEL": "m"}, "no address"),
        ({"base_url": "ftp://x"}, {"JUDGE_MODEL": "m"}, "no address"),
        ({"base_url": "http://me:secret@x/v1"}, {"JUDGE_MODEL": "m"}, "no address"),
        ({"base_url": "http://x/v1?key=secret"}, {"JUDGE_MODEL": "m"}, "no address"),
        (
            {"base_url": "http://x/v1", "model": "m"},
            {"JUDGE_API_KEY": "sk-1\n"},
            "the key of $JUDGE_API_KEY: holds a blank",
        ),
        ({"base_url": "http://x/v1"}, {}, "JUDGE_MODEL"),
        ({}, {"JUDGE_MODEL": "m"}, "JUDGE_BASE_URL"),
        ({"base-url": "http://x"}, {}, "did you mean 'base_url'"),
        ({"concurrency": 0}, {}, "at least 1"),
        ({"timeout": "soon"}, {}, "a number"),
    ],
)
def test_wrong_settings_are_said(monkeypatch, mapping, environment, said):
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        endpoint_config(mapping, "order.yaml: judge")
    assert said in str(error.value)


def test_the_order_goes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("JUDGE_BASE_URL", raising=False)
    monkeypatch.delenv("JUDGE_MODEL", raising=False)
    assert endpoint_config({}, "x") is None
    monkeypatch.setenv("JUDGE_BASE_URL", "http://a/v1")
    monkeypatch.setenv("JUDGE_MODEL", "m")
    assert endpoint_config({}, "x").base_url == "http://a/v1"
    assert endpoint_config({"base_url": "http://b/v1"}, "x").base_url == "http://b/v1"
    monkeypatch.setenv("JUDGE_API_KEY", "two words")
    with pytest.raises(UserError, match="JUDGE_API_KEY") as error:
        Endpoint(endpoint_config({}, "x"), tmp_path)
    assert "two words" not in str(error.value)


# --- verdicts ---


BOTH, THREE = JUDGES["medical"].verdicts, JUDGES["knowledge"].verdicts


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("VERDICT: CORRECT", "CORRECT"),
        ("They agree.\n\nVERDICT: INCORRECT\n", "INCORRECT"),
        ("**VERDICT: PARTIALLY_CORRECT**", "PARTIALLY_CORRECT"),
        ("VERDICT: **CORRECT**.", "CORRECT"),
        ("**Verdict:** CORRECT", "CORRECT"),
        ("__VERDICT: CORRECT__", "CORRECT"),
        ("  `VERDICT: CORRECT`  ", "CORRECT"),
        (
            "<think>\nVERDICT: INCORRECT? or VERDICT: CORRECT\n</think>\nFine.\nVERDICT: CORRECT",
            "CORRECT",
        ),
    ],
)
def test_a_verdict_is_read(text, verdict):
    assert verdict_of(Reply(text, "stop", 1, 1), THREE) == verdict


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "CORRECT",
        "The answer is CORRECT.",
        "VERDICT:",
        "VERDICT: correct",
        "VERDICT: RIGHT",
        "VERDICT: CORRECT or INCORRECT",
        "VERDICT: NOT CORRECT",
        "VERDICT: CORRECT\nVERDICT: INCORRECT",
        "VERDICT: CORRECT\nVERDICT: CORRECT",
        "VERDICT: CORRECT\nBut then it is not.",
        "VERDICT: PARTIALLY CORRECT",
        "VERDICT: PARTIALLY",
        "VERDICT: CORRECT/INCORRECT",
        "Not VERDICT: CORRECT",
        "VERDICT = CORRECT",
        "<think>VERDICT: CORRECT",
        "<think>\nhm\nVERDICT: CORRECT",
        "VERDICT: CORRECT</think>",
        "My VERDICT is CORRECT",
        "verdict\nCORRECT",
        "VERDICT: CORRECT %",
        "__VERDICT: INCORRECT__\n\nVERDICT: CORRECT",
        "Final VERDICT: INCORRECT\nVERDICT: CORRECT",
        "1. VERDICT: INCORRECT\nVERDICT: CORRECT",
        "VERDICT: INCORRECT: CORRECT",
        "VERDICT: MOSTLY_CORRECT",
        '{"verdict": "CORRECT"}',
        "ＶERDICT: CORRECT",
    ],
)
def test_no_verdict_is_guessed(text):
    with pytest.raises(ValueError):
        verdict_of(Reply(text, "stop", 1, 1), THREE)


def test_a_verdict_of_another_rubric_and_a_reply_cut_short_are_none():
    with pytest.raises(ValueError, match="none of the verdicts"):
        verdict_of(Reply("VERDICT: PARTIALLY_CORRECT", "stop", 1, 1), BOTH)
    with pytest.raises(ValueError, match="cut short"):
        verdict_of(Reply("VERDICT: CORRECT", "length", 1, 1), BOTH)
    with pytest.raises(ValueError, match="ended by content_filter"):
        verdict_of(Reply("VERDICT: CORRECT", "content_filter", 1, 1), BOTH)


def test_rubrics_are_the_papers():
    assert BOTH == ("CORRECT", "INCORRECT") and THREE == (
        "CORRECT",
        "PARTIALLY_CORRECT",
        "INCORRECT",
    )
    strict, lenient = JUDGES["knowledge"].metrics.values()
    assert [strict[v] for v in THREE] == [1, 0, 0] and [lenient[v] for v in THREE] == [1, 1, 0]
    for rubric in JUDGES.values():
        assert all(tuple(values) == rubric.verdicts for values in rubric.metrics.values())
        assert rubric.prompt.endswith("\n".join(f"VERDICT: {v}" for v in rubric.verdicts))


def test_a_changed_prompt_is_another_version():
    """Whoever changes a prompt raises its version and puts the new hash here."""
    known = {("medical", 1): "b5be2090d7f1", ("knowledge", 1): "0611a4b696cc"}
    config = EndpointConfig(model="m")
    found = {
        (r.name, r.version): judged_protocol({}, r, config)["scorer"]["judge"]["prompt_sha256"]
        for r in JUDGES.values()
    }
    assert found == known


def test_prompts_hold_the_three_texts_as_they_are():
    rubric = JUDGES["knowledge"]
    item = {
        "prompt": "[user] an article, and: Q?",
        "reference": {"question": "Q {reference}?", "answer": "A {completion}"},
        "completion": "C {question} \\1",
    }
    text = prompt_for(rubric, item)
    for value in ("\nQ {reference}?\n", "\nA {completion}\n", "\nC {question} \\1\n"):
        assert text.count(value) == 1
    assert "an article" not in text
    text = prompt_for(rubric, {"prompt": "[user] Q?", "reference": "A", "completion": ""})
    assert (
        "<question>\n[user] Q?\n</question>" in text
        and "<reference_answer>\nA\n</reference_answer>" in text
    )
    assert '\n{"a": [1, "é"]}\n' in prompt_for(
        rubric, {"prompt": "Q", "reference": {"a": [1, "é"]}, "completion": ""}
    )


# --- judging an evaluation ---


def evaluation(completions):
    return {
        "protocol": "p",
        "kind": "skill",
        "name": "wiki",
        "split": "test",
        "n": len(completions),
        "metrics": {"token_f1": [0.5, None]},
        "items": [
            {
                "id": str(i),
                "prompt": f"[user] {i}?",
                "completion": c,
                "tokens": 3,
                "finished": True,
                "reference": "A",
                "scores": {"token_f1": 0.5},
            }
            for i, c in enumerate(completions)
        ],
    }


def by_completion(verdicts):
    """A judge that goes by the answer to grade alone."""

    def answer(prompt, _):
        graded = prompt.partition("<answer_to_grade>\n")[2].partition("\n</answer_to_grade>")[0]
        return verdicts[graded]

    return answer


def test_strict_and_lenient_accuracy_and_what_has_no_verdict(serve, tmp_path):
    server = serve(
        by_completion(
            {
                "a": "Both facts.\nVERDICT: CORRECT",
                "b": "One.\nVERDICT: PARTIALLY_CORRECT",
                "c": "VERDICT: INCORRECT",
                "d": "VERDICT: CORRECT",
                "e": "I cannot say.",
                "f": (400, {}, b"content filter"),
                "g": (200, {}, completion("VERDICT: CORR", "length")),
            }
        )
    )
    found = judge(
        evaluation(list("abcdefga")), "q", JUDGES["knowledge"], endpoint(server, tmp_path)
    )
    assert found["metrics"]["judged_strict"] == pytest.approx(mean_and_stderr([1, 0, 0, 1, 1]))
    assert found["metrics"]["judged_lenient"] == pytest.approx(mean_and_stderr([1, 1, 0, 1, 1]))
    assert found["metrics"]["judge_errors"] == (3 / 8, None) and found["n"] == 5
    assert [i["verdict"] for i in found["items"]] == [
        "CORRECT",
        "PARTIALLY_CORRECT",
        "INCORRECT",
        "CORRECT",
        "CORRECT",
    ]
    assert [(i["completion"], i["scores"]) for i in found["unjudged"]] == [
        ("e", {}),
        ("f", {}),
        ("g", {}),
    ]
    assert (
        found["unjudged"][0]["reply"] == "I cannot say."
        and "content filter" in found["unjudged"][1]["error"]
    )
    assert found["items"][0]["scores"] == {"judged_strict": 1.0, "judged_lenient": 1.0} and found[
        "items"
    ][0]["reply"].startswith("Both")
    assert found["judge_tokens"] == 107 * 7  # of every reply, the equal ones too


def test_no_verdict_at_all_is_no_accuracy(serve, tmp_path):
    found = judge(
        evaluation(["a", "b"]), "q", JUDGES["medical"], endpoint(serve(lambda *_: "hm"), tmp_path)
    )
    assert found["metrics"] == {"judge_errors": (1.0, None)} and found["items"] == []
    refusing = serve(lambda *_: (400, {}, b"unknown parameter"))
    with pytest.raises(EndpointDown, match="unknown parameter"):
        judge(evaluation(["c", "d"]), "q", JUDGES["medical"], endpoint(refusing, tmp_path))


def test_reasoning_is_no_part_of_the_answer():
    item = {**evaluation(["Gout? No.</think>Appendicitis"])["items"][0], "answer": "Appendicitis"}
    assert "<answer_to_grade>\nAppendicitis\n</answer_to_grade>" in prompt_for(
        JUDGES["medical"], item
    )
    item = {**evaluation(["<think>Appendicitis, or"])["items"][0], "answer": ""}  # it was cut off
    assert "<answer_to_grade>\n\n</answer_to_grade>" in prompt_for(JUDGES["medical"], item)


# --- judging a run ---


def verdict_by_hash(prompt, _):
    """Some answers right, some wrong, the same at every call."""
    return (
        f"So.\nVERDICT: {('CORRECT', 'PARTIALLY_CORRECT', 'INCORRECT')[sum(prompt.encode()) % 3]}"
    )


@pytest.fixture
def judged_order(order_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))

    def read(url, **changes):
        path = order_file(
            methods={"sft": {"learning_rate": 1e-2}},
            **changes,
            judge={"base_url": url, "model": "judge-1", "pause": 0.01, "attempts": 2},
        )
        return read_order(path, ["skills.vowels.judge=knowledge"])

    return read


def test_a_run_is_judged_after_each_stage(serve, judged_order, tmp_path):
    server = serve(verdict_by_hash)
    order, out = judged_order(server.url), tmp_path / "out"
    run_order(order, out)
    records, protocols = read_lines(out / "records.jsonl"), read_json(out / "protocols.json")
    points = [
        (r["stage"], r["step"], r["final"])
        for r in records
        if r["name"] == "vowels" and r["metric"] == "token_f1"
    ]
    for metric in ("judged_strict", "judged_lenient", "judge_errors"):
        assert [
            (r["stage"], r["step"], r["final"]) for r in records if r["metric"] == metric
        ] == points
    assert not [r for r in records if r["name"] == "digits" and r["metric"].startswith("judge")]
    graded = {
        (r["stage"], r["step"]): r
        for r in records
        if r["name"] == "vowels" and r["metric"] == "token_f1"
    }
    for record in (r for r in records if r["metric"] in ("judged_strict", "judged_lenient")):
        found = read_json(out / "evaluations" / f"{record['evaluation']}.json")
        assert (record["value"], record["stderr"], record["n"]) == (
            *found["metrics"][record["metric"]],
            len(found["items"]),
        )
        scores = [i["scores"][record["metric"]] for i in found["items"]]
        assert (record["value"], record["stderr"]) == pytest.approx(mean_and_stderr(scores))
        other = graded[record["stage"], record["step"]]
        assert (
            record["evaluation"].split("-")[0] == other["evaluation"].split("-")[0]
            and record["protocol"] != other["protocol"]
        )
        meaning, base = protocols[record["protocol"]], protocols[other["protocol"]]
        assert protocol_hash(meaning) == record["protocol"]
        assert {k: v for k, v in meaning.items() if k != "scorer"} == {
            k: v for k, v in base.items() if k != "scorer"
        }
        assert (meaning["scorer"]["judge"]["model"], meaning["scorer"]["judge"]["prompt"]) == (
            "judge-1",
            "knowledge/1",
        )
        plain = {
            k: v
            for k, v in other.items()
            if k not in ("metric", "value", "stderr", "n", "protocol", "evaluation")
        }
        assert plain.items() <= record.items()
    # no answer is paid for twice
    assert len(server.requests) == len(
        {r["body"]["messages"][0]["content"] for r in server.requests}
    )
    before, text = len(server.requests), (out / "records.jsonl").read_bytes()
    run_order(order, out)
    assert len(server.requests) == before and (out / "records.jsonl").read_bytes() == text


def test_the_teacher_and_what_it_is_compared_with_keep_the_grader(serve, judged_order, tmp_path):
    """Validation answers, which the base model gives for the teacher's sake alone, are not paid
    for; figure 2 compares by the grader.
    """
    server, out = serve(verdict_by_hash), tmp_path / "out"
    run_order(judged_order(server.url, evaluate={"teacher": True}), out)
    records = read_lines(out / "records.jsonl")
    graded = [
        r["value"]
        for r in records
        if (r["name"], r["split"], r["metric"]) == ("vowels", "validation", "token_f1")
    ]
    assert len(graded) == 1 and {
        r["split"] for r in records if r["metric"].startswith("judge")
    } == {"test"}
    assert server.requests and not any(
        "vowels validation" in r["body"]["messages"][0]["content"] for r in server.requests
    )
    from benchmarks.paper.measured import in_context
    from harness.report.data import ReportData

    results = ReportData([out])
    rows = {(r["panel"], r["series"]): r for r in in_context(results) if r["x"] == "accuracy"}
    assert results.metric["vowels"] == "judged_strict" and rows["vowels", "base"][
        "value"
    ] == pytest.approx(100 * graded[0])
    assert ("vowels", "teacher") in rows


def test_oracle_answers_are_judged_as_well(serve, tiny, tmp_path, monkeypatch):
    """Of wiki, on test and ood, under names of their own; the judge is asked about the question
    alone, without the article.
    """
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    server = serve(verdict_by_hash)
    for split in ("train", "test", "ood"):
        write_rows(
            tmp_path / f"{split}.jsonl",
            [
                {"question": f"{split} {i}?", "answer": f"a{i}", "article": f"The article. {i}"}
                for i in range(4)
            ],
        )
    (tmp_path / "order.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
                "skills": [{"name": "wiki", "path": ".", "max_new_tokens": 4}],
                "methods": {"sft": {}},
                "budget": {"prompts": 2, "batch_size": 2},
                "evaluate": {"oracle": True},
                "judge": {"base_url": server.url, "model": "judge-1", "pause": 0.01},
            }
        )
    )
    run_order(read_order(tmp_path / "order.yaml"), tmp_path / "out")
    records, protocols = (
        read_lines(tmp_path / "out/records.jsonl"),
        read_json(tmp_path / "out/protocols.json"),
    )
    for split in ("test", "ood"):
        found = {r["metric"]: r for r in records if r["split"] == split and r["stage"] == 0}
        assert {
            "judged_strict",
            "oracle_judged_strict",
            "oracle_judged_lenient",
            "oracle_judge_errors",
            "oracle_token_f1",
        } <= set(found)
        record = found["oracle_judged_lenient"]
        items = read_json(tmp_path / "out/evaluations" / f"{record['evaluation']}.json")["items"]
        assert (
            record["value"] == np.mean([i["scores"]["judged_lenient"] for i in items])
            and record["n"] == 4
        )
        assert all(
            i["prompt"] == f"[user] The article. {k}\n\n{split} {k}?" for k, i in enumerate(items)
        )
        meaning, graded = (
            protocols[record["protocol"]],
            protocols[found["oracle_token_f1"]["protocol"]],
        )
        assert {k: v for k, v in meaning.items() if k != "scorer"} == {
            k: v for k, v in graded.items() if k != "scorer"
        }
        assert (
            "oracle_template" in meaning
            and record["protocol"] != found["judged_lenient"]["protocol"]
        )
    assert {r["stage"] for r in records if r["metric"].startswith("oracle_")} == {0}
    assert not any("The article" in r["body"]["messages"][0]["content"] for r in server.requests)
    from benchmarks.paper.measured import knowledge
    from harness.report.data import ReportData

    rows = {(r["series"], r["x"]): r for r in knowledge(ReportData([tmp_path / "out"]))}
    for x, metric, split in (
        ("strict", "judged_strict", "test"),
        ("lenient", "judged_lenient", "test"),
        ("ood", "judged_strict", "ood"),
    ):
        for series, prefix in (("base", ""), ("oracle_rag", "oracle_")):
            wanted = next(
                r
                for r in records
                if (r["stage"], r["split"], r["metric"]) == (0, split, prefix + metric)
            )
            assert rows[series, x]["value"] == pytest.approx(100 * wanted["value"])


def command(folder, *arguments, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "harness.judge", str(folder), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=300,
    )


def test_a_judge_that_is_down_stops_no_run_and_judges_later(serve, judged_order, tmp_path):
    """The same bytes as a run that was judged at once; and the report counts by the verdicts."""
    working, broken = serve(verdict_by_hash), serve(lambda *_: (503, {}, b"maintenance"))
    run_order(judged_order(working.url), tmp_path / "at once")
    (tmp_path / "cache").rename(tmp_path / "cache of the first")
    later = tmp_path / "later"
    run_order(judged_order(broken.url), later)
    assert not [r for r in read_lines(later / "records.jsonl") if r["metric"].startswith("judge")]
    failed = command(later, "--base-url", broken.url)
    assert (
        failed.returncode == 2
        and "maintenance" in failed.stderr
        and "start the same command again" in failed.stderr
    )
    assert "Traceback" not in failed.stderr
    done = command(later, "--base-url", working.url)
    assert done.returncode == 0, done.stderr
    assert (
        "0 without a verdict" in done.stdout
        and "judge-1: " in done.stderr
        and " tokens paid" in done.stderr
    )

    def without_time(folder):
        return [
            {k: v for k, v in r.items() if k != "seconds"}
            for r in read_lines(folder / "records.jsonl")
        ]

    assert without_time(later) == without_time(tmp_path / "at once")
    from harness.report.data import ReportData

    results = ReportData([later])
    assert results.metric == {"vowels": "judged_strict", "digits": "token_f1"}
    judged = {
        r["stage"]: r["value"]
        for r in read_lines(later / "records.jsonl")
        if r["metric"] == "judged_strict" and r["final"]
    }
    assert list(results.R["sft"][0, :, 0]) == [judged[k] for k in sorted(judged)]


def test_what_was_refused_is_asked_again_by_the_same_order(serve, judged_order, tmp_path):
    """Also where all stages are done; verdicts that came before are not paid for again."""
    whole, out = serve(verdict_by_hash), tmp_path / "out"
    picky = serve(
        lambda prompt, number: (
            (400, {}, b"too long") if number % 3 == 0 else verdict_by_hash(prompt, number)
        )
    )
    run_order(judged_order(picky.url), out)
    assert any(
        r["value"] for r in read_lines(out / "records.jsonl") if r["metric"] == "judge_errors"
    )
    asked = len(picky.requests)
    run_order(judged_order(whole.url), out)
    assert not any(
        r["value"] for r in read_lines(out / "records.jsonl") if r["metric"] == "judge_errors"
    )
    assert 0 < len(whole.requests) < asked and not any(
        read_json(p).get("unjudged") for p in (out / "evaluations").iterdir()
    )


def test_a_reply_cut_short_is_asked_once_a_start(serve, judged_order, tmp_path):
    """Not after each stage, and not for each of the runs that share a base model."""
    server, out = (
        serve(lambda *_: (200, {}, completion("VERDICT: COR", "length"))),
        tmp_path / "out",
    )
    run_order(judged_order(server.url, seeds=[0, 1]), out)
    unjudged = [
        found["unjudged"]
        for p in (out / "evaluations").iterdir()
        if (found := read_json(p)).get("unjudged")
    ]
    first = len(server.requests)
    assert (
        first
        == sum(
            len({json.dumps([i["prompt"], i["reference"], i["completion"]]) for i in items})
            for items in unjudged
        )
        > 0
    )
    run_order(judged_order(server.url, seeds=[0, 1]), out)
    assert len(server.requests) == 2 * first


def test_another_judge_takes_the_place_of_the_first(serve, judged_order, tmp_path):
    """One judge's records at a time: numbers of two judges are not averaged. The first one's
    evaluations stay.
    """
    server, out = serve(verdict_by_hash), tmp_path / "out"
    run_order(judged_order(server.url), out)
    first = {
        r["protocol"] for r in read_lines(out / "records.jsonl") if r["metric"] == "judged_strict"
    }
    judge_folder(out, endpoint(server, tmp_path / "cache", model="judge-2"))
    second = {
        r["protocol"] for r in read_lines(out / "records.jsonl") if r["metric"] == "judged_strict"
    }
    assert len(first) == len(second) == 1 and first != second
    assert [p for p in (out / "evaluations").iterdir() if next(iter(first)) in p.name]


def test_a_broken_folder_is_said_in_one_line(serve, judged_order, tmp_path):
    server, out = serve(verdict_by_hash), tmp_path / "out"
    run_order(judged_order(server.url), out)
    client, about = endpoint(server, tmp_path / "cache"), read_json(out / "results.json")
    unknown = {**about, "skills": [{**about["skills"][0], "judge": {"rubric": "knowlege"}}]}
    for file, text, said in (
        ("protocols.json", "{}", "does not say what protocol"),
        (
            "results.json",
            json.dumps(unknown),
            "unknown rubric 'knowlege'; did you mean 'knowledge'",
        ),
        ("results.json", "{}", "has no `skills`"),
    ):
        whole = (out / file).read_text()
        (out / file).write_text(text)
        with pytest.raises(UserError, match=said):
            judge_folder(out, client)
        (out / file).write_text(whole)
    (out / "protocols.json").unlink()
    with pytest.raises(UserError, match=r"protocols\.json: is not there"):
        judge_folder(out, client)


def test_the_key_is_never_written(serve, judged_order, order_file, tmp_path, monkeypatch):
    server = serve(verdict_by_hash)
    order = judged_order(server.url)
    order.judge.api_key = "sk-secret-of-the-order"
    run_order(order, tmp_path / "out")
    assert server.requests[0]["headers"]["Authorization"] == "Bearer sk-secret-of-the-order"
    for folder in ("out", "cache"):
        assert not [
            p
            for p in (tmp_path / folder).rglob("*")
            if p.is_file() and b"sk-secret" in p.read_bytes()
        ]
    assert read_json(tmp_path / "out" / "judge.json")["base_url"] == server.url


def test_what_cannot_be_judged_is_said(order_file, tmp_path, monkeypatch):
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    assert "no results folder" in command(tmp_path).stderr
    (tmp_path / "results.json").write_text('{"skills": []}')
    assert "no server is named" in command(tmp_path).stderr
    said = command(tmp_path, "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    assert said.returncode == 2 and "holds no skill that is judged" in said.stderr
    with pytest.raises(UserError, match="did you mean 'medical'"):
        read_order(order_file(), ["skills.vowels.judge=medcal"])
    # no server: the order runs, ungraded by a judge
    order = read_order(order_file(), ["skills.vowels.judge=medical"])
    assert order.judge is None and order.about()["skills"][0]["judge"] == {
        "rubric": "medical",
        "metrics": ["judged_accuracy"],
    }
    assert "judge" not in order.about()["skills"][1]
