"""What curating a corpus will take: calls, tokens, GPU-hours and money, from stated figures by plain arithmetic.

Nothing here is a measurement. A Call says how many tokens one request of a stage has and where those figures come from
(`measured_call` takes them from real requests and replies); a Rate says how many tokens a second a GPU reads and
writes (`roof_rate` bounds them by the GPU's data sheet). Everything else is multiplication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from psychecore.text.chat import Message

MESSAGE_TOKENS = 5  # what a chat template adds to a message: its opening, its role, its end (ChatML)


@dataclass(frozen=True)
class Call:
    """One kind of request: mean tokens of its prompt and its reply, and where each figure comes from."""

    name: str
    prompt_tokens: float
    reply_tokens: float
    basis: str


@dataclass(frozen=True)
class Yields:
    """How much of what goes into a stage comes out, and how often a model is asked.

    drafts: questions that a passage is asked for. usable, unique, passed, accepted: the shares that survive the checks
    of questions, dedupe with decontamination, quality, and review; rewritten: of the dialogues. All shares are above 0
    and at most 1. judges, selectors: models that each question goes through; samples: answers of each selector;
    rounds: of the rationale.
    """

    drafts: int = 4
    usable: float = 0.8
    unique: float = 0.8
    passed: float = 0.7
    accepted: float = 0.95
    rewritten: float = 0.8
    judges: int = 1
    rounds: int = 3
    selectors: int = 3
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("usable", "unique", "passed", "accepted", "rewritten"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0 and at most 1")
        for name, least in (("drafts", 1), ("judges", 0), ("rounds", 0), ("selectors", 1), ("samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")


@dataclass(frozen=True)
class Load:
    """A stage's requests: how many, and their tokens all together."""

    call: Call
    calls: float

    @property
    def prompt_tokens(self) -> float:
        return self.calls * self.call.prompt_tokens

    @property
    def reply_tokens(self) -> float:
        return self.calls * self.call.reply_tokens


@dataclass(frozen=True)
class Rate:
    """Tokens a second that one GPU reads (prompts) and writes (replies) of a model, and where that comes from."""

    model: str
    read: float
    write: float
    basis: str

    def gpu_hours(self, loads: Iterable[Load]) -> float:
        """Hours of one GPU; reading and writing are counted one after the other."""
        return sum(load.prompt_tokens / self.read + load.reply_tokens / self.write for load in loads) / 3600


@dataclass(frozen=True)
class Gpu:
    """A data sheet: dense bf16 FLOP/s, bytes/s of memory, bytes of memory."""

    name: str
    flops: float
    bandwidth: float
    memory: float

    def __post_init__(self) -> None:
        if min(self.flops, self.bandwidth, self.memory) <= 0:
            raise ValueError(
                f"{self.name}: FLOP/s {self.flops}, bandwidth {self.bandwidth} and memory {self.memory} must be above 0"
            )


@dataclass(frozen=True)
class Shape:
    """Of a model: parameters, and what a token costs in the key/value cache: 2 x layers x key/value heads x width."""

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_width: int = 128

    @property
    def kv_bytes(self) -> int:
        """A token's keys and values in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_width


def plan_loads(questions: int, dialogues: int, yields: Yields, calls: dict[str, Call]) -> list[Load]:
    """The requests of each stage for so many finished questions and dialogues, in the order of the pipeline.

    `calls` has questions, quality, rationale, proposal, dialogue and select. Worked backwards: with a share of 0.5 that
    passes quality, twice the questions are judged. Example: 75,000 questions at 4 drafts a passage and shares of 0.8,
    0.8, 0.7 and 0.95 need 75,000 / (4 x 0.4256) = 44,056 passages. Raises KeyError for a call that is not given.
    """
    judged = questions / (yields.passed * yields.accepted)
    passages = judged / (yields.unique * yields.usable * yields.drafts)
    return [
        Load(calls["questions"], passages),
        Load(calls["quality"], judged * yields.judges),
        Load(calls["rationale"], questions * (1 + yields.rounds)),
        Load(calls["proposal"], questions * yields.rounds),
        Load(calls["dialogue"], dialogues / yields.rewritten),
        Load(calls["select"], questions * yields.selectors * yields.samples),
    ]


def measured_call(
    name: str, pairs: Iterable[tuple[Sequence[Message], str]], count: Callable[[str], int], source: str
) -> Call:
    """The means over real (messages, reply) pairs; `count` gives a text's tokens. Raises ValueError for none."""
    prompts, replies, number = 0, 0, 0
    for messages, reply in pairs:
        prompts += sum(count(message["content"]) + MESSAGE_TOKENS for message in messages)
        replies += count(reply) + 1  # and its end
        number += 1
    if not number:
        raise ValueError(f"{name}: no requests to measure in {source}")
    return Call(name, prompts / number, replies / number, f"measured on {number} requests of {source}")


def roof_rate(shape: Shape, gpu: Gpu, share: float, context: int = 1024, slots: int = 256) -> Rate:
    """Tokens a second and GPU at `share` of what the data sheet allows, on as few GPUs as hold the model.

    Reading a token takes 2 FLOP a parameter. A step of writing takes that for each of the sequences under way, and
    moves all weights and the cache of `context` tokens of each sequence; the longer of the two counts. As many
    sequences run as fit into nine tenths of the memory, at most `slots` a GPU; weights are bf16. What GPUs tell each
    other is not counted. Raises ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, but must be above 0 and at most 1")
    weights, one = 2 * shape.parameters, context * shape.kv_bytes
    gpus = 1
    while (fit := (0.9 * gpus * gpu.memory - weights) // one) < 32:  # fewer at a time waste the reading of weights
        gpus *= 2
    running = min(fit, slots * gpus)
    computing = running * 2 * shape.parameters / (gpus * gpu.flops)
    moving = (weights + running * one) / (gpus * gpu.bandwidth)
    return Rate(
        shape.name,
        read=share * gpu.flops / (2 * shape.parameters),
        write=share * running / max(computing, moving) / gpus,
        basis=f"{share:.0%} of the roof of {gpus} x {gpu.name}, {running:.0f} sequences of {context} tokens",
    )


def endpoint_cost(loads: Iterable[Load], read_price: float, write_price: float) -> float:
    """Money for the loads at prices per million prompt tokens and per million reply tokens."""
    return sum(load.prompt_tokens * read_price + load.reply_tokens * write_price for load in loads) / 1e6
