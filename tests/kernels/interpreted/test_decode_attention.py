"""kernels/decode_attention.py in Triton's interpreter, against softmax attention in float64."""

import pytest
import torch

import psychecore.kernels.decode_attention as module
from psychecore.kernels.decode_attention import decode_attention, decode_attention_reference
from psychecore.model import fused
from psychecore.model.config import ModelConfig
from psychecore.rollout import kv_cache


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several row tiles, key tiles, splits and steps of the merge at sizes that the interpreter is quick with."""
    for name, size in {"SPLIT": 32, "ROWS": 16, "KEYS": 16, "MERGE_SPLITS": 2}.items():
        monkeypatch.setattr(module, name, size)


def inputs(batch, queries, heads, kv_heads, span, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(span)
    q = torch.randn(batch, queries, heads, width, generator=generator)
    k, v = (torch.randn(batch, kv_heads, span, width, generator=generator) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def check(q, k, v, length, tolerance=2e-6):
    valid = (torch.arange(k.shape[2]) < length[:, None])[:, None, :, None]
    expected = decode_attention_reference(q.double(), *(x.double().masked_fill(~valid, 0) for x in (k, v)), length)
    results = decode_attention(q, k, v, length)
    assert [x.dtype for x in results] == [q.dtype, torch.float32]
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    ("queries", "heads", "kv_heads", "span", "width", "lengths"),
    [
        (1, 1, 1, 1, 1, [1]),  # one query, one key, one number
        (1, 14, 2, 96, 64, [1, 33, 96]),  # Qwen2.5-0.5B; whole splits behind the length
        (1, 4, 4, 37, 16, [1, 37, 16]),  # no sharing, an odd span
        (5, 7, 1, 70, 13, [1, 70]),  # a prompt's samples: 35 rows are three tiles, the last with three rows
        (3, 6, 3, 200, 8, [131, 2]),  # more splits than one step of the merge reads
    ],
)
def test_output_and_log_sum_exp_equal_the_float64_formula(queries, heads, kv_heads, span, width, lengths):
    check(*inputs(len(lengths), queries, heads, kv_heads, span, width), torch.tensor(lengths, dtype=torch.int32))


def test_fp16_is_summed_in_fp32():
    check(*inputs(2, 2, 4, 2, 50, 16, torch.float16), torch.tensor([50, 3]), tolerance=1e-3)


def test_what_the_cache_holds_behind_the_length_is_not_read():
    q, k, v = inputs(2, 1, 2, 1, 64, 8)
    length = torch.tensor([5, 20], dtype=torch.int32)
    for x in (k, v):
        x[0, :, 5:], x[1, :, 20:] = torch.nan, torch.inf
    check(q, k, v, length)


def test_scores_of_ten_thousand_stay_finite_and_right():
    q, k, v = inputs(2, 1, 2, 1, 64, 4)
    k *= torch.linspace(-1, 1, 64)[:, None]
    check(q * 1e4, k, v, torch.tensor([64, 7], dtype=torch.int32), tolerance=1e-5)


def test_slices_of_a_cache_give_the_same_as_their_copies():
    _, k, v = inputs(4, 1, 4, 2, 96, 16)
    q = torch.randn(3, 4, 2, 16).transpose(1, 2)
    length = torch.tensor([60, 7, 1, 8, 33, 9])[::2]
    parts = [k[:3, :, :64], v[:3, :, :64]]
    strided = decode_attention(q, *parts, length)
    copied = decode_attention(q.contiguous(), *(x.contiguous() for x in parts), length)
    assert all(torch.equal(a, b) for a, b in zip(strided, copied, strict=True))
    columns = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, *parts)]  # not even the last dimension
    assert all(torch.equal(a, b) for a, b in zip(decode_attention(*columns, length), copied, strict=True))


def test_a_sequence_has_the_same_bits_whatever_its_neighbours_and_the_span_are():
    q, k, v = (x.round() for x in inputs(3, 4, 6, 2, 160, 16))  # numpy's products of fractions depend on the row
    length = torch.tensor([40, 160, 9], dtype=torch.int32)
    together = decode_attention(q, k, v, length)
    alone = decode_attention(q[:1], k[:1, :, :40], v[:1, :, :40], length[:1])
    for one, all_three in zip(alone, together, strict=True):
        assert torch.equal(one[0], all_three[0])


def test_heads_that_do_not_fit_are_refused():
    q, k, v = inputs(1, 1, 3, 2, 8, 4)
    with pytest.raises(ValueError, match="N a multiple of K"):
        decode_attention(q, k, v, torch.ones(1))


@pytest.mark.parametrize("place", range(3))
def test_a_gradient_that_would_be_lost_is_refused(place):
    tensors = inputs(1, 1, 2, 2, 8, 4)
    tensors[place].requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        decode_attention(*tensors, torch.ones(1))
    with torch.no_grad():
        assert decode_attention(*tensors, torch.ones(1))[0].isfinite().all()


def test_prompt_and_answer_merged_by_the_sampler_are_attention_over_both(monkeypatch):
    monkeypatch.setattr(
        kv_cache, "cached_attention", lambda q, k, v, length, bias: fused.decode_attention(q, k, v, length)
    )
    config = ModelConfig("llama", 61, 24, 1, 4, 2, 8, 40)
    cache = kv_cache.KVCache(config, 2, 64, 4, 64, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for x in (cache.prompt_k_LAKPH, cache.prompt_v_LAKPH, cache.answer_k_LBKSH, cache.answer_v_LBKSH):
        x.copy_(torch.randn(x.shape, generator=generator))
    q, k, v = (torch.randn(4, n, 8, generator=generator) for n in (4, 2, 2))
    prompt_length, place, prompt_of = torch.tensor([50, 7]), torch.tensor([0, 40, 12, 0]), [0, 1, 0]
    seat = torch.tensor([0, 2, 1, 4])  # samples 0 and 2 are of prompt 0, sample 1 of prompt 1, slot 3 is not in use
    shape = kv_cache.Shape(slots=4, rows=2, seats=2, prompt_span=64, answer_span=64)
    out = kv_cache.DecodeAttention(cache, shape, place, seat, prompt_length)(0, q, k, v)
    for b, a in enumerate(prompt_of):
        prompt = slice(0, int(prompt_length[a]))
        keys, values = (
            torch.cat((shared[0, a, :, prompt], own[0, b, :, : place[b]], new[b][:, None]), 1).double()
            for shared, own, new in (
                (cache.prompt_k_LAKPH, cache.answer_k_LBKSH, k),
                (cache.prompt_v_LAKPH, cache.answer_v_LBKSH, v),
            )
        )
        weights = torch.einsum("kgh,ksh->kgs", q[b].double().unflatten(0, (2, 2)) / 8**0.5, keys).softmax(-1)
        assert (out[b] - torch.einsum("kgs,ksh->kgh", weights, values).flatten(0, 1)).abs().max() < 2e-6
