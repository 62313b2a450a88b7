"""What else computes a kernel's operation on a GPU: torch's own fused functions, liger-kernel, flash-attn.

Each function takes the arguments of psychecore's kernel. A peer that is not installed is no contestant; one that fails
is reported as failed (liger-kernel was read at 0.8.5, flash-attn at 2.8; neither has been run here).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def peers(kernel: str) -> dict[str, Callable[..., Any]]:
    """The contestants by name whose package is installed."""
    found = {}
    for (name, package), function in PEERS.get(kernel, {}).items():
        if package is None or importlib.util.find_spec(package) is not None:
            found[name] = function
    return found


def _liger() -> Any:
    return importlib.import_module("liger_kernel.transformers.functional")


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _liger().liger_rms_norm(x, weight, eps, in_place=False)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Any:
    return _liger().liger_fused_add_rms_norm(x, residual, weight, eps, in_place=False)


def _rotary(q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Any:
    """liger takes [1, heads, T, H] and tables of the full width, and rotates in place."""
    cos, sin = (torch.cat((table, table), -1)[None].to(q_TNH.dtype) for table in (cos_TR, sin_TR))
    q, k = (x.transpose(0, 1)[None].clone() for x in (q_TNH, k_TKH))
    return _liger().liger_rope(q, k, cos, sin)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return _liger().liger_swiglu(gate.contiguous(), up.contiguous())


def _cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The loss alone, without entropy; its gradients are made in the forward pass."""
    return -_liger().liger_fused_linear_cross_entropy(hidden, head, labels, reduction="sum")


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
    flash_attn = importlib.import_module("flash_attn")
    return flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, causal=True)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
    """Segments of equal length as a batch, which is the best case of torch's own attention."""
    q, k, v = (x.unflatten(0, (len(cu_q) - 1, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(0, 1)


def _kvcache(q_BQNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, length_B: Tensor) -> Tensor:
    flash_attn = importlib.import_module("flash_attn")
    k, v = k_BKSH.transpose(1, 2), v_BKSH.transpose(1, 2)
    return flash_attn.flash_attn_with_kvcache(q_BQNH, k, v, cache_seqlens=length_B, causal=False, num_splits=1)


PEERS: dict[str, dict[tuple[str, str | None], Callable[..., Any]]] = {
    "rms_norm": {("liger", "liger_kernel"): _rms_norm},
    "add_rms_norm": {("liger", "liger_kernel"): _add_rms_norm},
    "rotary": {("liger", "liger_kernel"): _rotary},
    "swiglu": {("liger", "liger_kernel"): _swiglu},
    "token_logprobs": {("liger (loss only)", "liger_kernel"): _cross_entropy},
    "flash_attention": {("flash-attn", "flash_attn"): _varlen, ("torch SDPA", None): _sdpa},
    "decode_attention": {("flash-attn", "flash_attn"): _kvcache},
}
