"""The endpoint generator against a small server that fails as real ones do: 429, 5xx, stalls, cut answers."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from psychecore.curate import endpoint
from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.endpoint import EndpointConfig, EndpointGenerator
from psychecore.curate.generator import Reply, Request

KEY = "sk-very-secret-0123456789"


class FaultyServer(ThreadingHTTPServer):
    """Answers a chat with its last message in capitals; `fault(n, body)` may answer request n (from 1) otherwise."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.fault: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], str] | None] = lambda n, body: None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that hung up: a traceback parses source, which Python 3.11 can't do in two threads."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.times.append(time.monotonic())
            number = len(server.bodies)
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            answer = server.fault(number, body)
            if answer is None:
                message = {"role": "assistant", "content": body["messages"][-1]["content"].upper()}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                if body.get("logprobs"):
                    choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1}]}
                answer = 200, {}, json.dumps({"choices": [choice], "id": "1", "created": 1, "model": "m"})
        finally:
            with server.lock:
                server.running -= 1
        status, headers, text = answer
        if status == 0:  # hang up in the middle of the answer
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"content-length": str(len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.02)
    server = FaultyServer()
    yield server
    server.shutdown()
    server.server_close()


def generator(server: FaultyServer, **options: Any) -> EndpointGenerator:
    return EndpointGenerator(EndpointConfig(server.url, "some-model", **({"give_up_after_s": 20.0} | options)))


def requests(count: int, **options: Any) -> list[Request]:
    return [Request([{"role": "user", "content": f"word {i}"}], 8, **options) for i in range(count)]


def test_replies_come_in_the_order_of_the_requests_and_never_too_many_at_a_time(server: FaultyServer) -> None:
    server.fault = lambda n, body: time.sleep(0.03 * (n % 3))
    replies = generator(server, concurrency=4).generate(requests(20))
    assert replies == [Reply(f"WORD {i}", None) for i in range(20)]
    assert 2 <= server.most_running <= 4


def test_the_request_says_what_was_asked(server: FaultyServer) -> None:
    options = {"temperature": 0.7, "seed": 3}
    asked = [Request([{"role": "user", "content": "x"}], 9, sample=sample, **options) for sample in (0, 1)]
    replies = generator(server, logprobs=True, concurrency=1).generate(asked)
    first, second = server.bodies
    assert (first["model"], first["max_tokens"], first["temperature"], first["seed"]) == ("some-model", 9, 0.7, 3)
    assert first["messages"] == [{"role": "user", "content": "x"}]
    assert second["seed"] != first["seed"]  # another sample of the same prompt
    assert replies[0].logprob == -1.5
    assert "chat_template_kwargs" not in first
    generator(server, thinking=False).generate(asked[:1])
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert (
        generator(server, thinking=False).identity
        == "some-model, without thinking at " + generator(server).identity.partition(" at ")[2]
    )


@pytest.mark.parametrize(
    "fault",
    [
        (429, {}, "slow down"),
        (500, {}, "oops"),
        (503, {}, "loading"),
        (0, {}, "hangs up"),
        (200, {}, "<html>a proxy's page</html>"),
        (200, {}, '{"choices": []}'),
    ],
)
def test_what_passes_is_tried_again(server: FaultyServer, fault: tuple[int, dict[str, str], str]) -> None:
    server.fault = lambda n, body: fault if n in (1, 2, 5) else None
    assert generator(server, concurrency=2).generate(requests(4)) == [Reply(f"WORD {i}", None) for i in range(4)]
    assert len(server.bodies) == 7


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_for_all_requests(server: FaultyServer, form: str) -> None:
    value = (
        "2" if form == "seconds" else email.utils.formatdate(time.time() + 3, usegmt=True)
    )  # dates are whole seconds
    server.fault = lambda n, body: (429, {"retry-after": value}, "") if n == 1 else None
    generator(server, concurrency=1).generate(requests(3))
    assert len(server.times) == 4
    assert min(server.times[1:]) - server.times[0] >= 1.9


def test_a_stalled_answer_times_out_and_is_asked_again(server: FaultyServer) -> None:
    server.fault = lambda n, body: time.sleep(3) if n == 1 else None
    started = time.monotonic()
    assert generator(server, timeout_s=0.3, concurrency=2).generate(requests(3))[0] == Reply("WORD 0", None)
    assert time.monotonic() - started < 2.5


def test_the_delay_between_tries_grows(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.1)
    server.fault = lambda n, body: (500, {}, "") if n <= 4 else None
    generator(server).generate(requests(1))
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    for number, gap in enumerate(gaps):  # between a half and a whole of 0.1, 0.2, 0.4, 0.8 s
        assert 0.05 * 2**number <= gap < 0.1 * 2**number + 0.5
    assert gaps[3] > gaps[0]


