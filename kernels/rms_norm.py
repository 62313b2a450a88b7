"""RMSNorm (arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

Also in one pass with the addition before it, as in a pre-norm layer: h = x + residual, y = rms_norm(h).

Bytes per element at 2 bytes each (arithmetic is free beside them, about 6 FLOPs forward and 14 backward):
    forward                 x, y                    4
    forward with addition   x, residual, h, y       8   (addition and norm apart: 10)
    backward                x, dy, dx               6   (with addition 8: and dh)
torch's own composition also writes and reads fp32 intermediates: about 30 forward. The backward pass recomputes the
root from x, which it reads anyhow, so nothing but x (or h, which the next addition needs too) is kept.
The weight's gradient is a sum over all rows: each program sums its share in fp32 and writes it to a row of its own,
and torch sums those rows. No atomics, so equal inputs give equal bits on equal GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import jit, multiprocessors, tl, triton


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """[..., D] -> [..., D]: normalised in fp32 (or wider), cast to the input's type, then scaled, as in Qwen, Llama."""
    return weight_D * F.rms_norm(x, weight_D.shape, None, eps)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), both [..., D]."""
    total = x + residual  # laid out as x, the product just made: on CPU the whole residual stream then is
    return rms_norm_reference(total, weight_D, eps), total


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As rms_norm_reference, by Triton, differentiable once. A view of heads [T, N, D] is read where it lies."""
    _check(x, weight_D)
    y: Tensor = _RmsNorm.apply(x, weight_D, eps)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As add_rms_norm_reference, by Triton in one pass, differentiable once; x and residual of one shape and dtype."""
    _check(x, weight_D)
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"x is {list(x.shape)} {x.dtype}, but residual is {list(residual.shape)} {residual.dtype}: add_rms_norm "
            "takes one shape and dtype"
        )
    y, total = _AddRmsNorm.apply(x, residual, weight_D, eps)
    return y, total


def _check(x: Tensor, weight_D: Tensor) -> None:
    if weight_D.shape != x.shape[-1:]:
        raise ValueError(f"weight is {list(weight_D.shape)}, but rows of x are {list(x.shape[-1:])} wide")


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        y, _ = _run_forward(x, None, weight_D, eps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D = ctx.saved_tensors
        dx, dweight_D = _run_backward(dy, None, x, weight_D, ctx.eps)
        return dx, dweight_D, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, total = _run_forward(x, residual, weight_D, eps)
        ctx.save_for_backward(total, weight_D)
        ctx.eps = eps
        ctx.set_materialize_grads(False)  # nothing reads the last residual: no zeros are written for its gradient
        return y, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dy: Tensor | None, dtotal: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if dy is None:
            return dtotal, dtotal, None, None
        total, weight_D = ctx.saved_tensors
        dx, dweight_D = _run_backward(dy, dtotal, total, weight_D, ctx.eps)
        return dx, dx, dweight_D, None


def _run_forward(x: Tensor, residual: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight_D.dtype), device=x.device)
    total = y if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y, total
    x, inner, outer_stride, inner_stride = _rows(x)
    rows, settings = x.numel() // width, _settings(width)
    _forward[(triton.cdiv(rows, settings["ROWS"]),)](
        x,
        x if residual is None else residual.contiguous(),
        weight_D.contiguous(),
        y,
        total,
        rows,
        outer_stride,
        inner_stride,
        EPS=eps,
        WIDTH=width,
        INNER=inner,
        ADD=residual is not None,
        **settings,
    )
    return y, total


def _run_backward(dy: Tensor, dtotal: Tensor | None, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, torch.zeros_like(weight_D)
    x, inner, outer_stride, inner_stride = _rows(x)
    rows, settings = x.numel() // width, _settings(width)
    # two programs for each multiprocessor: one loads while the other reduces
    programs = min(triton.cdiv(rows, settings["ROWS"]), 2 * multiprocessors(x.device))
    shares_PD = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    _backward[(programs,)](
        dy.contiguous(),
        dy if dtotal is None else dtotal.contiguous(),
        x,
        weight_D.contiguous(),
        dx,
        shares_PD,
        rows,
        outer_stride,
        inner_stride,
        EPS=eps,
        WIDTH=width,
        INNER=inner,
        ADD=dtotal is not None,
        **settings,
    )
    return dx, shares_PD.sum(0).to(weight_D.dtype)


def _rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    """(x, inner, outer stride, inner stride): row r begins at (r // inner) * outer stride + (r % inner) * inner stride.

    So queries and keys that are views of the fused projection, [T, N, H], are read in place.
    """
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.ndim == 3:
        return x, x.shape[1], x.stride(0), x.stride(1)
    x = x.reshape(-1, x.shape[-1])
    return x, 1, x.stride(0), 0


def _settings(width: int) -> dict[str, int]:
    """A row fits one tile, short rows share one; 16 elements a thread keep four loads of 16 bytes in flight."""
    block = triton.next_power_of_2(width)
    rows = max(1, 2048 // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(rows * block // 512, 1), 16)}


@jit
def _forward(  # type: ignore[no-untyped-def]
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    total_ptr,
    rows,
    outer_stride,
    inner_stride,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_R1 = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column_1D = tl.arange(0, BLOCK)[None, :]
    inside_RD = (row_R1 < rows) & (column_1D < WIDTH)
    here_RD = row_R1 * WIDTH + column_1D
    source_RD = row_R1 // INNER * outer_stride + row_R1 % INNER * inner_stride + column_1D
    x_RD = tl.load(x_ptr + source_RD, mask=inside_RD, other=0.0)
    wide_RD = x_RD.to(tl.float32)
    if ADD:
        wide_RD += tl.load(residual_ptr + here_RD, mask=inside_RD, other=0.0).to(tl.float32)
        total_RD = wide_RD.to(x_RD.dtype)
        tl.store(total_ptr + here_RD, total_RD, mask=inside_RD)
        wide_RD = total_RD.to(tl.float32)  # the norm of what is passed on, not of what was before its rounding
    inverse_R1 = tl.rsqrt(tl.sum(wide_RD * wide_RD, axis=1, keep_dims=True) / WIDTH + EPS)
    normal_RD = (wide_RD * inverse_R1).to(x_RD.dtype).to(tl.float32)
    weight_1D = tl.load(weight_ptr + column_1D, mask=column_1D < WIDTH, other=0.0).to(tl.float32)
    tl.store(y_ptr + here_RD, (normal_RD * weight_1D).to(y_ptr.dtype.element_ty), mask=inside_RD)


@jit
def _backward(  # type: ignore[no-untyped-def]
    dy_ptr,
    dtotal_ptr,
    x_ptr,
    weight_ptr,
    dx_ptr,
    shares_ptr,
    rows,
    outer_stride,
    inner_stride,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column_1D = tl.arange(0, BLOCK)[None, :]
    weight_1D = tl.load(weight_ptr + column_1D, mask=column_1D < WIDTH, other=0.0).to(tl.float32)
    share_RD = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row_R1 = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside_RD = (row_R1 < rows) & (column_1D < WIDTH)
        here_RD = row_R1 * WIDTH + column_1D
        source_RD = row_R1 // INNER * outer_stride + row_R1 % INNER * inner_stride + column_1D
        x_RD = tl.load(x_ptr + source_RD, mask=inside_RD, other=0.0)
        dy_RD = tl.load(dy_ptr + here_RD, mask=inside_RD, other=0.0).to(tl.float32)
        wide_RD = x_RD.to(tl.float32)
        inverse_R1 = tl.rsqrt(tl.sum(wide_RD * wide_RD, axis=1, keep_dims=True) / WIDTH + EPS)
        normal_RD = wide_RD * inverse_R1
        share_RD += dy_RD * normal_RD.to(x_RD.dtype).to(tl.float32)
        # y = normal * weight and normal = x * inverse(x), so dx = inverse * (g - normal * mean(g * normal))
        g_RD = dy_RD * weight_1D
        mean_R1 = tl.sum(g_RD * normal_RD, axis=1, keep_dims=True) / WIDTH
        dx_RD = (g_RD - normal_RD * mean_R1) * inverse_R1
        if ADD:
            dx_RD += tl.load(dtotal_ptr + here_RD, mask=inside_RD, other=0.0).to(tl.float32)
        tl.store(dx_ptr + here_RD, dx_RD.to(x_RD.dtype), mask=inside_RD)
    share_D = tl.sum(share_RD, axis=0)
    column_D = tl.arange(0, BLOCK)
    tl.store(shares_ptr + tl.program_id(0).to(tl.int64) * WIDTH + column_D, share_D, mask=column_D < WIDTH)


def compile_cases() -> list[CompileCase]:
    """128 for the heads' norms of Qwen3, and the model widths 896 (0.5B), 3584 (7B), 8192 (72B)."""
    cases = []
    for width, inner in ((128, 32), (896, 1), (3584, 1), (8192, 1)):
        for dtype in ("bf16", "fp32"):
            for add in (False, True) if inner == 1 else (False,):
                settings = _settings(width)
                constants = {"EPS": 1e-6, "WIDTH": width, "INNER": inner, "ADD": add}
                constants |= {name: settings[name] for name in ("ROWS", "BLOCK")}
                constexprs = dict.fromkeys(constants, "constexpr")
                sizes = {"rows": "i32", "outer_stride": "i32", "inner_stride": "i32"}
                forward = ("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "total_ptr")
                backward = ("dy_ptr", "dtotal_ptr", "x_ptr", "weight_ptr", "dx_ptr")
                for way, kernel, pointers in (("forward", _forward, forward), ("backward", _backward, backward)):
                    signature = dict.fromkeys(pointers, f"*{dtype}")
                    if way == "backward":
                        signature["shares_ptr"] = "*fp32"
                    cases.append(
                        CompileCase(
                            name=f"{'add_' if add else ''}rms_norm {way} {width} {dtype}",
                            fn=kernel,
                            signature=signature | sizes | constexprs,
                            constexprs=constants,
                            num_warps=settings["num_warps"],
                            multiples_of_16=("outer_stride", "inner_stride"),
                        )
                    )
    return cases
