"""ModelConfig: the shape of a decoder, read from and written to a Hugging Face config.json.

One dataclass serves Qwen2/Qwen2.5, dense Qwen3 and the Llama family. What the decoder does not compute
(mixture of experts, sliding windows, unknown rotary scalings, other activations) is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from psychecore.model.rope import RopeConfig, number
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
    rope: RopeConfig = field(default_factory=RopeConfig)
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
            rms_eps=number(raw, "rms_norm_eps", 1e-6),
            rope=RopeConfig.from_hf(raw, max_positions),
            tied_head=flag("tie_word_embeddings"),
            qkv_bias=True if family == "qwen2" else attention_bias,
            out_bias=False if family == "qwen2" else attention_bias,
            mlp_bias=flag("mlp_bias") if family == "llama" else False,
            qk_norm=family == "qwen3",
            max_positions=max_positions,
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that transformers reads to the same network. Raises ValueError for another."""
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
            "rope_scaling": self.rope.to_hf(),
            "tie_word_embeddings": self.tied_head,
            "max_position_embeddings": self.max_positions,
        }
        if self.family != "qwen2":
            raw["attention_bias"] = self.qkv_bias
        if self.family == "llama":
            raw["mlp_bias"] = self.mlp_bias
        else:
            raw["use_sliding_window"] = False
        read = replace(ModelConfig.from_hf(raw), rope=self.rope)
        if odd := [f.name for f in fields(self) if getattr(read, f.name) != getattr(self, f.name)]:
            raise ValueError(
                f"{odd[0]} is {getattr(self, odd[0])}, but {getattr(read, odd[0])} in a {self.family} of its shape: no "
                "Hugging Face folder can hold this network"
            )
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
