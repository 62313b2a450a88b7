"""Attention over packed segments (training, prefill) and over a key/value cache (decoding), one facade.

A batch is one row of T tokens. Segment s has the contiguous queries cu_q[s]..cu_q[s+1] and the keys
key_index[cu_k[s]..cu_k[s+1]], which point into the same T tokens; attention is causal and aligned to the bottom
right, so the last query of a segment sees all of its keys. That is what flash-attn's varlen function computes, and
torch's, and our own kernel; the torch path computes it on any device (model/stacked_attention.py).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from psychecore.model import fused
from psychecore.model.stacked_attention import Stack, stack_segments, stacked_attention

BackEnd = Literal["flash", "varlen", "triton", "torch"]
_forced: BackEnd | None = None


class Attention(Protocol):
    """What a decoder layer calls with its queries, keys and values; packed and cached attention both are one."""

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Attention output [T, N, H] of one layer."""


def set_backend(backend: BackEnd | None) -> None:
    """Force a back end for the whole process (tests, comparisons); None lets the resolver choose again.

    "varlen" has no form for decoding, which is then resolved as if nothing were forced.
    """
    global _forced
    if backend is not None and backend not in get_args(BackEnd):
        raise ValueError(f"attention back end is {backend!r}, but must be one of {get_args(BackEnd)} or None")
    _forced = backend


def resolve_backend(device: torch.device, dtype: torch.dtype, cached: bool = False) -> BackEnd:
    """What computes attention over segments, or over a cache: the first of the list that is there and can run.

    flash    flash-attn: the fastest, but it must be built for each pair of torch and CUDA.
    varlen   torch's own build of the same kernels (torch 2.12 and later), over segments only.
    triton   kernels/: needs no build. Behind the two above, which are tuned by hand and which thousands have run;
             before the next, which is tens of launches for each stack of segments.
             Its gradients are the same bits every time, which is a reason to force it.
    torch    plain torch, and SDPA on CPU: any device, any dtype, and the only one for fp32, whose products the others
             refuse or do slowly.

    The first three take 16 bits, GPUs from sm_80 on, and head dimensions up to 256.
    """
    if _forced is not None and not (cached and _forced == "varlen"):
        return _forced
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not fused.since_ampere(device):
        return "torch"
    if flash_attn() is not None:
        return "flash"
    if not cached and varlen_attn() is not None:
        return "varlen"
    return "triton" if has_triton() else "torch"


@functools.cache
def flash_attn() -> Any:
    """The flash_attn module, or None where it is not installed. Imported on first use, never at start-up."""
    try:
        return importlib.import_module("flash_attn")
    except ImportError:
        return None


@functools.cache
def varlen_attn() -> Any:
    """torch.nn.attention.varlen.varlen_attn, or None where torch has none that takes grouped heads.

    torch 2.10 had it with is_causal, 2.11 with a window instead; both want a key head for each query head.
    """
    try:
        function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return function if {"window_size", "enable_gqa"} <= inspect.signature(function).parameters.keys() else None


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed, as torch's builds for CUDA bring it on Linux."""
    return importlib.util.find_spec("triton") is not None


def _taken(work: str, q: Tensor, cached: bool = False) -> BackEnd:
    backend = resolve_backend(q.device, q.dtype, cached)
    if not torch.compiler.is_compiling():  # a log line would break the graph
        _say(work, backend, q.device.type, q.dtype)
    return backend


@functools.cache
def _say(work: str, backend: BackEnd, device: str, dtype: torch.dtype) -> None:
    """Once for each in a process: which back end computes."""
    logging.getLogger(__name__).info("attention over %s on %s in %s: %s", work, device, dtype, backend)


