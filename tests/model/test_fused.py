"""What model/fused.py picks gives what torch's own operation gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from psychecore.model import fused


@pytest.mark.parametrize("rows", [1, 2, 31, fused.FEW_ROWS, fused.FEW_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_same_product_with_few_rows_and_many(rows: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x_TD = torch.randn(rows, 24, generator=generator, dtype=torch.float64)
    weight_ED = torch.randn(40, 24, generator=generator, dtype=torch.float64)
    bias_E = torch.randn(40, generator=generator, dtype=torch.float64) if bias else None
    expected = F.linear(x_TD, weight_ED, bias_E)
    torch.testing.assert_close(fused.linear(x_TD, weight_ED, bias_E), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(fused.linear(x_TD, weight_ED, bias_E), expected, rtol=1e-12, atol=1e-12)


def test_rms_norm_of_bf16_normalises_in_fp32_then_scales_in_bf16() -> None:
    x_TD = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight_D = torch.linspace(0.5, 2, 33).bfloat16()
    wide_TD = x_TD.double()
    normal_TD = (wide_TD / (wide_TD.square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(torch.bfloat16)
    expected = (normal_TD.double() * weight_D.double()).to(torch.bfloat16)
    difference = (fused.rms_norm(x_TD, weight_D, 1e-5).double() - expected.double()).abs()
    assert (
        difference.max() <= expected.double().abs().max() * 2**-7
    )  # one unit in the last place where fp32 rounds apart
