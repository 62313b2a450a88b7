"""The endpoint client against a server that misbehaves on purpose, on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from psychecore.curate.endpoint import EndpointConfig, EndpointError, EndpointGenerator
from psychecore.curate.generator import CachedGenerator, Request

KEY = "sk-never-written-down"


class Server(ThreadingHTTPServer):
    """Answers with what `plan` gives for the n-th request; counts how many are under way at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.times: list[float] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.keys.add(self.headers.get("Authorization", ""))
            server.under_way += 1
            server.most = max(server.most, server.under_way)
            step = server.plan.pop(0) if server.plan else 200
        time.sleep(step if isinstance(step, float) else 0.02)
        with server.lock:
            server.under_way -= 1
        status, headers = step if isinstance(step, tuple) else (200 if isinstance(step, float) else step, {})
        if status == 0:  # the connection is cut without a word
            self.connection.close()
            return
        said = f"echo {body['messages'][-1]['content']}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        answer["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        payload = json.dumps(answer if status == 200 else {"error": "no such model"}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def generator(server: Server, **changes: Any) -> EndpointGenerator:
    settings = {"key_variable": "TEST_KEY", "pause_seconds": 0.01, "timeout_seconds": 5.0, "concurrency": 3}
    return EndpointGenerator(EndpointConfig(server.url, "m", **(settings | changes)))


def ask(*texts: str) -> list[Request]:
    return [Request([{"role": "user", "content": text}], max_new_tokens=7) for text in texts]


def test_replies_come_in_order_with_bounded_concurrency(server: Server) -> None:
    texts = [str(n) for n in range(12)]
    assert [r.text for r in generator(server).generate(ask(*texts))] == [f"echo {text}" for text in texts]
    assert 1 < server.most <= 3
    assert server.keys == {f"Bearer {KEY}"}
    assert {body["max_tokens"] for body in server.bodies} == {7}
    assert {body["model"] for body in server.bodies} == {"m"}


@pytest.mark.parametrize("problem", [429, 500, 503, 0])
def test_a_busy_failing_or_lost_server_is_asked_again(problem: int, server: Server) -> None:
    server.plan = [problem, problem]
    assert generator(server).generate(ask("a"))[0].text == "echo a"
    assert len(server.bodies) == 3


def test_retry_after_is_obeyed(server: Server) -> None:
    server.plan = [(429, {"Retry-After": "0.4"})]
    generator(server).generate(ask("a"))
    assert server.times[1] - server.times[0] >= 0.4


def test_a_time_out_is_tried_again(server: Server) -> None:
    server.plan = [3.0]
    assert generator(server, timeout_seconds=0.5).generate(ask("a"))[0].text == "echo a"


def test_what_no_try_can_mend_is_told_at_once(server: Server) -> None:
    server.plan = [404]
    with pytest.raises(EndpointError, match=r"#m refused a request: HTTP 404 .*no such model"):
        generator(server).generate(ask("a"))
    assert len(server.bodies) == 1
    server.plan = [500] * 9
    with pytest.raises(EndpointError, match=r"did not answer after 3 tries \(HTTP 500\)"):
        generator(server, retries=2).generate(ask("a"))


def test_what_was_answered_before_an_error_is_not_asked_again_and_no_key_is_kept(
    server: Server, tmp_path: Path
) -> None:
    server.plan = [200, 200, 404]
    cached = CachedGenerator(generator(server, concurrency=1), tmp_path / "cache.jsonl")
    with pytest.raises(EndpointError) as told:
        cached.generate(ask("a", "b", "c", "d"))
    again = CachedGenerator(generator(server), tmp_path / "cache.jsonl")
    assert [r.text for r in again.generate(ask("a", "b", "c", "d"))] == ["echo a", "echo b", "echo c", "echo d"]
    assert (again.asked, again.found) == (2, 2)
    assert KEY not in (tmp_path / "cache.jsonl").read_text() + again.name + str(told.value)


def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ValueError, match="TEST_KEY holds no key"):
        EndpointGenerator(EndpointConfig("http://x/v1", "m", key_variable="TEST_KEY"))
    for url in ("ftp://x", "x", f"http://user:{KEY}@host/v1"):
        with pytest.raises(ValueError, match="base_url must be") as told:
            EndpointConfig(url, "m")
        assert KEY not in str(told.value)
    with pytest.raises(ValueError, match="concurrency 0"):
        EndpointConfig("http://x", "m", concurrency=0)
