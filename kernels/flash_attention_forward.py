"""The forward kernel of flash_attention.py, and what it shares with the backward kernels: tiles, blocks, constants."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .case import CompileCase
from .jit import jit, tl, triton


class Blocks(NamedTuple):
    """Queries and keys of a tile, warps that share it, and tiles in flight."""

    q: int
    k: int
    warps: int
    stages: int


# by padded head dimension; found by compiling for sm_80, sm_90 and sm_100 until nothing spilled, not yet by timing
FORWARD_BLOCKS = {64: Blocks(128, 64, 4, 3), 128: Blocks(128, 32, 8, 3), 256: Blocks(64, 32, 8, 2)}


def forward(
    q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int
) -> tuple[Tensor, Tensor]:
    """Output [T, N, H] and the natural log-sum-exp of each query's scores [N, T] in fp32, -inf where none is seen."""
    tokens, heads, width = q_TNH.shape
    out_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    lse_NT = torch.empty(heads, tokens, dtype=torch.float32, device=q_TNH.device)
    blocks = choose(FORWARD_BLOCKS, width, q_TNH.dtype)
    _forward_kernel[triton.cdiv(max_q, blocks.q), heads, len(cu_q) - 1](
        q_TNH,
        k_IKH,
        v_IKH,
        out_TNH,
        lse_NT,
        cu_q,
        cu_k,
        *q_TNH.stride()[:2],
        *k_IKH.stride()[:2],
        *v_IKH.stride()[:2],
        tokens,
        **constants(heads // k_IKH.shape[1], width, blocks, q_TNH.dtype),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return out_TNH, lse_NT


def choose(table: dict[int, Blocks], width: int, dtype: torch.dtype) -> Blocks:
    """The blocks for a head dimension; fp32 tiles are twice as large, and its products run without tensor cores."""
    blocks = table[max(64, triton.next_power_of_2(width))]
    return blocks if dtype.itemsize == 2 else Blocks(min(blocks.q, 32), min(blocks.k, 32), blocks.warps, 1)


def constants(sharing: int, width: int, blocks: Blocks, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """The constants that the forward kernel and both large backward kernels take.

    WIDE: tiles become fp32 as they are loaded, for Triton's interpreter alone, which multiplies bf16 wrongly.
    """
    return {
        "SHARING": sharing,
        "HEAD_DIM": width,
        "PADDED": max(16, triton.next_power_of_2(width)),  # tl.dot takes powers of two from 16 on
        "BLOCK_Q": blocks.q,
        "BLOCK_K": blocks.k,
        "WIDE": os.environ.get("TRITON_INTERPRET") == "1" and dtype == torch.bfloat16,
    }


@jit
def load_rows(  # type: ignore[no-untyped-def]
    pointer, stride, rows, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, WIDE: tl.constexpr
):
    """A tile [BLOCK, PADDED] of the matrix at `pointer`, which has `rows` rows and contiguous columns; 0 outside.

    Places within a tile fit in 32 bits; the callers add what is large to the pointer, in 64.
    """
    place, inside = _tile(stride, rows, BLOCK, HEAD_DIM, PADDED)
    tile = tl.load(pointer + place, mask=inside, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@jit
def store_rows(pointer, tile, stride, rows, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The inverse of load_rows, in the matrix' type."""
    place, inside = _tile(stride, rows, BLOCK, HEAD_DIM, PADDED)
    tl.store(pointer + place, tile.to(pointer.dtype.element_ty), mask=inside)


@jit
def _tile(stride, rows, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    inside = (row < rows)[:, None]
    if PADDED != HEAD_DIM:
        inside = inside & (column < HEAD_DIM)[None, :]
    return row[:, None] * stride + column[None, :], inside


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    q_TNH, k_IKH, v_IKH, out_TNH, lse_NT, cu_q, cu_k,
    stride_qt, stride_qn, stride_ki, stride_kk, stride_vi, stride_vk, tokens,
    SHARING: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q queries of one head in one segment, over all keys that they see."""
    head, segment = tl.program_id(1), tl.program_id(2)
    q_start, k_start = tl.load(cu_q + segment).to(tl.int64), tl.load(cu_k + segment).to(tl.int64)
    queries = (tl.load(cu_q + segment + 1) - q_start).to(tl.int32)
    keys = (tl.load(cu_k + segment + 1) - k_start).to(tl.int32)
    # the last queries see the most keys, so their programs start first and the short ones fill the gaps at the end
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    if first >= queries:
        return
    query = first + tl.arange(0, BLOCK_Q)
    last_seen = query + (keys - queries)  # negative: none; above keys - 1: only behind the last query
    q_ptr = q_TNH + (q_start + first) * stride_qt + head * stride_qn
    k_ptr = k_IKH + k_start * stride_ki + (head // SHARING) * stride_kk
    v_ptr = v_IKH + k_start * stride_vi + (head // SHARING) * stride_vk
    q = load_rows(q_ptr, stride_qt, queries - first, BLOCK_Q, HEAD_DIM, PADDED, WIDE)
    scale = HEAD_DIM**-0.5 * 1.4426950408889634  # log2(e): exp(x) is exp2(log2(e) x)

    maximum = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, PADDED], tl.float32)
    # blocks that every query sees whole need no mask; then those on the diagonal
    seen_by_all = tl.maximum(first + keys - queries + 1, 0) // BLOCK_K * BLOCK_K
    seen_by_any = tl.minimum(first + BLOCK_Q + keys - queries, keys)
    for _ in range(0, seen_by_all, BLOCK_K):
        k = load_rows(k_ptr, stride_ki, BLOCK_K, BLOCK_K, HEAD_DIM, PADDED, WIDE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        v = load_rows(v_ptr, stride_vi, BLOCK_K, BLOCK_K, HEAD_DIM, PADDED, WIDE)
        out, maximum, total = _accumulate(out, maximum, total, scores, v)
        k_ptr += BLOCK_K * stride_ki
        v_ptr += BLOCK_K * stride_vi
    for start in range(seen_by_all, seen_by_any, BLOCK_K):
        k = load_rows(k_ptr, stride_ki, keys - start, BLOCK_K, HEAD_DIM, PADDED, WIDE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        key = start + tl.arange(0, BLOCK_K)
        scores = tl.where(key[None, :] <= last_seen[:, None], scores, -float("inf"))
        v = load_rows(v_ptr, stride_vi, keys - start, BLOCK_K, HEAD_DIM, PADDED, WIDE)
        out, maximum, total = _accumulate(out, maximum, total, scores, v)
        k_ptr += BLOCK_K * stride_ki
        v_ptr += BLOCK_K * stride_vi

    total = tl.where(total > 0, total, 1.0)  # a query without keys: 0 / 1, and a log-sum-exp of -inf + 0
    lse = (maximum + tl.log2(total)) * 0.6931471805599453  # ln(2)
    out = out / total[:, None]
    heads = tl.num_programs(1)
    out_ptr = out_TNH + ((q_start + first) * heads + head) * HEAD_DIM
    store_rows(out_ptr, out, heads * HEAD_DIM, queries - first, BLOCK_Q, HEAD_DIM, PADDED)
    tl.store(lse_NT + head.to(tl.int64) * tokens + q_start + query, lse, mask=query < queries)


@jit
def _accumulate(out, maximum, total, scores, v):  # type: ignore[no-untyped-def]
    """The running softmax after one more block of keys; scores are in units of log 2."""
    new = tl.maximum(maximum, tl.max(scores, 1))
    shift = tl.where(new == -float("inf"), 0.0, new)  # a query that has seen nothing yet: exp2(-inf - 0) = 0, no NaN
    weights = tl.exp2(scores - shift[:, None])
    kept = tl.exp2(maximum - shift)
    out = tl.dot(weights.to(v.dtype), v, acc=out * kept[:, None], input_precision="ieee")
    return out, new, total * kept + tl.sum(weights, 1)


_ARGUMENTS = {
    **dict.fromkeys(("q_TNH", "k_IKH", "v_IKH", "out_TNH"), "*bf16"),
    "lse_NT": "*fp32",
    **dict.fromkeys(("cu_q", "cu_k"), "*i32"),
    **dict.fromkeys(("stride_qt", "stride_qn", "stride_ki", "stride_kk", "stride_vi", "stride_vk", "tokens"), "i32"),
}


def forward_case(model: str, sharing: int, width: int) -> CompileCase:
    """The forward kernel as it is launched for bf16 views of a fused projection."""
    blocks = choose(FORWARD_BLOCKS, width, torch.bfloat16)
    return case(f"flash_attention forward {model}", _forward_kernel, _ARGUMENTS, sharing, width, blocks)


def case(name: str, fn: Any, arguments: dict[str, str], sharing: int, width: int, blocks: Blocks) -> CompileCase:
    """A CompileCase of one of the kernels with a product."""
    constexprs = constants(sharing, width, blocks)
    return CompileCase(
        name=name,
        fn=fn,
        signature=arguments | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        multiples_of_16=tuple(name for name, kind in arguments.items() if kind == "i32" and name != "tokens"),
        needs_dot=True,
    )
