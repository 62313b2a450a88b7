"""Attention of few queries a sequence over its cached keys, split over the keys (FlashDecoding): for decoding.

The queries that share a key/value head, N / K of each of a sequence's Q queries, stand as rows of one 64-row tile. So
a key is read once for all of them: with a prompt's G samples as its Q queries, the prompt costs its keys once, not G
times (16 samples of Qwen2.5-7B are 112 rows: two tiles, and the second finds the keys in the L2 cache).

Bytes: 4 K H for each cached position, keys and values of 2 bytes, which is all that counts; 4 K H x (rows) FLOPs beside
it. 64 padded rows at 7 used ones do 64 FLOP for a byte, where an H100's memory gives one byte for 295 FLOP: the padding
is free, and 64 rows are the least that its tensor cores (wgmma) take. At 64 sequences of 2,048 positions, 7B: 268 MB a
layer, 80 us at 3.35 TB/s. A split's partial result, 4 (H + 1) bytes for each row, adds 5 % for 7 rows.

A split is always SPLIT keys from a multiple of SPLIT on, and the merge goes through the splits in order: neither the
number of sequences nor the span of the cache changes a bit of a sequence's result. No atomics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import jit, tl, triton

SPLIT = 256  # keys of one program: 128 KB of keys and values at H = 128
ROWS, KEYS = 64, 32  # of one tile; 64 keys would spill at H = 128 on sm_100
MERGE_SPLITS = 8  # partial results that one step of the merge reads
LOG2_E = 1.4426950408889634  # the kernel's exponentials are powers of 2, one instruction each


def decode_attention_reference(
    q_BQNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, length_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the first length_B keys, at least in fp32: ([B, Q, N, H], [B, Q, N])."""
    wide, sharing = torch.promote_types(q_BQNH.dtype, torch.float32), q_BQNH.shape[2] // k_BKSH.shape[1]
    k_BNSH, v_BNSH = (x.to(wide).repeat_interleave(sharing, 1) for x in (k_BKSH, v_BKSH))
    scores_BNQS = q_BQNH.to(wide).transpose(1, 2) @ k_BNSH.transpose(2, 3) * q_BQNH.shape[3] ** -0.5
    behind_BS = torch.arange(k_BKSH.shape[2], device=length_B.device) >= length_B[:, None]
    scores_BNQS = scores_BNQS.masked_fill(behind_BS[:, None, None], -torch.inf)
    out_BNQH = (scores_BNQS.softmax(-1) @ v_BNSH).to(q_BQNH.dtype)
    return out_BNQH.transpose(1, 2), scores_BNQS.logsumexp(-1).transpose(1, 2)


