"""ModelConfig: the shape of a decoder, read from and written to a Hugging Face config.json.

One dataclass serves Qwen2/Qwen2.5, dense Qwen3 and the Llama family. What the decoder does not compute
(mixture of experts, sliding windows, unknown rotary scalings, other activations) is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from psychecore.untrusted import read_json, within

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
# Far above any published model. A config.json that claims more is damaged or hostile, and is refused before anything
# is allocated by it.
LIMITS = {
    "vocab_size": 10_000_000,
    "width": 1_000_000,
    "layers": 1_000,
    "query_heads": 10_000,
    "key_value_heads": 10_000,
    "head_dim": 10_000,
    "feed_forward_width": 10_000_000,
    "max_positions": 1_000_000_000,
}
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


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Letters in comments are the dimension names of psychecore/__init__.py."""

    family: Literal["qwen2", "qwen3", "llama"]
    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    query_heads: int  # N
    key_value_heads: int  # K
    head_dim: int  # H
    feed_forward_width: int  # F
    rms_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tied_head: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 32_768

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"config: {name} is {getattr(self, name)}, but must be 1 to {limit:,}")
        if not 0 < self.rms_eps < 1:
            raise ValueError(f"config: rms_eps is {self.rms_eps}, but must be between 0 and 1")
        if self.query_heads % self.key_value_heads:
            raise ValueError(
                f"config: {self.query_heads} query heads cannot share {self.key_value_heads} key/value heads evenly"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"config: head_dim is {self.head_dim}, but rotary embedding needs an even number")

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        attention = self.width * self.head_dim * (2 * self.query_heads + 2 * self.key_value_heads)
        attention += self.qkv_bias * self.head_dim * (self.query_heads + 2 * self.key_value_heads)
        attention += self.out_bias * self.width + self.qk_norm * 2 * self.head_dim
        mlp = 3 * self.width * self.feed_forward_width + self.mlp_bias * (2 * self.feed_forward_width + self.width)
        embeddings = self.vocab_size * self.width * (1 if self.tied_head else 2)
        return self.layers * (attention + mlp + 2 * self.width) + embeddings + self.width

    @property
    def context_length(self) -> int:
        """How many tokens the positions reach: max_positions, or what linear or yarn scaling adds to the original ones.

        >>> rope = RopeConfig(kind="yarn", factor=4.0, original_max_positions=32_768)  # often left unscaled beside it
        >>> ModelConfig("qwen2", 10, 8, 1, 2, 1, 4, 8, rope=rope, max_positions=32_768).context_length
        131072
        """
        scaled = self.rope.kind in ("linear", "yarn")  # llama3's reach is always written
        return max(self.max_positions, int(self.rope.factor * self.rope.original_max_positions) if scaled else 0)

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read config.json of a model folder. Raises FileNotFoundError, or ValueError naming file and value."""
        path = within(folder, "config.json")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, so {folder} is not a Hugging Face model folder")
        raw = read_json(path)
        try:
            return cls.from_hf(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> ModelConfig:
        """Translate a config.json, as transformers 4 or 5 writes it. Raises ValueError for what is not supported."""
        family = raw.get("model_type")
        names = tuple(ARCHITECTURES)  # not the dict, which a list as model_type would break
        if family not in names:
            raise ValueError(
                f"model_type is {family!r:.80}, but psychecore computes {', '.join(names)} (dense decoders) only"
            )
        _refuse_unsupported(raw)

        def integer(key: str, default: int | None = None) -> int:
            value = raw.get(key, default)
            if value is None:
                value = default
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{key} is {value!r:.80}, but must be an integer")
            return value

        def flag(key: str) -> bool:
            value = raw.get(key)
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"{key} is {value!r:.80}, but must be true or false")
            return bool(value)

        width, query_heads = integer("hidden_size"), integer("num_attention_heads")
        attention_bias = flag("attention_bias")
        max_positions = integer("max_position_embeddings", 32_768)
        return cls(
            family=family,
            vocab_size=integer("vocab_size"),
            width=width,
            layers=integer("num_hidden_layers"),
            query_heads=query_heads,
            key_value_heads=integer("num_key_value_heads", query_heads),
            head_dim=integer("head_dim", 128 if family == "qwen3" else width // max(query_heads, 1)),
            feed_forward_width=integer("intermediate_size"),
            rms_eps=_number(raw, "rms_norm_eps", 1e-6),
            rope=_rope_from_hf(raw, max_positions),
            tied_head=flag("tie_word_embeddings"),
            qkv_bias=True if family == "qwen2" else attention_bias,
            out_bias=False if family == "qwen2" else attention_bias,
            mlp_bias=flag("mlp_bias") if family == "llama" else False,
            qk_norm=family == "qwen3",
            max_positions=max_positions,
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that transformers reads to the same network."""
        rope: dict[str, Any] | None = None
        if self.rope.kind != "default":
            rope = {"rope_type": self.rope.kind, "factor": self.rope.factor}
        if rope is not None and self.rope.kind in ("llama3", "yarn"):
            rope["original_max_position_embeddings"] = self.rope.original_max_positions
        if rope is not None and self.rope.kind == "llama3":
            rope |= {"low_freq_factor": self.rope.low_freq_factor, "high_freq_factor": self.rope.high_freq_factor}
        if rope is not None and self.rope.kind == "yarn":
            rope |= {"beta_fast": self.rope.beta_fast, "beta_slow": self.rope.beta_slow}
            rope["attention_factor"] = self.rope.attention_factor
        raw: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.feed_forward_width,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": rope,
            "tie_word_embeddings": self.tied_head,
            "max_position_embeddings": self.max_positions,
        }
        if self.family != "qwen2":
            raw["attention_bias"] = self.qkv_bias
        if self.family == "llama":
            raw["mlp_bias"] = self.mlp_bias
        else:
            raw["use_sliding_window"] = False
        return raw


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    if raw.get("use_sliding_window") or (raw.get("model_type") == "llama" and raw.get("sliding_window")):
        raise ValueError("sliding-window attention is switched on, which psychecore does not compute")
    kinds = raw.get("layer_types") or []
    if not isinstance(kinds, list):
        raise ValueError(f"layer_types is {kinds!r:.80}, but must be a list")
    for kind in kinds:
        if kind != "full_attention":
            raise ValueError(f"layer_types names {kind!r:.80}, but only 'full_attention' is computed")
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if raw.get(key):
            raise ValueError(f"{key} is {raw[key]!r:.80}: mixture of experts is not supported")
    for key, allowed in (("hidden_act", "silu"), ("quantization_config", None), ("pretraining_tp", 1)):
        if raw.get(key, allowed) not in (allowed, None):
            raise ValueError(f"{key} is {raw[key]!r:.80}, but only {allowed!r} is supported")
    if (raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {raw['partial_rotary_factor']!r:.80}, but whole heads are rotated here"
        )


