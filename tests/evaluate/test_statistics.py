"""Intervals against the exact bootstrap distribution and a loop, pass@k by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest

from psychecore.evaluate import statistics
from psychecore.evaluate.statistics import (
    clustered_estimate,
    estimate,
    majority,
    pass_at_k,
    resampled_means,
    weighted_estimate,
)


def test_resampled_means_have_the_exact_bootstrap_distribution() -> None:
    values = [0.0, 0.5, 0.5, 1.0, 4.0]
    every = [sum(drawn) / 5 for drawn in product(values, repeat=5)]  # 3,125 resamples, all equally likely
    means = resampled_means(values, 100_000, np.random.default_rng(0))
    for share in (0.01, 0.025, 0.2, 0.5, 0.8, 0.975, 0.99):
        assert np.mean(means <= np.quantile(every, share) + 1e-9) == pytest.approx(
            np.mean(np.array(every) <= np.quantile(every, share) + 1e-9), abs=0.006
        )


def test_the_interval_is_that_of_a_loop_over_resamples() -> None:
    random = np.random.default_rng(3)
    strata = {"a": (0.25, random.random(40).round(1)), "b": (0.75, random.integers(0, 2, 25).astype(float))}
    loop = []
    for _ in range(3000):
        drawn = [weight * random.choice(values, len(values)).mean() for weight, values in strata.values()]
        loop.append(sum(drawn))
    found = weighted_estimate({name: (weight, list(values)) for name, (weight, values) in strata.items()}, seed=1)
    assert (found.n, found.value) == (65, pytest.approx(0.25 * strata["a"][1].mean() + 0.75 * strata["b"][1].mean()))
    assert [found.low, found.high] == pytest.approx(np.quantile(loop, [0.025, 0.975]).tolist(), abs=0.015)


def test_an_interval_is_the_same_each_time_and_moves_with_the_seed() -> None:
    values = [0.0, 0.1, 0.7, 1.0, 0.35] * 4
    assert estimate(values, 5) == estimate(values, 5)
    assert estimate(values, 5) != estimate(values, 6)


def test_small_chunks_change_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.linspace(0, 1, 50))
    whole = estimate(values)
    monkeypatch.setattr(statistics, "_CELLS", 500)
    parts = estimate(values)
    assert parts == pytest.approx(whole)


def test_turns_of_one_dialogue_are_drawn_together() -> None:
    values, clusters = [0.0] * 6 + [1.0] * 2 + [0.5], ["a"] * 6 + ["b"] * 2 + ["c"]
    groups = [(0.0, 6), (2.0, 2), (0.5, 1)]
    every = [sum(s for s, _ in drawn) / sum(n for _, n in drawn) for drawn in product(groups, repeat=3)]
    found = clustered_estimate(values, clusters)
    assert found.value == pytest.approx(2.5 / 9)
    exact = np.quantile(every, [0.025, 0.975], method="inverted_cdf")  # few outcomes: no values between them
    assert [found.low, found.high] == pytest.approx(exact.tolist())


@pytest.mark.parametrize(("samples", "right"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 4), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(samples: int, right: int) -> None:
    outcomes = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        draws = list(combinations(outcomes, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(
    ("votes", "winner"),
    [(["A", "B", "B"], "B"), (["B", "A", "A", "B"], "B"), ([None, None, "C"], "C"), ([None], None), ([], None)],
)
def test_the_majority_ignores_what_is_unreadable_and_breaks_ties_by_order(
    votes: Sequence[str | None], winner: str | None
) -> None:
    assert majority(votes) == winner


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no items in 'b'"):
        weighted_estimate({"a": (0.5, [1.0]), "b": (0.5, [])})
    with pytest.raises(ValueError, match="no items"):
        weighted_estimate({})
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="clusters"):
        clustered_estimate([], [])
