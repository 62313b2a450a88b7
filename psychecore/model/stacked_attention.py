"""Attention over packed segments in plain torch, as blocks that need no mask.

A segment's own tokens are a causal square. Keys before them, those of a shared prompt, are seen by all of its queries,
so the segments with the same keys before them are one rectangle; it is merged with their squares by the log-sum-exp,
as in decoding (rollout/kv_cache.py). Squares of like size are padded, stacked and computed at once.

Forward is torch's own kernel on CPU. Backward is written out (arXiv 2205.14135, equations 13 to 19 of appendix B.2) as
products in the tensors' own dtype, 4 times as fast in bf16 as in fp32 on a CPU with AMX; below a thousand tokens
torch's takes up to twice as long. Columns appended to queries and keys subtract the log-sum-exp inside the product,
and a second product gives what rounding left of it, so that weights are as exact as their dtype is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from psychecore.model import products

STACK = 1 << 21  # at most so many pairs of query and key in a stack of several
PADDING = 1.25  # ... and so many pairs for one that counts
PAIRS = 1 << 19  # pairs at once in backward, where two tensors of so many by the heads are held, but for
ROWS = 64  # ... so many queries, which are always taken at once
CAUSAL_ROWS = 256  # queries of a square at once: of the pairs of these among themselves half is not seen
LONG = 1024  # tokens of a square beyond which torch's backward is as fast on CPU; it is alone in its stack
COLUMNS = 8  # appended; three count, but rows of an odd width are slow


@dataclass(frozen=True)
class Stack:
    """S blocks padded to Q queries and K keys: causal squares, or rectangles whose queries see all the keys.

    query_SQ, key_SK: places among the T tokens; where padded T for a query, the segment's last for a key, since one of
    another segment would bring its NaN along, at a weight of zero. Only padded queries see padded keys.
    """

    query_SQ: Tensor
    key_SK: Tensor
    causal: bool

    def pieces(self, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """(places of some queries, places of the keys that these see), a bounded number of pairs each."""
        queries = self.query_SQ.shape[1]
        rows = max(ROWS, PAIRS // self.key_SK.numel())
        rows = queries if whole else min(rows, CAUSAL_ROWS) if self.causal else rows
        for start in range(0, queries, rows):
            query_SQ = self.query_SQ[:, start : start + rows]
            yield query_SQ, self.key_SK[:, : start + query_SQ.shape[1]] if self.causal else self.key_SK


def stack_segments(
    queries: Sequence[int], keys: Sequence[int], key_index_I: Tensor | None, device: torch.device
) -> list[Stack]:
    """A packed batch (see model/attention.py) as stacks: squares first, which hold every token once, then rectangles.

    queries, keys: how many each segment has, in the order of the batch. Raises ValueError for a segment with more
    queries than keys, whose first would see none.
    """
    if key_index_I is None:
        key_index_I = torch.arange(sum(keys), device=device)
    on_host = key_index_I.cpu().split(keys)
    squares: list[tuple[Tensor, Tensor]] = []
    rectangles: dict[bytes, tuple[Tensor, list[Tensor]]] = {}
    places = zip(torch.arange(sum(queries), device=device).split(queries), key_index_I.split(keys), strict=True)
    for number, (query_Q, key_K) in enumerate(places):
        before = len(key_K) - len(query_Q)
        if before < 0:
            raise ValueError(f"segment {number} has {len(query_Q)} queries, but only {len(key_K)} keys")
        before_P, own_Q = key_K.split([before, len(query_Q)])
        if len(query_Q):
            squares.append((query_Q, own_Q))
            if before:
                same = on_host[number][:before].numpy().tobytes()
                rectangles.setdefault(same, (before_P, []))[1].append(query_Q)
    wide = [Stack(torch.cat(some)[None], key_P[None], causal=False) for key_P, some in rectangles.values()]
    return _stack_squares(squares, sum(queries)) + wide


def _stack_squares(squares: list[tuple[Tensor, Tensor]], tokens: int) -> list[Stack]:
    """Of (places of the queries, of the keys), shortest first, each in one stack with others of nearly its size."""
    members: list[list[tuple[Tensor, Tensor]]] = []
    real = 0  # pairs that count in the last stack
    for square in sorted(squares, key=lambda square: len(square[0])):
        pairs = len(square[0]) ** 2
        if (
            members
            and len(square[0]) <= LONG
            and (len(members[-1]) + 1) * pairs <= min(STACK, PADDING * (real + pairs))
        ):
            members[-1].append(square)
            real += pairs
        else:
            members.append([square])
            real = pairs
    stacks = []
    for some in members:
        longest = len(some[-1][0])
        query_SQ = pad_sequence([query_Q for query_Q, _ in some], batch_first=True, padding_value=tokens)
        key_SQ = torch.stack([torch.cat((key_Q, key_Q[-1:].expand(longest - len(key_Q)))) for _, key_Q in some])
        stacks.append(Stack(query_SQ, key_SQ, causal=True))
    return stacks


def stacked_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, stacks: Sequence[Stack]) -> Tensor:
    """Attention of each stack's queries over its keys, [T, N, H]; differentiable once."""
    out_TNH: Tensor = _StackedAttention.apply(q_TNH, k_TKH, v_TKH, stacks)
    return out_TNH


