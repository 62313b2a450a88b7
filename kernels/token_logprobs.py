"""Linear head, log-probability and entropy in one: what psychecore/train/token_logprobs.py computes, on tensor cores.

For a row with logits z = W h / temperature and label y:  logprob = z_y - lse(z),  entropy = lse(z) - sum_v p_v z_v.

Forward: a program multiplies one [rows, vocabulary] tile in fp32 and leaves three numbers a row (maximum, sum of
exponentials, their weighted sum); a second kernel merges the tiles of a row. At T = 8,192, D = 3,584, V = 152,064
(Qwen2.5-7B) that is 2 T D V = 8.9 TFLOP, 9 ms at an H100's 989 TFLOP/s. A logit in memory would cost a write and a
read of 2 bytes each, 5.0 GB or 1.5 ms (fp32: 3 ms), and be rounded; the partials are 12 bytes for 256 logits, 0.12 GB
both ways. So the forward fuses, and the head is read from memory T / (GROUP BLOCK_T) = 4 times, 4.4 GB under the dots.

Backward: three products, 6 T D V = 27 TFLOP, 27 ms. Fusing all of them would take a row's whole D of accumulators, or
the logits once more for each gradient (a third more FLOPs). So one kernel recomputes the tile and turns it at once
into the slope d loss / d z in 16 bits, one [8192, 8192] chunk (128 MiB) at a time, and cuBLAS multiplies the chunk with
the head and with the hidden states. The slope moves 6 bytes an element (one write, two reads): 7.5 GB, 2.2 ms. Sums
over chunks are in fp32 at about 12 bytes an element of the result, 12 T V D (1 / columns + 1 / rows) bytes in all,
which is least for a square chunk; up to 8,192 rows the head's gradient is one product and needs no sum: 6.7 GB, 2.0 ms.

No atomics, and no tile depends on the number of rows: a token's log-probability is the same bits in any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import jit, tl, triton

CHUNK_ROWS = 8192
CHUNK_COLUMNS = 8192
TILE = {"BLOCK_T": 128, "BLOCK_V": 256, "BLOCK_D": 64, "GROUP": 16}
WARPS, STAGES = 8, 3
MERGE = {"BLOCK_T": 32, "BLOCK_N": 32}


def token_logprobs_reference(
    hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The dense formula, in fp32 or wider: ([T], [T]). Holds [T, V] several times."""
    logits_TV = (hidden_TD @ head_VD.T).to(torch.promote_types(hidden_TD.dtype, torch.float32)) / temperature
    table_TV = logits_TV.log_softmax(1)
    return table_TV.gather(1, labels_T[:, None])[:, 0], -(table_TV.exp() * table_TV).sum(1)


