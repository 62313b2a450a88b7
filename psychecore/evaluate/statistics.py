"""What a mean over items is worth: 95 % intervals (Wilson's of shares, else bootstrap), pass@k, majority votes.

Items are the sample, so intervals answer "what if the exam had held other questions of this kind?", not "what if the
model were asked again?". A resample draws as many items as there are, with replacement; where the figure is a mean of
means (subjects, columns), each stratum is drawn by itself, since the exam's plan is fixed and its questions are not.
Items that belong together (the questions on one case, the turns of a dialogue) are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
Span = tuple[float, float]
SHARE: Span = (0.0, 1.0)  # of an item that is right or wrong, or right in part
DIFFERENCE: Span = (-1.0, 1.0)  # of two shares
_CELLS = 4_000_000  # counts held at a time, 32 MB


class Estimate(NamedTuple):
    """A figure over n items with its 95 % interval [low, high]; where there is none, all that the figure can be."""

    n: int
    value: float
    low: float
    high: float


def estimate(values: Sequence[float], seed: int = 0, span: Span = SHARE) -> Estimate:
    """The mean of one value an item, see `weighted_estimate`. Raises ValueError for none."""
    return weighted_estimate({"": (1.0, values)}, seed, span)


def weighted_estimate(
    strata: Mapping[str, tuple[float, Sequence[float]]],
    seed: int = 0,
    span: Span = SHARE,
    clusters: Mapping[str, Sequence[str]] | None = None,
) -> Estimate:
    """The weighted sum of the strata's means, from (weight, one value an item) by stratum; no weight is negative.

    `span` is the least and the greatest value that an item can have. A mean of three columns has the weights 1/3; a
    difference of paired items is `estimate` of the differences, with the span DIFFERENCE. `clusters` has, by stratum,
    the name of what each of its items belongs to; where a stratum has none, its items stand alone. Clusters are drawn
    once for all strata that they have items in. The interval is

    - of shares whose values are all 0 or 1 Wilson's, since a bootstrap of ten right answers out of ten gives [1, 1], or
      that of `clustered_estimate`. Of several strata their own intervals joined by squares (Zou and Donner 2008, doi
      10.1002/sim.3095), whose special case for one stratum its own interval is;
    - of other values the percentile bootstrap's (Efron 1979, doi 10.1214/aos/1176344552) over RESAMPLES resamples;
    - where each stratum's values are all equal, or one stratum's clusters are, which a resample cannot tell from
      certainty, the whole span: what is known of the figure without any data, in short no interval.

    Raises ValueError where there is no stratum, or an empty one.

    >>> estimate([1.0] * 10)
    Estimate(n=10, value=1.0, low=0.7224672001371107, high=1.0)
    >>> weighted_estimate({"easy": (0.5, [0.7, 0.7]), "hard": (0.5, [0.3])})
    Estimate(n=3, value=0.5, low=0.0, high=1.0)
    """
    if empty := [name for name, (_, values) in strata.items() if not len(values)]:
        raise ValueError(f"there are no items in {', '.join(map(repr, empty))}, so there is no mean")
    if not strata:
        raise ValueError("there are no items, so there is no mean")
    parts = list(strata.values())
    n, total = sum(len(values) for _, values in parts), math.fsum(weight for weight, _ in parts)
    value = math.fsum(weight * math.fsum(values) / len(values) for weight, values in parts)
    whole = (total * span[0], total * span[1])
    named = {name: clusters[name] for name in strata if clusters and clusters.get(name)}
    grouped = {name: names for name, names in named.items() if len(set(names)) < len(strata[name][1])}
    if any(_says_nothing(strata[name][1], names) for name, names in grouped.items()):
        return _without_interval(n, value, whole)
    if span == SHARE and all(set(values) <= {0, 1} for _, values in parts):
        return Estimate(n, value, *_joined(strata, grouped, seed))
    if all(len(set(values)) == 1 for _, values in parts):
        return _without_interval(n, value, whole)
    generator = np.random.default_rng(seed)
    means_R = _resampled_together({name: strata[name] for name in grouped}, grouped, generator)
    for name, (weight, values) in strata.items():
        if name not in grouped:
            means_R += weight * resampled_means(values, RESAMPLES, generator)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(n, value, float(low), float(high))


def clustered_estimate(values: Sequence[float], clusters: Sequence[str], seed: int = 0, span: Span = SHARE) -> Estimate:
    """The mean over all values where those of one cluster (the turns of a dialogue) are alike: clusters are resampled.

    See `weighted_estimate`. Raises ValueError for no values, or another number of cluster names.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values in {len(clusters)} clusters: needs one cluster a value, and a value")
    return weighted_estimate({"": (1.0, values)}, seed, span, {"": clusters})


