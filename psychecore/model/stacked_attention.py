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

    query_SQ, key_SK: places among the T tokens; where padded T for a query, the segment's last for a key, since one of
    another segment would bring its NaN along, at a weight of zero. seen_S1QK: bool, the causal mask, bottom-right; None
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
    longest = max(len(key_K) for _, key_K in members)
    key_SK = torch.stack([torch.cat((key_K, key_K[-1:].expand(longest - len(key_K)))) for _, key_K in members])
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
            query_SQ, key_SK = stack.query_SQ.clamp(max=last), stack.key_SK
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
        ctx.save_for_backward(q_TNH, k_TKH, v_TKH)
        ctx.stacks = stacks
        return out_TNH[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_TNH, k_TKH, v_TKH = ctx.saved_tensors
        last, heads, key_heads, width = len(q_TNH) - 1, q_TNH.shape[1], k_TKH.shape[1], q_TNH.shape[2]
        grad_TNH = torch.cat((grad_TNH, torch.zeros_like(grad_TNH[:1])))  # what is padded has a gradient of zero
        dq_TNH = q_TNH.new_zeros(grad_TNH.shape)
        dk_TKH, dv_TKH = (x.new_zeros(x.shape, dtype=_wide(x)) for x in (k_TKH, v_TKH))
        for stack in ctx.stacks:
            query_SQ, key_SK = stack.query_SQ, stack.key_SK
            queries, keys = query_SQ.shape[1], key_SK.shape[1]
            q_BRH, grad_BRH = (
                _by_key_head(x, place_SQ, key_heads)
                for x, place_SQ in ((q_TNH, query_SQ.clamp(max=last)), (grad_TNH, query_SQ))
            )
            k_BKH, v_BKH = (_by_key_head(x, key_SK, key_heads) for x in (k_TKH, v_TKH))
            q_BRH *= width**-0.5
            p_BRK = q_BRH @ k_BKH.transpose(1, 2)
            seen = causal_mask(queries, keys, q_TNH.device) if stack.seen_S1QK is None else stack.seen_S1QK
            p_BRK = p_BRK.view(-1, heads, queries, keys).masked_fill_(~seen, -torch.inf).softmax(-1).view_as(p_BRK)
            slope_BRK = torch._softmax_backward_data(grad_BRH @ v_BKH.transpose(1, 2), p_BRK, -1, p_BRK.dtype)
            dq_BRH = (slope_BRK @ k_BKH).mul_(width**-0.5)
            dq_TNH.index_copy_(0, query_SQ.flatten(), _by_token(dq_BRH, query_SQ, heads).to(dq_TNH.dtype))
            # a shared key's gradient is the sum
            dk_TKH.index_add_(0, key_SK.flatten(), _by_token(slope_BRK.transpose(1, 2) @ q_BRH, key_SK, key_heads))
            dv_TKH.index_add_(0, key_SK.flatten(), _by_token(p_BRK.transpose(1, 2) @ grad_BRH, key_SK, key_heads))
        return dq_TNH[:-1], dk_TKH.to(k_TKH.dtype), dv_TKH.to(v_TKH.dtype), None


def _by_key_head(x_TNH: Tensor, place_SQ: Tensor, key_heads: int) -> Tensor:
    """A stack's rows in fp32 or wider, [S * K, N / K * Q, H]: queries that share a key/value head are one matrix."""
    x_SQKRH = x_TNH.index_select(0, place_SQ.flatten()).unflatten(0, place_SQ.shape).unflatten(2, (key_heads, -1))
    x_SKRQH = x_SQKRH.permute(0, 2, 3, 1, 4).to(_wide(x_TNH), memory_format=torch.contiguous_format)
    return x_SKRQH.flatten(0, 1).flatten(1, 2)


def _by_token(x_BRH: Tensor, place_SQ: Tensor, heads: int) -> Tensor:
    """[S * K, N / K * Q, H] to [S * Q, N, H]."""
    return x_BRH.view(len(place_SQ), heads, -1, x_BRH.shape[2]).transpose(1, 2).flatten(0, 1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