def token_logprobs(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of each distribution, fp32 ([T], [T]), differentiable once.

    hidden_TD and head_VD in one dtype of at most 32 bits, labels_T int64; a label outside [0, V) gives NaN. Shapes and
    temperature are checked by the caller, psychecore.train.token_logprobs.
    """
    labels_T = labels_T.clamp(-1, len(head_VD)).contiguous()  # the kernels go on in 32 bits, where 2^32 + 3 would be 3
    logprobs_T, entropy_T = _TokenLogprobs.apply(_rows(hidden_TD), _rows(head_VD), labels_T, temperature)
    return logprobs_T, entropy_T


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        tokens, vocabulary = hidden_TD.shape[0], head_VD.shape[0]
        tiles = triton.cdiv(vocabulary, TILE["BLOCK_V"])
        partial_3NT = hidden_TD.new_empty(3, tiles, tokens, dtype=torch.float32)
        picked_T = hidden_TD.new_full((tokens,), torch.nan, dtype=torch.float32)
        lse_T, entropy_T = torch.empty_like(picked_T), torch.empty_like(picked_T)
        grid = (triton.cdiv(tokens, TILE["BLOCK_T"]) * tiles,)
        _statistics_kernel[grid](
            hidden_TD, head_VD, labels_T, partial_3NT, picked_T, tokens, vocabulary, hidden_TD.shape[1],
            hidden_TD.stride(0), head_VD.stride(0), 1.0 / temperature, **TILE, num_warps=WARPS, num_stages=STAGES
        )  # fmt: skip
        _merge_kernel[(triton.cdiv(tokens, MERGE["BLOCK_T"]),)](partial_3NT, lse_T, entropy_T, tokens, tiles, **MERGE)
        ctx.save_for_backward(hidden_TD, head_VD, labels_T, lse_T, entropy_T)
        ctx.temperature = temperature
        return picked_T - lse_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob_T: Tensor, grad_entropy_T: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_TD, head_VD, labels_T, lse_T, entropy_T = ctx.saved_tensors
        (tokens, width), vocabulary = hidden_TD.shape, head_VD.shape[0]
        grad_hidden_TD = torch.zeros(tokens, width, dtype=torch.float32, device=hidden_TD.device)
        grad_head_VD = torch.empty(vocabulary, width, dtype=head_VD.dtype, device=head_VD.device)
        row_T5 = (labels_T, lse_T, entropy_T, grad_logprob_T.contiguous(), grad_entropy_T.contiguous())
        for columns in _chunks(vocabulary, CHUNK_COLUMNS):
            chunk_VD = head_VD[columns]
            grad_chunk_VD: Tensor | None = None
            for rows in _chunks(tokens, CHUNK_ROWS):
                slope_TV = hidden_TD.new_empty(rows.stop - rows.start, len(chunk_VD))
                grid = (triton.cdiv(slope_TV.shape[0], TILE["BLOCK_T"]) * triton.cdiv(len(chunk_VD), TILE["BLOCK_V"]),)
                _slope_kernel[grid](
                    hidden_TD[rows], chunk_VD, *(x_T[rows] for x_T in row_T5), slope_TV, *slope_TV.shape, width,
                    columns.start, hidden_TD.stride(0), head_VD.stride(0), 1.0 / ctx.temperature, **TILE,
                    num_warps=WARPS, num_stages=STAGES
                )  # fmt: skip
                grad_hidden_TD[rows] += slope_TV @ chunk_VD
                product_VD = slope_TV.T @ hidden_TD[rows]
                grad_chunk_VD = product_VD if grad_chunk_VD is None else grad_chunk_VD.float().add_(product_VD)
            grad_head_VD[columns] = 0 if grad_chunk_VD is None else grad_chunk_VD  # 0: there are no rows
        return grad_hidden_TD.to(hidden_TD.dtype), grad_head_VD, None, None


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


@jit
def _place(  # type: ignore[no-untyped-def]
    tokens, vocabulary, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """First row and first column of this program's tile.

    GROUP row blocks go through the vocabulary together: 132 programs at a time then share 16 x 0.9 MB of hidden states
    and 8 x 1.8 MB of head, which stay in the L2 cache.
    """
    down, across = tl.cdiv(tokens, BLOCK_T), tl.cdiv(vocabulary, BLOCK_V)
    group = tl.program_id(0) // (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * across)
    return (group * GROUP + inside % height) * BLOCK_T, inside // height * BLOCK_V


@jit
def _logits(  # type: ignore[no-untyped-def]
    hidden_ptr, head_ptr, row, column, tokens, vocabulary, width, hidden_stride, head_stride, inverse_temperature,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of logits, fp32 [BLOCK_T, BLOCK_V]; 0 in columns behind the vocabulary."""
    t, v, d = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    # the tile's corner in int64, since T D and V D may pass int32; the way inside a tile in int32, for its registers
    hidden_ptr += row.to(tl.int64) * hidden_stride
    head_ptr += column.to(tl.int64) * head_stride
    hidden_ptrs = hidden_ptr + (t[:, None] * hidden_stride + d[None, :])
    head_ptrs = head_ptr + (v[None, :] * head_stride + d[:, None])
    logits_TV = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for done in range(0, width, BLOCK_D):
        hidden_TD = tl.load(hidden_ptrs, (row + t < tokens)[:, None] & (d < width - done)[None, :], 0.0)
        head_DV = tl.load(head_ptrs, (d < width - done)[:, None] & (column + v < vocabulary)[None, :], 0.0)
        logits_TV = tl.dot(hidden_TD, head_DV, logits_TV, input_precision="ieee")
        hidden_ptrs += BLOCK_D
        head_ptrs += BLOCK_D
    return logits_TV * inverse_temperature


@jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr, head_ptr, labels_ptr, partial_ptr, picked_ptr, tokens, vocabulary, width, hidden_stride, head_stride,
    inverse_temperature, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Maximum, sum of exponentials and weighted sum of one tile's rows; the label's logit where it is in the tile."""
    row, column = _place(tokens, vocabulary, BLOCK_T, BLOCK_V, GROUP)
    logits_TV = _logits(
        hidden_ptr, head_ptr, row, column, tokens, vocabulary, width, hidden_stride, head_stride,
        inverse_temperature, BLOCK_T, BLOCK_V, BLOCK_D
    )  # fmt: skip
    v = tl.arange(0, BLOCK_V)
    if column + BLOCK_V > vocabulary:  # -1e30, since 0 x -inf is NaN; a branch, since the mask takes registers
        logits_TV = tl.where((v < vocabulary - column)[None, :], logits_TV, -1e30)
    t = row + tl.arange(0, BLOCK_T)
    place_T = tl.load(labels_ptr + t, t < tokens, -1).to(tl.int32) - column  # the label's column in this tile
    picked_T = tl.sum(tl.where(place_T[:, None] == v[None, :], logits_TV, 0.0), 1)
    # of all tiles of a row exactly one holds the label, so exactly one writes
    inside_T = (t < tokens) & (place_T >= 0) & (place_T < tl.minimum(BLOCK_V, vocabulary - column))
    tl.store(picked_ptr + t, picked_T, inside_T)
    top_T = tl.max(logits_TV, 1)
    below_TV = logits_TV - top_T[:, None]
    exp_TV = tl.exp(below_TV)
    # both sums in one sweep over the tile: two sweeps hold so many registers that they spill
    sum_T, weighted_T = tl.split(tl.sum(tl.join(exp_TV, exp_TV * below_TV), 1))
    n, tiles = (column // BLOCK_V).to(tl.int64), tl.cdiv(vocabulary, BLOCK_V)
    tl.store(partial_ptr + n * tokens + t, top_T, t < tokens)
    tl.store(partial_ptr + (tiles + n) * tokens + t, sum_T, t < tokens)
    tl.store(partial_ptr + (2 * tiles + n) * tokens + t, weighted_T, t < tokens)


@jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    partial_ptr, lse_ptr, entropy_ptr, tokens, tiles, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp and entropy of BLOCK_T rows from the partials [3, tiles, tokens] of their tiles, online."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    top_T = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    sum_T = tl.zeros((BLOCK_T,), tl.float32)
    weighted_T = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, tiles, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
        inside_NT = (n < tiles) & (t < tokens)[None, :]
        tile_top_NT = tl.load(partial_ptr + n * tokens + t[None, :], inside_NT, float("-inf"))
        tile_sum_NT = tl.load(partial_ptr + (tiles + n) * tokens + t[None, :], inside_NT, 0.0)
        tile_weighted_NT = tl.load(partial_ptr + (2 * tiles + n) * tokens + t[None, :], inside_NT, 0.0)
        new_T = tl.maximum(top_T, tl.max(tile_top_NT, 0))
        shift_NT = tile_top_NT - new_T[None, :]
        shrink_NT = tl.exp(shift_NT)
        # sums of p and of p (z - top); moving the top moves the second by the shift times the first
        moved_NT = (tile_weighted_NT + tl.where(shrink_NT > 0, shift_NT, 0.0) * tile_sum_NT) * shrink_NT
        shift_T = top_T - new_T
        shrink_T = tl.exp(shift_T)
        weighted_T = (weighted_T + tl.where(shrink_T > 0, shift_T, 0.0) * sum_T) * shrink_T + tl.sum(moved_NT, 0)
        sum_T = sum_T * shrink_T + tl.sum(tile_sum_NT * shrink_NT, 0)
        top_T = new_T
    log_sum_T = tl.log(sum_T)
    tl.store(lse_ptr + t, top_T + log_sum_T, t < tokens)
    tl.store(entropy_ptr + t, log_sum_T - weighted_T / sum_T, t < tokens)


@jit
def _slope_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr, head_ptr, labels_ptr, lse_ptr, entropy_ptr, grad_logprob_ptr, grad_entropy_ptr, slope_ptr, tokens,
    columns, width, first_column, hidden_stride, head_stride, inverse_temperature, BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """d loss / d (W h) of one tile of a chunk, whose first column is `first_column` of the vocabulary.

    d logprob / d z_v = [v = y] - p_v          d entropy / d z_v = -p_v (log p_v + entropy)
    """
    row, column = _place(tokens, columns, BLOCK_T, BLOCK_V, GROUP)
    logits_TV = _logits(
        hidden_ptr, head_ptr, row, column, tokens, columns, width, hidden_stride, head_stride,
        inverse_temperature, BLOCK_T, BLOCK_V, BLOCK_D
    )  # fmt: skip
    t = row + tl.arange(0, BLOCK_T)
    v = tl.arange(0, BLOCK_V)
    place_T = tl.load(labels_ptr + t, t < tokens, -1).to(tl.int32) - first_column - column
    lse_T = tl.load(lse_ptr + t, t < tokens, 0.0)
    entropy_T = tl.load(entropy_ptr + t, t < tokens, 0.0)
    grad_logprob_T = tl.load(grad_logprob_ptr + t, t < tokens, 0.0)
    grad_entropy_T = tl.load(grad_entropy_ptr + t, t < tokens, 0.0)
    logprob_TV = logits_TV - lse_T[:, None]
    grad_TV = grad_logprob_T[:, None] + grad_entropy_T[:, None] * (logprob_TV + entropy_T[:, None])
    slope_TV = tl.where(place_T[:, None] == v[None, :], grad_logprob_T[:, None], 0.0) - tl.exp(logprob_TV) * grad_TV
    slope_TV = (slope_TV * inverse_temperature).to(slope_ptr.dtype.element_ty)
    corner_ptr = slope_ptr + row.to(tl.int64) * columns + column
    ptrs = corner_ptr + (tl.arange(0, BLOCK_T)[:, None] * columns + v[None, :])
    tl.store(ptrs, slope_TV, (t < tokens)[:, None] & (column + v < columns)[None, :])


def compile_cases() -> list[CompileCase]:
    """The launches for Qwen2.5-0.5B, 7B and 72B, which differ in the width only, a run-time argument: one for all."""
    tile = {"inverse_temperature": "fp32"} | dict.fromkeys(TILE, "constexpr")
    strides = dict.fromkeys(("hidden_stride", "head_stride"), "i32")
    inputs = {"hidden_ptr": "*bf16", "head_ptr": "*bf16", "labels_ptr": "*i64"}
    statistics = inputs | {"partial_ptr": "*fp32", "picked_ptr": "*fp32"}
    statistics |= dict.fromkeys(("tokens", "vocabulary", "width"), "i32") | strides | tile
    slope = inputs | dict.fromkeys(("lse_ptr", "entropy_ptr", "grad_logprob_ptr", "grad_entropy_ptr"), "*fp32")
    slope |= {"slope_ptr": "*bf16"} | dict.fromkeys(("tokens", "columns", "width", "first_column"), "i32")
    slope |= strides | tile
    merge = dict.fromkeys(("partial_ptr", "lse_ptr", "entropy_ptr"), "*fp32")
    merge |= dict.fromkeys(("tokens", "tiles"), "i32") | dict.fromkeys(MERGE, "constexpr")
    even = ("vocabulary", "columns", "first_column", "width", "hidden_stride", "head_stride")
    return [
        CompileCase("token_logprobs statistics", _statistics_kernel, statistics, TILE, WARPS, STAGES, even, True),
        CompileCase("token_logprobs merge", _merge_kernel, merge, MERGE, needs_wide=False),
        CompileCase("token_logprobs slope", _slope_kernel, slope, TILE, WARPS, STAGES, even, True),
    ]
