"""New keys and values into their places of a key/value cache, both in one launch.

Token t goes to cache[slot_T[t], :, place_T[t], :]; one layer's caches in rollout/kv_cache.py lie so, [slots, K, S, H].
A slot of -1 is skipped, so that a step of fixed size (a CUDA graph) may hold tokens which nothing must keep.

Bytes per token at 2 bytes an element: 8 K H, read and written once; no FLOPs. The gain over indexing is one launch
instead of two with their index kernels, at every layer of every decoding step, and no copy of strided values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psychecore.kernels.case import CompileCase
from psychecore.kernels.jit import jit, tl, triton


def cache_store_reference(
    k_TKH: Tensor, v_TKH: Tensor, k_cache_BKSH: Tensor, v_cache_BKSH: Tensor, slot_T: Tensor | None, place_T: Tensor
) -> None:
    """Write T keys and values into the caches in place; no two tokens may have one place.

    slot_T: int64, -1 for a token that is not kept; None puts token t into slot t. place_T: int64 in [0, S).
    """
    if slot_T is None:
        slot_T = torch.arange(len(k_TKH), device=place_T.device)
    else:
        kept_T = slot_T >= 0  # synchronises with the host, which `None` avoids
        k_TKH, v_TKH, slot_T, place_T = k_TKH[kept_T], v_TKH[kept_T], slot_T[kept_T], place_T[kept_T]
    k_cache_BKSH[slot_T, :, place_T] = k_TKH
    v_cache_BKSH[slot_T, :, place_T] = v_TKH


def cache_store(
    k_TKH: Tensor, v_TKH: Tensor, k_cache_BKSH: Tensor, v_cache_BKSH: Tensor, slot_T: Tensor | None, place_T: Tensor
) -> None:
    """As cache_store_reference, by Triton. No gradient; slots and places are not checked (TRITON_DEBUG=1 does)."""
    tokens, heads, width = k_TKH.shape
    slots, _, span, _ = k_cache_BKSH.shape
    for name, new, cache in (("k", k_TKH, k_cache_BKSH), ("v", v_TKH, v_cache_BKSH)):
        if new.shape != k_TKH.shape or cache.shape != (slots, heads, span, width):
            raise ValueError(f"{name} is {list(new.shape)}, but its cache is {list(cache.shape)}, not [slots, K, S, H]")
        if cache.stride(-1) != 1 or cache.stride() != k_cache_BKSH.stride():
            raise ValueError(f"the {name} cache has strides {cache.stride()}: both need the same, the last of them 1")
    if not tokens:
        return
    k_TKH, v_TKH = (new if new.stride(-1) == 1 else new.contiguous() for new in (k_TKH, v_TKH))
    place_T = place_T.contiguous()
    _kernel[(tokens,)](
        k_TKH,
        v_TKH,
        k_cache_BKSH,
        v_cache_BKSH,
        place_T if slot_T is None else slot_T.contiguous(),
        place_T,
        slots,
        span,
        k_TKH.stride(0),
        k_TKH.stride(1),
        v_TKH.stride(0),
        v_TKH.stride(1),
        *k_cache_BKSH.stride()[:3],
        HAS_SLOTS=slot_T is not None,
        **_settings(heads, width),
    )


def _settings(heads: int, width: int) -> dict[str, int]:
    block_heads, block_width = triton.next_power_of_2(heads), triton.next_power_of_2(width)
    return {
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_HEADS": block_heads,
        "BLOCK_WIDTH": block_width,
        "num_warps": min(max(block_heads * block_width // 512, 1), 8),
    }


@jit
def _kernel(  # type: ignore[no-untyped-def]
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_ptr,
    place_ptr,
    slots,
    span,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    slot_stride,
    head_stride,
    place_stride,
    HAS_SLOTS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(place_ptr + token)
    slot = tl.load(slot_ptr + token) if HAS_SLOTS else token
    tl.device_assert((slot < slots) & (place >= 0) & (place < span), "cache_store: outside of the cache")
    head_K1, column_1H = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_WIDTH)[None, :]
    inside_KH = (head_K1 < HEADS) & (column_1H < WIDTH) & (slot >= 0)
    target_KH = slot * slot_stride + place * place_stride + head_K1.to(tl.int64) * head_stride + column_1H
    k_KH = tl.load(k_ptr + token * k_token_stride + head_K1 * k_head_stride + column_1H, mask=inside_KH)
    v_KH = tl.load(v_ptr + token * v_token_stride + head_K1 * v_head_stride + column_1H, mask=inside_KH)
    tl.store(k_cache_ptr + target_KH, k_KH, mask=inside_KH)
    tl.store(v_cache_ptr + target_KH, v_KH, mask=inside_KH)


def compile_cases() -> list[CompileCase]:
    """Key/value heads of Qwen2.5-0.5B (2 of 64), 7B (4 of 128) and 72B (8 of 128)."""
    cases = []
    new = ("k_token_stride", "k_head_stride", "v_token_stride", "v_head_stride")
    strides = (*new, "slot_stride", "head_stride", "place_stride")
    for heads, width in ((2, 64), (4, 128), (8, 128)):
        for dtype in ("bf16", "fp32"):
            for has_slots in (False, True):
                settings = _settings(heads, width)
                num_warps = settings.pop("num_warps")
                constants = {"HAS_SLOTS": has_slots} | settings
                signature = dict.fromkeys(("k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr"), f"*{dtype}")
                signature |= {"slot_ptr": "*i64", "place_ptr": "*i64", "slots": "i32", "span": "i32"}
                signature |= dict.fromkeys(strides, "i32") | dict.fromkeys(constants, "constexpr")
                cases.append(
                    CompileCase(
                        name=f"cache_store {heads}x{width}{' with slots' if has_slots else ''} {dtype}",
                        fn=_kernel,
                        signature=signature,
                        constexprs=constants,
                        num_warps=num_warps,
                        multiples_of_16=strides,
                        needs_wide=heads * width >= 256,  # less than that is not 16 bytes for each thread of a warp
                    )
                )
    return cases
