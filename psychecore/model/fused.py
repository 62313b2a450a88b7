"""Picks a Triton kernel or its torch reference; the only importer of kernels/."""

import torch
import torch.nn.functional as F
from torch import Tensor

from psychecore.kernels.rms_norm import rms_norm_reference as rms_norm
from psychecore.kernels.rotary import rotary_reference as rotary
from psychecore.kernels.swiglu import swiglu_reference as swiglu

__all__ = ["linear", "rms_norm", "rotary", "swiglu"]

FEW_ROWS = 64


def linear(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """x W^T + b. On CPU, few rows without gradient (decoding) are multiplied as (W x^T)^T.

    torch's CPU products split the first operand's rows over threads and tiles; with the weight first these are many
    (32 rows, all layers of SmolLM2: bf16 43 ms instead of 57, fp32 98 instead of 147).
    """
    if x_TD.device.type == "cpu" and 1 < len(x_TD) <= FEW_ROWS and not torch.is_grad_enabled():
        out_TE = (weight_ED @ x_TD.T).T
        return out_TE if bias_E is None else out_TE + bias_E
    return F.linear(x_TD, weight_ED, bias_E)


def flash_attention(
    q_TNH: Tensor, k_IKH: Tensor, v_IKH: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attention over packed segments by our own kernel; model/attention.py decides when, and has the torch path.

    Raises ValueError where Triton is not installed, and as kernels/flash_attention.py.
    """
    from psychecore.kernels import flash_attention as module  # here: it is needed by few, and Triton imports slowly
    from psychecore.kernels.jit import AVAILABLE

    if not AVAILABLE:
        raise ValueError("the attention back end 'triton' needs Triton: pip install triton (Linux)")
    out_TNH: Tensor = module.flash_attention(q_TNH, k_IKH, v_IKH, cu_q, cu_k, max_q, max_k)
    return out_TNH
