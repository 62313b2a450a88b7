"""Stacked attention against plain softmax attention per segment in float64: outputs, gradients, and what is stacked."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from psychecore.model import stacked_attention as stacked
from psychecore.model.attention import PackedAttention

CPU = torch.device("cpu")
HEADS, KEY_HEADS, WIDTH = 6, 2, 8


def tree(rng: random.Random, longest: int) -> tuple[list[int], list[int], list[int]]:
    """(queries, keys by segment, places of the keys): a few prompts, each with branches that see it, and loose ones."""
    queries, keys, index = [], [], []  # type: tuple[list[int], list[int], list[int]]
    for _ in range(rng.randint(1, 3)):
        prompt = list(range(sum(queries), sum(queries) + rng.randint(1, longest)))
        queries.append(len(prompt)), keys.append(len(prompt))
        index += prompt
        for _ in range(rng.randint(0, 5)):
            own = list(range(sum(queries), sum(queries) + rng.randint(1, longest)))
            queries.append(len(own)), keys.append(len(prompt) + len(own))
            index += prompt + own
    return queries, keys, index


def by_segment(q: Tensor, k: Tensor, v: Tensor, queries: list[int], keys: list[int], index: list[int]) -> Tensor:
    """softmax(q k / sqrt(H)) v with autograd, a segment at a time."""
    places, outs = torch.tensor(index).split(keys), []
    for q_QNH, place in zip(q.split(queries), places, strict=True):
        k_SNH, v_SNH = (x[place].repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
        scores_NQS = torch.einsum("qnh,snh->nqs", q_QNH, k_SNH) / math.sqrt(WIDTH)
        hidden_QS = torch.ones(scores_NQS.shape[1:], dtype=torch.bool).triu(len(place) - len(q_QNH) + 1)
        weights_NQS = scores_NQS.masked_fill(hidden_QS, -math.inf).softmax(-1)
        outs.append(torch.einsum("nqs,snh->qnh", weights_NQS, v_SNH))
    return torch.cat(outs)


def heads(tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(tokens, HEADS, WIDTH), (tokens, KEY_HEADS, WIDTH), (tokens, KEY_HEADS, WIDTH)]
    return [torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def packed(queries: list[int], keys: list[int], index: list[int]) -> PackedAttention:
    cu_q, cu_k = ([0, *itertools.accumulate(lengths)] for lengths in (queries, keys))
    return PackedAttention(cu_q, cu_k, torch.tensor(index), CPU)


@pytest.mark.parametrize("formula", [False, True], ids=["on CPU", "on other devices"])
@pytest.mark.parametrize(("stack", "pairs", "rows"), [(1, 1, 1), (60, 100, 3), (1 << 21, 1 << 19, 64)])
@pytest.mark.parametrize("seed", range(8))
def test_outputs_and_gradients_are_those_of_plain_attention(
    seed: int, stack: int, pairs: int, rows: int, formula: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {
        "STACK": stack,
        "PAIRS": pairs,
        "ROWS": rows,
        "CAUSAL_ROWS": 4,
        "LONG": random.Random(seed).choice([5, 1024]),
    }
    for name, value in sizes.items():
        monkeypatch.setattr(stacked, name, value)  # nothing is stacked, some, or all; squares in pieces
    if formula:
        monkeypatch.setattr(stacked, "attend_on_cpu", stacked._attend)
        monkeypatch.setattr(stacked.Stack, "pieces", in_pieces)
    monkeypatch.setattr(stacked, "PADDING", random.Random(seed).choice([1.0, 1.25, 3.0]))
    segments = tree(random.Random(seed), longest=14)
    inputs = heads(sum(segments[0]), seed)
    direction = torch.randn_like(inputs[0])
    expected, found = by_segment(*inputs, *segments), packed(*segments)(0, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    wanted = torch.autograd.grad(expected, inputs, direction)
    got = torch.autograd.grad(found, inputs, direction)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


PIECES = stacked.Stack.pieces


def in_pieces(stack: stacked.Stack, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    return PIECES(stack)


def test_segments_with_the_same_keys_before_them_are_one_rectangle_and_need_no_mask() -> None:
    prompt, other = list(range(3)), list(range(7, 12))
    queries, keys = [3, 2, 2, 5, 4, 1], [3, 5, 5, 5, 9, 4]  # the last one's place among the tokens is no matter
    index = [*prompt, *prompt, 3, 4, *prompt, 5, 6, *other, *other, *range(12, 16), *prompt, 16]
    stacks = stacked.stack_segments(queries, keys, torch.tensor(index), CPU)
    rectangles = [(s.query_SQ.tolist(), s.key_SK.tolist()) for s in stacks if not s.causal]
    assert rectangles == [([[3, 4, 5, 6, 16]], [prompt]), ([[12, 13, 14, 15]], [other])]
    assert sorted(place for s in stacks if s.causal for place in s.query_SQ.flatten().tolist() if place < 17) == list(
        range(17)
    )


def test_a_segment_with_more_queries_than_keys_is_an_error() -> None:
    with pytest.raises(ValueError, match="segment 1 has 3 queries, but only 2 keys"):
        stacked.stack_segments([2, 3], [2, 2], torch.arange(4), CPU)


def test_segments_of_independent_sequences_need_no_key_index() -> None:
    lengths, inputs = [5, 1, 9, 8], heads(23, 0)
    expected = by_segment(*inputs, lengths, lengths, list(range(23)))
    found = PackedAttention.of_lengths(lengths, CPU)(0, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


# 690 to 698 keys: log 694 = 6.542 lies between two numbers of bf16, 6.531 and 6.5625
SPREAD = ([690, 8, 8], [690, 698, 698], [*range(690), *range(698), *range(690), *range(698, 706)])


@pytest.mark.usefixtures("products_of_16_bits")
@pytest.mark.parametrize("long", [64, 1024])  # squares by torch's backward, by ours
@pytest.mark.parametrize("size", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_in_low_precision_are_as_near_to_float64_as_torch_s_own(
    dtype: torch.dtype, size: float, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal weights on 690 keys, with scores of 1, and of 25, whose weights are nearly all on one."""
    monkeypatch.setattr(stacked, "LONG", long)
    segments = tree(random.Random(3), longest=90) if size else SPREAD
    drawn = zip(heads(sum(segments[0]), 3, dtype), (size, size, 1), strict=True)
    inputs = [(x.detach() * factor).requires_grad_() for x, factor in drawn]
    direction = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if not size:
        direction[:690] = 0  # else the prompt's own gradients hide the others'
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = torch.autograd.grad(by_segment(*wide, *segments), wide, direction.double())

    def errors(out: Tensor) -> list[float]:
        found = torch.autograd.grad(out, inputs, direction)
        return [float((a.double() - b).norm() / b.norm().clamp(min=1e-9)) for a, b in zip(found, exact, strict=True)]

    floor = (4 if dtype == torch.float32 else 1.5) * torch.finfo(dtype).eps
    ours, torchs = errors(packed(*segments)(0, *inputs)), errors(by_torch(*inputs, *segments))
    for here, there in zip(ours, torchs, strict=True):
        assert here < max(1.5 * there, floor)
    assert all(ours[2:])  # rounded, as numbers of these dtypes are


