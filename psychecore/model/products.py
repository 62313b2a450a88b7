"""Products of matrices; on a CPU without instructions for 16 bits they are computed in fp32.

torch multiplies bf16 and fp16 there at an eighth of fp32's speed (two cores of a Zen 3: 14 against 110 GFLOP/s). So
factors are widened, which costs a pass over each, and the product is summed in fp32 and rounded once: what a CPU that
has the instructions gives. Tensors stay 16 bits wide in memory, and so do those that autograd keeps. Milliseconds below
are of all layers of SmolLM2 there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _slow_dtypes() -> frozenset[torch.dtype]:
    """Those for whose products oneDNN, by which torch multiplies, has no code here; both where torch is without it."""
    fast = {
        torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None),
        torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None),
    }
    return frozenset(dtype for dtype, supported in fast.items() if supported is None or not supported())


SLOW_ON_CPU = _slow_dtypes()
BLOCK = 1 << 20  # numbers of a weight that are widened at once in decoding: 4 MiB stay in the cache for the product
FEW_COLUMNS = 4  # up to so many, products of 16 bits are not slow: 25 ms for 2, 54 for 4, where wide ones take 100
COLUMNS = 16  # ... and wide ones are padded to multiples of this: 59 ms for 8 columns instead of 114
FEW_WIDE_COLUMNS = 12  # in fp32, up to so many are faster as rows, by x W^T


def are_slow(x: Tensor, *others: Tensor) -> bool:
    """Whether products of these are to be computed in fp32; where their dtypes differ, torch is left to refuse them."""
    return x.device.type == "cpu" and x.dtype in SLOW_ON_CPU and all(other.dtype == x.dtype for other in others)


def wide(x: Tensor) -> Tensor:
    """x as it is multiplied: in fp32 where its own products are slow, else itself."""
    return x.float() if are_slow(x) else x


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are fast: on CUDA, and on CPUs with instructions for it; else float32.

    On a CPU for whose 16 bits oneDNN has code, the two are raced, since that code may also do without instructions.
    Where it has none fp32 is as fast and more exact, but for sampling a single sequence.
    """
    if device.type == "cuda":
        return torch.bfloat16
    if torch.bfloat16 in SLOW_ON_CPU:
        return torch.float32
    factors = {dtype: torch.ones(192, 192, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(factors, math.inf)
    for _ in range(10):  # the best of ten, by turns: one may fall into another process's turn
        for dtype, a in factors.items():
            start = time.perf_counter()
            a @ a
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return torch.bfloat16 if seconds[torch.bfloat16] < 2 * seconds[torch.float32] else torch.float32


def linear(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """x W^T + b, [..., E] of [..., D]; differentiable once where it is computed in fp32."""
    if not are_slow(x_TD, weight_ED):
        return F.linear(x_TD, weight_ED, bias_E)
    y_TE: Tensor = _WideLinear.apply(x_TD.reshape(-1, x_TD.shape[-1]), weight_ED, bias_E)
    return y_TE.view(*x_TD.shape[:-1], len(weight_ED))


def weight_first(weight_ED: Tensor, x_DC: Tensor) -> Tensor:
    """W x of a few columns, [E, C], or of one vector, [E], without gradient; in fp32 where columns are computed so."""
    if x_DC.ndim == 2 and are_slow(weight_ED, x_DC):
        return _widened(weight_ED, x_DC)
    y_EC = x_DC.new_empty(len(weight_ED), *x_DC.shape[1:])
    into(y_EC, weight_ED, x_DC)()
    return y_EC


def into(out_EC: Tensor, weight_ED: Tensor, x_DC: Tensor) -> Callable[[], object]:
    """What puts W x into `out_EC` (rounded to its dtype), at every call, of what `x_DC` and the weight then hold.

    Columns [D, C] or a vector [D], in one piece of memory, as `out_EC`. Views are made here, once: between the products
    of a step each would cost microseconds.
    """
    wide = x_DC.device.type == "cpu" and x_DC.dtype == weight_ED.dtype == torch.float32
    if wide and weight_ED.numel() and not torch.compiler.is_compiling():  # a compiler has no number of threads
        return _by_blocks(out_EC, weight_ED, x_DC)
    if x_DC.ndim == 1:
        return partial(torch.mv, weight_ED, x_DC, out=out_EC)
    if are_slow(weight_ED, x_DC):
        return lambda: out_EC.copy_(_widened(weight_ED, x_DC))
    return partial(torch.mm, weight_ED, x_DC, out=out_EC)


def _by_blocks(out_EC: Tensor, weight_ED: Tensor, x_DC: Tensor) -> Callable[[], object]:
    """In fp32, as a batch of products with blocks of the weight's rows, which torch divides among its threads.

    One product goes to MKL, which divides it badly where columns are few, and falls behind the memory where rows are
    many: with blocks one column took 35 instead of 52 ms, 8 took 58 instead of 111, the head at 32 26 instead of 35.
    """
    rows, width = weight_ED.shape
    x_DC, out_EC = x_DC.view(width, -1), out_EC.view(rows, -1)
    columns = x_DC.shape[1]
    height = min(rows, max(64, min(1024, rows // (4 * torch.get_num_threads()))))
    blocks, rest = divmod(rows, height)
    block_ZHD, out_ZHC = (x[: rows - rest].unflatten(0, (blocks, height)) for x in (weight_ED, out_EC))
    multiply: Callable[[], object]
    if columns == 1:  # a view of strides (1, 1) instead would cost half the speed
        multiply = partial(torch.bmm, x_DC.view(1, width).expand(blocks, 1, width), block_ZHD.mT, out=out_ZHC.mT)
    elif columns <= FEW_WIDE_COLUMNS:
        multiply = partial(_as_rows, out_ZHC, block_ZHD.mT, x_DC)
    else:
        multiply = partial(torch.bmm, block_ZHD, x_DC.expand(blocks, width, columns), out=out_ZHC)
    if not rest:
        return multiply
    of_rest = partial(torch.mm, weight_ED[rows - rest :], x_DC, out=out_EC[rows - rest :])
    return lambda: (multiply(), of_rest())


def _as_rows(out_ZHC: Tensor, block_ZDH: Tensor, x_DC: Tensor) -> None:
    """(x^T W^T)^T by blocks."""
    out_ZHC.copy_(torch.bmm(x_DC.T.contiguous().expand(len(block_ZDH), -1, -1), block_ZDH).mT)


def _widened(weight_ED: Tensor, x_DC: Tensor) -> Tensor:
    """In 16 bits that are slow. The weight is widened block by block: the head, whole, took 82 ms instead of 20."""
    (rows, width), columns = weight_ED.shape, x_DC.shape[1]
    if columns <= FEW_COLUMNS:
        return F.linear(x_DC.T.contiguous(), weight_ED).T
    wide_DC = F.pad(x_DC.float(), (0, -columns % COLUMNS))
    y_EC = wide_DC.new_empty(rows, wide_DC.shape[1])
    block_ED = wide_DC.new_empty(min(rows, max(1, BLOCK // width)), width)
    for start in range(0, rows, len(block_ED)):
        some_ED = weight_ED[start : start + len(block_ED)]
        torch.mm(block_ED[: len(some_ED)].copy_(some_ED), wide_DC, out=y_EC[start : start + len(some_ED)])
    return y_EC[:, :columns]


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_TD if of_weight else None, weight_ED if of_x else None)
        y_TE = F.linear(x_TD.float(), weight_ED.float(), None if bias_E is None else bias_E.float())
        return y_TE.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_TD, weight_ED = ctx.saved_tensors
        dtype, grad_TE = grad_TE.dtype, grad_TE.float()
        grad_x_TD = None if weight_ED is None else (grad_TE @ weight_ED.float()).to(dtype)
        grad_weight_ED = None if x_TD is None else (grad_TE.T @ x_TD.float()).to(dtype)
        return grad_x_TD, grad_weight_ED, grad_TE.sum(0).to(dtype) if ctx.needs_input_grad[2] else None
