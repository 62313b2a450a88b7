"""The endpoint generator against transformers' own OpenAI-compatible server, also stopped and started in a batch."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.endpoint import EndpointConfig, EndpointGenerator
from psychecore.curate.generator import LocalGenerator, Reply, Request

NEEDED = ("transformers", "fastapi", "uvicorn", "openai")
if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    pytest.skip(f"`transformers serve` needs {', '.join(missing)}: make .venv/.installed-test", allow_module_level=True)

pytestmark = pytest.mark.slow  # a server takes a quarter of a minute to start, twice

ASKED = [
    Request([{"role": "user", "content": f"In one sentence, what is {word}?"}], 16)
    for word in ("memory", "shaping", "anxiety", "empathy", "stress", "sleep")
]


class Served:
    """`transformers serve` on a free port; it can be killed and started again on the same one."""

    def __init__(self, folder: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.log, self.url = folder, log, f"http://127.0.0.1:{self.port}/v1"
        self.starts = 0
        self.start()

    def start(self) -> None:
        flags = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(self.port)]
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(self.folder), *flags]
        with open(self.log, "ab") as log:
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.starts += 1

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self) -> None:
        until = time.monotonic() + 180
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def served(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(smollm2_folder, tmp_path_factory.mktemp("serve") / "log")
    try:
        served.wait()
        yield served
    finally:
        served.kill()


@pytest.fixture(scope="module")
def expected(smollm2_folder: Path) -> list[str]:
    """What our own sampler says to the same greedy requests, on the same weights."""
    return [reply.text for reply in LocalGenerator(str(smollm2_folder)).generate(ASKED)]


def endpoint(served: Served) -> EndpointGenerator:
    return EndpointGenerator(EndpointConfig(served.url, str(served.folder), concurrency=2, give_up_after_s=180))


def test_the_server_says_what_the_local_generator_says(served: Served, expected: list[str]) -> None:
    assert [reply.text for reply in endpoint(served).generate(ASKED)] == expected


def test_the_server_may_be_stopped_and_started_within_a_batch(
    served: Served, expected: list[str], tmp_path: Path
) -> None:
    asking, kills = endpoint(served), []

    class Killing:
        """Passes on to the endpoint; kills and starts the server again as soon as two replies have arrived."""

        name, identity = asking.name, asking.identity

        def generate_each(self, requests: list[Request], arrived: object) -> None:
            seen: list[int] = []

            def watch(replies: Mapping[int, Reply]) -> None:
                arrived(replies)
                seen.extend(replies)
                if len(seen) == 2:
                    served.kill()
                    kills.append(len(seen))
                    served.start()

            asking.generate_each(requests, watch)

        def generate(self, requests: list[Request]) -> list[Reply]:
            raise NotImplementedError

    cached = CachedGenerator(Killing(), Cache(tmp_path / "cache.jsonl"))
    assert [reply.text for reply in cached.generate(ASKED)] == expected
    assert kills == [2]
    assert served.starts == 2
    assert cached.generate(ASKED) == cached.generate(ASKED)
    assert cached.asked == len(ASKED)  # each reply was kept once and asked for no more
