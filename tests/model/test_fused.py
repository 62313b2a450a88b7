"""What model/fused.py picks gives what torch's own operation gives."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_add_rms_norm_on_cpu_is_the_addition_then_the_norm_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x_TD, residual_TD = (torch.randn(7, 33, generator=generator).to(dtype) for _ in range(2))
    weight_D = torch.linspace(0.5, 2, 33).to(dtype)
    normed_TD, total_TD = fused.add_rms_norm(x_TD, residual_TD, weight_D, 1e-5)
    assert torch.equal(total_TD, residual_TD + x_TD)
    assert torch.equal(normed_TD, fused.rms_norm(residual_TD + x_TD, weight_D, 1e-5))


class FakeCuda:
    """As much of a tensor as the choice looks at; there may be no GPU."""

    def __init__(self, device: str, dtype: torch.dtype):
        self.device, self.dtype = torch.device(device), dtype


@pytest.mark.parametrize(
    ("device", "dtype", "triton", "kernel"),
    [
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.float32, True, True),
        ("cuda", torch.float64, True, False),
        ("cuda", torch.bfloat16, False, False),
        ("cpu", torch.bfloat16, True, False),
    ],
)
def test_kernels_are_for_cuda_tensors_of_at_most_32_bits_where_triton_is(
    device: str, dtype: torch.dtype, triton: bool, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psychecore.kernels.jit.AVAILABLE", triton)
    assert fused.has_kernel(FakeCuda(device, dtype)) is kernel


@pytest.mark.parametrize(
    ("dtype", "capability", "taken"),
    [
        (torch.bfloat16, (8, 0), True),
        (torch.float16, (12, 0), True),
        (torch.float16, (7, 5), False),  # compiles to 15 kB of stack a thread
        (torch.float32, (9, 0), False),
    ],
)
def test_log_probs_by_kernel_are_for_16_bits_on_gpus_since_ampere(
    dtype: torch.dtype, capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psychecore.kernels.jit.AVAILABLE", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fused.takes_token_logprobs(FakeCuda("cuda", dtype)) is taken


def test_the_references_need_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; from psychecore.model import fused; import torch as t; "
    code += "print(fused.rms_norm(t.ones(2, 4), t.ones(4), 0.0).sum().item(), fused.swiglu(t.zeros(1, 4)).shape[1])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["8.0", "2"], result.stderr
