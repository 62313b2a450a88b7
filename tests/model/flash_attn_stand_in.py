"""flash-attn 2.8's two functions and torch's varlen_attn: their documented signatures and semantics, computed plainly.

They raise where the real ones raise, and also where the real ones would quietly compute something else (a maximum
length that is too small, a cache length behind the cache's end) or something that this stand-in does not compute.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Window = tuple[int, int]
SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def flash_attn(allow_wide: bool = False) -> SimpleNamespace:
    """The flash_attn module. The real one takes 16 bits only; `allow_wide` is for comparisons with little rounding."""
    dtypes = (*SIXTEEN_BITS, torch.float32, torch.float64) if allow_wide else SIXTEEN_BITS

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Tensor | None = None,
    ) -> Tensor:
        plain(dropout_p, softcap, alibi_slopes, return_attn_probs, block_table)
        need(window_size == (-1, -1), "the stand-in has no window")
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        return varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, dtypes)

    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        cache_seqlens: int | Tensor | None = None,
        cache_batch_idx: Tensor | None = None,
        cache_leftpad: Tensor | None = None,
        block_table: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        softcap: float = 0.0,
        rotary_interleaved: bool = True,
        alibi_slopes: Tensor | None = None,
        num_splits: int = 0,
        return_softmax_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        plain(k, v, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, block_table, softcap, alibi_slopes)
        need(window_size == (-1, -1), "the stand-in has no window")
        need(num_splits == 1, "more than one split, or a number of splits that depends on the batch, changes the bits")
        need(k_cache.stride(-1) == v_cache.stride(-1) == 1, "the cache's last dimension must be contiguous")
        fits(q, k_cache, v_cache, 4, dtypes)
        batch, span = k_cache.shape[:2]
        need(len(q) == batch, f"{len(q)} rows of queries, {batch} of the cache")
        need(isinstance(cache_seqlens, Tensor) and cache_seqlens.shape == (batch,), "one length a row")
        assert isinstance(cache_seqlens, Tensor)
        need(cache_seqlens.dtype == torch.int32, f"cache_seqlens is {cache_seqlens.dtype}, not int32")
        need(bool((cache_seqlens > 0).all() & (cache_seqlens <= span).all()), f"lengths outside 1..{span}")
        with torch.no_grad():  # the real one has no backward pass
            rows = [
                softmax(q[b], k_cache[b, :n], v_cache[b, :n], softmax_scale, causal)
                for b, n in enumerate(cache_seqlens.tolist())
            ]
        out, lse = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return (out, lse) if return_softmax_lse else out

    return SimpleNamespace(
        flash_attn_varlen_func=flash_attn_varlen_func, flash_attn_with_kvcache=flash_attn_with_kvcache
    )


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: Window = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn of torch 2.13 (on CUDA; the real one raises on CPU), in any dtype."""
    plain(return_aux, seqused_k, block_table, num_splits)
    need(enable_gqa or query.shape[1] == key.shape[1], "as many key heads as query heads without enable_gqa")
    need(window_size in ((-1, -1), (-1, 0)), "the stand-in has two windows: everything, and everything up to itself")
    need(cu_seq_k is not None, "the stand-in wants the keys' lengths")
    assert cu_seq_k is not None
    dtypes = (*SIXTEEN_BITS, torch.float32, torch.float64)
    return varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size == (-1, 0), dtypes)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    causal: bool,
    dtypes: tuple[torch.dtype, ...],
) -> Tensor:
    """What both functions over segments compute and refuse."""
    fits(q, k, v, 3, dtypes)
    need(q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "the last dimension must be contiguous")
    for cu, tokens, longest in ((cu_q, len(q), max_q), (cu_k, len(k), max_k)):
        need(cu.dtype == torch.int32, f"cumulative lengths are {cu.dtype}, not int32")
        need(
            cu.is_contiguous() and cu.dim() == 1 and len(cu) == len(cu_q) > 1, "as many segments of queries as of keys"
        )
        lengths = cu.diff()
        need(
            int(cu[0]) == 0 and int(cu[-1]) == tokens and bool((lengths >= 0).all()), "lengths that are not the tokens'"
        )
        need(isinstance(longest, int) and int(lengths.max()) <= longest, f"a segment longer than {longest}")
    parts = zip(
        q.split(cu_q.diff().tolist()), k.split(cu_k.diff().tolist()), v.split(cu_k.diff().tolist()), strict=True
    )
    return torch.cat([softmax(*part, scale, causal)[0] for part in parts])


def fits(q: Tensor, k: Tensor, v: Tensor, dimensions: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """What all functions demand of shapes and dtypes."""
    need(q.dim() == k.dim() == v.dim() == dimensions and k.shape == v.shape, "shapes of queries, keys and values")
    need(q.dtype == k.dtype == v.dtype and q.dtype in dtypes, f"dtypes {q.dtype}, {k.dtype}, {v.dtype}")
    need(q.device == k.device == v.device, "devices")
    need(q.shape[-1] == k.shape[-1] <= 256 and q.shape[-1] % 8 == 0, f"head dimensions {q.shape[-1]}, {k.shape[-1]}")
    need(q.shape[-2] % k.shape[-2] == 0, f"{q.shape[-2]} query heads on {k.shape[-2]}")


def softmax(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> tuple[Tensor, Tensor]:
    """([Q, N, H], log-sum-exp [N, Q]) of Q queries on S keys, bottom-right causal; 0 for a query that sees no key."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.to(wide).repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qnh,knh->nqk", q.to(wide), k) * scale
    first = len(k) - len(q) if causal else len(k)
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(first)
    weights = torch.where(seen, scores, torch.finfo(wide).min).softmax(-1) * seen
    lse = torch.where(seen, scores, -math.inf).logsumexp(-1)
    return torch.einsum("nqk,knh->qnh", weights, v).to(q.dtype), lse


def need(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def plain(*arguments: object) -> None:
    """Options that our code doesn't use and the stand-in doesn't compute."""
    need(not any(x is not None and x is not False and x != 0 for x in arguments), f"not computed here: {arguments}")
