"""What a mean over items is worth: bootstrap intervals, pass@k, majority votes.

Items are the sample, so intervals answer "what if the exam had held other questions of this kind?", not "what if the
model were asked again?". A resample draws as many items as there are, with replacement; where the figure is a mean of
means (subjects, columns), each stratum is drawn by itself, since the exam's plan is fixed and its questions are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
_CELLS = 4_000_000  # counts held at a time, 32 MB


class Estimate(NamedTuple):
    """A figure over n items with its 95 % interval [low, high]."""

    n: int
    value: float
    low: float
    high: float


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one value an item. Raises ValueError for none."""
    return weighted_estimate({"": (1.0, values)}, seed)


def weighted_estimate(strata: Mapping[str, tuple[float, Sequence[float]]], seed: int = 0) -> Estimate:
    """The weighted sum of the strata's means, from (weight, one value an item) by stratum.

    A mean of three columns has the weights 1/3; a difference of paired items is `estimate` of the differences. The
    interval is the percentile bootstrap's (Efron 1979, doi 10.1214/aos/1176344552) over RESAMPLES resamples. Raises
    ValueError where there is no stratum, or an empty one.

    >>> weighted_estimate({"easy": (0.5, [1.0, 1.0]), "hard": (0.5, [0.0, 0.0])})
    Estimate(n=4, value=0.5, low=0.5, high=0.5)
    """
    if empty := [name for name, (_, values) in strata.items() if not len(values)]:
        raise ValueError(f"there are no items in {', '.join(map(repr, empty))}, so there is no mean")
    if not strata:
        raise ValueError("there are no items, so there is no mean")
    generator = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    value, n = 0.0, 0
    for weight, values in strata.values():
        total += weight * resampled_means(values, RESAMPLES, generator)
        value += weight * math.fsum(values) / len(values)
        n += len(values)
    low, high = np.quantile(total, [0.025, 0.975])
    return Estimate(n, value, float(low), float(high))


def clustered_estimate(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Estimate:
    """The mean over all values where those of one cluster (the turns of a dialogue) are alike: clusters are resampled.

    Raises ValueError for no values, or another number of cluster names.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} clusters: needs one cluster a value, and a value")
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(place, weights=np.asarray(values, dtype=np.float64)), np.bincount(place)
    drawn_RC = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    low, high = np.quantile((drawn_RC @ sums) / (drawn_RC @ counts), [0.025, 0.975])
    return Estimate(len(values), math.fsum(values) / len(values), float(low), float(high))


def resampled_means(values: Sequence[float], resamples: int, generator: np.random.Generator) -> np.ndarray:
    """The means of `resamples` draws of n values out of these n, with replacement; [resamples], fp64.

    How often each *distinct* value is drawn is multinomial, and a mean depends on nothing else: 4,000 answers that are
    right or wrong cost two numbers a resample, not 4,000.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    means = np.empty(resamples)
    step = max(1, _CELLS // len(distinct))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_RV = generator.multinomial(n, counts / n, size=size)
        means[start : start + size] = drawn_RV @ distinct / n
    return means


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that k samples, drawn without replacement from these, hold a right one (arXiv 2107.03374, eq. 1).

    1 - C(samples - right, k) / C(samples, k): unbiased, where "1 - (1 - right/samples)^k" is not. Raises ValueError
    unless 1 <= k <= samples and 0 <= right <= samples.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(
            f"pass@{k} of {samples} samples, {right} right: needs 1 <= k <= samples, 0 <= right <= samples"
        )
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(votes: Sequence[str | None]) -> str | None:
    """The answer given most often; None (not readable) has no vote, and of equals the first given wins."""
    counts: dict[str, int] = {}
    for vote in votes:
        if vote is not None:
            counts[vote] = counts.get(vote, 0) + 1
    return max(counts, key=lambda vote: counts[vote], default=None)
