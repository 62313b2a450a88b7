"""Attention over packed segments in plain torch: segments of like size are padded, stacked and computed at once.

Forward is F.scaled_dot_product_attention. Backward is written out (arXiv 2205.14135, equations 13 to 19 of appendix
B.2), with the scores made again in fp32. It is for short segments, where torch's own backward on CPU is slow: 3 ms for
77 queries of 113 keys in bf16 and 9 heads, against 1 ms here, and its gradients are twice as far from float64's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

SHORT = 1 << 15  # pairs of query and key up to which a segment is short; torch's backward is faster beyond
# ... and up to which one with twice as many keys is (a completion after a shared prompt): torch gets a mask for it, and
# skips nothing. 8 completions of 100 after a prompt of 600: forward and backward of the model 3.8 to 3.4 s.
SHORT_AFTER_PROMPT = 1 << 17
STACK = 1 << 16  # at most so many pairs in a stack of several: their scores stay in a core's cache
PADDING = 1.25  # a stack has at most so many pairs for one that counts


@dataclass(frozen=True)
class Stack:
    """S segments padded to Q queries and K keys.

    query_SQ, key_SK: places among the T tokens, T where padded. seen_S1QK: bool, the causal mask, bottom-right; None
    for one square segment, which is causal by itself. Padded queries see every key, so that no row is empty; padded
    keys are seen by padded queries only.
    """

    query_SQ: Tensor
    key_SK: Tensor
    seen_S1QK: Tensor | None


def is_short(queries: int, keys: int) -> bool:
    """Whether a segment of so many is computed here."""
    return queries * keys <= (SHORT_AFTER_PROMPT if keys >= 2 * queries else SHORT)


def stack_segments(
    queries: Sequence[int], keys: Sequence[int], key_index_I: Tensor | None, device: torch.device
) -> list[Stack]:
    """Each short segment of a packed batch (see model/attention.py) in one stack, with others of nearly its size.

    queries, keys: how many each segment has, in the order of the batch.
    """
    if key_index_I is None:
        key_index_I = torch.arange(sum(keys), device=device)
    places = list(zip(torch.arange(sum(queries), device=device).split(queries), key_index_I.split(keys), strict=True))
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
    return [_stack([places[i] for i in some], sum(queries)) for some in members]


def _stack(members: list[tuple[Tensor, Tensor]], tokens: int) -> Stack:
    """members: (places of the queries, of the keys) of each segment."""
    device = members[0][0].device
    if len(members) == 1:
        query_Q, key_K = members[0]
        square = len(query_Q) == len(key_K)
        seen_11QK = None if square else causal_mask(len(query_Q), len(key_K), device)[None, None]
        return Stack(query_Q[None], key_K[None], seen_11QK)
    query_SQ = pad_sequence([query_Q for query_Q, _ in members], batch_first=True, padding_value=tokens)
    key_SK = pad_sequence([key_K for _, key_K in members], batch_first=True, padding_value=tokens)
    seen_SQK = torch.ones(*query_SQ.shape, key_SK.shape[1], dtype=torch.bool, device=device)
    for seen_QK, (query_Q, key_K) in zip(seen_SQK, members, strict=True):
        q, k = len(query_Q), len(key_K)
        seen_QK[:q, k:] = False
        seen_QK[:q, :k] = causal_mask(q, k, device)
    return Stack(query_SQ, key_SK, seen_SQK[:, None])


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bottom-right causal mask [queries, keys], true where a key is seen."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal=keys - queries)


def stacked_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, stacks: Sequence[Stack]) -> Tensor:
    """Causal attention of each stack's queries over its keys, [T, N, H], zero elsewhere; differentiable once."""
    out_TNH: Tensor = _StackedAttention.apply(q_TNH, k_TKH, v_TKH, stacks)
    return out_TNH


