"""Stacked attention against plain softmax attention per segment in float64: outputs, gradients, and what is stacked."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
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


@pytest.mark.parametrize("short", [0, 60, 1 << 15])
@pytest.mark.parametrize("seed", range(12))
def test_outputs_and_gradients_are_those_of_plain_attention(
    seed: int, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "SHORT", short)  # none, some, or all of the segments are stacked
    monkeypatch.setattr(stacked, "PADDING", random.Random(seed).choice([1.0, 1.25, 3.0]))
    segments = tree(random.Random(seed), longest=14)
    inputs = heads(sum(segments[0]), seed)
    direction = torch.randn_like(inputs[0])
    expected, found = by_segment(*inputs, *segments), packed(*segments)(0, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    wanted = torch.autograd.grad(expected, inputs, direction)
    got = torch.autograd.grad(found, inputs, direction)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_segments_of_independent_sequences_need_no_key_index() -> None:
    lengths, inputs = [5, 1, 9, 8], heads(23, 0)
    expected = by_segment(*inputs, lengths, lengths, list(range(23)))
    found = PackedAttention.of_lengths(lengths, CPU)(0, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_in_low_precision_are_at_least_as_near_to_float64_as_torch_s_own(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = tree(random.Random(3), longest=90)
    inputs = heads(sum(segments[0]), 3, dtype)
    direction = torch.randn_like(inputs[0])
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = torch.autograd.grad(by_segment(*wide, *segments), wide, direction.double())

    def error() -> list[float]:
        found = torch.autograd.grad(packed(*segments)(0, *inputs), inputs, direction)
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    ours = error()
    monkeypatch.setattr(stacked, "SHORT", 0)
    for here, there in zip(ours, error(), strict=True):
        assert 0 < here < max(1.1 * there, 4 * torch.finfo(dtype).eps)


def test_every_short_segment_is_stacked_once_and_padding_is_bounded() -> None:
    rng = random.Random(0)
    queries, keys, index = [], [], []  # type: tuple[list[int], list[int], list[int]]
    for _ in range(60):
        count = rng.choice([1, 20, 21, 22, 100, 200, 300])
        index += range(sum(queries), sum(queries) + count)
        queries.append(count), keys.append(count)
    cu = [0, *itertools.accumulate(queries)]
    stacks = stacked.stack_segments(queries, keys, torch.tensor(index), CPU)
    targets = torch.cat([stack.query_SQ.flatten() for stack in stacks])
    short = [place for start, stop in itertools.pairwise(cu) if stop - start <= 181 for place in range(start, stop)]
    assert sorted(targets[targets < cu[-1]].tolist()) == short
    assert len(stacks) < 20
    for stack in stacks:
        lengths = (stack.query_SQ < cu[-1]).sum(1)
        padded = stack.query_SQ.numel() * stack.key_SK.shape[1]
        assert padded <= stacked.PADDING * float((lengths**2).sum())
        assert len(lengths) == 1 or padded <= stacked.STACK


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
