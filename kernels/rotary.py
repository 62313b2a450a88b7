"""Rotary position embedding (arXiv 2104.09864), half-split layout: pair i is (x_i, x_{i + H/2})."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_reference(q_TNH: Tensor, k_TKH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions' angles; cos and sin are [T, H / 2], the product is at least fp32."""
    return _rotate(q_TNH, cos_TR, sin_TR), _rotate(k_TKH, cos_TR, sin_TR)


def _rotate(x_TNH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    wide = torch.promote_types(x_TNH.dtype, cos_TR.dtype)
    a_TNR, b_TNR = x_TNH.to(wide).chunk(2, dim=-1)
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    return torch.cat((a_TNR * cos_T1R - b_TNR * sin_T1R, b_TNR * cos_T1R + a_TNR * sin_T1R), dim=-1).to(x_TNH.dtype)
