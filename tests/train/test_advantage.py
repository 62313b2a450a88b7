"""Group advantages against statistics of plain Python."""

import statistics

import pytest
import torch

from psychecore.train.advantage import group_advantages, informative_groups

REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.2, 1.2, 0.2, 0.0], [1.0, 1.0, 1.0, 1.0]]


def test_mean_std_uses_the_unbiased_deviation():
    result = group_advantages(torch.tensor(REWARDS))
    for row, rewards in zip(result[:2].tolist(), REWARDS, strict=False):
        mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
        assert row == pytest.approx([(r - mean) / (deviation + 1e-6) for r in rewards], abs=1e-6)


def test_mean_only_subtracts():
    for row, rewards in zip(group_advantages(torch.tensor(REWARDS), "mean").tolist(), REWARDS, strict=True):
        assert row == pytest.approx([r - statistics.mean(rewards) for r in rewards], abs=1e-6)


def test_leave_one_out_compares_with_the_others():
    for row, rewards in zip(group_advantages(torch.tensor(REWARDS), "leave_one_out").tolist(), REWARDS, strict=True):
        others = [statistics.mean(rewards[:g] + rewards[g + 1 :]) for g in range(4)]
        assert row == pytest.approx([r - o for r, o in zip(rewards, others, strict=True)], abs=1e-6)


@pytest.mark.parametrize("kind", ["mean_std", "mean", "leave_one_out"])
def test_equal_rewards_give_exact_zeros_and_count_as_uninformative(kind):
    rewards = torch.full((1, 7), 0.1)  # 0.1 is not exact in binary: a mean may differ from it by rounding
    assert not group_advantages(rewards, kind).any()
    assert informative_groups(torch.tensor(REWARDS)).tolist() == [True, True, False]


def test_bad_rewards_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        group_advantages(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        group_advantages(torch.ones(3, 1))
    with pytest.raises(ValueError, match="'median'"):
        group_advantages(torch.ones(1, 2), "median")


def test_no_groups_give_no_advantages():
    assert group_advantages(torch.zeros(0, 4)).shape == (0, 4)
