"""EndpointGenerator: a language model behind any OpenAI-compatible server (vLLM, llama.cpp, transformers serve, ...).

Requests run at most `concurrency` at a time. One that fails for a reason that passes (429, 408, 5xx, no connection, a
time-out, an answer cut off) is asked again after a delay that doubles with each failure, with jitter, or after what
Retry-After says, which then holds for all of them; one that has failed for `give_up_after_s` ends the run.
The key is read from the environment variable that the config names, and stands in no error, file or representation.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from psychecore.curate.generator import Arrived, Reply, Request, collect, thinking_name

# the base of all errors of the HTTP library that huggingface_hub uses, httpx or httpx2: no connection, broken off, ...
HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]
PASSING = {408, 409, 425, 429}  # and 5xx: worth another try
FIRST_DELAY, LONGEST_DELAY, LONGEST_RETRY_AFTER = 0.5, 30.0, 600.0  # seconds
TOO_LONG = re.compile(  # of this request alone; what is wrong with the configuration must end the run
    r"context.{0,10}(length|window|size)|(prompt|input).{0,20}too long|max_model_len|content_filter", re.I
)


@dataclass(frozen=True)
class EndpointConfig:
    """Where and how to ask.

    url: of the API ("http://127.0.0.1:8000/v1"). model: as the server calls it. key_variable: the environment variable
    that holds the API key; without one, no key is sent. concurrency: requests at a time. timeout_s: of one try.
    give_up_after_s: how long a request may fail. logprobs: ask for them too; not every server has them.
    thinking: the switch of chat templates that have one, sent as chat_template_kwargs (vLLM, SGLang).
    """

    url: str
    model: str
    key_variable: str = ""
    concurrency: int = 16
    timeout_s: float = 300.0
    give_up_after_s: float = 900.0
    logprobs: bool = False
    thinking: bool | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {self.url!r}, but must be like http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"the url of {parts.hostname} holds a user, password or query; name a key_variable instead"
            )
        if not self.model:
            raise ValueError(f"no model is named for {self.url}")
        if self.concurrency < 1 or not self.timeout_s > 0 or not self.give_up_after_s >= 0:
            raise ValueError(
                f"concurrency {self.concurrency} must be at least 1, timeout_s {self.timeout_s} above 0, "
                f"give_up_after_s {self.give_up_after_s} at least 0"
            )


class EndpointGenerator:
    """Raises ValueError where the key's variable is not set; when asking, ValueError for what the server refuses for
    good (401, 404, ...), ConnectionError where it stayed away longer than `give_up_after_s`.
    """

    def __init__(self, config: EndpointConfig, name: str = ""):
        self.config = config
        self.name = name or config.model
        self.identity = f"{config.model}{thinking_name(config.thinking)} at {config.url.rstrip('/')}"
        # A client without a key would send the user's Hugging Face token to any server.
        self._key = "none"
        if config.key_variable:
            self._key = os.environ.get(config.key_variable, "")
            if not self._key:
                raise ValueError(f"environment variable {config.key_variable} is to hold the key of {config.url}")
        self._not_before = 0.0  # time.monotonic() before which the server wants no request

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order."""
        return collect(self, requests)

    def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
        """As Announcing has it: each reply arrives by itself."""
        asyncio.run(self._ask_all(requests, arrived))

    async def _ask_all(self, requests: Sequence[Request], arrived: Arrived) -> None:
        config = self.config
        free = asyncio.Semaphore(config.concurrency)
        async with AsyncInferenceClient(
            base_url=config.url, provider="hf-inference", api_key=self._key, timeout=config.timeout_s
        ) as client:

            async def ask(number: int) -> None:
                async with free:
                    arrived({number: await self._ask(client, requests[number])})

            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(len(requests)):
                        tasks.create_task(ask(number))
            except* (ValueError, OSError) as errors:
                raise _first(errors) from None

    async def _ask(self, client: AsyncInferenceClient, request: Request) -> Reply:
        """The reply, after as many tries as it takes."""
        first_failure, tries = None, 0
        while True:
            if (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            try:
                async with asyncio.timeout(self.config.timeout_s):
                    return self._reply(await client.chat_completion(**self._arguments(request)))
            except HfHubHTTPError as error:
                status, body = error.response.status_code, error.response.text
                if status in (400, 413, 422) and TOO_LONG.search(body):
                    return Reply("", None, refused=True)
                if status not in PASSING and status < 500:
                    raise ValueError(self._safe(f"{self.config.url}: {status}: {body:.300}")) from None
                problem, delay = f"{status}: {body:.200}", _retry_after(error.response.headers.get("retry-after", ""))
            except OfflineModeIsEnabled:
                raise ValueError("HF_HUB_OFFLINE forbids huggingface_hub all requests, so unset it") from None
            except (HTTPError, OSError, ValueError, TypeError, LookupError) as error:  # TimeoutError is an OSError
                problem, delay = f"{type(error).__name__}: {error}", 0.0
            now, tries = time.monotonic(), tries + 1
            first_failure = first_failure or now
            self._not_before = max(self._not_before, now + delay)
            delay = delay or min(LONGEST_DELAY, FIRST_DELAY * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            if now + delay - first_failure > self.config.give_up_after_s:
                raise ConnectionError(
                    self._safe(
                        f"{self.config.url}: {tries} tries in {now - first_failure:.0f} s failed, the last with "
                        f"{problem}; what has arrived is kept, and the same command continues"
                    )
                ) from None
            await asyncio.sleep(delay)

    def _arguments(self, request: Request) -> dict[str, Any]:
        thinking = self.config.thinking
        return {
            "messages": request.messages,
            "model": self.config.model,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p if request.top_p < 1 else None,
            "seed": (request.seed + 1_000_003 * request.sample) % 2**31,
            "logprobs": True if self.config.logprobs else None,
            "extra_body": None if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}},
        }

    def _reply(self, answer: Any) -> Reply:
        try:
            choice = answer.choices[0]
            text, logprobs = _text(choice.message.content), getattr(choice, "logprobs", None)
            logprob = sum(token.logprob for token in logprobs.content) if logprobs else None
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"no chat completion ({error})") from None
        cut = getattr(choice, "finish_reason", None) == "length"
        return Reply(text.encode("utf-8", "replace").decode(), logprob, cut=cut)

    def _safe(self, text: str) -> str:
        """The text without the key, which a server may have put into its error."""
        return text.replace(self._key, "***") if self.config.key_variable else text


def _text(content: Any) -> str:
    """A message's content, which some servers divide into parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
    if not isinstance(content, str | None):
        raise TypeError(f"its content is {content!r:.80}, but must be a text")
    return content or ""


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, a number or a date (RFC 9110, 10.2.3); 0 where it says nothing."""
    try:
        if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
