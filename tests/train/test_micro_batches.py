"""How a mini-batch of groups is spread over ranks and micro-batches, without processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import psychecore as pc
from psychecore.runtime import Runtime
from psychecore.train.grpo import GrpoConfig, MicroBatch, build_micro_batches
from psychecore.train.losses import LossConfig

LENGTHS = st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3), max_size=9)


def make_groups(lengths: list[list[int]]) -> list[pc.Group]:
    """Sample g of prompt p repeats the token 100 + 10 p + g; of each group's samples the longest is truncated."""
    return [
        pc.Group(
            [*range(20 + p)],
            [
                pc.Rollout([100 + 10 * p + g] * n, [-1.0] * n, "", "length" if n == max(samples) else "stop")
                for g, n in enumerate(samples)
            ],
        )
        for p, samples in enumerate(lengths)
    ]


def all_ranks(groups: list[pc.Group], config: GrpoConfig, world_size: int) -> list[list[MicroBatch]]:
    advantages_PG = torch.arange(float(sum(len(g.rollouts) for g in groups))).view(len(groups), -1 if groups else 0)
    places = [Runtime(rank, world_size, torch.device("cpu")) for rank in range(world_size)]
    return [build_micro_batches(groups, advantages_PG, config, place) for place in places]


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(30, 400), world_size=st.integers(1, 5), mask=st.booleans())
def test_ranks_train_each_sample_once_in_as_many_micro_batches(
    lengths: list[list[int]], budget: int, world_size: int, mask: bool
) -> None:
    groups = make_groups(lengths)
    ranks = all_ranks(groups, GrpoConfig(9, 3, token_budget=budget, loss=LossConfig(mask_overlong=mask)), world_size)
    assert len({len(micros) for micros in ranks}) == 1
    assert len(ranks[0]) >= 1
    rows: Counter[tuple[int, float]] = Counter()
    for micro in (micro for micros in ranks for micro in micros):
        rows.update(zip(micro.batch.labels_R.tolist(), micro.advantages_R.tolist(), strict=True))
    expected: Counter[tuple[int, float]] = Counter()
    for p, group in enumerate(groups):
        for g, rollout in enumerate(group.rollouts):
            if not (mask and rollout.finish_reason == "length"):
                expected[rollout.token_ids[0], 3.0 * p + g] += len(rollout.token_ids)
    assert rows == expected
    weights = sum(float(micro.weights_R.double().sum()) for micros in ranks for micro in micros)
    assert weights == pytest.approx(1.0 if expected else 0.0, abs=1e-5)  # fp32 weights


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=20), world_size=st.integers(1, 5))
def test_the_first_micro_batch_of_every_rank_is_its_fullest(lengths: list[int], world_size: int) -> None:
    groups = [pc.Group([p, 99], [pc.Rollout([98] * n, [-1.0] * n, "", "stop")]) for p, n in enumerate(lengths)]
    ranks = all_ranks(groups, GrpoConfig(20, 3, token_budget=120), world_size)
    for micros in ranks:
        tokens = [micro.batch.tokens for micro in micros]
        assert tokens == sorted(tokens, reverse=True)
        assert max(tokens) <= 120


def test_a_rank_with_long_samples_hands_work_to_the_others() -> None:
    groups = make_groups([[400, 380, 390] if p % 2 == 0 else [10, 12, 11] for p in range(8)])
    ranks = all_ranks(groups, GrpoConfig(8, 3, token_budget=2000), world_size=2)
    tokens = [sum(micro.batch.tokens for micro in micros) for micros in ranks]
    assert max(tokens) < 1.02 * min(tokens)  # in their sampling shares one has 35 times as many


def test_a_single_group_is_split_so_that_all_ranks_have_work() -> None:
    ranks = all_ranks(make_groups([[100, 101, 102]]), GrpoConfig(1, 3, 1, token_budget=10_000), world_size=3)
    assert [[len(micro.batch.labels_R) for micro in micros] for micros in ranks] == [[102], [101], [100]]
