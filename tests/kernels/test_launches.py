"""What a decoder launches at the sizes of Qwen2.5 is what kernels/resources.md compiled: same constants, same types.

The launches are recorded on the meta device, so 72B fits, and nothing is computed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from psychecore.kernels import cache_store, rms_norm, rotary, swiglu
from psychecore.kernels.case import CompileCase
from psychecore.model import fused
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Layer

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
MODULES = (rms_norm, rotary, swiglu, cache_store)
CASES = [case for module in MODULES for case in module.compile_cases()]  # before the kernels are replaced
SIZES = {  # width, feed-forward width, query heads, key/value heads, head width
    "0.5B": (896, 4864, 14, 2, 64),
    "7B": (3584, 18944, 28, 4, 128),
    "72B": (8192, 29568, 64, 8, 128),
}


class Recorder:
    """Stands in for a kernel; keeps what it would be launched with, by the names of its arguments."""

    def __init__(self, fn: Any, launches: list[tuple[Any, dict[str, Any]]]):
        self.fn, self.launches = fn, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(size > 0 for size in grid)

        def launch(*values: Any, **options: Any) -> None:
            self.launches.append((self.fn, dict(zip(self.fn.arg_names, values, strict=False)) | options))

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    recorded: list[tuple[Any, dict[str, Any]]] = []
    for module in MODULES:
        for name in {case.fn.__name__ for case in module.compile_cases()}:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), recorded))
    monkeypatch.setattr(fused, "has_kernel", lambda x: True)
    return recorded


def matches(case: CompileCase, fn: Any, arguments: dict[str, Any]) -> bool:
    if case.fn is not fn or list(case.signature) != fn.arg_names:
        return False
    constants = {name: arguments[name] for name, type_ in case.signature.items() if type_ == "constexpr"}
    tensors = {name: TYPES[value.dtype] for name, value in arguments.items() if isinstance(value, Tensor)}
    return (
        constants == case.constexprs
        and tensors == {name: type_ for name, type_ in case.signature.items() if type_.startswith("*")}
        and all(arguments[name] % 16 == 0 for name in case.multiples_of_16)
        and arguments.get("num_warps", 4) == case.num_warps
    )


def names_of(fn: Any, arguments: dict[str, Any]) -> list[str]:
    return [case.name for case in CASES if matches(case, fn, arguments)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("size", SIZES)
def test_a_layer_launches_what_was_compiled(
    size: str, dtype: torch.dtype, launches: list[tuple[Any, dict[str, Any]]]
) -> None:
    width, feed_forward, heads, sharing, head = SIZES[size]
    config = ModelConfig("qwen2", 64, width, 1, heads, sharing, head, feed_forward, rms_eps=1e-6, qkv_bias=True)
    with torch.device("meta"):
        layer = Layer(config, 0).to(dtype)
        x_TD = torch.empty(48, width, dtype=dtype, requires_grad=True)
        cos_TR = torch.empty(48, head // 2)
    out_TD = layer(x_TD, cos_TR, cos_TR, lambda index, q_TNH, k_TKH, v_TKH: q_TNH + 0 * k_TKH.sum())
    out_TD.backward(torch.empty_like(out_TD))
    kind, rotation = ("bf16" if dtype == torch.bfloat16 else "fp32"), f"{heads}+{sharing}x{head}"
    assert [names_of(*launch) for launch in launches] == [
        [f"rms_norm forward {width} {kind}"],
        [f"rotary forward {rotation} {kind}"],
        [f"add_rms_norm forward {width} {kind}"],
        [f"swiglu forward {feed_forward} {kind}"],
        [f"swiglu backward {feed_forward} {kind}"],
        [f"add_rms_norm backward {width} {kind}"],
        [f"rotary backward {rotation} {kind}"],
        [f"rms_norm backward {width} {kind}"],
    ]


def test_the_norms_of_qwen3s_heads_launch_what_was_compiled(launches: list[tuple[Any, dict[str, Any]]]) -> None:
    qkv_THH = torch.empty(5, 48, 128, dtype=torch.bfloat16, device="meta", requires_grad=True)
    fused.rms_norm(qkv_THH[:, :32], torch.empty(128, dtype=torch.bfloat16, device="meta"), 1e-6).sum().backward()
    assert [names_of(*launch) for launch in launches] == [["rms_norm forward 128 bf16"], ["rms_norm backward 128 bf16"]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_slots", [False, True])
def test_a_decoding_step_stores_by_what_was_compiled(
    size: str, has_slots: bool, launches: list[tuple[Any, dict[str, Any]]]
) -> None:
    _, _, heads, sharing, head = SIZES[size]
    with torch.device("meta"):
        qkv_BHH = torch.empty(3, heads + 2 * sharing, head, dtype=torch.bfloat16)
        cache_BKSH = torch.empty(4, sharing, 32, head, dtype=torch.bfloat16)
        place_B = torch.empty(3, dtype=torch.int64)
    k_BKH, v_BKH = qkv_BHH[:, heads : heads + sharing], qkv_BHH[:, heads + sharing :]
    fused.cache_store(k_BKH, v_BKH, cache_BKSH, cache_BKSH, place_B if has_slots else None, place_B)
    (launch,) = launches
    assert names_of(*launch) == [f"cache_store {sharing}x{head}{' with slots' if has_slots else ''} bf16"]
