"""The backward kernels of flash_attention.py: delta, then dK and dV by blocks of keys, then dQ by blocks of queries.

With weights p = exp(score - lse) and dp = dout . v, the gradient of a score is p (dp - delta), delta = out . dout
(FlashAttention-2, section 3.1.2). Each number of dq, dk and dv is written by one program, in a fixed order: no atomics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .case import CompileCase
from .flash_attention_forward import Blocks, case, choose, constants, load_rows, store_rows
from .jit import jit, tl, triton

# as FORWARD_BLOCKS
KEY_VALUE_BLOCKS = {64: Blocks(32, 128, 8, 2), 128: Blocks(64, 64, 8, 2), 256: Blocks(32, 32, 8, 1)}
QUERY_BLOCKS = {64: Blocks(128, 64, 8, 2), 128: Blocks(128, 32, 8, 2), 256: Blocks(32, 32, 8, 1)}
DELTA_ROWS = 16


def backward(
    q_TNH: Tensor,
    k_IKH: Tensor,
    v_IKH: Tensor,
    out_TNH: Tensor,
    dout_TNH: Tensor,
    lse_NT: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq [T, N, H], dk and dv [I, K, H] from what forward saw and gave and the gradient of its output."""
    (tokens, heads, width), shared_heads = q_TNH.shape, k_IKH.shape[1]
    dq_TNH, dk_IKH, dv_IKH = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_TNH, k_IKH, v_IKH))
    delta_NT = torch.empty_like(lse_NT)
    sizes = constants(heads // shared_heads, width, QUERY_BLOCKS[64], q_TNH.dtype)
    _delta_kernel[triton.cdiv(tokens, DELTA_ROWS), heads](
        out_TNH,
        dout_TNH,
        delta_NT,
        *dout_TNH.stride()[:2],
        tokens,
        HEAD_DIM=width,
        PADDED=sizes["PADDED"],
        BLOCK=DELTA_ROWS,
    )
    strides = [*q_TNH.stride()[:2], *k_IKH.stride()[:2], *v_IKH.stride()[:2], *dout_TNH.stride()[:2]]
    inputs = (q_TNH, k_IKH, v_IKH, dout_TNH, lse_NT, delta_NT, cu_q, cu_k)
    blocks = choose(KEY_VALUE_BLOCKS, width, q_TNH.dtype)
    _key_value_kernel[triton.cdiv(max_k, blocks.k), shared_heads, len(cu_q) - 1](
        dk_IKH,
        dv_IKH,
        *inputs,
        *strides,
        tokens,
        **constants(heads // shared_heads, width, blocks, q_TNH.dtype),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    blocks = choose(QUERY_BLOCKS, width, q_TNH.dtype)
    _query_kernel[triton.cdiv(max_q, blocks.q), heads, len(cu_q) - 1](
        dq_TNH,
        *inputs,
        *strides,
        tokens,
        **constants(heads // shared_heads, width, blocks, q_TNH.dtype),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return dq_TNH, dk_IKH, dv_IKH


@jit
def _delta_kernel(  # type: ignore[no-untyped-def]
    out_TNH, dout_TNH, delta_NT, stride_dt, stride_dn, tokens,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """delta = out . dout of BLOCK queries of one head, in fp32."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    # fp32 at once (WIDE): the product is not for tensor cores
    out_ptr, dout_ptr = out_TNH + (first * heads + head) * HEAD_DIM, dout_TNH + first * stride_dt + head * stride_dn
    out = load_rows(out_ptr, heads * HEAD_DIM, tokens - first, BLOCK, HEAD_DIM, PADDED, True)
    dout = load_rows(dout_ptr, stride_dt, tokens - first, BLOCK, HEAD_DIM, PADDED, True)
    token = first + tl.arange(0, BLOCK)
    tl.store(delta_NT + head.to(tl.int64) * tokens + token, tl.sum(out * dout, 1), mask=token < tokens)


@jit
def _key_value_kernel(  # type: ignore[no-untyped-def]
    dk_IKH, dv_IKH, q_TNH, k_IKH, v_IKH, dout_TNH, lse_NT, delta_NT, cu_q, cu_k,
    stride_qt, stride_qn, stride_ki, stride_kk, stride_vi, stride_vk, stride_dt, stride_dn, tokens,
    SHARING: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K keys of one key/value head in one segment, over all queries of all heads that see them.

    Scores stand transposed, [keys, queries], so that neither product with them needs to turn them in registers.
    """
    shared_head, segment = tl.program_id(1), tl.program_id(2)
    q_start, k_start = tl.load(cu_q + segment).to(tl.int64), tl.load(cu_k + segment).to(tl.int64)
    queries = (tl.load(cu_q + segment + 1) - q_start).to(tl.int32)
    keys = (tl.load(cu_k + segment + 1) - k_start).to(tl.int32)
    first = tl.program_id(0) * BLOCK_K  # the first keys are seen by the most queries
    if first >= keys:
        return
    key = first + tl.arange(0, BLOCK_K)
    first_seeing = key - (keys - queries)  # the first query that sees the key
    k_ptr = k_IKH + (k_start + first) * stride_ki + shared_head * stride_kk
    v_ptr = v_IKH + (k_start + first) * stride_vi + shared_head * stride_vk
    k = load_rows(k_ptr, stride_ki, keys - first, BLOCK_K, HEAD_DIM, PADDED, WIDE)
    v = load_rows(v_ptr, stride_vi, keys - first, BLOCK_K, HEAD_DIM, PADDED, WIDE)
    log2_e = 1.4426950408889634
    scale = HEAD_DIM**-0.5 * log2_e

    dk = tl.zeros([BLOCK_K, PADDED], tl.float32)
    dv = tl.zeros([BLOCK_K, PADDED], tl.float32)
    begin = tl.maximum(first - (keys - queries), 0) // BLOCK_Q * BLOCK_Q
    for sharer in range(SHARING):
        head = shared_head * SHARING + sharer
        q_ptr = q_TNH + (q_start + begin) * stride_qt + head * stride_qn
        dout_ptr = dout_TNH + (q_start + begin) * stride_dt + head * stride_dn
        row = head.to(tl.int64) * tokens + q_start
        for start in range(begin, queries, BLOCK_Q):
            query = start + tl.arange(0, BLOCK_Q)
            q = load_rows(q_ptr, stride_qt, queries - start, BLOCK_Q, HEAD_DIM, PADDED, WIDE)
            # +inf behind the last query: its weights are exp2(0 - inf) = 0
            lse = tl.load(lse_NT + row + query, mask=query < queries, other=float("inf")) * log2_e
            scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
            seen = first_seeing[:, None] <= query[None, :]
            weights = tl.exp2(tl.where(seen, scores - lse[None, :], -float("inf")))
            dout = load_rows(dout_ptr, stride_dt, queries - start, BLOCK_Q, HEAD_DIM, PADDED, WIDE)
            dv = tl.dot(weights.to(dout.dtype), dout, acc=dv, input_precision="ieee")
            delta = tl.load(delta_NT + row + query, mask=query < queries, other=0.0)
            dweights = tl.dot(v, tl.trans(dout), input_precision="ieee")
            dscores = weights * (dweights - delta[None, :])
            dk = tl.dot(dscores.to(q.dtype), q, acc=dk, input_precision="ieee")
            q_ptr += BLOCK_Q * stride_qt
            dout_ptr += BLOCK_Q * stride_dt

    shared_heads = tl.num_programs(1)
    place = ((k_start + first) * shared_heads + shared_head) * HEAD_DIM
    stride = shared_heads * HEAD_DIM
    store_rows(dk_IKH + place, dk * HEAD_DIM**-0.5, stride, keys - first, BLOCK_K, HEAD_DIM, PADDED)
    store_rows(dv_IKH + place, dv, stride, keys - first, BLOCK_K, HEAD_DIM, PADDED)


@jit
def _query_kernel(  # type: ignore[no-untyped-def]
    dq_TNH, q_TNH, k_IKH, v_IKH, dout_TNH, lse_NT, delta_NT, cu_q, cu_k,
    stride_qt, stride_qn, stride_ki, stride_kk, stride_vi, stride_vk, stride_dt, stride_dn, tokens,
    SHARING: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q queries of one head in one segment, over all keys that they see."""
    head, segment = tl.program_id(1), tl.program_id(2)
    q_start, k_start = tl.load(cu_q + segment).to(tl.int64), tl.load(cu_k + segment).to(tl.int64)
    queries = (tl.load(cu_q + segment + 1) - q_start).to(tl.int32)
    keys = (tl.load(cu_k + segment + 1) - k_start).to(tl.int32)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q  # the longest first, as in the forward kernel
    if first >= queries:
        return
    query = first + tl.arange(0, BLOCK_Q)
    last_seen = query + (keys - queries)
    q_ptr = q_TNH + (q_start + first) * stride_qt + head * stride_qn
    dout_ptr = dout_TNH + (q_start + first) * stride_dt + head * stride_dn
    q = load_rows(q_ptr, stride_qt, queries - first, BLOCK_Q, HEAD_DIM, PADDED, WIDE)
    dout = load_rows(dout_ptr, stride_dt, queries - first, BLOCK_Q, HEAD_DIM, PADDED, WIDE)
    row = head.to(tl.int64) * tokens + q_start + query
    log2_e = 1.4426950408889634
    scale = HEAD_DIM**-0.5 * log2_e
    lse = tl.load(lse_NT + row, mask=query < queries, other=float("inf")) * log2_e
    delta = tl.load(delta_NT + row, mask=query < queries, other=0.0)
    k_ptr = k_IKH + k_start * stride_ki + (head // SHARING) * stride_kk
    v_ptr = v_IKH + k_start * stride_vi + (head // SHARING) * stride_vk

    dq = tl.zeros([BLOCK_Q, PADDED], tl.float32)
    for start in range(0, tl.minimum(first + BLOCK_Q + keys - queries, keys), BLOCK_K):
        k = load_rows(k_ptr, stride_ki, keys - start, BLOCK_K, HEAD_DIM, PADDED, WIDE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        key = start + tl.arange(0, BLOCK_K)
        seen = key[None, :] <= last_seen[:, None]
        weights = tl.exp2(tl.where(seen, scores - lse[:, None], -float("inf")))
        v = load_rows(v_ptr, stride_vi, keys - start, BLOCK_K, HEAD_DIM, PADDED, WIDE)
        dweights = tl.dot(dout, tl.trans(v), input_precision="ieee")
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, acc=dq, input_precision="ieee")
        k_ptr += BLOCK_K * stride_ki
        v_ptr += BLOCK_K * stride_vi

    heads = tl.num_programs(1)
    dq_ptr = dq_TNH + ((q_start + first) * heads + head) * HEAD_DIM
    store_rows(dq_ptr, dq * HEAD_DIM**-0.5, heads * HEAD_DIM, queries - first, BLOCK_Q, HEAD_DIM, PADDED)


_STRIDES = ("stride_qt", "stride_qn", "stride_ki", "stride_kk", "stride_vi", "stride_vk", "stride_dt", "stride_dn")
_INPUTS = {
    **dict.fromkeys(("q_TNH", "k_IKH", "v_IKH", "dout_TNH"), "*bf16"),
    **dict.fromkeys(("lse_NT", "delta_NT"), "*fp32"),
    **dict.fromkeys(("cu_q", "cu_k"), "*i32"),
    **dict.fromkeys((*_STRIDES, "tokens"), "i32"),
}


def backward_cases(model: str, sharing: int, width: int) -> list[CompileCase]:
    """The three kernels as they are launched for bf16 views of a fused projection."""
    delta = CompileCase(
        name=f"flash_attention delta {model}",
        fn=_delta_kernel,
        signature={
            **dict.fromkeys(("out_TNH", "dout_TNH"), "*bf16"),
            "delta_NT": "*fp32",
            **dict.fromkeys(("stride_dt", "stride_dn", "tokens"), "i32"),
            **dict.fromkeys(("HEAD_DIM", "PADDED", "BLOCK"), "constexpr"),
        },
        constexprs={"HEAD_DIM": width, "PADDED": width, "BLOCK": DELTA_ROWS},
        multiples_of_16=("stride_dt", "stride_dn"),
    )
    key_value, query = (choose(table, width, torch.bfloat16) for table in (KEY_VALUE_BLOCKS, QUERY_BLOCKS))
    outputs = {"dk_IKH": "*bf16", "dv_IKH": "*bf16"}
    return [
        delta,
        case(f"flash_attention dk dv {model}", _key_value_kernel, outputs | _INPUTS, sharing, width, key_value),
        case(f"flash_attention dq {model}", _query_kernel, {"dq_TNH": "*bf16"} | _INPUTS, sharing, width, query),
    ]
