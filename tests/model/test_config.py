"""What a config.json may say, and how it is refused where the decoder would compute something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mixtral"}, "'mixtral'"),
        ({"model_type": None}, "None"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'"),
        ({"num_experts": 8}, "num_experts is 8"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' needs a number as factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"partial_rotary_factor": 0.5}, "0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"head_dim": 7}, "head_dim is 7"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2 | changes))
    with pytest.raises(ValueError, match=r"config\.json") as error:
        ModelConfig.from_folder(tmp_path)
    assert named in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_a_folder_without_config_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a Hugging Face model folder"):
        ModelConfig.from_folder(tmp_path)


def test_a_sliding_window_that_is_switched_off_is_accepted() -> None:
    config = ModelConfig.from_hf(QWEN2 | {"use_sliding_window": False, "sliding_window": 4096})
    assert config.qkv_bias


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_parameters_are_counted_as_the_decoder_has_them(family: str, tied: bool) -> None:
    config = ModelConfig.from_hf(
        QWEN2 | {"model_type": family, "tie_word_embeddings": tied, "attention_bias": True, "mlp_bias": True}
    )
    assert config.parameters == sum(p.numel() for p in Decoder(config).parameters())


def test_qwen2_5_7b_has_7_6_billion_parameters() -> None:
    # config.json of Qwen/Qwen2.5-7B-Instruct; the model card says 7.61B
    raw = QWEN2 | {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    assert round(ModelConfig.from_hf(raw).parameters / 1e9, 2) == 7.62


def test_what_is_written_reads_back_equal() -> None:
    for rope in (
        None,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "linear", "factor": 2.0},
    ):
        config = ModelConfig.from_hf(QWEN2 | {"rope_scaling": rope, "rope_theta": 1e6})
        again = ModelConfig.from_hf(config.to_hf())
        assert again.rope.inverse_frequencies(8).equal(config.rope.inverse_frequencies(8))
        assert again.rope.attention_factor == config.rope.attention_factor
        assert again.to_hf() == config.to_hf()


def test_scaling_that_stands_in_two_ways_is_refused() -> None:
    """Model cards say to add rope_scaling to what transformers 5 writes, which then forgets theta."""
    raw = ModelConfig("qwen2", 31, 8, 1, 2, 1, 4, 8, qkv_bias=True).to_hf()
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 5e5}
    raw |= {"rope_theta": 1e4, "rope_parameters": yarn, "rope_scaling": yarn}
    rope = ModelConfig.from_hf(raw).rope
    assert (rope.kind, rope.factor, rope.original_max_positions, rope.theta) == ("yarn", 4.0, 32, 5e5)
    with pytest.raises(ValueError, match="rope_parameters and rope_scaling differ"):
        ModelConfig.from_hf(raw | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    by_layer = {"full_attention": {"rope_type": "linear", "factor": 2.0}}
    with pytest.raises(ValueError, match=r"differs by kind of layer \(full_attention\)"):
        ModelConfig.from_hf(raw | {"rope_parameters": by_layer, "rope_scaling": None})
