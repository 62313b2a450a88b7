"""Every kernel of psychecore/kernels as one row: its inputs at a model's sizes, its bytes and FLOPs, what it replaces.

Bytes and FLOPs are what the kernel must move and multiply, each tensor once (what it reads again comes from L2), as its
module's docstring derives them. The unfused torch is not described by formulas: roofline.py counts its operations.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from psychecore.model.config import ModelConfig


@dataclass(frozen=True)
class Sizes:
    """A micro-batch of `tokens` in sequences of `length`, and a decoding step of `samples` in groups of `group`."""

    model: str
    config: ModelConfig
    tokens: int = 8192
    length: int = 1024
    samples: int = 64
    group: int = 8
    prompt: int = 512  # cached positions of a prompt
    answer: int = 512  # and of a sample's own
    itemsize: int = 2

    @property
    def pairs(self) -> int:
        """Query and key pairs that causal attention sees."""
        return self.tokens // self.length * self.length * (self.length + 1) // 2


class Work(NamedTuple):
    """Bytes to and from memory, and FLOPs of matrix products."""

    bytes: float
    flops: float = 0.0


Inputs = list[Any]


@dataclass(frozen=True)
class KernelCase:
    """psychecore.kernels.MODULE.NAME beside NAME_reference. `inputs` of (sizes, dtype, device) are its arguments.

    per_step: how often an optimizer step's micro-batch (or a decoding step) runs it. `unfused` is the torch code that
    it replaces, where that is not the reference. Without `backward` the kernel has none. launch: arguments at the end
    that only size the kernel's launch, which the reference does not take. writes: places of the arguments that it
    writes, which are then its results.
    """

    name: str
    module: str
    inputs: Callable[[Sizes, torch.dtype, torch.device], Inputs]
    forward: Callable[[Sizes], Work]
    backward: Callable[[Sizes], Work] | None
    per_step: Callable[[ModelConfig], int]
    decoding: bool = False
    unfused: Callable[..., Any] | None = None
    launch: int = 0
    writes: tuple[int, ...] = ()

    def results(self, inputs: Inputs, out: Any) -> tuple[Tensor, ...]:
        """The tensors that a call gave: what it returned, or what it wrote."""
        if self.writes:
            return tuple(inputs[place] for place in self.writes)
        return out if isinstance(out, tuple) else (out,)

    def kernel(self) -> Callable[..., Any]:
        """The Triton kernel's function."""
        function: Callable[..., Any] = getattr(importlib.import_module(f"psychecore.kernels.{self.module}"), self.name)
        return function

    def reference(self) -> Callable[..., Any]:
        """Its torch reference, with the kernel's arguments."""
        module = importlib.import_module(f"psychecore.kernels.{self.module}")
        reference = getattr(module, f"{self.name}_reference")
        return lambda *inputs: reference(*inputs[: len(inputs) - self.launch])

    def torch_code(self) -> Callable[..., Any]:
        """What it replaces, with the kernel's arguments."""
        return self.unfused or self.reference()


def draw(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, gradient: bool = True
) -> Tensor:
    """Normal numbers of standard deviation 1; each of a case's tensors has its own seed, or a mix-up would not show."""
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device, requires_grad=gradient)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_(gradient)


def cumulative(sizes: Sizes, device: torch.device) -> Tensor:
    """[segments + 1] int32. Stays on the CPU for meta inputs: references read it."""
    place = "cpu" if device.type == "meta" else device
    return torch.arange(0, sizes.tokens + 1, sizes.length, dtype=torch.int32, device=place)