@pytest.mark.usefixtures("products_of_16_bits")
def test_scores_beyond_what_fp16_holds_have_finite_gradients() -> None:
    q, k, v = (x.detach() for x in heads(20, 0, torch.float16))
    inputs = [x.requires_grad_() for x in (q + 100, k + 100, v)]  # scores of some 28,000, times sqrt(8): 80,000
    out = PackedAttention.of_lengths([20], CPU)(0, *inputs)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs))


def by_torch(q: Tensor, k: Tensor, v: Tensor, queries: list[int], keys: list[int], index: list[int]) -> Tensor:
    """torch's kernel and its backward, a segment at a time, behind a mask."""
    outs = []
    for q_QNH, place in zip(q.split(queries), torch.tensor(index).split(keys), strict=True):
        seen_QS = torch.ones(len(q_QNH), len(place), dtype=torch.bool).tril(len(place) - len(q_QNH))
        q_NQH, k_NSH, v_NSH = (x.transpose(0, 1)[None] for x in (q_QNH, k[place], v[place]))
        out_NQH = F.scaled_dot_product_attention(q_NQH, k_NSH, v_NSH, attn_mask=seen_QS, enable_gqa=True)[0]
        outs.append(out_NQH.transpose(0, 1))
    return torch.cat(outs)


def test_every_token_is_in_one_square_and_padding_is_bounded() -> None:
    rng = random.Random(0)
    lengths = [rng.choice([1, 20, 21, 22, 100, 200, 300, 1500]) for _ in range(60)]
    stacks = stacked.stack_segments(lengths, lengths, None, CPU)
    targets = torch.cat([stack.query_SQ.flatten() for stack in stacks])
    assert sorted(targets[targets < sum(lengths)].tolist()) == list(range(sum(lengths)))
    assert len(stacks) < 20
    for stack in stacks:
        real = (stack.query_SQ < sum(lengths)).sum(1)
        padded = stack.query_SQ.numel() * stack.key_SK.shape[1]
        assert padded <= stacked.PADDING * float((real**2).sum())
        assert len(real) == 1 or padded <= stacked.STACK


@pytest.mark.parametrize("spoilt", [0, 1, 2], ids=["queries", "keys", "values"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_stays_in_its_own_segment(spoilt: int, number: float) -> None:
    lengths, inputs = [5, 9, 10, 10], heads(34, 0)
    attention = PackedAttention.of_lengths(lengths, CPU)
    assert len(attention._stacks) < len(lengths)  # some are padded and stacked
    direction = torch.randn_like(inputs[0])
    wanted = attention(0, *inputs)
    wanted_gradients = torch.autograd.grad(wanted, inputs, direction)
    with torch.no_grad():
        inputs[spoilt][0] = number
    found = attention(0, *inputs)
    gradients = torch.autograd.grad(found, inputs, direction)
    assert spoilt == 0 or not found[:5].isfinite().all()  # torch's kernel has zeros for a query that is NaN
    for a, b in zip((found, *gradients), (wanted, *wanted_gradients), strict=True):
        torch.testing.assert_close(a[5:], b[5:], rtol=0, atol=0)