def test_a_server_that_stays_away_ends_the_run_and_what_arrived_is_kept(server: FaultyServer, tmp_path: Path) -> None:
    server.fault = lambda n, body: (503, {}, "away") if body["messages"][0]["content"] == "word 3" else None
    cached = CachedGenerator(generator(server, give_up_after_s=0.3, concurrency=1), Cache(tmp_path / "cache.jsonl"))
    with pytest.raises(ConnectionError, match=r"127.0.0.1.*tries.*503: away"):
        cached.generate(requests(4))
    server.fault = lambda n, body: None
    before = len(server.bodies)
    assert [reply.text for reply in cached.generate(requests(4))] == [f"WORD {i}" for i in range(4)]
    assert len(server.bodies) == before + 1


def test_no_server_at_all_is_a_connection_error() -> None:
    away = EndpointGenerator(EndpointConfig("http://127.0.0.1:9/v1", "m", give_up_after_s=0.0))
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9/v1: 1 tries"):
        away.generate(requests(1))


def test_a_request_too_long_for_the_model_has_an_empty_reply(server: FaultyServer) -> None:
    message = "This model's maximum context length is 2048 tokens"
    server.fault = lambda n, body: (400, {}, message) if "1" in body["messages"][0]["content"] else None
    replies = generator(server).generate(requests(3))
    assert [(one.text, one.refused) for one in replies] == [("WORD 0", False), ("", True), ("WORD 2", False)]


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "Unknown model; no such deployment in this context.",
        "You must accept the content management policy terms in the portal first.",
    ],
)
def test_a_refused_configuration_is_no_empty_reply(server: FaultyServer, message: str) -> None:
    server.fault = lambda n, body: (400, {}, message)
    with pytest.raises(ValueError, match=f"400: {message[:20]}"):
        generator(server, concurrency=1).generate(requests(1))


def completion(content: Any, ended: str = "stop") -> tuple[int, dict[str, str], str]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": ended}
    return 200, {}, json.dumps({"choices": [choice], "id": "1", "created": 1, "model": "m"})


def test_a_reply_that_the_limit_ended_is_known_as_cut(server: FaultyServer) -> None:
    for ended, cut in (("stop", False), ("length", True)):
        server.fault = lambda n, body, ended=ended: completion("slowly lea", ended)
        assert generator(server).generate(requests(1)) == [Reply("slowly lea", None, cut=cut)]


def test_content_in_parts_is_one_text(server: FaultyServer) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "two"}]
    server.fault = lambda n, body: completion(parts)
    assert generator(server).generate(requests(1)) == [Reply("one two", None)]


@pytest.mark.parametrize("content", [5, [{"type": "text", "text": 5}], [{"type": "text"}], {"text": "x"}])
def test_content_that_is_no_text_is_an_error_that_says_so(server: FaultyServer, content: Any) -> None:
    server.fault = lambda n, body: completion(content)
    with pytest.raises(ConnectionError, match=r"no chat completion"):
        generator(server, give_up_after_s=0.1).generate(requests(1))


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_the_server_refuses_ends_the_run_at_once(server: FaultyServer, status: int) -> None:
    server.fault = lambda n, body: (status, {}, "unknown model some-model")
    with pytest.raises(ValueError, match=f"{status}: unknown model"):
        generator(server, concurrency=1).generate(requests(1))
    assert len(server.bodies) == 1


def test_the_key_comes_from_the_environment_and_is_found_nowhere_else(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level("DEBUG")
    asking = generator(server, key_variable="SOME_KEY", give_up_after_s=0.1)
    cached = CachedGenerator(asking, Cache(tmp_path / "cache.jsonl"))
    cached.generate(requests(2))
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    for status in (401, 503):
        server.fault = lambda n, body, status=status: (status, {}, f"the key {KEY} is wrong")
        with pytest.raises((ValueError, ConnectionError), match=r"the key \*\*\* is wrong") as caught:
            cached.generate(requests(3))
        assert KEY not in repr(caught.getrepr(chain=True)) + str(caught.value)
    assert KEY not in (tmp_path / "cache.jsonl").read_text() + caplog.text + repr(asking) + asking.identity
    assert KEY not in repr(asking.config)


def test_without_a_key_the_users_hugging_face_token_is_not_sent(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    generator(server).generate(requests(1))
    assert "hf_private" not in str(server.headers)


def test_a_key_variable_that_is_not_set_is_an_error(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="SOME_KEY"):
        generator(server, key_variable="SOME_KEY")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "127.0.0.1:80"},
        {"url": "http://me:secret@host/v1"},
        {"model": ""},
        {"concurrency": 0},
        {"timeout_s": 0.0},
        {"give_up_after_s": -1.0},
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each has its own message
        EndpointConfig(**({"url": "http://host/v1", "model": "m"} | wrong))
    assert "secret" not in str(caught.value)
