"""SwiGLU (arXiv 2002.05202): silu(gate) * up, gate and up in one tensor as the fused projection writes them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """[..., 2F] -> [..., F], gate in the first half of the last dimension, up in the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