class _StackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, stacks: Sequence[Stack]) -> Tensor:
        last = len(q_TNH) - 1
        out_TNH = q_TNH.new_zeros(last + 2, *q_TNH.shape[1:])  # what is padded is written to a row behind the last
        for stack in stacks:
            query_SQ, key_SK = stack.query_SQ.clamp(max=last), stack.key_SK.clamp(max=last)
            q_SNQH, k_SKKH, v_SKKH = (
                x.index_select(0, place.flatten()).unflatten(0, place.shape).transpose(1, 2)
                for x, place in ((q_TNH, query_SQ), (k_TKH, key_SK), (v_TKH, key_SK))
            )
            out_SNQH = F.scaled_dot_product_attention(
                q_SNQH,
                k_SKKH,
                v_SKKH,
                attn_mask=stack.seen_S1QK,
                is_causal=stack.seen_S1QK is None,
                enable_gqa=True,
            )
            out_TNH.index_copy_(0, stack.query_SQ.flatten(), out_SNQH.transpose(1, 2).flatten(0, 1))
        out_TNH = out_TNH[:-1]
        ctx.save_for_backward(q_TNH, k_TKH, v_TKH, out_TNH)
        ctx.stacks = stacks
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_TNH, k_TKH, v_TKH, out_TNH = ctx.saved_tensors
        heads, key_heads, width = q_TNH.shape[1], k_TKH.shape[1], q_TNH.shape[2]
        q_XH, k_YH, v_YH, grad_XH = (_by_head(x) for x in (q_TNH, k_TKH, v_TKH, grad_TNH))
        q_XH *= width**-0.5
        delta_X1 = _by_head((grad_TNH.to(q_XH.dtype) * out_TNH).sum(-1, keepdim=True))
        dq_XH, dk_YH, dv_YH = torch.zeros_like(q_XH), torch.zeros_like(k_YH), torch.zeros_like(v_YH)
        for stack in ctx.stacks:
            size, queries, keys = len(stack.query_SQ), stack.query_SQ.shape[1], stack.key_SK.shape[1]
            x_P, y_P = (
                (torch.arange(n, device=q_XH.device)[:, None] * (len(q_TNH) + 1) + place[:, None]).flatten()
                for n, place in ((heads, stack.query_SQ), (key_heads, stack.key_SK))
            )
            # the queries that share a key/value head stand as rows R of one product
            q_BRH, grad_BRH, delta_BR1 = (
                x.index_select(0, x_P).view(size * key_heads, -1, x.shape[1]) for x in (q_XH, grad_XH, delta_X1)
            )
            k_BKH, v_BKH = (y.index_select(0, y_P).view(-1, keys, width) for y in (k_YH, v_YH))
            p_BRK = q_BRH @ k_BKH.transpose(1, 2)
            seen = causal_mask(queries, keys, x_P.device) if stack.seen_S1QK is None else stack.seen_S1QK
            p_BRK = p_BRK.view(size, heads, queries, keys).masked_fill_(~seen, -torch.inf).softmax(-1).view_as(p_BRK)
            slope_BRK = (grad_BRH @ v_BKH.transpose(1, 2)).sub_(delta_BR1).mul_(p_BRK)
            dq_XH.index_copy_(0, x_P, (slope_BRK @ k_BKH).view(-1, width))
            dk_YH.index_add_(0, y_P, (slope_BRK.transpose(1, 2) @ q_BRH).view(-1, width))  # a shared key's is the sum
            dv_YH.index_add_(0, y_P, (p_BRK.transpose(1, 2) @ grad_BRH).view(-1, width))
        dq_XH *= width**-0.5
        dq_TNH, dk_TKH, dv_TKH = (
            x.view(n, -1, width)[:, :-1].transpose(0, 1).to(grad_TNH.dtype, memory_format=torch.contiguous_format)
            for x, n in ((dq_XH, heads), (dk_YH, key_heads), (dv_YH, key_heads))
        )
        return dq_TNH, dk_TKH, dv_TKH, None


def _by_head(x_TNH: Tensor) -> Tensor:
    """[N * (T + 1), H] in fp32 or wider, head after head, each with a row of zeros at its end, for what is padded."""
    tokens, heads, width = x_TNH.shape
    out_NTH = x_TNH.new_zeros(heads, tokens + 1, width, dtype=torch.promote_types(x_TNH.dtype, torch.float32))
    out_NTH[:, :-1] = x_TNH.transpose(0, 1)
    return out_NTH.view(-1, width)
