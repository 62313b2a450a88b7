"""The Triton rms_norm and add_rms_norm, interpreted, against the formula in float64 and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from psychecore.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-6


def formula(x: Tensor, weight_D: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight_D


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def wide(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((1, 7), 1.0), ((3, 2), 1.0), ((13, 31), 1.0), ((37, 896), 1.0), ((5, 64), 1e12), ((5, 64), 1e-12)],
)
def test_rms_norm_and_its_gradients_are_those_of_the_formula(shape: tuple[int, int], scale: float) -> None:
    x, weight_D, dy = random(*shape, scale=scale), random(shape[1], seed=1) + 1, random(*shape, seed=2)
    x.requires_grad_(), weight_D.requires_grad_()
    y = rms_norm(x, weight_D, EPS)
    y.backward(dy)
    x64, weight64 = wide(x, weight_D)
    expected = formula(x64, weight64)
    expected.backward(dy.double())
    close(y, expected)
    close(x.grad, x64.grad)
    close(weight_D.grad, weight64.grad)


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    """Equal to fp32's precision, relative to the largest value."""
    assert actual is not None
    assert expected is not None
    assert actual.isfinite().all()
    limit = 3e-6 * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=limit)


@pytest.mark.parametrize("shape", [(1, 5), (29, 48)])
@pytest.mark.parametrize("reads", ["both", "normed", "sum"])
def test_add_rms_norm_passes_the_gradients_of_both_its_results(shape: tuple[int, int], reads: str) -> None:
    x, residual = random(*shape).requires_grad_(), random(*shape, seed=1, scale=3).requires_grad_()
    weight_D, dy, dtotal = random(shape[1], seed=2).requires_grad_(), random(*shape, seed=3), random(*shape, seed=4)
    y, total = add_rms_norm(x, residual, weight_D, EPS)
    x64, residual64, weight64 = wide(x, residual, weight_D)
    total64 = x64 + residual64
    y64 = formula(total64, weight64)
    close(y, y64)
    close(total, total64)
    loss, loss64 = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    if reads != "sum":
        loss, loss64 = loss + (y * dy).sum(), loss64 + (y64 * dy.double()).sum()
    if reads != "normed":
        loss, loss64 = loss + (total * dtotal).sum(), loss64 + (total64 * dtotal.double()).sum()
    loss.backward()
    loss64.backward()
    close(x.grad, x64.grad)
    close(residual.grad, residual64.grad)
    if reads != "sum":
        close(weight_D.grad, weight64.grad)


def test_heads_that_are_a_view_of_the_fused_projection_are_read_in_place() -> None:
    qkv_THH = random(7, 11, 12).requires_grad_()
    weight_H = random(12, seed=1).requires_grad_()
    q_TNH = qkv_THH[:, 2:7]
    assert not q_TNH.is_contiguous()
    y_TNH = rms_norm(q_TNH, weight_H, EPS)
    y_TNH.backward(random(7, 5, 12, seed=2))
    qkv64, weight64 = wide(qkv_THH, weight_H)
    expected = formula(qkv64[:, 2:7], weight64)
    expected.backward(random(7, 5, 12, seed=2).double())
    close(y_TNH, expected)
    close(qkv_THH.grad, qkv64.grad)
    close(weight_H.grad, weight64.grad)


@pytest.mark.parametrize(
    "x", [random(9, 2 * 17)[:, ::2], random(17, 9).T, random(2, 3, 5, 17), random(17)], ids=["gap", "T", "4d", "1d"]
)
def test_any_strides_and_ranks_are_taken(x: Tensor) -> None:
    weight_D = random(17, seed=1)
    close(rms_norm(x, weight_D, EPS), formula(x.double(), weight_D.double()))
    close(add_rms_norm(x, x, weight_D, EPS)[0], formula(2 * x.double(), weight_D.double()))


def test_gradients_of_stride_0_and_a_weight_with_gaps_are_taken() -> None:
    """The gradient of a sum is one number, expanded."""
    x, every_other = random(9, 17).requires_grad_(), random(2 * 17, seed=1)[::2].requires_grad_()
    x64, weight64 = wide(x, every_other)
    y, total = add_rms_norm(x, x, every_other, EPS)
    ours = torch.autograd.grad(y.sum() + 2 * total.sum(), (x, every_other))
    theirs = torch.autograd.grad(formula(2 * x64, weight64).sum() + 4 * x64.sum(), (x64, weight64))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
    (ours_x,) = torch.autograd.grad(rms_norm(x, every_other, EPS).sum(), x)
    close(ours_x, torch.autograd.grad(formula(x64, weight64).sum(), x64)[0])


def test_no_rows_give_no_rows_and_no_gradient() -> None:
    x, weight_D = torch.zeros(0, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    rms_norm(x, weight_D, EPS).sum().backward()
    assert weight_D.grad is not None
    assert not weight_D.grad.any()


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_bf16_rounds_where_the_reference_rounds(weight_dtype: torch.dtype) -> None:
    x, residual = random(8, 96).bfloat16(), random(8, 96, seed=1).bfloat16()
    weight_D = random(96, seed=2).to(weight_dtype)
    for actual, expected in (
        (rms_norm(x, weight_D, EPS), rms_norm_reference(x, weight_D, EPS)),
        *zip(add_rms_norm(x, residual, weight_D, EPS), add_rms_norm_reference(x, residual, weight_D, EPS), strict=True),
    ):
        assert actual.dtype == expected.dtype
        # the interpreter truncates fp32 to bf16 where a GPU rounds: one unit at each of three roundings
        torch.testing.assert_close(actual.float(), expected.float(), rtol=3 * 2**-7, atol=1e-6)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    x, weight_D = random(6, 20).requires_grad_(), random(20, seed=1).requires_grad_()
    plain = torch.autograd.grad(rms_norm(x, weight_D, EPS).square().sum(), (x, weight_D))
    y = torch.utils.checkpoint.checkpoint(rms_norm, x, weight_D, EPS, use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(y.square().sum(), (x, weight_D)), strict=True):
        assert torch.equal(a, b)


def test_misshapen_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[9\].*\[8\]"):
        rms_norm(random(2, 8), random(9), EPS)
    with pytest.raises(ValueError, match="one shape and dtype"):
        add_rms_norm(random(2, 8), random(3, 8), random(8), EPS)
