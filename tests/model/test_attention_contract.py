"""Calls to flash-attn and torch's varlen_attn, checked by stand-ins: whole models and the sampler compute as on CPU.

What the stand-ins stand for is checked too, as far as it is installed: torch's function has their signature.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import flash_attn_stand_in as stand_in
import pytest
import torch
from torch import Tensor

import psychecore as pc
from psychecore.data.packing import pack
from psychecore.model import attention as facade
from psychecore.model.attention import PackedAttention, set_backend
from psychecore.model.decoder import Decoder

FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2": {"query_heads": 7, "key_value_heads": 1},
    "Qwen3": {"family": "qwen3", "qkv_bias": False, "qk_norm": True, "query_heads": 4, "key_value_heads": 2},
    "Llama": {"family": "llama", "qkv_bias": False, "query_heads": 3, "key_value_heads": 3, "head_dim": 16},
}
PROMPT = list(range(1, 21))
SEQUENCES = [[*PROMPT, 30], [*PROMPT, 31, 32, 33], [*PROMPT, 31, 32, 40, 41], [7, 8], [9]]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both libraries seem to be there, for any dtype; a back end that a test forces is free again afterwards."""
    monkeypatch.setattr(facade, "flash_attn", lambda: stand_in.flash_attn(allow_wide=True))
    monkeypatch.setattr(facade, "varlen_attn", lambda: stand_in.varlen_attn)
    yield
    set_backend(None)


def hidden_and_gradients(model: Decoder, device: torch.device | None = None) -> list[Tensor]:
    """Hidden states of a group with a shared prompt beside two short sequences, and every parameter's gradient."""
    device = device or torch.device("cpu")
    batch = pack([(ids, [False] * len(ids)) for ids in SEQUENCES], min_shared=2).to(device)
    assert batch.key_index_I is not None
    attention = PackedAttention(batch.cu_q, batch.cu_k, batch.key_index_I, device)
    hidden_TD = model(batch.tokens_T, batch.positions_T, attention)
    slope_TD = torch.randn(hidden_TD.shape, generator=torch.Generator().manual_seed(1)).to(hidden_TD)
    return [hidden_TD, *torch.autograd.grad(hidden_TD, list(model.parameters()), slope_TD)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_a_model_s_forward_and_gradients_are_the_cpu_path_s(
    backend: str, family: str, libraries: None, tiny_model: Callable[..., Decoder]
) -> None:
    model = tiny_model(tied_head=True, **FAMILIES[family])
    expected = hidden_and_gradients(model)
    set_backend(backend)  # type: ignore[arg-type]
    for ours, right in zip(hidden_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_every_call_is_one_that_flash_attn_takes(
    family: str, libraries: None, tiny_model: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "flash_attn", stand_in.flash_attn)
    model = tiny_model(torch.bfloat16, tied_head=True, **FAMILIES[family])
    expected = hidden_and_gradients(model)[0]
    set_backend("flash")
    torch.testing.assert_close(hidden_and_gradients(model)[0], expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_sampler_gives_the_cpu_path_s_samples_through_flash_attn(
    family: str, libraries: None, tiny_model: Callable[..., Decoder], letter_tokenizer: Any
) -> None:
    params = pc.SamplingParams(max_new_tokens=10)
    # more than fused.FEW_ROWS tokens: with fewer, the CPU's products are transposed, which varlen_attn refuses
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9] * 70]
    groups = []
    for backend in ("torch", "flash", "varlen"):
        set_backend(backend)  # type: ignore[arg-type]
        model = tiny_model(**FAMILIES[family])
        groups.append(pc.Sampler(model, letter_tokenizer, max_slots=4).generate(prompts, params, 3))
    expected, *others = ([rollout for group in found for rollout in group.rollouts] for found in groups)
    for ours, theirs in itertools.chain.from_iterable(zip(other, expected, strict=True) for other in others):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-9)


def test_in_bfloat16_the_sampler_s_calls_are_ones_that_flash_attn_takes(
    libraries: None, tiny_model: Callable[..., Decoder], letter_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "flash_attn", stand_in.flash_attn)
    set_backend("flash")
    sampler = pc.Sampler(tiny_model(torch.bfloat16), letter_tokenizer, max_slots=4)
    (group,) = sampler.generate([[1, 2, 3]], pc.SamplingParams(max_new_tokens=5), 3)
    assert all(r.token_ids for r in group.rollouts)


