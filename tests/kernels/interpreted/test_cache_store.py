"""The Triton cache_store and its reference, interpreted, against one assignment for each token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from psychecore.kernels.cache_store import cache_store, cache_store_reference

HEADS, SPAN, WIDTH, SLOTS = 3, 11, 10, 5


@pytest.fixture(params=[cache_store, cache_store_reference])
def store(request: pytest.FixtureRequest) -> Callable[..., None]:
    function: Callable[..., None] = request.param
    return function


def caches(layers: int = 2) -> tuple[Tensor, Tensor]:
    """As KVCache holds them: all layers in one tensor, of which a step takes one."""
    shape = (layers, SLOTS, HEADS, SPAN, WIDTH)
    return torch.arange(layers * SLOTS * HEADS * SPAN * WIDTH).view(shape).float(), torch.zeros(shape)


def one_by_one(cache_BKSH: Tensor, new_TKH: Tensor, slots: list[int], places: list[int]) -> Tensor:
    expected = cache_BKSH.clone()
    for new_KH, slot, place in zip(new_TKH, slots, places, strict=True):
        if slot >= 0:
            expected[slot, :, place] = new_KH
    return expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("slots", "places"),
    [
        ([4], [0]),
        ([3, -1, 0, 3], [10, 5, 0, 9]),
        ([-1, -1], [0, 1]),
        ([2, -1, 4, 0, 1, 3, -1], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_each_token_goes_to_its_slot_and_place_and_minus_one_nowhere(
    slots: list[int], places: list[int], dtype: torch.dtype, store: Callable[..., None]
) -> None:
    qkv_THH = torch.randn(len(slots), 4 * HEADS, WIDTH).to(dtype)
    k_TKH, v_TKH = qkv_THH[:, HEADS : 2 * HEADS], qkv_THH[:, 2 * HEADS : 3 * HEADS]  # views, as values are
    k_cache, v_cache = (cache.to(dtype) for cache in caches())
    expected = [one_by_one(cache[1], new, slots, places) for cache, new in ((k_cache, k_TKH), (v_cache, v_TKH))]
    first = k_cache[0].clone()
    store(k_TKH, v_TKH, k_cache[1], v_cache[1], torch.tensor(slots), torch.tensor(places))
    assert torch.equal(k_cache[1], expected[0])
    assert torch.equal(v_cache[1], expected[1])
    assert torch.equal(k_cache[0], first)


def test_without_slots_token_t_goes_to_slot_t(store: Callable[..., None]) -> None:
    k_TKH, v_TKH = torch.randn(2, SLOTS - 1, HEADS, WIDTH)
    k_cache, v_cache = (cache[0] for cache in caches())
    places = [3, 0, 10, 7]
    expected = [one_by_one(c, new, [0, 1, 2, 3], places) for c, new in ((k_cache, k_TKH), (v_cache, v_TKH))]
    store(k_TKH, v_TKH, k_cache, v_cache, None, torch.tensor(places))
    assert torch.equal(k_cache, expected[0])
    assert torch.equal(v_cache, expected[1])


def test_keys_with_gaps_are_taken() -> None:
    k_TKH = torch.randn(2, HEADS, 2 * WIDTH)[..., ::2]
    k_cache, v_cache = (cache[0] for cache in caches())
    cache_store(k_TKH, k_TKH, k_cache, v_cache, torch.tensor([1, 0]), torch.tensor([2, 2]))
    assert torch.equal(v_cache[:2, :, 2], k_TKH.flip(0))


def test_no_tokens_store_nothing(store: Callable[..., None]) -> None:
    k_cache, v_cache = (cache[0] for cache in caches())
    none, nowhere = torch.zeros(0, HEADS, WIDTH), torch.zeros(0, dtype=torch.int64)
    store(none, none, k_cache, v_cache, nowhere, nowhere)
    assert torch.equal(k_cache, caches()[0][0])


def test_caches_of_another_layout_are_refused() -> None:
    k_cache, v_cache = (cache[0] for cache in caches())
    new, where = torch.zeros(1, HEADS, WIDTH), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"v is \[1, 3, 10\].*\[5, 11, 3, 10\]"):
        cache_store(new, new, k_cache, v_cache.transpose(1, 2), where, where)
    with pytest.raises(ValueError, match="strides"):
        cache_store(new, new, k_cache, torch.zeros(SLOTS, SPAN, HEADS, WIDTH).transpose(1, 2), where, where)
