"""Intervals against the exact bootstrap distribution and a loop, pass@k by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest

from psychecore.evaluate import statistics
from psychecore.evaluate.statistics import (
    DIFFERENCE,
    clustered_estimate,
    estimate,
    majority,
    pass_at_k,
    resampled_means,
    weighted_estimate,
    wilson_interval,
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


def test_the_questions_of_a_case_are_drawn_together_in_every_stratum() -> None:
    random = np.random.default_rng(5)
    values = {"case": list(random.random(12)), "other": list(random.random(7))}
    cases = [f"case {n // 4}" for n in range(12)]
    loop = []
    for _ in range(4000):
        drawn = [values["case"][4 * n + at] for n in random.integers(0, 3, 3) for at in range(4)]
        loop.append(0.5 * np.mean(drawn) + 0.5 * random.choice(values["other"], 7).mean())
    strata = {name: (0.5, row) for name, row in values.items()}
    found = weighted_estimate(strata, seed=1, clusters={"case": cases})
    assert [found.low, found.high] == pytest.approx(np.quantile(loop, [0.025, 0.975]).tolist(), abs=0.02)
    apart = weighted_estimate(strata, seed=1, clusters={"case": [str(n) for n in range(12)]})
    assert apart == weighted_estimate(strata, seed=1)


def test_a_case_with_questions_in_two_columns_is_drawn_once() -> None:
    random, covered = np.random.default_rng(0), 0
    single, multiple = ([str(n // k) for n in range(60 * k)] for k in (6, 5))
    for _ in range(250):
        p = random.beta(2.4, 1.6, (60, 1))  # a correlation of 0.2 in a case
        strata = {
            name: (0.5, (random.random((60, k)) < p).astype(float).ravel().tolist()) for name, k in (("s", 6), ("m", 5))
        }
        found = weighted_estimate(strata, clusters={"s": single, "m": multiple})
        covered += found.low <= 0.6 <= found.high
    assert covered / 250 > 0.92  # drawn by column 0.88


def test_clusters_of_one_mean_say_nothing_of_clusters() -> None:
    assert weighted_estimate({"": (1.0, [1.0, 0, 1, 0])}, clusters={"": list("aabb")}) == (4, 0.5, 0.0, 1.0)
    alike = [0.0, 0.0, 1.0, -1.0, 0.0, 0.0]
    assert clustered_estimate(alike, list("aabbcc"), span=DIFFERENCE) == (6, 0.0, -1.0, 1.0)
    found = weighted_estimate({"all": (0.5, [1.0] * 4), "some": (0.5, [1.0, 0.0])}, clusters={"all": list("aabb")})
    (low, _), (some_low, some_high) = wilson_interval(2, 2), wilson_interval(1, 2)
    assert found.low == pytest.approx(0.75 - np.hypot(0.5 * (1 - low), 0.5 * (0.5 - some_low)))
    assert found.high == pytest.approx(0.75 + 0.5 * (some_high - 0.5))


@pytest.mark.parametrize("alike", [0.05, 0.2])
def test_the_interval_of_shares_covers_though_the_questions_of_a_case_are_alike(alike: float) -> None:
    random, cases, covered, wilson = np.random.default_rng(0), [str(n // 11) for n in range(69 * 11)], 0, 0
    a, b = 0.6 * (1 - alike) / alike, 0.4 * (1 - alike) / alike  # a beta-binomial with this correlation in a case
    for _ in range(300):
        values = (random.random((69, 11)) < random.beta(a, b, (69, 1))).astype(float).ravel().tolist()
        found, alone = (weighted_estimate({"": (1.0, values)}, clusters=c) for c in ({"": cases}, {}))
        covered += found.low <= 0.6 <= found.high
        wilson += alone.low <= 0.6 <= alone.high
    assert covered / 300 > 0.91
    assert wilson < covered - 0.02 * 300


def test_a_share_has_wilsons_interval() -> None:
    for right, n in ((0, 10), (10, 10), (3, 7), (81, 263)):
        found = estimate([1.0] * right + [0.0] * (n - right))
        assert (found.n, found.value) == (n, pytest.approx(right / n))
        assert (found.low, found.high) == pytest.approx(wilson_interval(right, n))


@pytest.mark.parametrize(("shares", "n"), [([0.97], 8), ([0.97, 0.9, 1.0], 8), ([0.5, 0.99, 0.02, 0.8], 15)])
def test_intervals_of_shares_cover_what_they_claim(shares: list[float], n: int) -> None:
    random, weight, covered = np.random.default_rng(0), 1 / len(shares), 0
    for _ in range(2000):
        strata = {str(p): (weight, list((random.random(n) < p).astype(float))) for p in shares}
        found = weighted_estimate(strata)
        covered += found.low <= np.mean(shares) <= found.high
    assert covered / 2000 > 0.91  # a bootstrap's 95 % cover 0.22, 0.64 and 0.94 here, these 0.98, 0.93 and 0.98


def test_values_that_are_all_equal_have_no_interval_but_all_that_can_be() -> None:
    assert estimate([0.5, 0.5]) == (2, 0.5, 0.0, 1.0)
    assert estimate([0.0] * 9, span=DIFFERENCE) == (9, 0.0, -1.0, 1.0)
    assert estimate([1.0] * 9, span=DIFFERENCE) == (9, 1.0, -1.0, 1.0)
    assert weighted_estimate({"a": (0.5, [40.0]), "b": (0.5, [0.0] * 3)}, span=(0, 100)) == (4, 20.0, 0.0, 100.0)
    with pytest.raises(ValueError, match=r"the mean 3\.0 is not from 0\.0 to 1\.0: give `span`"):
        estimate([3.0, 3.0])


def test_a_difference_of_no_losses_is_still_resampled() -> None:
    found = estimate([0.0] * 9 + [1.0], span=DIFFERENCE)
    assert found.low == 0.0
    assert 0.2 <= found.high <= 0.4


def test_one_dialogue_has_no_interval_and_equal_dialogues_are_one_value_each() -> None:
    assert clustered_estimate([1.0, 4.0], ["a", "a"], span=(1, 5)) == (2, 2.5, 1, 5)
    assert clustered_estimate([1.0, 1.0], ["a", "a"]) == (2, 1.0, 0.0, 1.0)
    assert clustered_estimate([4.0] * 3, ["a", "a", "b"], span=(1, 5)) == (3, 4.0, 1, 5)
    found = clustered_estimate([1.0] * 4, ["a", "a", "b", "c"])
    assert (found.n, found.low, found.high) == (4, pytest.approx(wilson_interval(3, 3)[0]), 1.0)


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
