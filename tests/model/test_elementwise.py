"""Norm, rotary embedding and SwiGLU with a written backward, against autograd through the references."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from psychecore.kernels.rms_norm import rms_norm_reference
from psychecore.kernels.rotary import rotary_reference
from psychecore.kernels.swiglu import swiglu_reference
from psychecore.model import elementwise, fused

Function = Callable[..., Tensor | tuple[Tensor, ...]]
EPS = 1e-5


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Of one function, the views that the decoder passes among them; angles without gradient."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    if name == "norm":
        return [draw(5, 12).requires_grad_(), draw(12).requires_grad_()]
    if name == "norm of one row":
        return [draw(12).requires_grad_(), draw(12).requires_grad_()]
    if name == "norm of heads":
        return [draw(4, 5, 8).requires_grad_()[:, 1:4], draw(8).requires_grad_()]
    if name == "swiglu":
        return [draw(6, 14).requires_grad_()]
    q_TNH, k_TKH, _ = draw(7, 5, 8).requires_grad_().split([2, 1, 2], 1)
    angle_TR = draw(7, 4).to(torch.promote_types(dtype, torch.float32))
    return [q_TNH, k_TKH, angle_TR.cos(), angle_TR.sin()]


NORM = (lambda x, w: elementwise.rms_norm(x, w, EPS), lambda x, w: rms_norm_reference(x, w, EPS))
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "norm": NORM,
    "norm of one row": NORM,
    "norm of heads": NORM,
    "rotary": (elementwise.rotary, rotary_reference),
    "swiglu": (elementwise.swiglu, swiglu_reference),
}


def results(function: Function, arguments: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, then gradients of a weighted sum of them."""
    outs = function(*arguments)
    outs = outs if isinstance(outs, tuple) else (outs,)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outs]
    wanted = [x for x in arguments if x.requires_grad]
    return [*(out.detach() for out in outs), *torch.autograd.grad(outs, wanted, weights)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_reference_in_float64(name: str) -> None:
    """Values and gradients, to rounding."""
    written, reference = FUNCTIONS[name]
    arguments = inputs(name, torch.float64)
    for ours, theirs in zip(results(written, arguments), results(reference, arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_gradients_are_the_functions_own(name: str) -> None:
    """By finite differences, which no reference can mislead."""
    written, _ = FUNCTIONS[name]
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs(name, torch.float64)]
    assert torch.autograd.gradcheck(written, leaves)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_bf16_it_is_as_near_to_float64_as_the_reference(name: str) -> None:
    """The mean distance of every output and gradient, over many draws."""
    written, reference = FUNCTIONS[name]
    ours, theirs = 0.0, 0.0
    for seed in range(20):
        narrow = inputs(name, torch.bfloat16, seed)
        wide = [x.detach().double().requires_grad_(x.requires_grad) for x in narrow]
        for a, b, exact in zip(
            results(written, narrow), results(reference, narrow), results(reference, wide), strict=True
        ):
            assert a.dtype == b.dtype
            assert a.shape == exact.shape
            ours += float((a.double() - exact).abs().mean())
            theirs += float((b.double() - exact).abs().mean())
    assert 0 < ours <= 1.05 * theirs


def test_inputs_are_left_as_they_were() -> None:
    """Work in place is on what the functions made themselves, in fp32 as in bf16."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for name, (written, _) in FUNCTIONS.items():
            arguments = inputs(name, dtype)
            before = [x.detach().clone() for x in arguments]
            once = results(written, arguments)
            for x, y in zip(arguments, before, strict=True):
                assert torch.equal(x, y)
            for x, y in zip(once, results(written, arguments), strict=True):
                assert torch.equal(x, y)


def test_what_is_kept_for_backward() -> None:
    """The inputs and one number a row: autograd keeps the steps in fp32 beside."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    x = torch.randn(100, 64, dtype=torch.bfloat16, requires_grad=True)
    weight_D = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        fused.rms_norm(x, weight_D, EPS)
        fused.swiglu(x)
    assert sorted(y.numel() for y in kept if y is not x) == [64, 100]
