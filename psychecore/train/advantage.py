"""Group advantages: how much better a sample scored than its siblings of the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["mean_std", "mean", "leave_one_out"]


def group_advantages(rewards_PG: Tensor, kind: AdvantageKind = "mean_std", eps: float = 1e-6) -> Tensor:
    """Advantages [P, G] of the rewards of P prompts with G samples each, in fp32.

    mean_std: (r - mean) / (std + eps) with the unbiased std, GRPO (arXiv 2402.03300 eq. 4). mean: r - mean, Dr. GRPO
    (arXiv 2503.20783). leave_one_out: r - mean of the others, RLOO (arXiv 2402.14740), which is mean times G / (G - 1).
    A group whose rewards are all equal gets zeros: it says nothing about which sample was better.

    Example: rewards [1, 0, 0, 1] give mean [.5, -.5, -.5, .5], mean_std [.87, -.87, -.87, .87],
    leave_one_out [.67, -.67, -.67, .67]. Raises ValueError for rewards that are not finite or groups of one.
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"rewards must be [prompts, samples] with at least 2 samples, not {tuple(rewards_PG.shape)}")
    if not torch.isfinite(rewards_PG).all():
        raise ValueError("rewards hold NaN or infinity; a reward function must return finite numbers")
    rewards_PG = rewards_PG.float()
    if not len(rewards_PG):
        return rewards_PG
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    centred_PG = torch.where(informative_groups(rewards_PG)[:, None], centred_PG, torch.zeros_like(centred_PG))
    if kind == "mean_std":
        return centred_PG / (rewards_PG.std(1, keepdim=True) + eps)
    if kind == "mean":
        return centred_PG
    if kind == "leave_one_out":
        samples = rewards_PG.shape[1]
        return centred_PG * (samples / (samples - 1))
    raise ValueError(f"advantage is {kind!r}, but must be mean_std, mean or leave_one_out")


def informative_groups(rewards_PG: Tensor) -> Tensor:
    """True [P] for groups whose rewards differ; only these move the policy."""
    return rewards_PG.amax(1) > rewards_PG.amin(1)