def _norm(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    return [draw(0, (s.tokens, s.config.width), dtype, device), draw(1, (s.config.width,), dtype, device), 1e-6]


def _add_norm(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    x, weight, eps = _norm(s, dtype, device)
    return [x, draw(2, (s.tokens, s.config.width), dtype, device), weight, eps]


def _rotary(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    c = s.config
    heads = (c.query_heads, c.key_value_heads)
    q, k = (draw(seed, (s.tokens, n, c.head_dim), dtype, device) for seed, n in enumerate(heads))
    angle = draw(2, (s.tokens, c.head_dim // 2), torch.promote_types(dtype, torch.float32), device, gradient=False)
    return [q, k, angle.cos(), angle.sin()]


def _swiglu(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    return [draw(0, (s.tokens, 2 * s.config.feed_forward_width), dtype, device)]


def _logprobs(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    c = s.config
    hidden = draw(0, (s.tokens, c.width), dtype, device)
    head = (draw(1, (c.vocab_size, c.width), dtype, device, gradient=False) * c.width**-0.5).requires_grad_()
    return [hidden, head, torch.arange(s.tokens, device=device) * 7919 % c.vocab_size, 1.0]


def _packed(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    c, cu = s.config, cumulative(s, device)
    heads = (c.query_heads, c.key_value_heads, c.key_value_heads)
    qkv = [draw(seed, (s.tokens, n, c.head_dim), dtype, device) for seed, n in enumerate(heads)]
    return [*qkv, cu, cu, s.length, s.length]


def _decode(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    """A group's queries on their shared prompt: the part that is read once instead of once per sample."""
    c, rows = s.config, s.samples // s.group
    q = draw(0, (rows, s.group, c.query_heads, c.head_dim), dtype, device, gradient=False)
    cache = (rows, c.key_value_heads, s.prompt, c.head_dim)
    k, v = (draw(seed, cache, dtype, device, gradient=False) for seed in (1, 2))
    return [q, k, v, torch.full((rows,), s.prompt, dtype=torch.int32, device=device)]


def _store(s: Sizes, dtype: torch.dtype, device: torch.device) -> Inputs:
    """A decoding step's new keys and values, one place a sample."""
    c = s.config
    new, cache = (s.samples, c.key_value_heads, c.head_dim), (s.samples, c.key_value_heads, s.answer, c.head_dim)
    place = torch.arange(s.samples, device=device) * 7 % s.answer
    tensors = [draw(i, shape, dtype, device, gradient=False) for i, shape in enumerate((new, new, cache, cache))]
    return [*tensors, None, place]


def naive_attention(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Scores in memory, in the inputs' dtype, segment by segment: attention before fused kernels.

    Segments are all max_q long, a number that torch.compile sees; what lies in cu_q would end its graph.
    """
    outs = []
    for q, k, v in zip(*(x.split(max_q) for x in (q_TNH, k_TKH, v_TKH)), strict=True):
        sharing = q.shape[1] // k.shape[1]
        k_NSH, v_NSH = (x.repeat_interleave(sharing, 1).transpose(0, 1) for x in (k, v))
        scores_NQS = q.transpose(0, 1) @ k_NSH.transpose(1, 2) * q.shape[2] ** -0.5
        seen_QS = torch.ones(scores_NQS.shape[1:], dtype=torch.bool, device=q.device).tril()
        weights_NQS = scores_NQS.masked_fill(~seen_QS, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
        outs.append((weights_NQS @ v_NSH).transpose(0, 1))
    return torch.cat(outs)


def naive_decoding(q_BQNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, length_B: Tensor) -> Tensor:
    """Every sample by itself, as if each had its own copy of the prompt; all positions are valid."""
    outs = []
    for query in range(q_BQNH.shape[1]):
        q_BKRH = q_BQNH[:, query].unflatten(1, (k_BKSH.shape[1], -1))
        scores_BKRS = q_BKRH @ k_BKSH.transpose(2, 3) * q_BQNH.shape[3] ** -0.5
        weights_BKRS = scores_BKRS.softmax(-1, dtype=torch.float32).to(q_BQNH.dtype)
        outs.append((weights_BKRS @ v_BKSH).flatten(1, 2))
    return torch.stack(outs, 1)


def _heads(c: ModelConfig) -> int:
    return (c.query_heads + c.key_value_heads) * c.head_dim


def _decoding_work(s: Sizes) -> Work:
    c, rows = s.config, s.samples // s.group
    cache = 2 * rows * s.prompt * c.key_value_heads * c.head_dim * s.itemsize
    queries = s.samples * c.query_heads * (2 * c.head_dim * s.itemsize + 4)
    return Work(cache + queries, 4.0 * s.samples * s.prompt * c.query_heads * c.head_dim)


CASES = (
    KernelCase(
        "rms_norm",
        "rms_norm",
        _norm,
        forward=lambda s: Work(2 * s.tokens * s.config.width * s.itemsize),
        backward=lambda s: Work(3 * s.tokens * s.config.width * s.itemsize),
        per_step=lambda c: 1,  # the first layer's; the others follow an addition
    ),
    KernelCase(
        "add_rms_norm",
        "rms_norm",
        _add_norm,
        forward=lambda s: Work(4 * s.tokens * s.config.width * s.itemsize),
        backward=lambda s: Work(4 * s.tokens * s.config.width * s.itemsize),
        per_step=lambda c: 2 * c.layers,
    ),
    KernelCase(
        "rotary",
        "rotary",
        _rotary,
        forward=lambda s: Work(s.tokens * (2 * _heads(s.config) * s.itemsize + 4 * s.config.head_dim)),
        backward=lambda s: Work(s.tokens * (2 * _heads(s.config) * s.itemsize + 4 * s.config.head_dim)),
        per_step=lambda c: c.layers,
    ),
    KernelCase(
        "swiglu",
        "swiglu",
        _swiglu,
        forward=lambda s: Work(3 * s.tokens * s.config.feed_forward_width * s.itemsize),
        backward=lambda s: Work(5 * s.tokens * s.config.feed_forward_width * s.itemsize),
        per_step=lambda c: c.layers,
    ),
    KernelCase(
        "token_logprobs",
        "token_logprobs",
        _logprobs,
        forward=lambda s: Work(
            (s.tokens + s.config.vocab_size) * s.config.width * s.itemsize,
            2.0 * s.tokens * s.config.width * s.config.vocab_size,
        ),
        # the slopes are written once and read twice; hidden states, head and their gradients once
        backward=lambda s: Work(
            2 * (s.tokens + s.config.vocab_size) * s.config.width * s.itemsize
            + 3 * s.tokens * s.config.vocab_size * s.itemsize,
            6.0 * s.tokens * s.config.width * s.config.vocab_size,
        ),
        per_step=lambda c: 1,
    ),
    KernelCase(
        "flash_attention",
        "flash_attention",
        _packed,
        forward=lambda s: Work(
            s.tokens * (2 * _heads(s.config) * s.itemsize + 4 * s.config.query_heads),
            4.0 * s.pairs * s.config.query_heads * s.config.head_dim,
        ),
        backward=lambda s: Work(
            s.tokens * (4 * _heads(s.config) * s.itemsize + 12 * s.config.query_heads),
            14.0 * s.pairs * s.config.query_heads * s.config.head_dim,
        ),
        per_step=lambda c: c.layers,
        unfused=naive_attention,
        launch=2,
    ),
    KernelCase(
        "decode_attention",
        "decode_attention",
        _decode,
        forward=_decoding_work,
        backward=None,
        per_step=lambda c: c.layers,
        decoding=True,
        unfused=naive_decoding,
    ),
    KernelCase(
        "cache_store",
        "cache_store",
        _store,
        forward=lambda s: Work(s.samples * (4 * s.config.key_value_heads * s.config.head_dim * s.itemsize + 8)),
        backward=None,
        per_step=lambda c: c.layers,
        decoding=True,
        writes=(2, 3),
    ),
)
