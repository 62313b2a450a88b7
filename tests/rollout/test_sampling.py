"""Draws against exact distributions: which tokens, how often, and the log-prob that is written down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from psychecore.rollout.sampling import SamplingParams, sample, stream_key, uniform

LOGITS = [2.0, 1.1, 0.3, 0.3, -0.4, -1.0, -1.7, -2.5, -float("inf")]
DRAWS = 40_000
CHI_SQUARE_99_9 = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}  # by degrees of freedom


def exact(params: SamplingParams) -> np.ndarray:
    """The distribution by its definition, in float64 and plain Python."""
    z = [value / params.temperature for value in LOGITS]
    keep = set(range(len(z)))
    if params.top_k:
        kth = sorted(z, reverse=True)[: params.top_k][-1]
        keep = {i for i in keep if z[i] >= kth}

    def probabilities(kept: set[int]) -> list[float]:
        weights = [math.exp(value) if i in kept else 0.0 for i, value in enumerate(z)]
        return [w / sum(weights) for w in weights]

    if params.top_p < 1:
        p, mass, nucleus = probabilities(keep), 0.0, set()
        for i in sorted(keep, key=lambda i: (-p[i], i)):
            if mass >= params.top_p:
                break
            nucleus.add(i)
            mass += p[i]
        keep = nucleus
    if params.min_p:
        p = probabilities(keep)
        keep = {i for i in keep if p[i] >= params.min_p * max(p)}
    return np.array(probabilities(keep))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.7),
        SamplingParams(top_k=3),
        SamplingParams(top_k=1000),
        SamplingParams(top_p=0.75),
        SamplingParams(top_p=0.01),
        SamplingParams(min_p=0.15),
        SamplingParams(temperature=1.3, top_k=6, top_p=0.9, min_p=0.1),
    ],
    ids=str,
)
def test_frequencies_and_logprobs_are_those_of_the_exact_distribution(params: SamplingParams) -> None:
    p = exact(params)
    keys = torch.tensor([stream_key(0, 0, i) for i in range(DRAWS)])
    logits = torch.tensor(LOGITS).expand(DRAWS, -1)
    ids, logprobs = sample(logits, params, uniform(keys, torch.zeros_like(keys)))
    counts = np.bincount(ids.numpy(), minlength=len(p))
    assert counts[p == 0].sum() == 0
    support = p > 0
    if support.sum() > 1:
        statistic = ((counts - DRAWS * p)[support] ** 2 / (DRAWS * p[support])).sum()
        assert statistic < CHI_SQUARE_99_9[int(support.sum()) - 1]
    np.testing.assert_allclose(logprobs.numpy(), np.log(p[ids.numpy()]), rtol=1e-5, atol=1e-6)


def test_greedy_takes_the_largest_logit_and_reports_the_model_s_own_logprob() -> None:
    ids, logprobs = sample(torch.tensor([LOGITS]), SamplingParams(temperature=0), torch.tensor([0.999]))
    assert ids.tolist() == [0]
    assert logprobs[0].item() == pytest.approx(math.log(exact(SamplingParams())[0]), abs=1e-6)


def test_a_tiny_temperature_is_greedy() -> None:
    ids, logprobs = sample(torch.tensor([LOGITS]), SamplingParams(temperature=1e-39), torch.tensor([0.999]))
    assert (ids.item(), logprobs.item()) == (0, 0.0)


@pytest.mark.parametrize("point", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_never_point_at_an_impossible_token(point: float) -> None:
    logits = torch.full((1, 50_000), -torch.inf)
    logits[0, [100, 40_000]] = torch.tensor([0.0, -3.0])
    ids, _ = sample(logits, SamplingParams(), torch.tensor([point], dtype=torch.float64))
    assert ids.item() == (100 if point == 0 else 40_000)


def test_random_numbers_are_uniform_independent_and_repeatable() -> None:
    keys = torch.tensor([stream_key(7, prompt, number) for prompt in range(100) for number in range(100)])
    first, second = (uniform(keys, torch.full_like(keys, i)).numpy() for i in (0, 1))
    for numbers in (first, second):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, bins=8, range=(0, 1))[0]
        assert ((counts - 1250) ** 2 / 1250).sum() < CHI_SQUARE_99_9[7]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    assert len(set(keys.tolist())) == len(keys)
    assert np.array_equal(first, uniform(keys, torch.zeros_like(keys)).numpy())


def test_the_stream_is_splitmix64() -> None:
    # the first outputs of the reference implementation (Vigna, splitmix64.c) from state 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    numbers = uniform(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert numbers.tolist() == [(value >> 11) * 2.0**-53 for value in expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.0),
        ("max_new_tokens", 0),
    ],
)
def test_bad_parameters_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})
