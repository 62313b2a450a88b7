"""Attention over packed segments in plain torch: segments of like size are padded, stacked and computed at once.

Forward is F.scaled_dot_product_attention. Backward is written out (arXiv 2205.14135, equations 13 to 19 of appendix
B.2), with the scores made again in fp32. It is for short segments, where torch's own backward on CPU is slow: 3 ms for
77 queries of 113 keys in bf16 and 9 heads, against 1 ms here, and its gradients are twice as far from float64's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 1 << 15  # pairs of query and key up to which a segment is short; torch's backward is faster beyond
STACK = 1 << 16  # at most so many pairs in a stack: its scores stay in a core's cache
PADDING = 1.25  # a stack has at most so many pairs for one that counts


@dataclass(frozen=True)
class Stack:
    """S segments padded to Q queries and K keys. Padded places point at token 0, whose value never counts.

    query_SQ, key_SK: places among the T tokens. real_P: which of the S * Q queries are no padding, None where all are.
    seen_S1QK: bool, the causal mask, bottom-right; None for one square segment, which is causal by itself. Padded
    queries see every key, so that no row is empty; padded keys are seen by padded queries only.
    """

    query_SQ: Tensor
    key_SK: Tensor
    real_P: Tensor | None
    seen_S1QK: Tensor | None

    @property
    def target_P(self) -> Tensor:
        """Places of the queries that are no padding, in order."""
        flat = self.query_SQ.flatten()
        return flat if self.real_P is None else flat[self.real_P]


def is_short(queries: int, keys: int) -> bool:
    """Whether a segment of so many is computed here."""
    return queries * keys <= SHORT


def stack_segments(
    cu_q: Sequence[int], cu_k: Sequence[int], key_index_I: Tensor | None, device: torch.device
) -> list[Stack]:
    """Each short segment of a packed batch (see model/attention.py) in one stack, with others of nearly its size."""
    if key_index_I is None:
        key_index_I = torch.arange(cu_k[-1], device=device)
    queries = [stop - start for start, stop in itertools.pairwise(cu_q)]
    keys = [stop - start for start, stop in itertools.pairwise(cu_k)]
    members: list[list[int]] = []
    real = 0  # pairs that count in the last stack
    short = [i for i in range(len(queries)) if is_short(queries[i], keys[i])]
    for index in sorted(short, key=lambda i: (keys[i], queries[i])):
        pairs = queries[index] * keys[index]
        if members:
            joined = [*members[-1], index]
            padded = len(joined) * max(queries[i] for i in joined) * max(keys[i] for i in joined)
            if padded <= min(STACK, PADDING * (real + pairs)):
                members[-1], real = joined, real + pairs
                continue
        members.append([index])
        real = pairs
    return [_stack(some, cu_q, cu_k, queries, keys, key_index_I) for some in members]


def _stack(
    members: list[int],
    cu_q: Sequence[int],
    cu_k: Sequence[int],
    queries: list[int],
    keys: list[int],
    key_index_I: Tensor,
) -> Stack:
    device = key_index_I.device
    if len(members) == 1:
        (i,) = members
        seen = None if queries[i] == keys[i] else _causal(queries[i], keys[i], device)[None, None]
        own = torch.arange(cu_q[i], cu_q[i + 1], device=device)
        return Stack(own[None], key_index_I[None, cu_k[i] : cu_k[i + 1]], None, seen)
    width_q, width_k = max(queries[i] for i in members), max(keys[i] for i in members)
    query_SQ = torch.zeros(len(members), width_q, dtype=torch.int64, device=device)
    key_SK = torch.zeros(len(members), width_k, dtype=torch.int64, device=device)
    real_SQ = torch.zeros(len(members), width_q, dtype=torch.bool, device=device)
    seen_SQK = torch.ones(len(members), width_q, width_k, dtype=torch.bool, device=device)
    for row, i in enumerate(members):
        q, k = queries[i], keys[i]
        query_SQ[row, :q] = torch.arange(cu_q[i], cu_q[i + 1], device=device)
        key_SK[row, :k] = key_index_I[cu_k[i] : cu_k[i + 1]]
        real_SQ[row, :q] = True
        seen_SQK[row, :q, k:] = False
        seen_SQK[row, :q, :k] = _causal(q, k, device)
    return Stack(query_SQ, key_SK, None if real_SQ.all() else real_SQ.flatten().nonzero()[:, 0], seen_SQK[:, None])


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bottom-right causal mask [queries, keys], true where a key is seen."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal=keys - queries)


def stacked_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, stacks: Sequence[Stack]) -> Tensor:
    """Causal attention of each stack's queries over its keys, [T, N, H], zero elsewhere; differentiable once."""
    out_TNH: Tensor = _StackedAttention.apply(q_TNH, k_TKH, v_TKH, stacks)
    return out_TNH


