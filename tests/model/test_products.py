"""Products through fp32 against float64, rounded once; what autograd keeps of them; which dtypes take this way."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from psychecore.model import fused, products

LOW = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that has instructions for neither."""
    monkeypatch.setattr(products, "SLOW_ON_CPU", frozenset(LOW))


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    """Each number is off by half a unit in its last place, and by what fp32 lost in the sum before."""
    half = torch.finfo(found.dtype).eps / 2
    allowed = exact.abs() * half * 1.01 + 1e-5 * (exact.abs().max() if exact.numel() else 0)
    assert ((found.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_a_product_and_its_gradients_are_those_of_float64_rounded_once(
    dtype: torch.dtype, bias: bool, frozen: str | None
) -> None:
    inputs = {"x": draw(70, 96, dtype=dtype), "weight": draw(40, 96, dtype=dtype, seed=1)}
    if bias:
        inputs["bias"] = draw(40, dtype=dtype, seed=2)
    direction_TE = draw(70, 40, dtype=dtype, seed=3)
    wide = {name: x.double() for name, x in inputs.items()}
    for some in (inputs, wide):
        for name, x in some.items():
            x.requires_grad_(name != frozen)
    y_TE = fused.linear(*inputs.values())
    exact_TE = torch.nn.functional.linear(*wide.values())
    assert y_TE.dtype == dtype
    assert_rounded_once(y_TE.detach(), exact_TE.detach())
    y_TE.backward(direction_TE)
    exact_TE.backward(direction_TE.double())
    for name, x in inputs.items():
        assert (x.grad is None) == (name == frozen)
        if x.grad is not None:
            assert x.grad.dtype == dtype
            assert_rounded_once(x.grad, wide[name].grad)


@torch.no_grad()
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("columns", [1, 2, products.FEW_COLUMNS, products.FEW_COLUMNS + 1, 16, 17, 70])
@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_few_columns_are_multiplied_in_blocks_of_the_weight(
    dtype: torch.dtype, columns: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "BLOCK", block)
    weight_ED, x_DC = draw(41, 96, dtype=dtype), draw(96, columns, dtype=dtype, seed=1)
    got_EC, exact_EC = products.weight_first(weight_ED, x_DC), weight_ED.double() @ x_DC.double()
    if columns > products.FEW_COLUMNS:
        torch.testing.assert_close(got_EC.double(), exact_EC, rtol=1e-5, atol=1e-5)
        assert got_EC.dtype == torch.float32
    assert_rounded_once(got_EC.to(dtype), exact_EC)
    rows_CE = fused.linear(x_DC.T, weight_ED)
    assert rows_CE.dtype == dtype
    assert_rounded_once(rows_CE, exact_EC.T)


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [1, 2, products.FEW_WIDE_COLUMNS, products.FEW_WIDE_COLUMNS + 1, 70])
@pytest.mark.parametrize("rows", [1, 63, 64, 576, 1187, 8 * 1024 + 3])  # less than a block, whole blocks, and a rest
def test_fp32_is_multiplied_by_blocks_too(rows: int, columns: int, threads: int) -> None:
    wide_EX = draw(rows, 100, dtype=torch.float32)
    x_DC, before = draw(96, columns, dtype=torch.float32, seed=1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for weight_ED in (wide_EX[:, :96].contiguous(), wide_EX[:, 4:]):  # which need not lie in one piece
            exact_EC, out_EC = weight_ED.double() @ x_DC.double(), torch.full((rows, columns), torch.nan)
            vector_D, vector_E = x_DC[:, 0].contiguous(), torch.full((rows,), torch.nan)
            products.into(out_EC, weight_ED, x_DC)()
            products.into(vector_E, weight_ED, vector_D)()
            for got in (out_EC, products.weight_first(weight_ED, x_DC)):
                torch.testing.assert_close(got.double(), exact_EC, rtol=1e-5, atol=1e-5)
            for got in (vector_E, products.weight_first(weight_ED, vector_D)):
                torch.testing.assert_close(got.double(), exact_EC[:, 0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(fused.linear(x_DC.T, weight_ED).double(), exact_EC.T, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("trained", [{"x", "weight"}, {"x"}, {"weight"}])
def test_autograd_keeps_the_narrow_tensors_and_only_what_a_gradient_needs(trained: set[str]) -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    inputs = {name: draw(n, 8, dtype=torch.bfloat16) for name, n in (("x", 70), ("weight", 5))}
    for name in trained:
        inputs[name].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        products.linear(inputs["x"], inputs["weight"])
    needed = {inputs[{"x": "weight", "weight": "x"}[name]].data_ptr() for name in trained}
    assert {x.data_ptr() for x in kept} == needed


@pytest.mark.parametrize("shape", [(96,), (3, 96), (2, 3, 96), (0, 96), (0, 3, 96)])
def test_any_number_of_dimensions_is_taken(shape: tuple[int, ...]) -> None:
    x, weight_ED, bias_E = (draw(*s, dtype=torch.bfloat16).requires_grad_() for s in (shape, (40, 96), (40,)))
    y = products.linear(x, weight_ED, bias_E)
    assert y.shape == (*shape[:-1], 40)
    y.sum().backward()
    assert x.grad is not None
    assert bias_E.grad is not None
    assert_rounded_once(x.grad, weight_ED.detach().double().sum(0).expand(shape))
    assert_rounded_once(bias_E.grad, torch.full((40,), float(y.numel() // 40)).double())


@pytest.mark.parametrize("rows", [1, 2, 5, 70])
@pytest.mark.parametrize("grad", [True, False])
def test_dtypes_that_differ_are_refused_as_on_any_cpu(rows: int, grad: bool) -> None:
    for one, other in [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), LOW]:
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError):
            fused.linear(draw(rows, 8, dtype=one), draw(5, 8, dtype=other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_dtypes_are_left_to_torch(dtype: torch.dtype) -> None:
    x_TD = draw(3, 8, dtype=dtype)
    assert not products.are_slow(x_TD)
    assert products.wide(x_TD) is x_TD


def test_other_devices_are_left_to_torch() -> None:
    assert not products.are_slow(torch.empty(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize(
    ("bf16", "fp16", "found"),
    [
        (True, True, set()),
        (True, False, {torch.float16}),
        (False, False, set(LOW)),
        (None, None, set(LOW)),  # torch without oneDNN
    ],
)
def test_slow_is_what_onednn_has_no_code_for(
    bf16: bool | None, fp16: bool | None, found: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Operators:
        def __getattr__(self, name: str) -> Any:
            supported = {"_is_mkldnn_bf16_supported": bf16, "_is_mkldnn_fp16_supported": fp16}[name]
            if supported is None:
                raise AttributeError(name)
            return lambda: supported

    monkeypatch.setattr(torch.ops, "mkldnn", Operators(), raising=False)
    assert products._slow_dtypes() == found


@pytest.mark.parametrize("bf16_seconds", [0.1, 9.0])
def test_the_fast_dtype_is_raced_for_only_where_bf16_has_code(
    bf16_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without it a race in which threads wait for each other found bf16 in three of four tries."""
    monkeypatch.setattr(products, "SLOW_ON_CPU", frozenset())
    clock = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, bf16_seconds]))  # fp32's product, then bf16's
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    raced = torch.bfloat16 if bf16_seconds < 1 else torch.float32
    assert products.fast_dtype(torch.device("cpu")) == raced
    monkeypatch.setattr(products, "SLOW_ON_CPU", frozenset({torch.bfloat16}))
    assert products.fast_dtype(torch.device("cpu")) == torch.float32
    assert products.fast_dtype(torch.device("cuda")) == torch.bfloat16
