"""A second derivative, which no kernel has, is an error and not a number that leaves the kernel's part out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from psychecore.kernels.flash_attention import flash_attention
from psychecore.kernels.rms_norm import add_rms_norm, rms_norm
from psychecore.kernels.rotary import rotary
from psychecore.kernels.swiglu import swiglu
from psychecore.kernels.token_logprobs import token_logprobs

CU = torch.tensor([0, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("operation", "shape", "rest"),
    [
        (rms_norm, (3, 16), (torch.ones(16), 1e-6)),
        (add_rms_norm, (3, 16), (torch.ones(3, 16), torch.ones(16), 1e-6)),
        (rotary, (3, 2, 16), (torch.ones(3, 1, 16), torch.ones(3, 8), torch.ones(3, 8))),
        (swiglu, (3, 16), ()),
        (token_logprobs, (3, 16), (torch.ones(5, 16), torch.arange(3), 1.0)),
        (flash_attention, (3, 2, 16), (torch.ones(3, 1, 16), torch.ones(3, 1, 16), CU, CU, 3, 3)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_second_derivative_is_refused(
    operation: Callable[..., Any], shape: tuple[int, ...], rest: tuple[Any, ...]
) -> None:
    x = torch.linspace(-1, 2, torch.Size(shape).numel()).view(shape).requires_grad_()
    out = operation(x, *rest)
    loss: Tensor = sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,)))
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
