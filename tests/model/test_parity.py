"""The decoder against transformers on the same weights, in fp32: logits and every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import psychecore as pc
from psychecore.model.pretrained import hf_places

transformers = pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 10_000.0,
    "initializer_range": 0.15,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 odd heads": ("Qwen2", {"num_attention_heads": 3, "num_key_value_heads": 1}),
    "qwen2 yarn": ("Qwen2", {"rope_scaling": YARN}),
    "qwen3 explicit head_dim": ("Qwen3", {"head_dim": 10, "tie_word_embeddings": False}),
    "qwen3 tied, attention bias": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 rope": ("Llama", {"rope_scaling": LLAMA3}),
    "llama linear rope": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
}


def hugging_face_model(family: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(BASE | changes), attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # transformers starts them at 0 and 1, which would hide errors
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_gradient_equal_transformers(case: str, tmp_path: Path) -> None:
    oracle = hugging_face_model(*CASES[case])
    oracle.save_pretrained(tmp_path)
    model = pc.load_model(tmp_path, dtype=torch.float32)
    ids_BS = torch.randint(0, BASE["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    expected, logits = oracle(ids_BS).logits, model.logits(ids_BS)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) / expected.numel() ** 0.5
    (expected * weight).sum().backward()
    (logits * weight).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, place in hf_places(model.config).items():
        ours, theirs = gradients[place.parameter][place.start : place.stop], oracle.get_parameter(name).grad
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())), msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_folder_loads_in_transformers_to_equal_logits(case: str, tmp_path: Path) -> None:
    hugging_face_model(*CASES[case]).save_pretrained(tmp_path / "theirs")
    model = pc.load_model(tmp_path / "theirs", dtype=torch.float32)
    pc.save_model(model, None, tmp_path / "ours", max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    ids_BS = torch.randint(0, BASE["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = reloaded(ids_BS).logits
        torch.testing.assert_close(model.logits(ids_BS), expected, rtol=1e-5, atol=1e-5)
        again = pc.load_model(tmp_path / "ours", dtype=torch.float32)
        assert torch.equal(again.logits(ids_BS), model.logits(ids_BS))


def test_smollm2_gives_transformers_logits(smollm2_folder: Path) -> None:
    text = "Cognitive behavioural therapy starts from the thought that comes between an event and a feeling."
    ids_BS = torch.tensor([pc.load_tokenizer(smollm2_folder).encode(text)])
    oracle = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    with torch.no_grad():
        expected = oracle(ids_BS).logits
        logits = pc.load_model(smollm2_folder, dtype=torch.float32).logits(ids_BS)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)  # of logits up to 30, summed over 30 layers


def test_activation_checkpointing_changes_no_gradient(tiny_model: Any) -> None:
    ids_BS = torch.arange(1, 13)[None]
    gradients = []
    for kept in (False, True):
        model = tiny_model()
        model.checkpoint_activations = kept
        model.logits(ids_BS).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-14)
