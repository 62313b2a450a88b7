"""Picks a Triton kernel or its torch reference; the only importer of kernels/.

The kernels take CUDA tensors in bf16, fp16 or fp32; whatever else comes (CPU, float64, a machine without triton) goes
through plain torch. The references beside the kernels are the definition, and what a compiler sees (compiler.py: on
CPU, where it is asked for); elementwise.py has norm, rotary and SwiGLU with their backward written out.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from psychecore.kernels import cache_store as _cache_store
from psychecore.kernels import decode_attention as _decode_attention
from psychecore.kernels import flash_attention as _flash_attention
from psychecore.kernels import jit as _jit
from psychecore.kernels import rms_norm as _rms_norm
from psychecore.kernels import rotary as _rotary
from psychecore.kernels import swiglu as _swiglu
from psychecore.kernels import token_logprobs as _token_logprobs
from psychecore.model import compiler, products
from psychecore.model import elementwise as _elementwise

Op = TypeVar("Op", bound=Callable[..., Any])
FEW_ROWS = 64
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def has_kernel(x: Tensor) -> bool:
    """Whether the kernels can be launched on such a tensor."""
    return x.device.type == "cuda" and x.dtype in KERNEL_DTYPES and _jit.AVAILABLE


def since_ampere(device: torch.device) -> bool:
    """Whether a GPU is of sm_80 or later: kernels with products spill by the kilobyte on what came before."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _pick(x: Tensor, kernel: Op, reference: Op, written_out: Op) -> Op:
    if has_kernel(x):
        return kernel
    if compiler.takes(x):
        return compiler.compiled(reference)
    return reference if torch.compiler.is_compiling() else written_out


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation of the last dimension, times weight: [..., D] -> [..., D]."""
    return _pick(x, _rms_norm.rms_norm, _rms_norm.rms_norm_reference, _elementwise.rms_norm)(x, weight_D, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), both [..., D]; by a kernel in one pass."""
    pick = _pick(x, _rms_norm.add_rms_norm, _rms_norm.add_rms_norm_reference, _elementwise.add_rms_norm)
    return pick(x, residual, weight_D, eps)


def rotary(q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by their positions' angles, whose cos and sin are [T, H / 2] in fp32."""
    return _pick(q_TNH, _rotary.rotary, _rotary.rotary_reference, _elementwise.rotary)(q_TNH, k_TKH, cos_TR, sin_TR)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2F], gate before up: [..., F]."""
    return _pick(gate_up, _swiglu.swiglu, _swiglu.swiglu_reference, _elementwise.swiglu)(gate_up)


def cache_store(
    k_TKH: Tensor, v_TKH: Tensor, k_cache_BKSH: Tensor, v_cache_BKSH: Tensor, slot_T: Tensor | None, place_T: Tensor
) -> None:
    """Keys and values of token t into slot slot_T[t] (-1: nowhere; None: slot t) of the caches, at place_T[t]."""
    store = _cache_store.cache_store if has_kernel(k_TKH) else _cache_store.cache_store_reference
    store(k_TKH, v_TKH, k_cache_BKSH, v_cache_BKSH, slot_T, place_T)


def linear(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """x W^T + b. On CPU, few rows without gradient (decoding) are multiplied as (W x^T)^T, and lie so in memory.

    torch's CPU products split the first operand's rows over threads and tiles; with the weight first these are many
    (32 rows, all layers of SmolLM2: bf16 43 ms instead of 57, fp32 98 instead of 147). One row is a product of matrix
    and vector. In fp32 products.py divides further.
    """
    if x_TD.device.type == "cpu" and 0 < len(x_TD) <= FEW_ROWS and not torch.is_grad_enabled():
        if len(x_TD) > 1:
            out_TE = products.weight_first(weight_ED, x_TD.T.contiguous()).T.to(x_TD.dtype)
        else:
            out_TE = products.weight_first(weight_ED, x_TD[0])[None]
        return out_TE if bias_E is None else out_TE + bias_E
    return products.linear(x_TD, weight_ED, bias_E)


def takes_token_logprobs(hidden_TD: Tensor) -> bool:
    """Whether token_logprobs may be called: its dots are for 16-bit inputs, fp32 products are cuBLAS's."""
    return has_kernel(hidden_TD) and hidden_TD.dtype.itemsize == 2 and since_ampere(hidden_TD.device)


def token_logprobs(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob of each label and entropy ([T], [T]) by kernels; train/token_logprobs.py decides when."""
    logprobs_T, entropy_T = _token_logprobs.token_logprobs(hidden_TD, head_VD, labels_T, temperature)
    return logprobs_T, entropy_T


def decode_attention(q_BQNH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
    """As model/attention.py's cached_attention, by our own kernel; that function decides when, and has the torch path.

    Raises ValueError where Triton is not installed, and as kernels/decode_attention.py.
    """
    if not _jit.AVAILABLE:
        raise ValueError("the attention back end 'triton' needs Triton: pip install triton (Linux)")
    out_BQNH, lse_BQN = _decode_attention.decode_attention(q_BQNH, k_BKSH, v_BKSH, length_B)
    return out_BQNH, lse_BQN


def flash_attention(
    q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attention over packed segments by our own kernel; model/attention.py decides when, and has the torch path.

    Raises ValueError where Triton is not installed, and as kernels/flash_attention.py.
    """
    if not _jit.AVAILABLE:
        raise ValueError("the attention back end 'triton' needs Triton: pip install triton (Linux)")
    out_TNH: Tensor = _flash_attention.flash_attention(q_TNH, k_IKH, v_IKH, cu_q, cu_k, max_q, max_k)
    return out_TNH
