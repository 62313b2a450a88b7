"""The Triton SwiGLU, interpreted, against the formula in float64 and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from psychecore.kernels.swiglu import BLOCK, swiglu, swiglu_reference


def formula(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None
    assert expected is not None
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (13, 31), (3, BLOCK + 1), (2, 3, 5)])
def test_swiglu_and_its_gradient_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    gate_up, dy = 3 * random(*shape[:-1], 2 * shape[-1]), random(*shape, seed=1)
    gate_up.requires_grad_()
    wide = gate_up.detach().double().requires_grad_()
    y, expected = swiglu(gate_up), formula(wide)
    y.backward(dy)
    expected.backward(dy.double())
    close(y, expected)
    close(gate_up.grad, wide.grad)


def test_large_magnitudes_stay_finite_and_right() -> None:
    # silu is 0 far to the left and the identity far to the right; e^x itself would overflow
    gate_up = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 1e15] + [2.0] * 6]).requires_grad_()
    y = swiglu(gate_up)
    y.sum().backward()
    close(y, torch.tensor([[0.0, 0.0, 0.0, 0.0, 180.0, 2e15]]))
    close(gate_up.grad, torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 90.0, 1e15]]))


@pytest.mark.parametrize("layout", ["rows apart", "gaps", "transposed"])
def test_any_strides_are_taken_also_of_the_gradient(layout: str) -> None:
    gate_up = {
        "rows apart": random(7, 40)[:, :22],
        "gaps": random(7, 44)[:, ::2],
        "transposed": random(22, 7).T,
    }[layout].requires_grad_()
    wide = gate_up.detach().double().requires_grad_()
    y, expected = swiglu(gate_up), formula(wide)
    close(y, expected)
    close(
        *(torch.autograd.grad(out.sum(), source)[0] for out, source in ((y, gate_up), (expected, wide)))
    )  # the gradient of a sum has strides of 0


def test_bf16_rounds_where_the_reference_rounds() -> None:
    gate_up = random(6, 90).bfloat16()
    y, expected = swiglu(gate_up), swiglu_reference(gate_up)
    assert y.dtype == torch.bfloat16
    # the interpreter truncates fp32 to bf16 where a GPU rounds: one unit at each of two roundings
    torch.testing.assert_close(y.float(), expected.float(), rtol=2 * 2**-7, atol=1e-6)


def test_no_rows_give_no_rows() -> None:
    assert swiglu(torch.zeros(0, 8)).shape == (0, 4)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 7\]"):
        swiglu(random(2, 7))
