"""Generator: the one interface of the data pipeline to a language model. LocalGenerator is one that runs here.

The others: endpoint.py asks an OpenAI-compatible server, cache.py remembers what was answered.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from psychecore.durable import digest
from psychecore.model.config import ModelConfig
from psychecore.model.pretrained import HUB_FILES, load_model, local_folder
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.text.chat import Message
from psychecore.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Request:
    """What a model is asked. Temperature 0 is greedy, top_p 1 is off; `sample` numbers the draws of one prompt."""

    messages: list[Message]
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Reply:
    """What it said; `logprob` is the sum over its tokens (nats), where it is known.

    `refused`: the model can't take the request, since it is too long for it; the text is empty then. A cache keeps no
    such reply: another max_length, or another setting of the server, may make room. `cut`: it ended at max_new_tokens.
    """

    text: str
    logprob: float | None
    refused: bool = False
    cut: bool = False


class Generator(Protocol):
    """A language model. `name` goes into rows and manifests."""

    name: str

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order."""
        ...


Arrived = Callable[[Mapping[int, Reply]], None]


@runtime_checkable
class Announcing(Protocol):
    """A generator that says what it has while the rest is still running, so that a cache can keep it.

    `identity` names all that its replies depend on besides the request: the weights by their SHA-256, or the server.
    """

    name: str
    identity: str

    def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
        """Call `arrived` with replies by the number of their request, each once, in any order and grouping."""
        ...


def collect(generator: Announcing, requests: Sequence[Request]) -> list[Reply]:
    """The replies of a generator in the order of the requests."""
    replies: dict[int, Reply] = {}
    generator.generate_each(requests, replies.update)
    return [replies[number] for number in range(len(requests))]


class LocalGenerator:
    """A Hugging Face folder or hub id, sampled on this machine.

    Requests of equal sampling parameters run together, `chunk` at a time on `slots` sequences; a kill
    can cost a chunk. The random numbers of a sample depend on its request alone. Its text may still depend on its
    neighbours in the chunk where two tokens are equally likely to rounding. The weights are loaded with the first
    request. `max_length` counts the tokens of prompt and reply, and is the model's own context at most. Raises
    FileNotFoundError or ValueError as load_model does, and ValueError when asked for so many new tokens that no prompt
    fits before them.
    """

    def __init__(
        self,
        source: str,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        slots: int = 32,
        max_length: int = 4096,
        memory_gib: float | None = None,
        thinking: bool | None = None,
    ):
        self.folder = local_folder(source)
        self.name = name or Path(source).name
        self.dtype, self.device = dtype, device
        context = ModelConfig.from_folder(self.folder).context_length
        self.max_length = min(max_length, context)
        if max_length > context:
            _say_once(
                f"{self.name} ({self.folder}) has a context of {context} tokens: max_length is that, not {max_length}"
            )
        self.slots, self.chunk, self.memory_gib = slots, 4 * slots, memory_gib
        files = sorted(path for pattern in HUB_FILES for path in self.folder.glob(pattern))
        hashes = [[path.name, digest(path)] for path in files]
        self.sha256 = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        self.thinking = thinking
        self.identity = f"{self.sha256} in {str(dtype).removeprefix('torch.')}" + thinking_name(thinking)
        self._sampler: Sampler | None = None

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order."""
        return collect(self, requests)

    def generate_each(self, requests: Sequence[Request], arrived: Arrived) -> None:
        """As Announcing has it: a chunk's replies arrive together."""
        most = max((request.max_new_tokens for request in requests), default=0)
        if most >= self.max_length:
            raise ValueError(
                f"max_new_tokens is {most}, but {self.name} has a max_length of {self.max_length} tokens for prompt "
                "and reply, so no prompt fits: lower max_new_tokens, or raise max_length, up to the model's context"
            )
        groups: dict[SamplingParams, list[int]] = {}
        for number, request in enumerate(requests):
            params = SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                max_new_tokens=request.max_new_tokens,
                seed=request.seed,
            )
            groups.setdefault(params, []).append(number)
        for params, numbers in groups.items():
            for start in range(0, len(numbers), self.chunk):
                chunk = numbers[start : start + self.chunk]
                arrived(self._run({number: requests[number] for number in chunk}, params))

    def load(self) -> Sampler:
        """The sampler, with the weights and the tokenizer."""
        if self._sampler is None:
            model = load_model(self.folder, self.dtype, self.device).requires_grad_(False)
            self._sampler = Sampler(model, self._tokenizer, self.slots, self.max_length, self.memory_gib)
        return self._sampler

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder, self.thinking)

    def close(self) -> None:
        """Free the weights; a later request loads them again."""
        self._sampler = None

    def _run(self, requests: Mapping[int, Request], params: SamplingParams) -> dict[int, Reply]:
        render = self._tokenizer.render_chat
        prompts = {number: render(one.messages, add_generation_prompt=True).ids for number, one in requests.items()}
        fitting = [n for n, ids in prompts.items() if len(ids) + params.max_new_tokens <= self.max_length]
        replies = {number: Reply("", None, refused=True) for number in requests}
        if not fitting:  # a run that is repeated asks for these again, and need not load the weights
            return replies
        keys = [_prompt_key(requests[number]) for number in fitting]
        groups = self.load().generate([prompts[number] for number in fitting], params, prompt_keys=keys)
        for number, group in zip(fitting, groups, strict=True):
            rollout = group.rollouts[0]
            replies[number] = Reply(rollout.text, sum(rollout.logprobs), cut=rollout.finish_reason == "length")
        return replies


def thinking_name(thinking: bool | None) -> str:
    """What a model's identity says of the switch of its chat template."""
    return "" if thinking is None else f", {'with' if thinking else 'without'} thinking"


@functools.cache
def _say_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


def _prompt_key(request: Request) -> int:
    """What the random numbers of a request depend on besides its seed."""
    text = json.dumps([request.messages, request.sample], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def request_key(identity: str, request: Request) -> str:
    """The content address of a request to a model: SHA-256 of their canonical JSON."""
    fields = asdict(request)
    if request.top_p == 1:  # replies that were kept before requests had one are still found
        del fields["top_p"]
    text = json.dumps({"generator": identity, **fields}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