class PackedAttention:
    """Attention over the segments of one packed batch; the same object serves every layer.

    cu_q, cu_k: cumulative numbers of queries and keys, [segments + 1] each. key_index_I: for each key of each
    segment its place among the T tokens, or None where every segment's keys are its own tokens.
    """

    def __init__(self, cu_q: Sequence[int], cu_k: Sequence[int], key_index_I: Tensor | None, device: torch.device):
        if len(cu_q) != len(cu_k):
            raise ValueError(f"{len(cu_q) - 1} query segments, but {len(cu_k) - 1} key segments")
        self.cu_q, self.cu_k, self.key_index_I = list(cu_q), list(cu_k), key_index_I
        self.q_lengths, self.k_lengths = _differences(cu_q), _differences(cu_k)
        self.device = device

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], device: torch.device) -> PackedAttention:
        """Independent causal sequences of these lengths, laid end to end."""
        cu = [0]
        for length in lengths:
            cu.append(cu[-1] + length)
        return cls(cu, cu, None, device)

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        backend = _taken("segments", q_TNH)
        if backend == "torch":
            return stacked_attention(q_TNH, k_TKH, v_TKH, self._stacks)
        if self.key_index_I is not None:  # a differentiable gather: the gradient of a shared key is the exact sum
            k_TKH, v_TKH = k_TKH[self.key_index_I], v_TKH[self.key_index_I]
        # positions 0 to 6 are the same in all three
        arguments = (
            q_TNH,
            k_TKH,
            v_TKH,
            self._cu_q_tensor,
            self._cu_k_tensor,
            max(self.q_lengths),
            max(self.k_lengths),
        )
        if backend == "flash":
            return flash_attn().flash_attn_varlen_func(*arguments, causal=True)
        if backend == "varlen":  # a window of no keys to the right of a query and all to the left: causal
            return varlen_attn()(*arguments, window_size=(-1, 0), enable_gqa=True)
        return fused.flash_attention(*arguments)

    @functools.cached_property
    def _stacks(self) -> list[Stack]:
        return stack_segments(self.q_lengths, self.k_lengths, self.key_index_I, self.device)

    @functools.cached_property
    def _cu_q_tensor(self) -> Tensor:
        return torch.tensor(self.cu_q, dtype=torch.int32, device=self.device)

    @functools.cached_property
    def _cu_k_tensor(self) -> Tensor:
        return torch.tensor(self.cu_k, dtype=torch.int32, device=self.device)


def _differences(cumulative: Sequence[int]) -> list[int]:
    return [stop - start for start, stop in itertools.pairwise(cumulative)]


def cached_attention(
    q_BQNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, length_B: Tensor, bias_B11S: Tensor
) -> tuple[Tensor, Tensor]:
    """Q queries per row, each against all valid keys of its row: ([B, Q, N, H], log-sum-exp of the scores [B, Q, N]).

    length_B: int32, at least 1, keys that are valid; bias_B11S: the same as 0 and -inf in the queries' dtype, made once
    per step by the caller. The log-sum-exp (fp32 or wider) lets the caller merge attention over parts of the keys.
    """
    backend = _taken("a cache", q_BQNH, cached=True)
    if backend == "flash":
        out_BQNH, lse_BNQ = flash_attn().flash_attn_with_kvcache(
            q_BQNH,
            k_BKSH.transpose(1, 2),
            v_BKSH.transpose(1, 2),
            cache_seqlens=length_B,
            causal=False,
            num_splits=1,  # the log-probs of a sample must not depend on how the work was split
            return_softmax_lse=True,
        )
        return out_BQNH, lse_BNQ.transpose(1, 2)
    if backend == "triton":
        return fused.decode_attention(q_BQNH, k_BKSH, v_BKSH, length_B)
    # the queries that share a key/value head stand as rows, so that each key is read once and not N / K times
    queries, sharing = q_BQNH.shape[1], q_BQNH.shape[2] // k_BKSH.shape[1]
    rows_BKRH = q_BQNH.unflatten(2, (-1, sharing)).transpose(1, 2).flatten(2, 3)
    scores_BKRS = rows_BKRH @ k_BKSH.transpose(2, 3) * q_BQNH.shape[3] ** -0.5
    scores_BKRS = scores_BKRS.to(torch.promote_types(scores_BKRS.dtype, torch.float32)) + bias_B11S
    lse_BKR = scores_BKRS.logsumexp(-1)
    out_BKRH = (scores_BKRS - lse_BKR[..., None]).exp().to(v_BKSH.dtype) @ v_BKSH
    out_BQNH = out_BKRH.unflatten(2, (queries, sharing)).transpose(1, 2).flatten(2, 3)
    return out_BQNH, lse_BKR.unflatten(2, (queries, sharing)).transpose(1, 2).flatten(2, 3)
