"""RopeConfig: rotary embedding's frequencies and their scaling to longer contexts, as config.json has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base `theta` and how its frequencies are scaled to longer contexts.

    `linear` divides all frequencies by `factor`; `llama3` divides the low ones (Llama 3.1 model card);
    `yarn` blends by wavelength and scales the tables by `attention_factor` (arXiv 2309.00071).
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0

    @classmethod
    def from_hf(cls, raw: dict[str, Any], max_positions: int) -> RopeConfig:
        """That of a config.json, as transformers 4 or 5 writes it. Raises ValueError for what is not supported."""
        named = [raw.get(key) or {} for key in ("rope_parameters", "rope_scaling")]  # transformers 5, transformers 4
        scaling = named[0] or named[1]
        if not isinstance(scaling, dict):
            raise ValueError(f"rope scaling is {scaling!r:.80}, but must be an object")
        if all(named) and named[0] != named[1]:
            raise ValueError("rope_parameters and rope_scaling differ: put the scaling into rope_parameters alone")
        if parts := [key for key, value in scaling.items() if isinstance(value, dict)]:
            raise ValueError(f"rope scaling differs by kind of layer ({parts[0]:.80}), which is not supported")
        theta = number({"rope_theta": 10_000.0} | raw | scaling, "rope_theta")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise ValueError(f"rope type is {kind!r:.80}, but psychecore computes {', '.join(ROPE_TYPES)} only")
        if kind == "default":
            return cls(theta=theta)
        factor = number(scaling, "factor", needed_by=kind)
        original = int(number(scaling, "original_max_position_embeddings", max_positions))
        if kind == "llama3":
            low, high = (
                number(scaling, "low_freq_factor", needed_by=kind),
                number(scaling, "high_freq_factor", needed_by=kind),
            )
            if low >= high:
                raise ValueError(f"low_freq_factor is {low}, but must be below high_freq_factor, {high}")
            return cls(theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high)
        if kind == "yarn":
            if scaling.get("truncate", True) is not True:
                raise ValueError("yarn with truncate=false is not supported")
            mscales = [number(scaling, key) if scaling.get(key) else None for key in ("mscale", "mscale_all_dim")]
            attention_factor = number(scaling, "attention_factor", _yarn_attention_factor(factor, *mscales))
            beta_fast, beta_slow = number(scaling, "beta_fast", 32), number(scaling, "beta_slow", 1)
            if theta == 1:
                raise ValueError("rope_theta is 1, which yarn cannot scale")
            return cls(
                theta,
                kind,
                factor,
                original,
                beta_fast=beta_fast,
                beta_slow=beta_slow,
                attention_factor=attention_factor,
            )
        return cls(theta, kind, factor, original)

    def to_hf(self) -> dict[str, Any] | None:
        """What config.json holds as rope_scaling, beside rope_theta."""
        if self.kind == "default":
            return None
        raw = {"rope_type": self.kind, "factor": self.factor}
        if self.kind in ("llama3", "yarn"):
            raw["original_max_position_embeddings"] = self.original_max_positions
        if self.kind == "llama3":
            raw |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.kind == "yarn":
            raw |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow, "attention_factor": self.attention_factor}
        return raw

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        """Angular frequency of each of the head_dim / 2 rotated pairs, fp32 on the CPU."""
        exponent_R = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
        base_R = 1.0 / (self.theta**exponent_R)
        if self.kind == "linear":
            return base_R / self.factor
        if self.kind == "llama3":
            turns_R = self.original_max_positions * base_R / (2 * math.pi)
            keep_R = (turns_R - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            keep_R = keep_R.clamp(0, 1)
            return base_R * keep_R + base_R / self.factor * (1 - keep_R)
        if self.kind == "yarn":
            low = max(math.floor(self._yarn_pair(self.beta_fast, head_dim)), 0)
            high = min(math.ceil(self._yarn_pair(self.beta_slow, head_dim)), head_dim - 1)
            ramp_R = (torch.arange(head_dim // 2, device="cpu").float() - low) / max(high - low, 0.001)
            stretch_R = ramp_R.clamp(0, 1)
            return base_R * (1 - stretch_R) + base_R / self.factor * stretch_R
        return base_R

    def _yarn_pair(self, turns: float, head_dim: int) -> float:
        """The (fractional) pair that turns this often over the original context."""
        return head_dim * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


def number(raw: dict[str, Any], key: str, default: float | None = None, needed_by: str = "") -> float:
    """A positive number of ordinary size; null and 0 stand for the default where there is one."""
    value = raw.get(key) or default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 < value < 1e30:
        needs = f"rope type {needed_by!r} needs a number as {key}, not" if needed_by else f"{key} must be a number, not"
        raise ValueError(f"{needs} {value!r:.80}")
    return float(value)


def _yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    def scale(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)
