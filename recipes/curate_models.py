"""The language models of a curation: folders, hub ids or servers, by role, each behind the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from common import option

from psychecore.curate.cache import Cache, CachedGenerator
from psychecore.curate.endpoint import EndpointConfig, EndpointGenerator
from psychecore.curate.generator import LocalGenerator
from psychecore.model.products import fast_dtype
from psychecore.runtime import device_kind

FORM = "[NAME=]FOLDER, [NAME=]HUB/ID or [NAME=]http://HOST:PORT/v1#MODEL"


@dataclass(frozen=True)
class ModelsOptions:
    """Which models do what, each as [NAME=]FOLDER, [NAME=]HUB/ID or [NAME=]http://HOST:PORT/v1#MODEL."""

    author: str = option("", "writes questions, rationales and dialogues")
    judges: tuple[str, ...] = option((), "score questions; without any, the author does")
    selectors: tuple[str, ...] = option((), "answer each question, which tells the easy from the hard")
    keys: tuple[str, ...] = option((), "HOST=VARIABLE: the environment variable that holds the API key of a server")
    dtype: Literal["auto", "bfloat16", "float32"] = option("auto", "of local models; auto: bfloat16 where it is fast")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "of local models; auto takes CUDA where there is one")
    thinking: bool | None = option(None, "the switch of chat templates that have one (Qwen3); none: as they come")
    slots: int = option(32, "sequences that a local model writes at a time")
    max_length: int = option(4096, "tokens of prompt and reply; a longer request gets an empty reply")
    concurrency: int = option(16, "requests at a time to a server; at most those of run.batch_size rows")
    timeout_s: float = option(300.0, "seconds that a server has for one try")
    give_up_after_s: float = option(900.0, "seconds that a server may fail before the run ends")


class Models:
    """Hands out generators; the weights of local ones that the stage doesn't need are freed.

    Raises ValueError, before any work, for a role without a model that can be had and for two models of one name.
    """

    def __init__(self, options: ModelsOptions, cache: Cache):
        self.options, self.cache = options, cache
        self._made: dict[str, LocalGenerator | EndpointGenerator] = {}
        self._handed: list[CachedGenerator] = []
        check_keys(options.keys, (options.author, *options.judges, *options.selectors))
        by_name: dict[str, str] = {}
        for spec in dict.fromkeys((options.author, *options.judges, *options.selectors)):
            if spec:
                made = self._made[spec] = make_generator(spec, options)
                if by_name.setdefault(made.name, made.identity) != made.identity:
                    raise ValueError(f"two models are named {made.name!r}: name one in models, as NAME={spec}")

    def get(self, specs: Sequence[str], role: str) -> list[CachedGenerator]:
        """The generators of a role; all others leave memory."""
        if not specs or not all(specs):
            raise ValueError(f"no model is given as {role}: set models.{role}, {FORM}")
        for spec, made in self._made.items():
            if spec not in specs and isinstance(made, LocalGenerator):
                made.close()
        found = [CachedGenerator(self._made[spec], self.cache) for spec in specs]
        self._handed += found
        return found

    def refused(self) -> int:
        """Requests that servers had no room for: unlike a local model's, their settings are not known here."""
        return sum(generator.refused for generator in self._handed if generator.max_length is None)

    def author(self) -> CachedGenerator:
        """Who writes."""
        return self.get([self.options.author], "author")[0]

    def judges(self) -> list[CachedGenerator]:
        """Who judges."""
        return self.get(self.options.judges or [self.options.author], "judges")

    def described(self) -> dict[str, list[dict[str, str]]]:
        """Name and identity by role, for the manifest; an identity is a SHA-256 of weights, or model and server."""
        options = self.options
        roles = {"author": [options.author], "judges": options.judges or [options.author]}
        roles["selectors"] = list(options.selectors)
        return {
            role: [{"name": self._made[s].name, "identity": self._made[s].identity} for s in specs if s]
            for role, specs in roles.items()
        }


def what(model: CachedGenerator) -> list[Any]:
    """All of a model that a stage's result depends on: a request that is longer than max_length has an empty reply."""
    return [model.identity, model.max_length]


def check_keys(keys: Sequence[str], specs: Sequence[str]) -> None:
    """Raises ValueError for a key that is not HOST=VARIABLE, or whose host no model is asked at."""
    hosts = {urlsplit(split_spec(spec)[1]).netloc for spec in specs}
    hosts |= {host.partition(":")[0] for host in hosts}
    for key in keys:
        host, equals, variable = key.partition("=")
        if not (host and equals and variable):
            raise ValueError(f"models.keys has {key!r}, but each must be HOST=VARIABLE, such as host:8000=SOME_KEY")
        if host not in hosts:
            known = ", ".join(sorted(filter(None, hosts))) or "none, all models are local"
            raise ValueError(f"models.keys has {key!r}, but no model is asked at {host!r}; the hosts are: {known}")


def split_spec(spec: str) -> tuple[str, str]:
    """The name, "" where none is given, and the source of a model; a folder or an address may hold a "=" of its own."""
    name, equals, source = spec.partition("=")
    return (name, source) if equals and "/" not in name else ("", spec)


def make_generator(spec: str, options: Any) -> LocalGenerator | EndpointGenerator:
    """The model of a spec (FORM); `options` has the settings of ModelsOptions from `keys` on.

    Raises FileNotFoundError or ValueError where there is no such model.
    """
    name, source = split_spec(spec)
    if source.startswith(("http://", "https://")):
        url, _, model = source.partition("#")
        keys = dict(key.split("=", 1) for key in options.keys)
        host = urlsplit(url).netloc
        endpoint = EndpointConfig(
            url=url,
            model=model,
            key_variable=keys.get(host, keys.get(host.partition(":")[0], "")),
            concurrency=options.concurrency,
            timeout_s=options.timeout_s,
            give_up_after_s=options.give_up_after_s,
            thinking=options.thinking,
        )
        return EndpointGenerator(endpoint, name)
    if options.slots < 1 or options.max_length < 2:
        raise ValueError(f"slots {options.slots} must be at least 1, max_length {options.max_length} at least 2")
    device = torch.device(device_kind(options.device, "device"))
    dtype = fast_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    return LocalGenerator(source, name, dtype, device, options.slots, options.max_length, thinking=options.thinking)
