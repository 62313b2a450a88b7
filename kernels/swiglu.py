"""SwiGLU (arXiv 2002.05202): silu(gate) * up, gate and up in one tensor as the fused projection writes them.

Bytes per output element at 2 bytes each: forward 6 (gate, up, y), backward 10 (gate, up, dy, dgate, dup); torch's
composition takes 10 and 22. About 6 and 12 FLOPs. The backward pass recomputes silu, so that only gate_up is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import jit, tl, triton

BLOCK = 1024  # divides what Qwen2.5's widths (4864, 18944, 29568) fill up to within 5 %


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """[..., 2F] -> [..., F], gate in the first half of the last dimension, up in the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu(gate_up: Tensor) -> Tensor:
    """As swiglu_reference, by Triton, differentiable once."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up is {list(gate_up.shape)}, but its last dimension holds gate and up, so it is even")
    y: Tensor = _SwiGLU.apply(gate_up)
    return y


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        width = gate_up.shape[-1] // 2
        y = torch.empty(*gate_up.shape[:-1], width, dtype=gate_up.dtype, device=gate_up.device)
        _launch(_forward, gate_up, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dgate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        _launch(_backward, gate_up, dy.contiguous(), dgate_up)
        return dgate_up


def _launch(kernel: Any, gate_up: Tensor, *others: Tensor) -> None:
    """Run over all rows of gate_up, which may lie apart from each other; the other tensors are contiguous."""
    width = gate_up.shape[-1] // 2
    if not gate_up.numel():
        return
    if gate_up.stride(-1) != 1:
        gate_up = gate_up.contiguous()
    rows_R2F = gate_up.reshape(-1, 2 * width)
    grid = (len(rows_R2F), triton.cdiv(width, BLOCK))
    kernel[grid](rows_R2F, *others, rows_R2F.stride(0), WIDTH=width, BLOCK=BLOCK)


@jit
def _forward(gate_up_ptr, y_ptr, row_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column_F = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_F = column_F < WIDTH
    gate_F = tl.load(gate_up_ptr + row * row_stride + column_F, mask=inside_F, other=0.0)
    up_F = tl.load(gate_up_ptr + row * row_stride + WIDTH + column_F, mask=inside_F, other=0.0).to(tl.float32)
    wide_F = gate_F.to(tl.float32)
    silu_F = (wide_F * tl.sigmoid(wide_F)).to(gate_F.dtype).to(tl.float32)  # rounded where the reference rounds
    tl.store(y_ptr + row * WIDTH + column_F, (silu_F * up_F).to(gate_F.dtype), mask=inside_F)


@jit
def _backward(  # type: ignore[no-untyped-def]
    gate_up_ptr, dy_ptr, dgate_up_ptr, row_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column_F = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_F = column_F < WIDTH
    gate_F = tl.load(gate_up_ptr + row * row_stride + column_F, mask=inside_F, other=0.0).to(tl.float32)
    up_F = tl.load(gate_up_ptr + row * row_stride + WIDTH + column_F, mask=inside_F, other=0.0).to(tl.float32)
    dy_F = tl.load(dy_ptr + row * WIDTH + column_F, mask=inside_F, other=0.0).to(tl.float32)
    dtype = dgate_up_ptr.dtype.element_ty
    sigmoid_F = tl.sigmoid(gate_F)
    # d(g s(g)) / dg = s + g s (1 - s)
    dgate_F = dy_F * up_F * sigmoid_F * (1.0 + gate_F * (1.0 - sigmoid_F))
    target_F = dgate_up_ptr + row * (2 * WIDTH) + column_F
    tl.store(target_F, dgate_F.to(dtype), mask=inside_F)
    tl.store(target_F + WIDTH, (dy_F * gate_F * sigmoid_F).to(dtype), mask=inside_F)


def compile_cases() -> list[CompileCase]:
    """The feed-forward widths of Qwen2.5-0.5B, 7B and 72B."""
    return [
        CompileCase(
            name=f"swiglu {way} {width} {dtype}",
            fn=kernel,
            signature=dict.fromkeys(pointers, f"*{dtype}")
            | {"row_stride": "i32", "WIDTH": "constexpr", "BLOCK": "constexpr"},
            constexprs={"WIDTH": width, "BLOCK": BLOCK},
            multiples_of_16=("row_stride",),
        )
        for width in (4864, 18944, 29568)
        for dtype in ("bf16", "fp32")
        for way, kernel, pointers in (
            ("forward", _forward, ("gate_up_ptr", "y_ptr")),
            ("backward", _backward, ("gate_up_ptr", "dy_ptr", "dgate_up_ptr")),
        )
    ]
