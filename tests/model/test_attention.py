"""Attention over segments and caches against softmax written out in float64, on every back end that has a CPU form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import flash_attn_stand_in as stand_in
import pytest
import torch
from torch import Tensor

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
    return stand_in.flash_attn(allow_wide=True)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both libraries seem to be there; a back end that a test forces is free again afterwards."""
    monkeypatch.setattr(facade, "flash_attn", flash_stand_in)
    monkeypatch.setattr(facade, "varlen_attn", lambda: stand_in.varlen_attn)
    yield
    set_backend(None)


@pytest.fixture(params=["torch", "flash", "varlen"])
def backend(request: pytest.FixtureRequest, stand_ins: None) -> str:
    set_backend(request.param)
    return request.param


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


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("there", "packed", "cached"),
    [
        ({"flash_attn", "varlen_attn", "triton"}, "flash", "flash"),
        ({"varlen_attn", "triton"}, "varlen", "triton"),
        ({"triton"}, "triton", "triton"),
        ({"varlen_attn"}, "varlen", "torch"),
        (set(), "torch", "torch"),
    ],
)
def test_the_first_library_that_is_there_is_taken(
    there: set[str], packed: str, cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(facade, "flash_attn", lambda: object() if "flash_attn" in there else None)
    monkeypatch.setattr(facade, "varlen_attn", lambda: object() if "varlen_attn" in there else None)
    monkeypatch.setattr(facade, "has_triton", lambda: "triton" in there)
    assert resolve_backend(CUDA, torch.bfloat16) == packed
    assert resolve_backend(CUDA, torch.float16, cached=True) == cached
    assert {resolve_backend(CUDA, torch.float32), resolve_backend(CPU, torch.bfloat16)} == {"torch"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_backend(CUDA, torch.float16) == "torch"


def test_a_forced_back_end_is_taken_everywhere_and_another_name_is_refused(stand_ins: None) -> None:
    for backend in ("flash", "triton", "torch"):
        set_backend(backend)  # type: ignore[arg-type]
        assert resolve_backend(CPU, torch.float64) == resolve_backend(CPU, torch.float64, cached=True) == backend
    set_backend("varlen")
    assert resolve_backend(CPU, torch.float64) == "varlen"
    assert resolve_backend(CPU, torch.float64, cached=True) == "torch"
    with pytest.raises(ValueError, match="'xformers'"):
        set_backend("xformers")  # type: ignore[arg-type]


def test_the_back_end_is_logged_once(stand_ins: None, caplog: pytest.LogCaptureFixture) -> None:
    facade._say.cache_clear()
    caplog.set_level("INFO", logger=facade.__name__)
    q = random_heads(4, 1, 8, seed=0)
    for _ in range(3):
        PackedAttention.of_lengths([3, 1], CPU)(0, q, q, q)
    assert caplog.messages == ["attention over segments on cpu in torch.float64: torch"]
