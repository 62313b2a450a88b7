"""What a decoder, its loss and its sampler launch at the sizes of Qwen2.5 is what kernels/resources.md compiled.

That is: with the same constants and types. The launches are recorded on the meta device, so 72B fits, and nothing is
computed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from psychecore.kernels.case import CompileCase
from psychecore.kernels.resources import all_cases
from psychecore.model import fused
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Layer

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TYPES |= {torch.int32: "*i32", torch.int64: "*i64"}
CASES = all_cases()  # before the kernels are replaced
SIZES = {  # width, feed-forward width, query heads, key/value heads, head width
    "0.5B": (896, 4864, 14, 2, 64),
    "7B": (3584, 18944, 28, 4, 128),
    "72B": (8192, 29568, 64, 8, 128),
}
HEADS = {size: sizes[2:] for size, sizes in SIZES.items()} | {"H=256": (16, 2, 256)}


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
    for fn in {case.fn for case in CASES}:
        monkeypatch.setattr(f"{fn.__module__}.{fn.__name__}", Recorder(fn, recorded))
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
        and all(arguments[name] % 16 == 0 for name in case.multiples_of_16 if name in arguments)
        and arguments.get("num_warps", 4) == case.num_warps
        and arguments.get("num_stages", 3) == case.num_stages
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


@pytest.mark.parametrize("kind", ["", " fp16"])
@pytest.mark.parametrize("size", SIZES)
def test_log_probs_launch_what_was_compiled(size: str, kind: str, launches: list[tuple[Any, dict[str, Any]]]) -> None:
    with torch.device("meta"):
        dtype = torch.float16 if kind else torch.bfloat16
        hidden_TD, head_VD = (torch.empty(rows, SIZES[size][0], dtype=dtype) for rows in (48, 152_064))
        outs = fused.token_logprobs(hidden_TD.requires_grad_(), head_VD, torch.empty(48, dtype=torch.int64), 0.7)
        torch.autograd.backward(outs, [torch.empty_like(x) for x in outs])
    names = [f"token_logprobs statistics{kind}", "token_logprobs merge"]
    names += [f"token_logprobs slope{kind}"] * 19  # chunks of the vocabulary, the last of which is smaller
    assert [names_of(*launch) for launch in launches] == [[name] for name in names]


@pytest.mark.parametrize("kind", ["", " fp16"])
@pytest.mark.parametrize("size", HEADS)
def test_attention_over_a_cache_launches_what_was_compiled(
    size: str, kind: str, launches: list[tuple[Any, dict[str, Any]]]
) -> None:
    heads, sharing, head = HEADS[size]
    with torch.device("meta"):
        dtype = torch.float16 if kind else torch.bfloat16
        q_BQNH, cache_BKSH = torch.empty(3, 8, heads, head, dtype=dtype), torch.empty(4, sharing, 64, head, dtype=dtype)
        part_BKSH = cache_BKSH[:3, :, :32]
        fused.decode_attention(q_BQNH, part_BKSH, part_BKSH, torch.empty(3, dtype=torch.int32))
    model = size if size == "H=256" else f"Qwen2.5-{size}"
    split, merge = (names_of(*launch) for launch in launches)
    assert split == [f"decode_attention split {model}{kind}"]
    assert kind or merge == [f"decode_attention merge {model}"]  # fp16 cases are of kernels with products


@pytest.mark.parametrize("kind", ["", " fp16"])
@pytest.mark.parametrize("size", HEADS)
def test_attention_over_segments_launches_what_was_compiled(
    size: str, kind: str, launches: list[tuple[Any, dict[str, Any]]]
) -> None:
    heads, sharing, head = HEADS[size]
    with torch.device("meta"):
        qkv_THH = torch.empty(48, heads + 2 * sharing, head, dtype=torch.float16 if kind else torch.bfloat16)
        q_TNH, k_TKH, v_TKH = qkv_THH.requires_grad_().split([heads, sharing, sharing], dim=1)
        cu = torch.empty(3, dtype=torch.int32)
        out_TNH = fused.flash_attention(q_TNH, k_TKH, v_TKH, cu, cu, 24, 24)
        out_TNH.backward(torch.empty_like(out_TNH))
    forward, delta, key_value, query = (names_of(*launch) for launch in launches)
    assert f"flash_attention forward {size}{kind}" in forward
    assert kind or f"flash_attention delta {size}" in delta
    assert f"flash_attention dk dv {size}{kind}" in key_value
    assert f"flash_attention dq {size}{kind}" in query