def decode_attention(q_BQNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
    """Q queries of each sequence over the first length_B of its keys: ([B, Q, N, H], log-sum-exp of scores [B, Q, N]).

    Every query sees all valid keys: as psychecore.model.attention.cached_attention. length_B: integers, at least 1 and
    at most S. The log-sum-exp is natural and fp32; the output has q's dtype. What lies behind length_B is not read.
    There is no backward. Raises ValueError for shapes that don't fit together, and where a gradient would be lost.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BQNH, k_BKSH, v_BKSH)):
        raise ValueError("decode_attention has no gradient: call it under torch.no_grad(), or use flash_attention")
    (batch, queries, heads, width), (kv_heads, span) = q_BQNH.shape, k_BKSH.shape[1:3]
    if heads % kv_heads or k_BKSH.shape != (batch, kv_heads, span, width) or v_BKSH.shape != k_BKSH.shape:
        raise ValueError(
            f"queries {list(q_BQNH.shape)} [B, Q, N, H] need keys and values [B, K, S, H] with N a multiple of K, not "
            f"{list(k_BKSH.shape)} and {list(v_BKSH.shape)}"
        )
    q_BQNH, k_BKSH, v_BKSH = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BQNH, k_BKSH, v_BKSH))
    length_B = length_B.contiguous()
    splits, sharing, padded = triton.cdiv(span, SPLIT), heads // kv_heads, max(16, triton.next_power_of_2(width))
    partial_MBKRH = q_BQNH.new_empty(splits, batch, kv_heads, queries * sharing, width, dtype=torch.float32)
    partial_lse_MBKR = partial_MBKRH.new_empty(partial_MBKRH.shape[:-1])
    out_BQNH, lse_BQN = q_BQNH.new_empty(q_BQNH.shape), partial_MBKRH.new_empty(q_BQNH.shape[:-1])
    _split_kernel[(triton.cdiv(queries * sharing, ROWS), splits, batch * kv_heads)](
        q_BQNH, k_BKSH, v_BKSH, length_B, partial_MBKRH, partial_lse_MBKR, batch, queries, kv_heads,
        *q_BQNH.stride()[:3], *k_BKSH.stride()[:3], *v_BKSH.stride()[:3], width**-0.5 * LOG2_E,
        SHARING=sharing, WIDTH=width, PADDED=padded, SPLIT=SPLIT, ROWS=ROWS, KEYS=KEYS,
        **_pipeline(padded)
    )  # fmt: skip
    _merge_kernel[(batch * queries * heads,)](
        length_B, partial_MBKRH, partial_lse_MBKR, out_BQNH, lse_BQN, batch, queries, kv_heads,
        SHARING=sharing, WIDTH=width, PADDED=padded, SPLIT=SPLIT, SPLITS=MERGE_SPLITS, num_warps=1
    )  # fmt: skip
    return out_BQNH, lse_BQN


def _pipeline(padded: int) -> dict[str, int]:
    """Warps and tiles in flight of a split. At H = 256, 4 would spill and 3 pass the 99 KiB of sm_86, 89 and 120."""
    return {"num_warps": 4, "num_stages": 3} if padded <= 128 else {"num_warps": 8, "num_stages": 2}


@jit
def _split_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, length_ptr, partial_ptr, partial_lse_ptr, batch, queries, kv_heads,
    q_stride_b, q_stride_q, q_stride_n, k_stride_b, k_stride_k, k_stride_s, v_stride_b, v_stride_k, v_stride_s,
    scale_log2, SHARING: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attention of up to ROWS queries of one sequence and key/value head over SPLIT keys, by online softmax."""
    r, s, h = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, PADDED)
    split, b, head = tl.program_id(1), tl.program_id(2) // kv_heads, tl.program_id(2) % kv_heads
    first = split * SPLIT
    stop = tl.minimum(tl.load(length_ptr + b).to(tl.int32), first + SPLIT)
    if first < stop:  # the merge doesn't read what lies behind the length
        query, n = r // SHARING, head * SHARING + r % SHARING
        here_RH = (r < queries * SHARING)[:, None] & (h < WIDTH)[None, :]
        q_ptrs = q_ptr + b.to(tl.int64) * q_stride_b + (query * q_stride_q + n * q_stride_n)[:, None] + h[None, :]
        q_RH = tl.load(q_ptrs, here_RH, 0.0)
        # offsets of sequences and heads in int64: a cache of 64 slots x 8 heads x 32k x 128 ends at int32's limit
        k_ptrs = k_ptr + b.to(tl.int64) * k_stride_b + head.to(tl.int64) * k_stride_k
        k_ptrs += s[None, :] * k_stride_s + h[:, None]
        v_ptrs = v_ptr + b.to(tl.int64) * v_stride_b + head.to(tl.int64) * v_stride_k
        v_ptrs += s[:, None] * v_stride_s + h[None, :]
        top_R = tl.full((ROWS,), float("-inf"), tl.float32)
        sum_R = tl.zeros((ROWS,), tl.float32)
        out_RH = tl.zeros((ROWS, PADDED), tl.float32)
        for start in range(first, stop, KEYS):
            valid_S = start + s < stop
            k_HS = tl.load(k_ptrs + start * k_stride_s, valid_S[None, :] & (h < WIDTH)[:, None], 0.0)
            scores_RS = tl.dot(q_RH, k_HS, input_precision="ieee") * scale_log2
            scores_RS = tl.where(valid_S[None, :], scores_RS, float("-inf"))
            new_R = tl.maximum(top_R, tl.max(scores_RS, 1))
            p_RS = tl.exp2(scores_RS - new_R[:, None])
            shrink_R = tl.exp2(top_R - new_R)
            sum_R = sum_R * shrink_R + tl.sum(p_RS, 1)
            # masked values are loaded as 0: what the cache holds there may be NaN, and 0 x NaN is NaN
            v_SH = tl.load(v_ptrs + start * v_stride_s, valid_S[:, None] & (h < WIDTH)[None, :], 0.0)
            out_RH = tl.dot(p_RS.to(v_SH.dtype), v_SH, out_RH * shrink_R[:, None], input_precision="ieee")
            top_R = new_R
        place = ((split.to(tl.int64) * batch + b) * kv_heads + head) * (queries * SHARING)
        out_RH *= (1 / sum_R)[:, None]
        tl.store(partial_ptr + place * WIDTH + (r[:, None] * WIDTH + h[None, :]), out_RH, here_RH)
        tl.store(partial_lse_ptr + place + r, (top_R + tl.log2(sum_R)) * 0.6931471805599453, r < queries * SHARING)


@jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    length_ptr, partial_ptr, partial_lse_ptr, out_ptr, lse_ptr, batch, queries, kv_heads, SHARING: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one query head from its splits, SPLITS at a time, in their order.

    out = sum_m e^lse_m out_m / sum_m e^lse_m.
    """
    row, h = tl.program_id(0), tl.arange(0, PADDED)
    heads = kv_heads * SHARING
    n, query, b = row % heads, row // heads % queries, row // heads // queries
    place = (b * kv_heads + n // SHARING) * queries * SHARING + query * SHARING + n % SHARING  # among a split's rows
    splits = tl.cdiv(tl.load(length_ptr + b).to(tl.int32), SPLIT)
    top = float("-inf")
    total = 0.0
    out_H = tl.zeros((PADDED,), tl.float32)
    for start in range(0, splits, SPLITS):
        m = start + tl.arange(0, SPLITS)
        place_M = m.to(tl.int64) * (batch * kv_heads * queries * SHARING) + place
        lse_M = tl.load(partial_lse_ptr + place_M, m < splits, float("-inf"))
        here_MH = (m < splits)[:, None] & (h < WIDTH)[None, :]
        partial_MH = tl.load(partial_ptr + place_M[:, None] * WIDTH + h[None, :], here_MH, 0.0)
        new = tl.maximum(top, tl.max(lse_M, 0))
        weight_M = tl.exp(lse_M - new)
        shrink = tl.exp(top - new)
        out_H = out_H * shrink + tl.sum(partial_MH * weight_M[:, None], 0)
        total = total * shrink + tl.sum(weight_M, 0)
        top = new
    tl.store(out_ptr + row.to(tl.int64) * WIDTH + h, (out_H / total).to(out_ptr.dtype.element_ty), h < WIDTH)
    tl.store(lse_ptr + row, top + tl.log(total))


def compile_cases() -> list[CompileCase]:
    """Qwen2.5-0.5B (14 query heads on 2, of 64), 7B (28 on 4, of 128), 72B (64 on 8, of 128), and heads of 256."""
    models = (("Qwen2.5-0.5B", 7, 64), ("Qwen2.5-7B", 7, 128), ("Qwen2.5-72B", 8, 128), ("H=256", 8, 256))
    strides = [f"{x}_stride_{d}" for x, dims in (("q", "bqn"), ("k", "bks"), ("v", "bks")) for d in dims]
    split = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*bf16") | {"length_ptr": "*i32"}
    split |= dict.fromkeys(("partial_ptr", "partial_lse_ptr"), "*fp32")
    split |= dict.fromkeys(("batch", "queries", "kv_heads", *strides), "i32") | {"scale_log2": "fp32"}
    split |= dict.fromkeys(("SHARING", "WIDTH", "PADDED", "SPLIT", "ROWS", "KEYS"), "constexpr")
    merge = {"length_ptr": "*i32", "partial_ptr": "*fp32", "partial_lse_ptr": "*fp32", "out_ptr": "*bf16"}
    merge |= {"lse_ptr": "*fp32", **dict.fromkeys(("batch", "queries", "kv_heads"), "i32")}
    merge |= dict.fromkeys(("SHARING", "WIDTH", "PADDED", "SPLIT", "SPLITS"), "constexpr")
    cases = []
    for name, sharing, width in models:
        constants: dict[str, Any] = {"SHARING": sharing, "WIDTH": width, "PADDED": width, "SPLIT": SPLIT}
        cases += [
            CompileCase(
                f"decode_attention split {name}",
                _split_kernel,
                split,
                constants | {"ROWS": ROWS, "KEYS": KEYS},
                **_pipeline(width),
                multiples_of_16=tuple(strides),
                needs_dot=True,
            ),
            CompileCase(
                f"decode_attention merge {name}",
                _merge_kernel,
                merge,
                constants | {"SPLITS": MERGE_SPLITS},
                num_warps=1,
            ),
        ]
    return cases
