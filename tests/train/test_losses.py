"""Losses against plain Python in float64, and KL estimators against the exact KL over five tokens."""

import itertools
import math

import pytest
import torch

from psychecore.train.losses import LossConfig, kl_estimate, policy_loss, sft_loss, token_weights

LENGTHS = [3, 1, 4]


def brute_force(logp, old, adv, weights, config, reference, behaviour):
    """The documented formula, one token at a time."""
    starts = [0, *itertools.accumulate(LENGTHS)]
    total = 0.0
    for s in range(len(LENGTHS)):
        rows = range(starts[s], starts[s + 1])
        mean = sum(logp[r] - old[r] for r in rows) / len(rows)
        for r in rows:
            ratio = math.exp(mean if config.ratio == "sequence" else logp[r] - old[r])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            term = -min(ratio * adv[r], clipped * adv[r])
            if config.importance_cap is not None:
                term *= min(math.exp(old[r] - behaviour[r]), config.importance_cap)
            d = logp[r] - reference[r]
            kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[config.kl]
            total += weights[r] * (term + config.kl_coefficient * kl)
    return total


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("importance_cap", [None, 1.05])
@pytest.mark.parametrize("normalisation", ["token", "sequence", "constant"])
def test_policy_loss_equals_brute_force_in_value_and_gradient(ratio, kl, importance_cap, normalisation):
    config = LossConfig(0.1, 0.3, ratio, 0.05, kl, normalisation, 16, importance_cap)
    generator = torch.Generator().manual_seed(5)
    logp, old, reference, behaviour = (-torch.rand(8, generator=generator, dtype=torch.float64) * 2 for _ in range(4))
    advantages = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    weights = token_weights(LENGTHS, normalisation, 8, 3, 16)
    weights = torch.tensor(weights, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    sequence = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))

    def ours(x):
        return policy_loss(
            x, old, advantages, weights, config, sequence_R=sequence, reference_R=reference, behaviour_R=behaviour
        )[0]

    def theirs(x):
        lists = [t.tolist() for t in (x, old, advantages, weights)]
        return brute_force(*lists, config, reference.tolist(), behaviour.tolist())

    assert float(ours(logp)) == pytest.approx(theirs(logp), abs=1e-12)
    (gradient,) = torch.autograd.grad(ours(logp.requires_grad_()), logp)
    for r in range(8):
        step = torch.zeros(8, dtype=torch.float64)
        step[r] = 1e-6
        slope = (theirs(logp.detach() + step) - theirs(logp.detach() - step)) / 2e-6
        assert float(gradient[r]) == pytest.approx(slope, abs=1e-6)


def test_weights_of_the_docstring():
    assert token_weights([3, 1], "token", 4, 2) == [1 / 4, 1 / 4]
    assert token_weights([3, 1], "sequence", 4, 2) == [1 / 6, 1 / 2]
    assert token_weights([3, 1], "constant", 4, 2, 8) == [1 / 16, 1 / 16]


def exact_kl(p, q):
    return (p * (p.log() - q.log())).sum()


def expected(logits, reference, kind):
    """Exact expectation of the estimate under the policy, its samples held fixed as in training."""
    logp = logits.log_softmax(-1)
    return (logp.detach().exp() * kl_estimate(logp, reference, kind)).sum()


@pytest.fixture
def five_tokens():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_have_the_exact_kl_as_expected_value(five_tokens, kind):
    logits, reference = five_tokens
    kl = exact_kl(logits.softmax(-1), reference.exp())
    assert float(expected(logits, reference, kind).detach()) == pytest.approx(float(kl.detach()), abs=1e-12)


def test_expected_gradients_are_zero_for_k1_the_kls_for_k2_and_the_reverse_kls_for_k3(five_tokens):
    logits, reference = five_tokens
    gradient = {k: torch.autograd.grad(expected(logits, reference, k), logits)[0] for k in ("k1", "k2", "k3")}
    (forward,) = torch.autograd.grad(exact_kl(logits.softmax(-1), reference.exp()), logits)
    (reverse,) = torch.autograd.grad(exact_kl(reference.exp(), logits.softmax(-1)), logits)
    assert gradient["k1"].abs().max() < 1e-12
    assert (gradient["k2"] - forward).abs().max() < 1e-12
    assert (gradient["k3"] - reverse).abs().max() < 1e-12


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_no_logprob_makes_the_loss_or_its_gradient_infinite(kl, ratio):
    values = [0.0, -1e-30, -1.0, -50.0, -1e6, -3e38, -math.inf]
    logp, old, reference = (
        torch.tensor(column, dtype=torch.float32) for column in zip(*itertools.product(values, repeat=3), strict=True)
    )
    logp.requires_grad_()
    config = LossConfig(kl=kl, ratio=ratio, kl_coefficient=1.0, importance_cap=2.0)
    loss, metrics = policy_loss(
        logp,
        old,
        torch.full_like(old, -3.0),
        torch.full_like(old, 1 / len(old)),
        config,
        sequence_R=torch.arange(len(old)),
        reference_R=reference,
        behaviour_R=old.flip(0),
    )
    loss.backward()
    assert math.isfinite(loss)
    assert torch.isfinite(logp.grad).all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_sft_loss_is_the_mean_negative_logprob():
    logp = torch.tensor([-1.0, -2.0, -6.0])
    assert float(sft_loss(logp, torch.full((3,), 1 / 3))) == pytest.approx(3.0)


def test_missing_inputs_are_named():
    arguments = (torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="reference_R"):
        policy_loss(*arguments, LossConfig(kl_coefficient=0.1), sequence_R=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="behaviour_R"):
        policy_loss(
            *arguments, LossConfig(kl_coefficient=0, importance_cap=2), sequence_R=torch.zeros(1, dtype=torch.int64)
        )


@pytest.mark.parametrize("change", [{"clip_low": 0}, {"clip_high": -1}, {"kl_coefficient": -1}, {"importance_cap": 0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        LossConfig(**change)
