"""A decoding step's attention over prompt and answer, against softmax over both, for each way to compute it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.rollout.cpu_step import CpuStep
from psychecore.rollout.kv_cache import DecodeAttention, KVCache, Shape

CONFIG = ModelConfig("llama", 61, 24, 2, 6, 2, 8, 40)
LENGTHS, PLACES, PROMPT_OF = [50, 7], [0, 40, 12, 0], [0, 1, 0]


@pytest.fixture
def cache() -> KVCache:
    made = KVCache(CONFIG, 3, 64, 5, 64, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for x in (made.prompt_k_LAKPH, made.prompt_v_LAKPH, made.answer_k_LBKSH, made.answer_v_LBKSH):
        x.copy_(torch.randn(x.shape, generator=generator))
    return made


Attend = Callable[[KVCache, Shape, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def by_decode_attention(
    cache: KVCache, shape: Shape, place: Tensor, seat: Tensor, length: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    return DecodeAttention(cache, shape, place, seat, length)(1, q, k, v)


def by_cpu_step(
    cache: KVCache, shape: Shape, place: Tensor, seat: Tensor, length: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    step = CpuStep(Decoder(CONFIG).double(), cache, shape)
    step.locate(place, seat, length)
    step.row_BNH.copy_(torch.cat((q, k, v), 1))
    step.attend(1)
    return step.attended_BKRH.flatten(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("attend", [by_decode_attention, by_cpu_step])
def test_a_sample_attends_to_its_prompt_its_past_and_itself(cache: KVCache, attend: Attend) -> None:
    # samples 0 and 2 are of prompt 0, sample 1 of prompt 1, slot 3 is not in use, and one seat is empty
    seat, shape = torch.tensor([0, 2, 1, 4]), Shape(slots=4, rows=2, seats=2, prompt_span=64, answer_span=48)
    q, k, v = (torch.randn(4, n, 8, dtype=torch.float64) for n in (6, 2, 2))
    before = [x.clone() for x in (cache.answer_k_LBKSH, cache.answer_v_LBKSH)]
    out_BNH = attend(cache, shape, torch.tensor(PLACES), seat, torch.tensor(LENGTHS), q, k, v)
    for b, a in enumerate(PROMPT_OF):
        keys, values = (
            torch.cat((shared[1, a, :, : LENGTHS[a]], own[1, b, :, : PLACES[b]], new[b][:, None]), 1)
            for shared, own, new in (
                (cache.prompt_k_LAKPH, before[0], k),
                (cache.prompt_v_LAKPH, before[1], v),
            )
        )
        weights = torch.einsum("kgh,ksh->kgs", q[b].unflatten(0, (2, 3)) / 8**0.5, keys).softmax(-1)
        expected = torch.einsum("kgs,ksh->kgh", weights, values).flatten(0, 1)
        torch.testing.assert_close(out_BNH[b], expected, rtol=1e-12, atol=1e-12)
    for x, old, new in zip((cache.answer_k_LBKSH, cache.answer_v_LBKSH), before, (k, v), strict=True):
        for b, place in enumerate(PLACES):
            old[1, b, :, place] = new[b]
        assert torch.equal(x, old)  # the new keys and values are stored, and nothing else


def test_what_a_step_reads_follows_its_shape(cache: KVCache) -> None:
    small, large = Shape(2, 1, 2, 32, 32), Shape(4, 3, 2, 64, 48)
    for shape in (small, large, small):
        answers, _, prompts, _ = cache.views(shape)[1]
        assert answers.shape == (shape.slots, 2, shape.answer_span, 8)
        assert prompts.shape == (shape.rows, 2, shape.prompt_span, 8)
        assert prompts.data_ptr() == cache.prompt_k_LAKPH[1].data_ptr()
