"""The step on CPU against the model's own layers, for every kind of layer, any number of slots, and updated weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import psychecore as pc
from psychecore.model.decoder import Decoder
from psychecore.rollout.cpu_step import CpuStep
from psychecore.rollout.kv_cache import DecodeAttention, KVCache, Shape

KINDS: list[dict[str, Any]] = [
    {},  # biased query, key and value
    {"qkv_bias": False},
    {"query_heads": 6, "key_value_heads": 2, "qk_norm": True, "qkv_bias": False},
    {"query_heads": 4, "key_value_heads": 4, "out_bias": True, "mlp_bias": True},
]


def caches(model: Decoder, slots: int, rows: int) -> list[KVCache]:
    """Two caches with the same past."""
    made = [KVCache(model.config, rows + 1, 32, slots + 2, 64, model.dtype, model.device) for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    for name in ("prompt_k_LAKPH", "prompt_v_LAKPH", "answer_LCBKSH"):
        past = torch.randn(getattr(made[0], name).shape, generator=generator)
        for cache in made:
            getattr(cache, name).copy_(past)
    return made


@torch.no_grad()
@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("slots", [1, 2, 7, 70])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.06)]
)
def test_a_step_gives_what_the_models_own_layers_give(
    tiny_model: Callable[..., pc.Decoder], changes: dict[str, Any], slots: int, dtype: torch.dtype, tolerance: float
) -> None:
    model, seats = tiny_model(dtype, **changes), -(-slots // 2)
    for norm in (
        module for name, module in model.named_modules() if name.endswith("norm") and hasattr(module, "weight")
    ):
        norm.weight.uniform_(0.5, 1.5)
    shape = Shape(slots, 2, seats, 32, 48)
    generator = torch.Generator().manual_seed(2)
    token, place = (torch.randint(0, high, (slots,), generator=generator) for high in (61, 47))
    seat, length = torch.randperm(2 * seats, generator=generator)[:slots], torch.tensor([29, 5])
    seat[-1] = 2 * seats if slots > 1 else 0  # a slot that is not in use
    ours, theirs = caches(model, slots, 2)
    step = CpuStep(model, ours, shape)
    for _ in range(2):  # a second step, with new weights: the buffers of the first leave nothing behind
        got = step(token, length[0] + place, place, seat, length)
        expected = model(token, length[0] + place, DecodeAttention(theirs, shape, place, seat, length))
        used = seat < 2 * seats
        assert (got - expected)[used].norm() < tolerance * expected[used].norm()
        stored, right = (cache.answer_LCBKSH[:, :, :slots][:, :, used] for cache in (ours, theirs))
        assert (stored - right).norm() < tolerance * right.norm()
        assert torch.equal(ours.answer_LCBKSH[:, :, slots:], theirs.answer_LCBKSH[:, :, slots:])
        place, token = place + 1, (token + 1) % 61
        for parameter in model.parameters():
            parameter.add_(0.01)
