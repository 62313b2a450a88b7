"""Triton where it is installed; elsewhere (macOS, Windows) the modules still import, for their references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
    jit: Callable[[Any], Any] = triton.jit
except ImportError:
    AVAILABLE = False
    triton = tl = None

    def jit(fn: Any) -> Any:
        """The function as it is: it is never launched, since model/fused.py then takes the reference."""
        return fn


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU, for a grid whose programs each take a share of the rows; 3 elsewhere.

    "Elsewhere" is Triton's interpreter, where few programs make each take several rows, as on a GPU.
    """
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
