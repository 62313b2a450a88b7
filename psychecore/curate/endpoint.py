"""A language model behind an OpenAI-compatible server, asked with bounded concurrency, patience, and no key on disk."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from psychecore.curate.generator import Receive, Reply, Request

AGAIN = (408, 409, 429, 500, 502, 503, 504)


class EndpointError(RuntimeError):
    """The server refused a request, or did not answer in spite of all tries."""


@dataclass(frozen=True)
class EndpointConfig:
    """Where the server is and how it is asked.

    base_url: such as "http://127.0.0.1:8000/v1". key_variable: the environment variable that holds the key, if it needs
    one. concurrency: requests under way at a time. timeout_seconds: of one request. retries: after a 408, 409, 429 or
    5xx answer, a time-out or a lost connection, with pauses that double from pause_seconds; Retry-After wins.
    """

    base_url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 16
    timeout_seconds: float = 120.0
    retries: int = 8
    pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError("base_url must be http(s)://host/path, without a user or a key in it")
        if self.concurrency < 1 or self.retries < 0:
            raise ValueError(f"concurrency {self.concurrency} must be at least 1, retries {self.retries} at least 0")
        if not self.timeout_seconds > 0 or not self.pause_seconds > 0:
            raise ValueError("timeout_seconds and pause_seconds must be above 0")


class EndpointGenerator:
    """A Generator of one model on a server."""

    def __init__(self, config: EndpointConfig):
        self.config = config
        self.name = f"{config.base_url.rstrip('/')}#{config.model}"
        self._key = "none"  # local servers take any
        if config.key_variable is not None:
            self._key = os.environ.get(config.key_variable, "")
            if not self._key:
                raise ValueError(f"environment variable {config.key_variable} holds no key for {config.base_url}")

    def generate(self, requests: Sequence[Request], receive: Receive | None = None) -> list[Reply]:
        """Replies in order. Raises EndpointError when a request is refused or all its tries have failed.

        The replies that came before are with `receive` (a cache), so the next run does not ask for them again.
        """
        return asyncio.run(self._all(requests, receive))

    async def _all(self, requests: Sequence[Request], receive: Receive | None) -> list[Reply]:
        config, replies = self.config, dict[int, Reply]()
        gate = asyncio.Semaphore(config.concurrency)
        async with AsyncInferenceClient(
            base_url=config.base_url, api_key=self._key, timeout=config.timeout_seconds
        ) as client:

            async def one(place: int) -> None:
                async with gate:
                    replies[place] = await self._ask(client, requests[place])
                if receive is not None:
                    receive(place, replies[place])

            try:
                async with asyncio.TaskGroup() as group:
                    for place in range(len(requests)):
                        group.create_task(one(place))
            except* EndpointError as errors:
                raise errors.exceptions[0] from None
        return [replies[place] for place in range(len(requests))]

    async def _ask(self, client: AsyncInferenceClient, request: Request) -> Reply:
        config = self.config
        problem, pause = "", 0.0
        for attempt in range(config.retries + 1):
            await asyncio.sleep(pause)
            pause = min(config.pause_seconds * 2**attempt, 60.0) * random.uniform(0.5, 1.0)
            try:
                answer = await client.chat_completion(
                    [dict(message) for message in request.messages],
                    model=config.model,
                    max_tokens=request.max_new_tokens,
                    temperature=request.temperature,
                    seed=(request.seed + 7919 * request.sample) % 2**31,
                )
            except HfHubHTTPError as error:
                response: Any = getattr(error, "response", None)
                status = getattr(response, "status_code", 0)
                problem = f"HTTP {status}"
                if status not in AGAIN:
                    raise EndpointError(f"{self.name} refused a request: {problem} {_body(response)}") from None
                wait = response.headers.get("retry-after", "")
                pause = float(wait) if wait.replace(".", "", 1).isdigit() else pause
            except (InferenceTimeoutError, TimeoutError, OSError) as error:
                problem = type(error).__name__
            except Exception as error:
                if not type(error).__module__.startswith(("httpx", "httpcore")):
                    raise
                problem = type(error).__name__  # a connection that was refused, reset or cut
            else:
                text = answer.choices[0].message.content
                return Reply(text or "", None)
        raise EndpointError(f"{self.name} did not answer after {config.retries + 1} tries ({problem})")


def _body(response: Any) -> str:
    return " ".join(str(getattr(response, "text", "")).split())[:200]
