"""Rollout and Group: a prompt and its G samples are one object, so they cannot be mismatched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Rollout:
    """One sampled continuation.

    token_ids ends with the stop token where finish_reason is "stop". logprobs: the log-probability (nats) of each
    token under the distribution that it was sampled from, filters and temperature included; for greedy decoding, a
    point mass, the model's own at temperature 1. text: decoded without control tokens, behind the <think> of a prompt
    that ends in one, so that it is what rewards and readers expect of any template. scores: by reward name.
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: Literal["stop", "length"]
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Group:
    """A prompt with its G rollouts."""

    prompt_ids: list[int]
    rollouts: list[Rollout]

    @property
    def texts(self) -> list[str]:
        """What the samples say, in order."""
        return [rollout.text for rollout in self.rollouts]

    @property
    def tokens(self) -> int:
        """Prompt plus completions, what a packed forward pass pays for."""
        return len(self.prompt_ids) + sum(len(rollout.token_ids) for rollout in self.rollouts)