class _StackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, stacks: Sequence[Stack]) -> Tensor:
        given = q_TNH, k_TKH, v_TKH
        q_TNH, k_TKH, v_TKH = map(products.wide, given)
        tokens, heads, _ = q_TNH.shape
        out_TNH = q_TNH.new_zeros(tokens + 1, *q_TNH.shape[1:])  # what is padded is written to a row behind the last
        lse_TN = out_TNH.new_zeros(tokens + 1, heads, dtype=torch.promote_types(q_TNH.dtype, torch.float32))
        on_cpu = q_TNH.device.type == "cpu"
        for stack in stacks:
            for query_SQ, key_SK in stack.pieces(whole=on_cpu):
                q_SNQH = _by_head(q_TNH, query_SQ.clamp(max=tokens - 1))
                k_SKKH, v_SKKH = (_by_head(x, key_SK) for x in (k_TKH, v_TKH))
                found = (attend_on_cpu if on_cpu else _attend)(q_SNQH, k_SKKH, v_SKKH, stack.causal)
                out_INH, lse_IN = (_by_token(x) for x in found)
                query_I = query_SQ.flatten()
                if not stack.causal:  # merge with the square: e^a / (e^a + e^b) of this one
                    square_lse_IN = lse_TN.index_select(0, query_I)
                    share_IN1 = torch.sigmoid(lse_IN - square_lse_IN)[..., None].to(out_TNH.dtype)
                    out_INH = torch.lerp(out_TNH.index_select(0, query_I), out_INH, share_IN1)
                    lse_IN = torch.logaddexp(lse_IN, square_lse_IN)
                out_TNH.index_copy_(0, query_I, out_INH)
                lse_TN.index_copy_(0, query_I, lse_IN)
        out_TNH = out_TNH[:-1].to(given[0].dtype)
        ctx.save_for_backward(*given, out_TNH, lse_TN[:-1])
        ctx.stacks = stacks
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        *inputs, lse_TN = ctx.saved_tensors
        dtype = grad_TNH.dtype
        q_TNH, k_TKH, v_TKH, out_TNH, grad_TNH = map(products.wide, (*inputs, grad_TNH))
        (_, heads, width), key_heads, scale = q_TNH.shape, k_TKH.shape[1], q_TNH.shape[2] ** -0.5
        on_cpu = q_TNH.device.type == "cpu"
        delta_TN = (grad_TNH.to(lse_TN.dtype) * out_TNH).sum(-1)
        # rows F of queries and G of keys: token by token, head by head
        step = 2.0 ** round(-math.log2(scale))  # a key's part of 1 / scale: in fp16 lse / scale can be too large
        q_FE, grad_FE = _with_columns(q_TNH, lse_TN / (-scale * step)), _with_columns(grad_TNH, -delta_TN)
        k_GE, v_GE = _with_columns(k_TKH, step), _with_columns(v_TKH, 1.0)
        dq_FH = torch.zeros_like(q_FE[:, :width])
        dk_GH, dv_GH = (torch.zeros_like(x[:, :width], dtype=lse_TN.dtype) for x in (k_GE, v_GE))
        for stack in ctx.stacks:
            if on_cpu and stack.causal and stack.query_SQ.shape[1] > LONG:
                q, grad, out, lse = (_by_head(x, stack.query_SQ) for x in (q_TNH, grad_TNH, out_TNH, lse_TN))
                k, v = (_by_head(x, stack.key_SK) for x in (k_TKH, v_TKH))
                found = _backward_on_cpu(grad, q, k, v, out, lse, 0.0, True)
                dq_QNH, dk_QKH, dv_QKH = (_by_token(x) for x in found)
                dq_FH.view(-1, heads, width).index_copy_(0, stack.query_SQ[0], dq_QNH)
                for d_GH, d_QKH in ((dk_GH, dk_QKH), (dv_GH, dv_QKH)):
                    d_GH.view(-1, key_heads, width).index_add_(0, stack.key_SK[0], d_QKH.to(d_GH.dtype))
                continue
            for query_SQ, key_SK in stack.pieces():
                query_I, key_J = _rows(query_SQ, heads, heads // key_heads), _rows(key_SK, key_heads, 1)
                # B: block by block, key head by key head; R: queries that share one
                q_BRE, grad_BRE, k_BKE, v_BKE = (
                    x.index_select(0, rows).view(len(key_SK) * key_heads, -1, x.shape[1])
                    for x, rows in ((q_FE, query_I), (grad_FE, query_I), (k_GE, key_J), (v_GE, key_J))
                )
                log_BRK = _product(q_BRE, k_BKE.transpose(1, 2), scale)
                p_BRK = log_BRK.exp()
                if p_BRK.dtype.itemsize < 4:  # what rounding left of the logarithm, e to it being nearly 1 and it
                    log_BRK.baddbmm_(q_BRE, k_BKE.transpose(1, 2), beta=-1, alpha=scale)
                    p_BRK.addcmul_(p_BRK, log_BRK)
                if stack.causal:
                    queries = query_SQ.shape[1]
                    p_BRK.unflatten(1, (-1, queries))[..., -queries:].tril_()
                slope_BRK = _product(grad_BRE, v_BKE.transpose(1, 2)).mul_(p_BRK)
                dq_IH = _product(slope_BRK, k_BKE[..., :width].contiguous(), scale).view(-1, width)
                (dq_FH.index_copy_ if stack.causal else dq_FH.index_add_)(0, query_I, dq_IH)
                dk_BKH = _product(slope_BRK.transpose(1, 2), q_BRE[..., :width], scale)
                dv_BKH = _product(p_BRK.transpose(1, 2), grad_BRE[..., :width])
                for d_GH, d_BKH in ((dk_GH, dk_BKH), (dv_GH, dv_BKH)):  # a shared key's gradient is the sum
                    d_GH.index_add_(0, key_J, d_BKH.view(-1, width).to(d_GH.dtype))
        dk_TKH, dv_TKH = (d_GH.to(dtype).view(-1, key_heads, width)[:-1] for d_GH in (dk_GH, dv_GH))
        return dq_FH.to(dtype).view(-1, heads, width)[:-1], dk_TKH, dv_TKH, None


def attend_on_cpu(
    q_SNQH: Tensor, k_SKKH: Tensor, v_SKKH: Tensor, causal: bool = False, bias_S11K: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention [S, N, Q, H] and its log-sum-exp [S, N, Q], by the kernel of SDPA: only by name it gives the second."""
    out_SNQH, lse_SNQ = torch._scaled_dot_product_flash_attention_for_cpu(
        q_SNQH, k_SKKH, v_SKKH, 0.0, causal, attn_mask=bias_S11K
    )
    return out_SNQH, lse_SNQ


def _backward_on_cpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of SDPA's kernel: (gradient, q, k, v, output, log-sum-exp, dropout, causal) to those of q, k, v."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *arguments
    )
    return found


def _attend(q_SNQH: Tensor, k_SKKH: Tensor, v_SKKH: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The same by its formula, for other devices; causal is aligned to the bottom right."""
    q_SKRQH = q_SNQH.unflatten(1, (k_SKKH.shape[1], -1))
    scores_SKRQK = q_SKRQH @ k_SKKH[:, :, None].transpose(3, 4) * q_SNQH.shape[3] ** -0.5
    scores_SKRQK = scores_SKRQK.to(torch.promote_types(q_SNQH.dtype, torch.float32))
    if causal:
        queries, keys = scores_SKRQK.shape[3:]
        hidden_QK = torch.ones(queries, keys, dtype=torch.bool, device=q_SNQH.device).triu(keys - queries + 1)
        scores_SKRQK.masked_fill_(hidden_QK, -torch.inf)
    lse_SKRQ = scores_SKRQK.logsumexp(-1)
    out_SKRQH = (scores_SKRQK - lse_SKRQ[..., None]).exp().to(v_SKKH.dtype) @ v_SKKH[:, :, None]
    return out_SKRQH.flatten(1, 2), lse_SKRQ.flatten(1, 2)


def _by_head(x_TNH: Tensor, place_SQ: Tensor) -> Tensor:
    """The rows of these places, [S, N, Q, H], or [S, N, Q] of [T, N]."""
    return x_TNH.index_select(0, place_SQ.flatten()).unflatten(0, place_SQ.shape).transpose(1, 2)


def _by_token(x_SNQH: Tensor) -> Tensor:
    """[S * Q, N, H], or [S * Q, N] of [S, N, Q]."""
    return x_SNQH.transpose(1, 2).flatten(0, 1)


def _with_columns(x_TNH: Tensor, number: Tensor | float) -> Tensor:
    """[(T + 1) * N, H + 8]: behind, a number [T, N] as three of x's dtype that sum to it, or a constant in all three.

    A row of zeros is for padded places.
    """
    tokens, heads, width = x_TNH.shape
    x_TNE = x_TNH.new_zeros(tokens + 1, heads, width + COLUMNS)
    x_TNE[:-1, :, :width] = x_TNH
    for place in range(width, width + 3):
        x_TNE[:-1, :, place] = number
        if isinstance(number, Tensor):
            number = number - x_TNE[:-1, :, place]
    return x_TNE.flatten(0, 1)


def _product(a_BRE: Tensor, b_BEK: Tensor, scale: float = 1.0) -> Tensor:
    """The scaled product, in one pass."""
    return torch.baddbmm(a_BRE.new_empty(()), a_BRE, b_BEK, beta=0, alpha=scale)


def _rows(place_SQ: Tensor, heads: int, sharing: int) -> Tensor:
    """The rows of these places: block by block, of each key head its `sharing` heads, of each head its tokens."""
    head_KR = torch.arange(heads, device=place_SQ.device).view(-1, sharing)
    return (place_SQ[:, None, None] * heads + head_KR[..., None]).flatten()
