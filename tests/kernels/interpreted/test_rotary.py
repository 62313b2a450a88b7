"""The Triton rotary embedding, interpreted, against multiplication by e^(i angle) in complex128 and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from psychecore.kernels.rotary import rotary, rotary_reference


def turned(x_TNH: Tensor, angle_TR: Tensor) -> Tensor:
    """Pair (x_i, x_{i + H/2}) as a complex number, times e^(i angle)."""
    a_TNR, b_TNR = x_TNH.double().chunk(2, dim=-1)
    z_TNR = torch.complex(a_TNR, b_TNR) * torch.polar(torch.ones_like(angle_TR), angle_TR)[:, None]
    return torch.cat((z_TNR.real, z_TNR.imag), dim=-1)


def inputs(tokens: int, query_heads: int, key_heads: int, half: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(tokens, query_heads, 2 * half, generator=generator)
    k = torch.randn(tokens, key_heads, 2 * half, generator=generator)
    return q, k, torch.rand(tokens, half, generator=generator, dtype=torch.float64) * 6.3


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None
    assert expected is not None
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("tokens", "query_heads", "key_heads", "half", "scale"),
    [(1, 1, 1, 1, 1.0), (7, 3, 1, 5, 1.0), (5, 14, 2, 32, 1.0), (3, 7, 7, 40, 1e15)],
)
def test_pairs_turn_by_their_angle_and_gradients_turn_back(
    tokens: int, query_heads: int, key_heads: int, half: int, scale: float
) -> None:
    q, k, angle = inputs(tokens, query_heads, key_heads, half)
    q, k = (q * scale).requires_grad_(), (k * scale).requires_grad_()
    outs = rotary(q, k, angle.cos().float(), angle.sin().float())
    q64, k64 = (x.detach().double().requires_grad_() for x in (q, k))
    expected = turned(q64, angle), turned(k64, angle)
    weights = torch.randn(q.shape), torch.randn(k.shape)
    for results in (outs, expected):
        sum((out * weight).sum() for out, weight in zip(results, weights, strict=True)).backward()
    for actual, wanted in zip((*outs, q.grad, k.grad), (*expected, q64.grad, k64.grad), strict=True):
        close(actual, wanted)


def test_views_of_the_fused_projection_and_expanded_gradients_are_read_in_place() -> None:
    q, k, angle = inputs(6, 3, 2, 8)
    qkv = torch.cat((q, k, k), dim=1).requires_grad_()
    q_view, k_view, _ = qkv.split([3, 2, 2], dim=1)
    q_out, k_out = rotary(q_view, k_view, angle.cos().float(), angle.sin().float())
    close(q_out, turned(q, angle))
    close(k_out, turned(k, angle))
    (q_out.sum() + 2 * k_out.sum()).backward()  # gradients with strides of 0
    ones = turned(torch.ones_like(q), -angle), 2 * turned(torch.ones_like(k), -angle), torch.zeros_like(k)
    close(qkv.grad, torch.cat(ones, dim=1))


def test_tables_and_heads_with_gaps_are_taken() -> None:
    q, k, angle = inputs(4, 3, 2, 8)
    cos, sin = (torch.stack((table, table), dim=-1).float()[..., 0] for table in (angle.cos(), angle.sin()))
    assert cos.stride(-1) == 2
    q_gaps = torch.stack((q, q), dim=-1)[..., 0]
    close(rotary(q_gaps, k, cos, sin)[0], turned(q, angle))


def test_bf16_is_turned_in_fp32() -> None:
    q, k, angle = inputs(5, 3, 2, 16)
    q, k, cos, sin = q.bfloat16(), k.bfloat16(), angle.cos().float(), angle.sin().float()
    for actual, expected in zip(rotary(q, k, cos, sin), rotary_reference(q, k, cos, sin), strict=True):
        assert actual.dtype == torch.bfloat16
        # the interpreter truncates fp32 to bf16 where a GPU rounds: one unit in the last place
        torch.testing.assert_close(actual.float(), expected.float(), rtol=2**-7, atol=1e-6)


def test_no_tokens_give_no_tokens() -> None:
    q, k, angle = inputs(0, 3, 2, 8)
    assert rotary(q, k, angle.float(), angle.float())[0].shape == (0, 3, 16)


def test_misshapen_inputs_are_refused() -> None:
    q, k, angle = inputs(4, 3, 2, 8)
    with pytest.raises(ValueError, match=r"k is \[3, 2, 16\].*\[4, heads, 16\]"):
        rotary(q, k[:3], angle.float(), angle.float())
