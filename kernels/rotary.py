"""Rotary position embedding (arXiv 2104.09864), half-split layout: pair i is (x_i, x_{i + H/2}).

(a, b) -> (a cos - b sin, b cos + a sin). The inverse rotates by the opposite angle and is also the transpose, so the
backward pass is the same kernel with -sin. Queries and keys go in one launch that reads a token's angles once.

Bytes per token at 2 bytes an element: 4 H (N + K) for reading and writing, and 4 H for the angles in fp32, at 3 FLOPs
an element. torch's composition makes fp32 copies, four products and a concatenation: about 30 H (N + K).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import jit, tl, triton


def rotary_reference(q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions' angles; cos and sin are [T, H / 2], the product is at least fp32."""
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]

    def turn(x_TNH: Tensor) -> Tensor:
        a_TNR, b_TNR = x_TNH.to(torch.promote_types(x_TNH.dtype, cos_TR.dtype)).chunk(2, -1)
        turned = (a_TNR * cos_T1R - b_TNR * sin_T1R, b_TNR * cos_T1R + a_TNR * sin_T1R)
        return torch.cat(turned, -1).to(x_TNH.dtype)

    return turn(q_TNH), turn(k_TKH)


def rotary(q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> tuple[Tensor, Tensor]:
    """As rotary_reference, by Triton, differentiable once; views of the fused projection are read where they lie.

    No gradient for angles.
    """
    tokens, half = cos_TR.shape
    for name, x in (("q", q_TNH), ("k", k_TKH)):
        if x.ndim != 3 or x.shape[0] != tokens or x.shape[2] != 2 * half:
            raise ValueError(
                f"{name} is {list(x.shape)}, but with angles for {tokens} tokens and {half} pairs it must be "
                f"[{tokens}, heads, {2 * half}]"
            )
    q, k = _Rotary.apply(q_TNH, k_TKH, cos_TR, sin_TR)
    return q, k


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_TR, sin_TR)
        return _run(q_TNH, k_TKH, cos_TR, sin_TR, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq_TNH: Tensor, dk_TKH: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos_TR, sin_TR = ctx.saved_tensors
        return *_run(dq_TNH, dk_TKH, cos_TR, sin_TR, -1), None, None


def _run(q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    q_TNH, k_TKH, cos_TR, sin_TR = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_TNH, k_TKH, cos_TR, sin_TR))
    q_out_TNH = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
    k_out_TKH = torch.empty(k_TKH.shape, dtype=k_TKH.dtype, device=k_TKH.device)
    tokens, query_heads, width = q_TNH.shape
    if tokens:
        _kernel[(tokens,)](
            q_TNH,
            k_TKH,
            cos_TR,
            sin_TR,
            q_out_TNH,
            k_out_TKH,
            q_TNH.stride(0),
            q_TNH.stride(1),
            k_TKH.stride(0),
            k_TKH.stride(1),
            cos_TR.stride(0),
            sin_TR.stride(0),
            SIGN=sign,
            **_settings(query_heads, k_TKH.shape[1], width // 2),
        )
    return q_out_TNH, k_out_TKH


def _settings(query_heads: int, key_heads: int, half: int) -> dict[str, int]:
    blocks = [triton.next_power_of_2(size) for size in (query_heads, key_heads, half)]
    return {
        "QUERY_HEADS": query_heads,
        "KEY_HEADS": key_heads,
        "HALF": half,
        "BLOCK_QUERY": blocks[0],
        "BLOCK_KEY": blocks[1],
        "BLOCK_HALF": blocks[2],
        "num_warps": min(max(blocks[0] * blocks[2] // 512, 1), 8),  # 16 pairs a thread
    }


@jit
def _kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    SIGN: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    pair_R = tl.arange(0, BLOCK_HALF)
    cos_R = tl.load(cos_ptr + token * cos_stride + pair_R, mask=pair_R < HALF, other=0.0)
    sin_R = tl.load(sin_ptr + token * sin_stride + pair_R, mask=pair_R < HALF, other=0.0) * SIGN
    q_from, q_to = q_ptr + token * q_token_stride, q_out_ptr + token * (QUERY_HEADS * 2 * HALF)
    _rotate_heads(q_from, q_head_stride, q_to, cos_R, sin_R, QUERY_HEADS, HALF, BLOCK_QUERY, BLOCK_HALF)
    k_from, k_to = k_ptr + token * k_token_stride, k_out_ptr + token * (KEY_HEADS * 2 * HALF)
    _rotate_heads(k_from, k_head_stride, k_to, cos_R, sin_R, KEY_HEADS, HALF, BLOCK_KEY, BLOCK_HALF)


@jit
def _rotate_heads(  # type: ignore[no-untyped-def]
    from_ptr,
    head_stride,
    to_ptr,
    cos_R,
    sin_R,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """All heads of one token, whose first element from_ptr and to_ptr point to."""
    head_N1, pair_1R = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    inside_NR = (head_N1 < HEADS) & (pair_1R < HALF)
    source_NR = head_N1 * head_stride + pair_1R
    target_NR = head_N1 * (2 * HALF) + pair_1R
    a_NR = tl.load(from_ptr + source_NR, mask=inside_NR, other=0.0).to(tl.float32)
    b_NR = tl.load(from_ptr + source_NR + HALF, mask=inside_NR, other=0.0).to(tl.float32)
    dtype = to_ptr.dtype.element_ty
    cos_1R, sin_1R = cos_R[None, :], sin_R[None, :]
    tl.store(to_ptr + target_NR, (a_NR * cos_1R - b_NR * sin_1R).to(dtype), mask=inside_NR)
    tl.store(to_ptr + target_NR + HALF, (b_NR * cos_1R + a_NR * sin_1R).to(dtype), mask=inside_NR)


def compile_cases() -> list[CompileCase]:
    """Heads of Qwen2.5-0.5B (14 on 2 of 64), 7B (28 on 4 of 128) and 72B (64 on 8 of 128)."""
    cases = []
    strides = ("q_token_stride", "q_head_stride", "k_token_stride", "k_head_stride", "cos_stride", "sin_stride")
    for query_heads, key_heads, half in ((14, 2, 32), (28, 4, 64), (64, 8, 64)):
        for dtype in ("bf16", "fp32"):
            for way, sign in (("forward", 1), ("backward", -1)):
                settings = _settings(query_heads, key_heads, half)
                num_warps = settings.pop("num_warps")
                constants = {"SIGN": sign} | settings
                pointers = dict.fromkeys(("q_ptr", "k_ptr"), f"*{dtype}")
                pointers |= dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
                pointers |= dict.fromkeys(("q_out_ptr", "k_out_ptr"), f"*{dtype}")
                cases.append(
                    CompileCase(
                        name=f"rotary {way} {query_heads}+{key_heads}x{2 * half} {dtype}",
                        fn=_kernel,
                        signature=pointers | dict.fromkeys(strides, "i32") | dict.fromkeys(constants, "constexpr"),
                        constexprs=constants,
                        num_warps=num_warps,
                        multiples_of_16=strides,
                    )
                )
    return cases