class _StackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, stacks: Sequence[Stack]) -> Tensor:
        out_TNH = q_TNH.new_zeros(q_TNH.shape)
        for stack in stacks:
            out_SQNH = _attend(*_gather(stack, q_TNH, k_TKH, v_TKH), stack.seen_S1QK)
            _put(out_TNH, stack, out_SQNH)
        ctx.save_for_backward(q_TNH, k_TKH, v_TKH, out_TNH)
        ctx.stacks = stacks
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        wide = torch.promote_types(grad_TNH.dtype, torch.float32)
        q_TNH, k_TKH, v_TKH, out_TNH = ctx.saved_tensors
        dq_TNH = q_TNH.new_zeros(q_TNH.shape)
        dk_TKH, dv_TKH = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k_TKH, v_TKH))
        for stack in ctx.stacks:
            q_SQNH, k_SKKH, v_SKKH = (x.to(wide) for x in _gather(stack, q_TNH, k_TKH, v_TKH))
            grad_SQNH = _take(grad_TNH, stack.query_SQ).to(wide)
            if stack.real_P is not None:
                kept_P = torch.zeros(stack.query_SQ.numel(), dtype=wide, device=grad_SQNH.device)
                kept_P[stack.real_P] = 1
                grad_SQNH.mul_(kept_P.view(*stack.query_SQ.shape, 1, 1))
            out_SQNH = _take(out_TNH, stack.query_SQ).to(wide)
            dq_SQNH, dk_SKKH, dv_SKKH = _gradients(q_SQNH, k_SKKH, v_SKKH, out_SQNH, grad_SQNH, stack.seen_S1QK)
            _put(dq_TNH, stack, dq_SQNH.to(dq_TNH.dtype))
            for total_TKH, part_SKKH in ((dk_TKH, dk_SKKH), (dv_TKH, dv_SKKH)):  # a shared key's is the sum over all
                total_TKH.index_add_(0, stack.key_SK.flatten(), part_SKKH.flatten(0, 1).to(wide))
        return dq_TNH, dk_TKH.to(k_TKH.dtype), dv_TKH.to(v_TKH.dtype), None


def _take(x_TNH: Tensor, place_SQ: Tensor) -> Tensor:
    return x_TNH.index_select(0, place_SQ.flatten()).unflatten(0, place_SQ.shape)


def _gather(stack: Stack, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """([S, Q, N, H], [S, K, K, H], [S, K, K, H]): queries, keys and values of a stack."""
    return _take(q_TNH, stack.query_SQ), _take(k_TKH, stack.key_SK), _take(v_TKH, stack.key_SK)


def _put(to_TNH: Tensor, stack: Stack, x_SQNH: Tensor) -> None:
    x_PNH = x_SQNH.flatten(0, 1)
    to_TNH.index_copy_(0, stack.target_P, x_PNH if stack.real_P is None else x_PNH[stack.real_P])


def _attend(q_SQNH: Tensor, k_SKKH: Tensor, v_SKKH: Tensor, seen_S1QK: Tensor | None) -> Tensor:
    out_SNQH = F.scaled_dot_product_attention(
        q_SQNH.transpose(1, 2),
        k_SKKH.transpose(1, 2),
        v_SKKH.transpose(1, 2),
        attn_mask=seen_S1QK,
        is_causal=seen_S1QK is None,
        enable_gqa=True,
    )
    return out_SNQH.transpose(1, 2)


def _gradients(
    q_SQNH: Tensor, k_SKKH: Tensor, v_SKKH: Tensor, out_SQNH: Tensor, grad_SQNH: Tensor, seen_S1QK: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What torch's kernel gives, with the queries that share a key/value head as rows R of one product."""
    (stack, queries, heads, width), (keys, key_heads) = q_SQNH.shape, k_SKKH.shape[1:3]
    scale = width**-0.5

    def rows(x_SQNH: Tensor) -> Tensor:
        x = x_SQNH.unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4)
        return x.reshape(stack * key_heads, -1, width)

    def heads_first(x_SKKH: Tensor) -> Tensor:
        return x_SKKH.transpose(1, 2).reshape(stack * key_heads, keys, width)

    q_BRH, grad_BRH, out_BRH = rows(q_SQNH).mul(scale), rows(grad_SQNH), rows(out_SQNH)
    k_BKH, v_BKH = heads_first(k_SKKH), heads_first(v_SKKH)
    scores_BRK = q_BRH @ k_BKH.transpose(1, 2)
    seen_S1QK = _causal(queries, keys, q_SQNH.device)[None, None] if seen_S1QK is None else seen_S1QK
    scores_BRK.view(stack, heads, queries, keys).masked_fill_(~seen_S1QK, -torch.inf)
    p_BRK = scores_BRK.softmax(-1)
    slope_BRK = grad_BRH @ v_BKH.transpose(1, 2)
    slope_BRK.sub_((grad_BRH * out_BRH).sum(-1, keepdim=True)).mul_(p_BRK)
    dq_BRH, dk_BKH, dv_BKH = (
        slope_BRK @ k_BKH * scale,
        slope_BRK.transpose(1, 2) @ q_BRH,
        p_BRK.transpose(1, 2) @ grad_BRH,
    )
    dq_SQNH = dq_BRH.view(stack, key_heads, -1, queries, width).permute(0, 3, 1, 2, 4).reshape(q_SQNH.shape)
    dk_SKKH, dv_SKKH = (x.view(stack, key_heads, keys, width).transpose(1, 2) for x in (dk_BKH, dv_BKH))
    return dq_SQNH, dk_SKKH, dv_SKKH