def _rope_from_hf(raw: dict[str, Any], max_positions: int) -> RopeConfig:
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # transformers 5, transformers 4
    if not isinstance(scaling, dict):
        raise ValueError(f"rope scaling is {scaling!r:.80}, but must be an object")
    theta = _number({"rope_theta": 10_000.0} | raw | scaling, "rope_theta")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope type is {kind!r:.80}, but psychecore computes {', '.join(ROPE_TYPES)} only")
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = _number(scaling, "factor", needed_by=kind)
    original = int(_number(scaling, "original_max_position_embeddings", max_positions))
    if kind == "llama3":
        low, high = (
            _number(scaling, "low_freq_factor", needed_by=kind),
            _number(scaling, "high_freq_factor", needed_by=kind),
        )
        if low >= high:
            raise ValueError(f"low_freq_factor is {low}, but must be below high_freq_factor, {high}")
        return RopeConfig(theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    if kind == "yarn":
        if scaling.get("truncate", True) is not True:
            raise ValueError("yarn with truncate=false is not supported")
        mscales = [_number(scaling, key) if scaling.get(key) else None for key in ("mscale", "mscale_all_dim")]
        attention_factor = _number(scaling, "attention_factor", _yarn_attention_factor(factor, *mscales))
        beta_fast, beta_slow = _number(scaling, "beta_fast", 32), _number(scaling, "beta_slow", 1)
        if theta == 1:
            raise ValueError("rope_theta is 1, which yarn cannot scale")
        return RopeConfig(
            theta, kind, factor, original, beta_fast=beta_fast, beta_slow=beta_slow, attention_factor=attention_factor
        )
    return RopeConfig(theta, kind, factor, original)


def _number(raw: dict[str, Any], key: str, default: float | None = None, needed_by: str = "") -> float:
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
