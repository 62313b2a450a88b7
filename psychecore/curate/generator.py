"""The one interface to a language model, a local one behind it, and a cache that never pays twice.

`Generator.generate` takes requests, messages with sampling parameters, and returns replies in their order. The local
generator is any folder that load_model reads, run by the sampler in batches; psychecore/curate/endpoint.py is any
OpenAI-compatible server.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from psychecore.model.decoder import Decoder
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.text.chat import Message
from psychecore.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """One question to a model; equal requests get equal replies, so samples of one prompt differ in `sample`."""

    messages: list[Message]
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Reply:
    """A model's text, and the sum of its tokens' log-probs where the model tells them."""

    text: str
    logprob: float | None = None


Receive = Callable[[int, Reply], None]  # is told each reply's place and the reply as soon as it is there


class Generator(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """Which model it is, for manifests and caches; never a key or a password."""

    def generate(self, requests: Sequence[Request], receive: Receive | None = None) -> list[Reply]:
        """A reply to each request, in their order; `receive` hears of each as it comes."""


class LocalGenerator:
    """A model in this process."""

    def __init__(self, name: str, model: Decoder, tokenizer: Tokenizer, max_slots: int = 32, max_length: int = 4096):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.sampler = Sampler(model, tokenizer, max_slots, max_length)

    def generate(self, requests: Sequence[Request], receive: Receive | None = None) -> list[Reply]:
        """Requests with the same parameters run together; raises ValueError for a prompt that is too long."""
        replies: dict[int, Reply] = {}
        parts: dict[SamplingParams, list[int]] = {}
        for place, request in enumerate(requests):
            params = SamplingParams(
                max_new_tokens=request.max_new_tokens, temperature=request.temperature, seed=request.seed
            )
            parts.setdefault(params, []).append(place)
        for params, places in parts.items():
            prompts = [requests[place].messages for place in places]
            # the random numbers hang on the request alone, not on what else is asked at the same time
            keys = [int(fingerprint(self.name, requests[place])[:15], 16) for place in places]
            for place, group in zip(places, self.sampler.generate(prompts, params, prompt_keys=keys), strict=True):
                rollout = group.rollouts[0]
                replies[place] = Reply(rollout.text, sum(rollout.logprobs))
                if receive is not None:
                    receive(place, replies[place])
        return [replies[place] for place in range(len(requests))]


class CachedGenerator:
    """Asks another generator only what no run has asked before; replies are kept on disk as they come.

    The cache is an append-only JSONL file of {"key", "text", "logprob"}; a line that a kill cut off is dropped.
    """

    def __init__(self, generator: Generator, path: Path):
        self.generator, self.path = generator, path
        self.known: dict[str, Reply] = {}
        self.asked = self.found = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            with open(path, "rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                        self.known[row["key"]] = Reply(row["text"], row["logprob"])
                    except (ValueError, KeyError, TypeError):
                        if line.endswith(b"\n"):
                            raise ValueError(f"{path}: at byte {whole} begins a line that is no reply") from None
                        break
                    whole += len(line)
            os.truncate(path, whole)

    @property
    def name(self) -> str:
        """The name of the generator behind it."""
        return self.generator.name

    def generate(self, requests: Sequence[Request], receive: Receive | None = None) -> list[Reply]:
        """Replies from the cache, and from the generator for the rest; equal requests are asked once."""
        keys = [fingerprint(self.name, request) for request in requests]
        missing = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self.known}
        places = sorted(missing.values())
        self.asked += len(places)
        self.found += len(requests) - len(places)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:

            def keep(number: int, reply: Reply) -> None:
                key = keys[places[number]]
                self.known[key] = reply
                file.write(json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False) + "\n")
                file.flush()

            if places:
                self.generator.generate([requests[place] for place in places], keep)
        replies = [self.known[key] for key in keys]
        for place, reply in enumerate(replies):
            if receive is not None:
                receive(place, reply)
        return replies


def fingerprint(name: str, request: Request) -> str:
    """SHA-256 of model and request, hexadecimal."""
    return hashlib.sha256(json.dumps([name, asdict(request)], sort_keys=True).encode()).hexdigest()
