"""Attention over segments and caches against softmax written out in float64, on both back ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import psychecore as pc
from psychecore.data.packing import pack
from psychecore.model import attention as facade
from psychecore.model.attention import PackedAttention, cached_attention, resolve_backend, set_backend
from psychecore.model.decoder import Decoder


def written_out(q_QNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
    """softmax(q k / sqrt(H)) v, one query and head at a time, causal to the bottom right."""
    (queries, heads, width), keys = q_QNH.shape, len(k_SKH)
    shared = heads // k_SKH.shape[1]
    out_QNH = torch.empty_like(q_QNH)
    for i, n in itertools.product(range(queries), range(heads)):
        seen = keys - queries + i + 1
        scores_S = k_SKH[:seen, n // shared] @ q_QNH[i, n] / math.sqrt(width)
        out_QNH[i, n] = scores_S.softmax(0) @ v_SKH[:seen, n // shared]
    return out_QNH


def flash_stand_in() -> SimpleNamespace:
    """flash-attn 2.8's two functions with its documented signatures, shapes and semantics, computed plainly."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        deterministic: bool = False,
    ) -> Tensor:
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert causal
        assert int(cu_seqlens_q.diff().max()) == max_seqlen_q
        assert int(cu_seqlens_k.diff().max()) == max_seqlen_k
        assert len(q) == cu_seqlens_q[-1]
        assert len(k) == len(v) == cu_seqlens_k[-1]
        parts = zip(
            q.split(cu_seqlens_q.diff().tolist()),
            k.split(cu_seqlens_k.diff().tolist()),
            v.split(cu_seqlens_k.diff().tolist()),
            strict=True,
        )
        outs = []
        for q_part, k_part, v_part in parts:
            k_part, v_part = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k_part, v_part))
            scores = torch.einsum("qnh,knh->nqk", q_part, k_part) / math.sqrt(q.shape[-1])
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
            outs.append(torch.einsum("nqk,knh->qnh", scores.masked_fill(~seen, -math.inf).softmax(-1), v_part))
        return torch.cat(outs)

    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        cache_seqlens: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        num_splits: int = 0,
        return_softmax_lse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert k is v is None, "keys and values are stored before the call"
        assert cache_seqlens is not None
        assert cache_seqlens.dtype == torch.int32
        assert num_splits == 1, "the split must not depend on the batch"
        assert return_softmax_lse
        assert not causal
        assert q.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == 1
        out, lse_BNQ = torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1])
        for b, length in enumerate(cache_seqlens.tolist()):
            for i in range(q.shape[1]):
                out[b, i] = written_out(q[b, i, None], k_cache[b, :length], v_cache[b, :length])[0]
            keys = k_cache[b, :length].repeat_interleave(q.shape[2] // k_cache.shape[2], 1)
            lse_BNQ[b] = (torch.einsum("qnh,knh->nqk", q[b], keys) / math.sqrt(q.shape[-1])).logsumexp(-1)
        return out, lse_BNQ

    return SimpleNamespace(
        flash_attn_varlen_func=flash_attn_varlen_func, flash_attn_with_kvcache=flash_attn_with_kvcache
    )


@pytest.fixture(params=["torch", "flash"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(facade, "flash_attn", flash_stand_in)
    set_backend(request.param)
    yield request.param
    set_backend(None)


def random_heads(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("queries", "keys"), [((4, 1, 3), (4, 1, 3)), ((4, 2, 1), (4, 6, 7)), ((1, 1), (1, 2))])
def test_segments_attend_to_their_keys_bottom_right(
    queries: tuple[int, ...], keys: tuple[int, ...], backend: str
) -> None:
    tokens = sum(queries)
    q, k, v = random_heads(tokens, 3, 8, seed=0), random_heads(tokens, 1, 8, seed=1), random_heads(tokens, 1, 8, seed=2)
    own = torch.arange(tokens).split(queries)
    index = [  # a segment with more keys than queries begins with the first tokens of the row
        torch.cat([torch.arange(total - count), own[s]])
        for s, (count, total) in enumerate(zip(queries, keys, strict=True))
    ]
    cu_q, cu_k = ([0, *itertools.accumulate(lengths)] for lengths in (queries, keys))
    attention = PackedAttention(cu_q, cu_k, torch.cat(index), q.device)
    expected = torch.cat([written_out(q[own[s]], k[i], v[i]) for s, i in enumerate(index)])
    torch.testing.assert_close(attention(0, q, k, v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("queries", [1, 4])
def test_cached_attention_sees_exactly_the_valid_positions_and_gives_its_log_sum_exp(
    queries: int, backend: str
) -> None:
    q, k, v = random_heads(3, queries, 6, 8, seed=0), random_heads(3, 2, 9, 8, seed=1), random_heads(3, 2, 9, 8, seed=2)
    lengths_B = torch.tensor([9, 1, 5], dtype=torch.int32)
    bias = torch.zeros(3, 1, 1, 9, dtype=q.dtype).masked_fill(
        torch.arange(9) >= lengths_B[:, None, None, None], -math.inf
    )
    out, lse = cached_attention(q, k, v, lengths_B, bias)
    for b, n in enumerate([9, 1, 5]):
        for i in range(queries):
            keys, values = (x[b, :, :n].transpose(0, 1) for x in (k, v))
            expected = written_out(q[b, i, None], keys, values)[0]
            torch.testing.assert_close(out[b, i], expected, rtol=1e-12, atol=1e-12)
            scores_NS = torch.einsum("nh,snh->ns", q[b, i], keys.repeat_interleave(3, 1)) / math.sqrt(8)
            torch.testing.assert_close(lse[b, i], scores_NS.logsumexp(-1), rtol=1e-12, atol=1e-12)


def test_the_plain_path_of_other_devices_equals_the_cpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_heads(2, 3, 6, 8, seed=0), random_heads(2, 2, 9, 8, seed=1), random_heads(2, 2, 9, 8, seed=2)
    lengths_B, bias = torch.tensor([9, 9], dtype=torch.int32), torch.zeros(2, 1, 1, 9, dtype=torch.float64)
    expected = cached_attention(q, k, v, lengths_B, bias)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    plain = cached_attention(q.as_subclass(Elsewhere), k, v, lengths_B, bias)
    for ours, theirs in zip(plain, expected, strict=True):
        torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs, rtol=1e-12, atol=1e-12)


def test_a_prefix_tree_gives_each_sequence_its_own_hidden_states(
    backend: str, tiny_model: Callable[..., Decoder]
) -> None:
    model = tiny_model()
    prompt = list(range(1, 21))
    sequences = [[*prompt, 30], [*prompt, 31, 32, 33], [*prompt, 31, 32, 40, 41], [7, 8], prompt]
    batch = pack([(ids, [False] * len(ids)) for ids in sequences], min_shared=2)
    assert batch.tokens < sum(map(len, sequences))
    attention = PackedAttention(batch.cu_q, batch.cu_k, batch.key_index_I, batch.tokens_T.device)
    hidden_TD = model(batch.tokens_T, batch.positions_T, attention)
    for ids, places in zip(sequences, batch.places, strict=True):
        alone = model(torch.tensor(ids), torch.arange(len(ids)), PackedAttention.of_lengths([len(ids)], model.device))
        torch.testing.assert_close(hidden_TD[places], alone, rtol=1e-10, atol=1e-10)


def test_flash_is_taken_on_cuda_in_16_bit_only_and_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(facade, "flash_attn", flash_stand_in)
    assert resolve_backend(cuda, torch.bfloat16) == "flash"
    assert resolve_backend(cuda, torch.float32) == resolve_backend(cpu, torch.bfloat16) == "torch"
    monkeypatch.setattr(facade, "flash_attn", lambda: None)
    assert resolve_backend(cuda, torch.bfloat16) == "torch"
    with pytest.raises(ValueError, match="'xformers'"):
        set_backend("xformers")  # type: ignore[arg-type]


def test_the_whole_sampler_gives_the_cpu_path_s_tokens_through_flash_attn(
    tiny_model: Callable[..., Decoder], letter_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade, "flash_attn", flash_stand_in)
    params = pc.SamplingParams(max_new_tokens=10)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    groups = []
    for backend in ("torch", "flash"):
        set_backend(backend)  # type: ignore[arg-type]
        groups.append(pc.Sampler(tiny_model(), letter_tokenizer, max_slots=4).generate(prompts, params, 3))
    set_backend(None)
    for ours, theirs in zip(*groups, strict=True):
        assert [r.token_ids for r in ours.rollouts] == [r.token_ids for r in theirs.rollouts]
