"""RMSNorm (arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """[..., D] -> [..., D]: normalised in fp32 (or wider), cast to the input's type, then scaled, as in Qwen, Llama."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight_D * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
