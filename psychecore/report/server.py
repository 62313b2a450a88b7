"""The live report: http.server on the loopback interface, with three addresses and no way to a file.

    /                                          the page
    /data.json?seen=VERSION                    curves and evaluation; 204 where nothing changed since VERSION
    /rollouts.json?run=0&words=..&step=..      a page of groups

Other users of this machine can reach it, as any loopback port: it shows what the run folder holds, and changes nothing.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from psychecore.report.page import page_data, served_page
from psychecore.report.run_folder import open_runs

HOST = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")  # names a browser may have called it by; another one is a rebound name
MAX_WORDS = 1_000  # characters of a search


class ReportServer(ThreadingHTTPServer):
    """Serves the report of some run folders; `serve_forever` blocks, `port` tells where."""

    daemon_threads = True

    def __init__(self, runs: Sequence[Path], port: int = 0, seconds: float = 3.0):
        """Raises ValueError for what is no run folder, OSError where the port is taken. Port 0 takes a free one."""
        self.folders = open_runs(runs)
        self.page = served_page(seconds).encode()
        self.run = secrets.token_hex(8)  # a page that is still open from another server's time must not seem current
        self.version, self._stale = 0, True
        self._lock = threading.Lock()  # one look or search at a time: both read the folders' indices
        self._data: dict[str, Any] = {}
        super().__init__((HOST, port), _Handler)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where to point a browser."""
        return f"http://{HOST}:{self.port}/"

    def data(self, seen: str) -> dict[str, Any] | None:
        """What the page draws, or None where `seen` is still its version."""
        with self._lock:
            for folder in self.folders:
                self._stale |= folder.look()
            if self._stale:
                self._data = page_data(self.folders) | {"version": f"{self.run}-{self.version + 1}"}
                self.version, self._stale = self.version + 1, False
            return None if seen == self._data["version"] else self._data

    def rollouts(self, query: dict[str, str]) -> Any:
        """A page of groups. Raises ValueError for a query that is none."""
        with self._lock:
            number = _integer(query, "run") or 0
            if not 0 <= number < len(self.folders):
                raise ValueError(f"run is {number}, but must be 0 to {len(self.folders) - 1}")
            found = self.folders[number].rollouts
            step, below, differ = _integer(query, "step"), _integer(query, "below"), query.get("differ") == "1"
            self._stale |= found.look()
            return found.page(query.get("words", "")[:MAX_WORDS], step, differ, below)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "psychecore", ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer one of the three addresses."""
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if name not in HOSTS:
            return self._send(HTTPStatus.FORBIDDEN, b"call it by 127.0.0.1 or localhost\n", "text/plain")
        address = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        if address.path == "/":
            return self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        if address.path not in ("/data.json", "/rollouts.json"):
            return self._send(HTTPStatus.NOT_FOUND, b"nothing here; the page is at /\n", "text/plain")
        try:
            data = address.path == "/data.json"
            found = self.server.data(query.get("seen", "")) if data else self.server.rollouts(query)
        except (ValueError, OSError) as error:  # a damaged or half-replaced file: the page shows it and asks again
            return self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        if found is None:
            return self._send(HTTPStatus.NO_CONTENT, b"", "application/json")
        return self._json(HTTPStatus.OK, found)

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a poll every few seconds would bury what is worth reading."""


def _integer(query: dict[str, str], name: str) -> int | None:
    value = query.get(name)
    if value is None:
        return None
    try:
        return int(value[:20])
    except ValueError:
        raise ValueError(f"{name} is {value!r:.80}, but must be an integer") from None
