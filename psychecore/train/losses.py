"""The losses as pure functions of log-probs; each returns the loss and what a person debugs by.

All losses are sums of per-token terms times `weights_R`, which carry the normalisation. The weights come from global
counts (over micro-batches and ranks, `token_weights`), so adding up the gradients of any split gives the gradient of
the whole: no loss here depends on accumulation or device count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KlKind = Literal["k1", "k2", "k3"]
Normalisation = Literal["token", "sequence", "constant"]
LOG_RATIO_LIMIT = 20.0  # e^20 = 5e8: far beyond any clip range, far below fp32 overflow


@dataclass(frozen=True)
class LossConfig:
    """The policy loss.

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. ratio: per token (PPO, GRPO) or one per
    sequence (GSPO, arXiv 2507.18071, whose authors clip at 3e-4 and 4e-4 and normalise by sequence). kl_coefficient
    times the `kl` estimate is added to the loss; k1 adds noise only, its expected gradient being zero. normalisation:
    mean over all tokens, mean over sequences of their token means, or `constant` (Dr. GRPO: divide by sequences x
    `constant_length`, there the longest answer allowed). importance_cap: truncated importance sampling, each token
    weighted with min(trainer probability / sampler probability, cap); none switches it off. mask_overlong: truncated
    samples do not train.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: Literal["token", "sequence"] = "token"
    kl_coefficient: float = 0.001
    kl: KlKind = "k3"
    normalisation: Normalisation = "token"
    constant_length: int = 1024
    importance_cap: float | None = None
    mask_overlong: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.clip_low <= 1 or not self.clip_high > 0:
            raise ValueError(f"clip_low {self.clip_low} must be in (0, 1] and clip_high {self.clip_high} above 0")
        if not 0 <= self.kl_coefficient < math.inf:
            raise ValueError(f"kl_coefficient is {self.kl_coefficient}, but must be at least 0 and finite")
        if self.constant_length < 1:
            raise ValueError(f"constant_length is {self.constant_length}, but must be at least 1")
        if self.importance_cap is not None and not self.importance_cap > 0:
            raise ValueError(f"importance_cap is {self.importance_cap}, but must be above 0, or none")


def token_weights(
    lengths: Sequence[int], normalisation: Normalisation, total_tokens: int, total_sequences: int, constant: int = 1
) -> list[float]:
    """The weight of each token of sequences with these label counts, one number a sequence.

    Totals are global: over all micro-batches of the step and all ranks. Example: lengths 3 and 1 alone in a step give
    token [1/4, 1/4], sequence [1/6, 1/2], constant (length 8) [1/16, 1/16].
    """
    if normalisation == "token":
        return [1.0 / max(total_tokens, 1)] * len(lengths)
    if normalisation == "sequence":
        return [1.0 / (max(length, 1) * max(total_sequences, 1)) for length in lengths]
    return [1.0 / (constant * max(total_sequences, 1))] * len(lengths)


def sft_loss(logprobs_R: Tensor, weights_R: Tensor) -> Tensor:
    """Weighted negative log-likelihood, a scalar."""
    return -(logprobs_R * weights_R).sum()


def kl_estimate(logprobs_R: Tensor, reference_R: Tensor, kind: KlKind) -> Tensor:
    """Per-token estimate [R] of KL(policy || reference) from samples of the policy (Schulman, "Approximating KL
    Divergence", 2020), with d = log policy - log reference.

    k1 = d: unbiased, can be negative; as a loss its expected gradient is zero. k2 = d^2 / 2: biased value, but its
    expected gradient on policy is that of the KL. k3 = exp(-d) - 1 + d: unbiased, never negative; its expected
    gradient is that of KL(reference || policy). d is clamped, so the result is finite for any input.
    """
    d_R = _log_ratio(logprobs_R, reference_R)
    if kind == "k1":
        return d_R
    if kind == "k2":
        return d_R.square() / 2
    if kind == "k3":
        return (-d_R).exp() - 1 + d_R
    raise ValueError(f"kl is {kind!r}, but must be k1, k2 or k3")


def policy_loss(
    logprobs_R: Tensor,
    old_R: Tensor,
    advantages_R: Tensor,
    weights_R: Tensor,
    config: LossConfig,
    *,
    sequence_R: Tensor,
    reference_R: Tensor | None = None,
    behaviour_R: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped policy-gradient loss with KL to the reference: (scalar, metrics).

    Per token: -min(ratio A, clip(ratio) A) * importance + kl_coefficient * kl, times its weight, where
    ratio = exp(log policy - log old), GSPO's ratio the exponential of the sequence's mean log-ratio. All inputs [R];
    sequence_R numbers the sequence of each row. `reference_R` is needed for a positive kl_coefficient,
    `behaviour_R` (the sampler's log-probs) for importance_cap and the mismatch metrics.

    Metrics are sums over this batch's tokens, to be divided by the global token count: `kl`, `clipped`, `ratio`,
    `importance`, `mismatch` (|trainer - sampler| log-prob), and `mismatch_kl` (k3 of sampler against trainer).
    """
    log_ratio_R = _log_ratio(logprobs_R, old_R)
    if config.ratio == "sequence":
        log_ratio_R = _sequence_mean(log_ratio_R, sequence_R)
    ratio_R = log_ratio_R.exp()
    clipped_R = ratio_R.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss_R = -torch.minimum(ratio_R * advantages_R, clipped_R * advantages_R)
    with torch.no_grad():
        binding_R = clipped_R * advantages_R < ratio_R * advantages_R
        metrics = {"clipped": binding_R.float().sum(), "ratio": ratio_R.sum()}
    if behaviour_R is not None:
        with torch.no_grad():
            gap_R = _log_ratio(old_R, behaviour_R)
            metrics["mismatch"] = gap_R.abs().sum()
            metrics["mismatch_kl"] = (gap_R.exp() - 1 - gap_R).sum()
            if config.importance_cap is not None:
                importance_R = gap_R.exp().clamp(max=config.importance_cap)
                metrics["importance"] = importance_R.sum()
        if config.importance_cap is not None:
            loss_R = loss_R * importance_R
    elif config.importance_cap is not None:
        raise ValueError("importance_cap needs the sampler's log-probs (behaviour_R)")
    if reference_R is not None:
        kl_R = kl_estimate(logprobs_R, reference_R, config.kl)
        metrics["kl"] = kl_R.detach().sum()
        loss_R = loss_R + config.kl_coefficient * kl_R
    elif config.kl_coefficient > 0:
        raise ValueError("kl_coefficient above 0 needs the reference's log-probs (reference_R)")
    return (loss_R * weights_R).sum(), metrics


def _log_ratio(log_a_R: Tensor, log_b_R: Tensor) -> Tensor:
    """log a - log b in at least fp32, clamped: neither -inf nor extreme log-probs make inf or NaN."""
    wide = torch.promote_types(log_a_R.dtype, torch.float32)
    lowest = -1e4
    difference_R = log_a_R.to(wide).clamp(min=lowest) - log_b_R.to(wide).clamp(min=lowest)
    return difference_R.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _sequence_mean(values_R: Tensor, sequence_R: Tensor) -> Tensor:
    """Each row replaced by the mean over its sequence."""
    if values_R.numel() == 0:
        return values_R
    sequences = int(sequence_R.max()) + 1
    zeros_S = values_R.new_zeros(sequences)
    sums_S = zeros_S.index_add(0, sequence_R, values_R)
    counts_S = zeros_S.index_add(0, sequence_R, torch.ones_like(values_R))
    return (sums_S / counts_S.clamp(min=1))[sequence_R]
