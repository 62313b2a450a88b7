"""Causal attention over packed segments: FlashAttention-2 (arXiv 2307.08691), forward and backward.

Segment s has the queries cu_q[s]..cu_q[s+1] and the keys cu_k[s]..cu_k[s+1]; query i sees key j where
j <= i + keys - queries, so the last query sees all keys (bottom right, as flash-attn). A query that sees no key gives
zeros. Query heads n * sharing .. (n + 1) * sharing read key/value head n. Scores are never in memory: a program holds
a block of queries, walks over blocks of keys, and keeps the running maximum m, the sum l of exp(score - m) and the
sum of exp(score - m) v, rescaled where m grows. Scores are in units of log 2, since the GPU has exp2 and not exp.

Cost, with P = the pairs (query, key) that are seen, over all segments (n * (n + 1) / 2 for n tokens of their own):
    forward   4 P N H FLOPs (2 products); reads q, k, v, writes out and lse (4 bytes a query and head)
    backward  14 P N H: 7 products, where a kernel with atomics needs 5. dK, dV (_key_value_kernel) and dQ
              (_query_kernel) are computed by a program each that owns them and computes the scores again, so no two
              programs add to the same number and equal inputs give equal bits. Reads q, k, v, out, dout, lse; writes
              dq, dk, dv and delta (4 bytes a query and head).
    memory    T N (H itemsize + 4) bytes kept for backward besides q, k, v; 4 T N more during it
Re-reads of k and v by the blocks of queries come from L2: at 128 queries a block, a 7B layer's 2,048 keys of one head
(1 MiB in bf16) are read 16 times, 1/128 of a byte per FLOP or less. bf16 and fp16 accumulate in fp32 on tensor cores;
fp32 inputs are multiplied in full precision, slowly.

Simplifications: one launch for the longest segment (programs behind a shorter segment's end return at once), and no
TMA descriptors or warp specialisation, which flash-attn 3 uses on Hopper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .case import CompileCase
from .flash_attention_backward import backward, backward_cases
from .flash_attention_forward import forward, forward_case


def flash_attention_reference(q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """The same in plain torch, segment by segment with all scores in memory, at least in fp32; any device."""
    wide = torch.promote_types(q_TNH.dtype, torch.float32)
    sharing, scale = q_TNH.shape[1] // k_IKH.shape[1], q_TNH.shape[2] ** -0.5
    q_lengths, k_lengths = cu_q.diff().tolist(), cu_k.diff().tolist()
    outs = []
    for q_QNH, k_SKH, v_SKH in zip(
        q_TNH.to(wide).split(q_lengths), k_IKH.to(wide).split(k_lengths), v_IKH.to(wide).split(k_lengths), strict=True
    ):
        k_SNH, v_SNH = k_SKH.repeat_interleave(sharing, 1), v_SKH.repeat_interleave(sharing, 1)
        scores_NQS = torch.einsum("qnh,snh->nqs", q_QNH, k_SNH) * scale
        seen_QS = torch.ones_like(scores_NQS[0], dtype=torch.bool).tril(len(k_SNH) - len(q_QNH))
        # the least finite number, not -inf: a row that sees nothing must stay free of NaN, forward and backward
        weights_NQS = scores_NQS.masked_fill(~seen_QS, torch.finfo(wide).min).softmax(-1) * seen_QS
        outs.append(torch.einsum("nqs,snh->qnh", weights_NQS, v_SNH))
    return torch.cat(outs).to(q_TNH.dtype)


def flash_attention(
    q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Bottom-right causal attention of packed segments, [T, N, H], differentiable once in q, k and v.

    q_TNH: T queries of N heads; k_IKH, v_IKH: I keys of K heads, N a multiple of K, any strides (the last dimension is
    copied where it isn't contiguous). bfloat16, float16 or float32, H up to 256. cu_q, cu_k: int32 [segments + 1],
    from 0 to T and I, on the queries' device. max_q, max_k: the longest segment's queries and keys, or more; they size
    the launch, so that nothing is read back from the GPU. Raises ValueError where shapes or dtypes don't fit; lengths
    in cu_q and cu_k are not checked.

    Example: cu_q = [0, 2, 3] and cu_k = [0, 4, 5]: query 0 sees keys 0..2, query 1 keys 0..3, query 2 key 4.
    """
    check(q_TNH, k_IKH, v_IKH, cu_q, cu_k)
    out_TNH: Tensor = _FlashAttention.apply(q_TNH, k_IKH, v_IKH, cu_q, cu_k, max_q, max_k)
    return out_TNH


def check(q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor) -> None:
    """Raises ValueError, naming the shapes, where flash_attention's arguments don't fit together."""
    if q_TNH.dim() != 3 or k_IKH.dim() != 3 or k_IKH.shape != v_IKH.shape or q_TNH.shape[2] != k_IKH.shape[2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_TNH, k_IKH, v_IKH))
        raise ValueError(f"q, k, v have shapes {shapes}, but must be [T, N, H], [I, K, H] and [I, K, H]")
    if q_TNH.shape[1] % k_IKH.shape[1]:
        raise ValueError(f"{q_TNH.shape[1]} query heads can't share {k_IKH.shape[1]} key/value heads evenly")
    if not q_TNH.dtype == k_IKH.dtype == v_IKH.dtype or q_TNH.dtype not in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
    ):
        raise ValueError(
            f"q, k, v are {q_TNH.dtype}, {k_IKH.dtype}, {v_IKH.dtype}, but must be all bfloat16, float16 or float32"
        )
    if q_TNH.shape[2] > 256:
        raise ValueError(f"the head dimension is {q_TNH.shape[2]}, but at most 256 fit; use torch's attention")
    if cu_q.dtype != torch.int32 or cu_k.dtype != torch.int32 or cu_q.shape != cu_k.shape:
        raise ValueError(
            f"cu_q and cu_k are {cu_q.dtype} {tuple(cu_q.shape)} and {cu_k.dtype} {tuple(cu_k.shape)}, but must be "
            "int32 and equally long"
        )


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
    ) -> Tensor:
        q_TNH, k_IKH, v_IKH = (x if x.stride(2) == 1 else x.contiguous() for x in (q_TNH, k_IKH, v_IKH))
        out_TNH, lse_NT = forward(q_TNH, k_IKH, v_IKH, cu_q, cu_k, max_q)
        ctx.save_for_backward(q_TNH, k_IKH, v_IKH, out_TNH, lse_NT, cu_q, cu_k)
        ctx.lengths = max_q, max_k
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TNH: Tensor) -> tuple[Tensor | None, ...]:
        q_TNH, k_IKH, v_IKH, out_TNH, lse_NT, cu_q, cu_k = ctx.saved_tensors
        dout_TNH = dout_TNH if dout_TNH.stride(2) == 1 else dout_TNH.contiguous()
        gradients = backward(q_TNH, k_IKH, v_IKH, out_TNH, dout_TNH, lse_NT, cu_q, cu_k, *ctx.lengths)
        return (*gradients, None, None, None, None)


def compile_cases() -> list[CompileCase]:
    """All four in bf16 for Qwen2.5-0.5B (14 query heads on 2 of 64), 7B (28 on 4 of 128), 72B (64 on 8); H = 256."""
    cases = []
    for model, sharing, width in (("0.5B", 7, 64), ("7B", 7, 128), ("72B", 8, 128), ("H=256", 8, 256)):
        cases += [forward_case(model, sharing, width), *backward_cases(model, sharing, width)]
    return cases