def _says_nothing(values: Sequence[float], clusters: Sequence[str]) -> bool:
    """Whether nothing is seen of how clusters differ: there is one, or values differ and the clusters' means don't."""
    sums, counts = _by_cluster(values, clusters, sorted(set(clusters)))
    return len(sums) == 1 or (len(set(values)) > 1 and bool(np.ptp(sums / counts) < 1e-12))


def _by_cluster(
    values: Sequence[float], clusters: Sequence[str], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the values and their number by cluster, in the order of `names`; 0 of those that have none here."""
    at = {name: number for number, name in enumerate(names)}
    place = [at[name] for name in clusters]
    sums = np.bincount(place, weights=np.asarray(values, dtype=np.float64), minlength=len(names))
    return sums, np.bincount(place, minlength=len(names))


def _resampled_together(
    strata: Mapping[str, tuple[float, Sequence[float]]],
    clusters: Mapping[str, Sequence[str]],
    generator: np.random.Generator,
) -> np.ndarray:
    """Weighted sums of the strata's means over draws of clusters, which may be in several; [RESAMPLES], fp64."""
    names = sorted({name for stratum in strata for name in clusters[stratum]})
    means = np.zeros(RESAMPLES)
    step = max(1, _CELLS // max(len(names), 1))
    for start in range(0, RESAMPLES if strata else 0, step):
        size = min(step, RESAMPLES - start)
        drawn_RC = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        for stratum, (weight, values) in strata.items():
            sums, counts = _by_cluster(values, clusters[stratum], names)
            drawn_R = drawn_RC @ counts
            mean_R = (drawn_RC @ sums) / np.maximum(drawn_R, 1)
            means[start : start + size] += weight * np.where(drawn_R > 0, mean_R, math.fsum(values) / len(values))
    return means


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927): where |p - successes / n| <= z sqrt(p (1 - p) / n).

    It holds near 0 and 1, where the usual interval has no width. Raises ValueError unless 0 <= successes <= n >= 1.

    >>> [round(bound, 4) for bound in wilson_interval(81, 263)]
    [0.2553, 0.3662]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: needs n of at least 1, and successes from 0 to n")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    return low, 1.0 if successes == n else min(centre + half, 1.0)


def _without_interval(n: int, value: float, span: Span) -> Estimate:
    if not span[0] - 1e-9 <= value <= span[1] + 1e-9:
        raise ValueError(f"the mean {value} is not from {span[0]} to {span[1]}: give `span`, the values that can be")
    return Estimate(n, value, *span)


def _joined(
    strata: Mapping[str, tuple[float, Sequence[float]]], grouped: Mapping[str, Sequence[str]], seed: int
) -> tuple[float, float]:
    """value -/+ the root of the summed squares of each share's weighted distance to its own bound.

    Strata in clusters whose values differ are one part, since a cluster may have items in several of them.
    """
    below, above, value = 0.0, 0.0, 0.0
    drawn = {name: strata[name] for name in grouped if len(set(strata[name][1])) > 1}
    if drawn:
        means_R = _resampled_together(drawn, grouped, np.random.default_rng(seed))
        value = math.fsum(weight * math.fsum(values) / len(values) for weight, values in drawn.values())
        low, high = np.quantile(means_R, [0.025, 0.975])
        below, above = float(value - low) ** 2, float(high - value) ** 2
    for name, (weight, values) in strata.items():
        if name not in drawn:
            right, n = round(math.fsum(values)), len(values)
            if name in grouped:  # all equal: one value a cluster
                right, n = len(set(grouped[name])) * round(values[0]), len(set(grouped[name]))
            low, high = wilson_interval(right, n)
            value += weight * right / n
            below += (weight * (right / n - low)) ** 2
            above += (weight * (high - right / n)) ** 2
    return value - math.sqrt(below), value + math.sqrt(above)


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