def packed(**changes: Any) -> dict[str, Any]:
    """A right call of flash_attn_varlen_func, with changes."""
    heads = {name: torch.zeros(5, n, 8, dtype=torch.bfloat16) for name, n in (("q", 4), ("k", 2), ("v", 2))}
    cu = torch.tensor([0, 2, 5], dtype=torch.int32)
    return heads | {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 3, "max_seqlen_k": 3} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"cu_seqlens_q": torch.tensor([0, 2, 5])},
        {"cu_seqlens_k": torch.tensor([0, 2, 4], dtype=torch.int32)},
        {"max_seqlen_q": 2},
        {"max_seqlen_k": 2},
        {"q": torch.zeros(5, 4, 8)},
        {"q": torch.zeros(5, 3, 8, dtype=torch.bfloat16)},
        {"q": torch.zeros(5, 4, 12, dtype=torch.bfloat16)},
        {name: torch.zeros(5, 2, 264, dtype=torch.bfloat16) for name in ("q", "k", "v")},
        {"window_size": (4, 0)},
        {"dropout_p": 0.1},
    ],
)
def test_the_stand_in_refuses_what_flash_attn_refuses_or_computes_otherwise(changes: dict[str, Any]) -> None:
    function = stand_in.flash_attn().flash_attn_varlen_func
    assert function(**packed(), causal=True).shape == (5, 4, 8)
    with pytest.raises(RuntimeError):
        function(**packed(**changes), causal=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_seqlens": torch.tensor([1, 2])},
        {"cache_seqlens": torch.tensor([1, 7], dtype=torch.int32)},
        {"k_cache": torch.zeros(2, 2, 6, 8, dtype=torch.bfloat16)},
        {"k_cache": torch.zeros(2, 6, 8, 2, dtype=torch.bfloat16).transpose(2, 3)},
        {"num_splits": 0},
        {"rotary_cos": torch.zeros(6, 4)},
    ],
)
def test_the_stand_in_s_cache_refuses_likewise(changes: dict[str, Any]) -> None:
    cache = torch.zeros(2, 6, 2, 8, dtype=torch.bfloat16)
    right: dict[str, Any] = {"q": torch.zeros(2, 3, 4, 8, dtype=torch.bfloat16), "k_cache": cache, "v_cache": cache}
    right |= {"cache_seqlens": torch.tensor([1, 6], dtype=torch.int32), "num_splits": 1, "return_softmax_lse": True}
    out, lse = stand_in.flash_attn().flash_attn_with_kvcache(**right)
    assert (out.shape, lse.shape) == ((2, 3, 4, 8), (2, 4, 3))
    with pytest.raises(RuntimeError):
        stand_in.flash_attn().flash_attn_with_kvcache(**(right | changes))


def test_documented_masks_for_segments_of_unequal_lengths() -> None:
    """The two examples of flash_attn_varlen_func's documentation: 2 queries on 5 keys, 5 queries on 2 keys."""
    values = torch.eye(8, dtype=torch.bfloat16)
    for queries, keys, seen in ((2, 5, ["11110", "11111"]), (5, 2, ["00", "00", "00", "10", "11"])):
        cu_q, cu_k = (torch.tensor([0, n], dtype=torch.int32) for n in (queries, keys))
        q, v = torch.zeros(queries, 1, 8, dtype=torch.bfloat16), values[:keys, None]
        out = stand_in.flash_attn().flash_attn_varlen_func(q, v, v, cu_q, cu_k, queries, keys, causal=True)
        assert ["".join("01"[int(x > 0)] for x in row[0, :keys]) for row in out] == seen


def test_the_installed_varlen_attn_has_the_stand_in_s_signature() -> None:
    real = facade.varlen_attn()
    if real is None:
        pytest.skip("this torch has no varlen_attn that takes grouped heads")
    theirs, ours = (inspect.signature(function).parameters for function in (real, stand_in.varlen_attn))
    assert [(p.name, p.kind, p.default) for p in theirs.values()] == [
        (p.name, p.kind, p.default) for p in ours.values()
    ]


def test_the_installed_varlen_attn_takes_our_calls_forward_and_backward(tiny_model: Callable[..., Decoder]) -> None:
    """The real function on meta tensors: its checks and its autograd run, its kernels don't."""
    if facade.varlen_attn() is None:
        pytest.skip("this torch has no varlen_attn that takes grouped heads")
    model = tiny_model(torch.bfloat16, tied_head=True).to("meta")
    set_backend("varlen")
    try:
        results = hidden_and_gradients(model, torch.device("meta"))
    finally:
        set_backend(None)
    assert [x.shape for x in results[1:]] == [p.shape for p in model.parameters()]


def test_a_varlen_attn_without_grouped_heads_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:  # torch 2.10
        @staticmethod
        def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False): ...  # type: ignore[no-untyped-def]

    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", Older)
    assert facade.varlen_attn.__wrapped__() is None
