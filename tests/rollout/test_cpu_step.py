"""The step on CPU against the model's own layers, for every kind of layer, any number of slots, and updated weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import psychecore as pc
from psychecore.model.decoder import Decoder
from psychecore.rollout import decode
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
    for name in ("prompt_k_LAKPH", "prompt_v_LAKPH", "answer_L2BKSH"):
        past = torch.randn(getattr(made[0], name).shape, generator=generator)
        for cache in made:
            getattr(cache, name).copy_(past)
    return made


@torch.no_grad()
@pytest.mark.usefixtures("products_of_16_bits")
@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("slots", [1, 2, 7, 70])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.06)]
)
def test_a_step_gives_what_the_models_own_layers_give(
    tiny_model: Callable[..., pc.Decoder], changes: dict[str, Any], slots: int, dtype: torch.dtype, tolerance: float
) -> None:
    model, seats = tiny_model(dtype, **changes), -(-slots // 2)
    drawn = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if name.endswith("norm") and hasattr(module, "weight"):
            module.weight.uniform_(0.5, 1.5, generator=drawn)
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
        stored, right = (cache.answer_L2BKSH[:, :, :slots][:, :, used] for cache in (ours, theirs))
        assert (stored - right).norm() < tolerance * right.norm()
        assert torch.equal(ours.answer_L2BKSH[:, :, slots:], theirs.answer_L2BKSH[:, :, slots:])
        place, token = place + 1, (token + 1) % 61
        for parameter in model.parameters():
            parameter.add_(0.01)


@torch.no_grad()
@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("prompt_span", [64, 32])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.06)]
)
def test_one_sample_of_one_prompt_reads_both_as_one_or_apart_where_a_shorter_prompt_leaves_a_gap(
    tiny_model: Callable[..., pc.Decoder],
    changes: dict[str, Any],
    prompt_span: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model, shape = tiny_model(dtype, **changes), Shape(1, 1, 1, prompt_span, 48)
    ours, theirs = (KVCache(model.config, 1, 64, 1, 64, dtype, model.device) for _ in range(2))
    assert ours.both_L2BKSH is not None
    assert theirs.both_L2BKSH is not None
    ours.both_L2BKSH.copy_(torch.randn(ours.both_L2BKSH.shape, generator=torch.Generator().manual_seed(1)))
    theirs.both_L2BKSH.copy_(ours.both_L2BKSH)
    step = CpuStep(model, ours, shape)
    assert len(step.together) == (model.config.layers if prompt_span == 64 else 0)
    token, place, seat, length = (torch.tensor([value]) for value in (7, 40, 0, 29))
    for _ in range(2):
        got = step(token, length + place, place, seat, length)
        expected = model(token, length + place, DecodeAttention(theirs, shape, place, seat, length))
        assert (got - expected).norm() < tolerance * expected.norm()
        assert (ours.both_L2BKSH - theirs.both_L2BKSH).norm() < tolerance * theirs.both_L2BKSH.norm()
        unwritten = [*range(64 + 40), *range(64 + int(place) + 1, 128)]  # all but the answer's new places
        assert torch.equal(ours.both_L2BKSH[:, :, :, :, unwritten], theirs.both_L2BKSH[:, :, :, :, unwritten])
        place, token = place + 1, (token + 1) % 61


SHARDED = """
import torch, torch.distributed as dist
import psychecore as pc
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.rollout.engine import Engine, Sample
from psychecore.train.sharding import ShardingConfig, gathered, make_mesh, sharder

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
PARAMS, PROMPTS = pc.SamplingParams(max_new_tokens=12, ignore_stop=True, seed=1), [[1, 2, 3], [4, 5, 6, 7]]

def make(shard):
    model = Decoder(ModelConfig("llama", 61, 24, 2, 3, 1, 8, 40)).initialise(0, std=0.3)
    if shard:
        sharder(make_mesh(ShardingConfig(), 1, torch.device("cpu")), torch.float32)(model)
    waiting = [Sample(p, g, 3 * p + g, 12) for p in range(2) for g in range(3)]
    engine = Engine(model, PROMPTS, waiting, PARAMS, 4, 2, [0], [True] * 61)
    return model, engine.run(), engine

def said(entries):
    return sorted((s.sample.prompt, s.sample.number, s.token_ids) for s in entries)

with torch.no_grad():
    expected = said(make(False)[1])
    _, run, engine = make(True)
    assert said(run) == expected, "sharded"
    assert engine.cache.cpu_step is None
    model, run, engine = make(True)
    with gathered(model):
        first = [next(run) for _ in range(2)]
        assert engine.cache.cpu_step is not None
    with gathered(model):  # elsewhere in memory, perhaps
        first += [next(run)]
    model.logits(torch.tensor([[1, 2, 3]]))  # the root stays gathered, the layers' storage is freed
    assert said(first + list(run)) == expected, "gathered, then sharded"
print("as one whole model")
"""


def test_a_sharded_model_runs_its_own_layers_and_freed_weights_are_not_read() -> None:
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "as one whole model"


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("slots", [1, 3, 20])
@pytest.mark.parametrize("how", ["in place", "data", "data of down", "data of a bias", "assign"])
def test_weights_that_are_replaced_between_steps_are_used_whole(
    tiny_model: Callable[..., pc.Decoder], how: str, slots: int, dtype: torch.dtype, tolerance: float
) -> None:
    biased = {"out_bias": True, "mlp_bias": True}
    model, other = tiny_model(dtype, **biased), tiny_model(dtype, seed=3, **biased)
    for parameter in other.parameters():
        parameter.add_(0.1)  # norms too
    shape = Shape(slots, 2, -(-slots // 2), 32, 48)
    at = [torch.arange(slots) + first for first in (5, 30, 3, 0)] + [torch.tensor([29, 5])]
    ours, theirs = caches(model, slots, 2)
    step = decode._cpu_step(model, ours, shape)
    assert step is not None
    before = step(*at).clone()
    one = {"data of down": "layers.1.down.weight", "data of a bias": "layers.1.gate_up.bias"}.get(how)
    if how == "in place":
        model.load_state_dict(other.state_dict())
    elif how == "assign":
        model.load_state_dict(other.state_dict(), assign=True)
    else:
        for name, parameter in model.named_parameters():
            if one in (None, name):
                parameter.data = other.get_parameter(name).data
    assert decode._cpu_step(model, ours, shape) is not None
    got = decode._cpu_step(model, ours, shape)(*at)
    oracle = other if one is None else model
    expected = oracle(at[0], at[1], DecodeAttention(theirs, shape, *at[2:]))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert (got - before).norm() > 10 * tolerance * before.norm()
