"""A Hugging Face model folder in and out: hub download, sharded safetensors, tied weights, fused projections.

Inside, query/key/value and gate/up are one matrix each; outside, the tensors have their Hugging Face names. Tensors
stream one at a time from the file to their rows of the parameter, also when that is an FSDP2 shard, so the peak is
the model plus the largest tensor. Only json and safetensors are ever read: no pickle, no remote code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from psychecore.durable import replace_folder
from psychecore.model.config import ModelConfig
from psychecore.model.decoder import Decoder
from psychecore.model.host_memory import keep_freed_memory
from psychecore.model.shards import gather_tensor, local_rows
from psychecore.model.weight_files import ShardWriter, open_tensors
from psychecore.untrusted import local_or_hub

HUB_FILES = ("*.json", "*.safetensors", "*.jinja")


class SavesFiles(Protocol):
    """What save_model needs of a tokenizer."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""


class Place(NamedTuple):
    """Where a Hugging Face tensor lives: rows start..stop of one of our parameters."""

    parameter: str
    start: int
    stop: int


def load_model(
    source: str | os.PathLike[str],
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    shard: Callable[[Decoder], Any] | None = None,
) -> Decoder:
    """Load a decoder from a local folder or a hub id, in `dtype`, on `device`.

    `shard` is called on the still empty model (meta device) and may turn parameters into FSDP2 shards; each rank then
    reads only its rows. On CPU this process then keeps freed memory, this model's too, for its next tensors
    (host_memory.py). Raises FileNotFoundError, or ValueError naming file and tensor for what is missing, unexpected,
    misshapen, truncated, or outside the folder.
    """
    folder = local_folder(source)
    config = ModelConfig.from_folder(folder)
    places = hf_places(config)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        tensors = open_tensors(folder, stack)
        _check_tensors(folder, config, places, tensors)
        with torch.device("meta"):
            model = Decoder(config).to(dtype)
        if shard is not None:
            shard(model)
            model.to_empty(device=device)
        else:
            _allocate(model, device)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, place in places.items():
                file = tensors[name]
                try:
                    copy_rows(parameters[place.parameter], place, file.get_slice(name))
                except (SafetensorError, RuntimeError) as error:
                    raise ValueError(f"{folder}: tensor {name!r} cannot be read: {error}") from None
    return model


def save_model(
    model: Decoder,
    tokenizer: SavesFiles | None,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that transformers loads to equal logits; every rank must call, rank 0 writes.

    Tensors are cast to `dtype` where given. The folder is written beside its place and renamed when complete, an
    existing model's is replaced only then; where rank 0 can't, every rank raises. Raises ValueError for a folder that
    holds something else.
    """
    target = Path(os.path.realpath(folder))  # a link stays, and so does the disk that it names
    first = not dist.is_initialized() or dist.get_rank() == 0
    temporary = target.with_name(f".{target.name}.partial")
    shards = ShardWriter(temporary, max_shard_bytes)
    failure: Exception | None = None

    def check() -> None:
        if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
            raise ValueError(f"{target} holds files, but no model (config.json), and would be replaced: name another")

    def write(work: Callable[[], object]) -> None:
        nonlocal failure
        if first and failure is None:
            try:
                work()
            except Exception as error:  # raised below: the other ranks are in the next gather
                failure = error

    def add(name: str, rows: Tensor) -> None:
        shards.add(name, rows.to(device="cpu", dtype=dtype or rows.dtype, copy=True).contiguous())

    def finish() -> None:
        shards.finish()
        raw = model.config.to_hf() | {"torch_dtype": str(dtype or model.dtype).removeprefix("torch.")}
        (temporary / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(temporary)
        replace_folder(temporary, target)

    write(check)
    write(model.config.to_hf)
    parameters = dict(model.named_parameters())
    full_name, full = "", torch.empty(0)
    for name, place in hf_places(model.config).items():
        if place.parameter != full_name:  # fused parameters are gathered once for all their tensors
            full_name, full = place.parameter, gather_tensor(parameters[place.parameter])
        write(partial(add, name, full[place.start : place.stop]))
    write(finish)
    if dist.is_initialized():
        dist.all_reduce(told := torch.tensor([float(failure is not None)], device=full.device))
        if told.item() and failure is None:
            failure = OSError(f"{target} could not be written; rank 0 says why")
    if failure is not None:
        failure.agreed = True  # type: ignore[attr-defined]  # every rank raises (runtime.py)
        raise failure


def local_folder(source: str | os.PathLike[str]) -> Path:
    """The local folder of a source; a hub id ("Qwen/Qwen2.5-7B-Instruct") is downloaded to the hub cache."""
    return local_or_hub(source, "model", HUB_FILES)


def hf_places(config: ModelConfig) -> dict[str, Place]:
    """For every Hugging Face tensor name, the parameter and the rows that it fills."""
    q, kv = config.query_heads * config.head_dim, config.key_value_heads * config.head_dim
    width, ffn = config.width, config.feed_forward_width
    places = {"model.embed_tokens.weight": Place("embed.weight", 0, config.vocab_size)}
    for i in range(config.layers):
        hf, own = f"model.layers.{i}.", f"layers.{i}."
        places[hf + "input_layernorm.weight"] = Place(own + "attention_norm.weight", 0, width)
        places[hf + "post_attention_layernorm.weight"] = Place(own + "mlp_norm.weight", 0, width)
        if config.qk_norm:
            places[hf + "self_attn.q_norm.weight"] = Place(own + "q_norm.weight", 0, config.head_dim)
            places[hf + "self_attn.k_norm.weight"] = Place(own + "k_norm.weight", 0, config.head_dim)
        for kind in ("weight", "bias"):
            if kind == "weight" or config.qkv_bias:
                places[hf + f"self_attn.q_proj.{kind}"] = Place(own + f"qkv.{kind}", 0, q)
                places[hf + f"self_attn.k_proj.{kind}"] = Place(own + f"qkv.{kind}", q, q + kv)
                places[hf + f"self_attn.v_proj.{kind}"] = Place(own + f"qkv.{kind}", q + kv, q + 2 * kv)
            if kind == "weight" or config.out_bias:
                places[hf + f"self_attn.o_proj.{kind}"] = Place(own + f"out.{kind}", 0, width)
            if kind == "weight" or config.mlp_bias:
                places[hf + f"mlp.gate_proj.{kind}"] = Place(own + f"gate_up.{kind}", 0, ffn)
                places[hf + f"mlp.up_proj.{kind}"] = Place(own + f"gate_up.{kind}", ffn, 2 * ffn)
                places[hf + f"mlp.down_proj.{kind}"] = Place(own + f"down.{kind}", 0, width)
    places["model.norm.weight"] = Place("norm.weight", 0, width)
    if not config.tied_head:
        places["lm_head.weight"] = Place("head.weight", 0, config.vocab_size)
    return places


def _allocate(model: Decoder, device: str | torch.device) -> None:
    """What to_empty does, on plain tensors without its second: on meta tensors it imports sympy."""
    for module in model.modules():
        for name, meta in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(meta.shape, dtype=meta.dtype, device=device)))


def _check_tensors(folder: Path, config: ModelConfig, places: dict[str, Place], tensors: dict[str, Any]) -> None:
    missing = [name for name in places if name not in tensors]
    if missing:
        raise ValueError(f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} in all); is config.json its own?")
    ignored = {"lm_head.weight"} if config.tied_head else set()
    unexpected = [n for n in tensors if n not in places and n not in ignored and not n.endswith(".inv_freq")]
    if unexpected:
        raise ValueError(
            f"{folder}: tensor {unexpected[0]!r} is not part of a {config.family} model as config.json "
            f"describes it ({len(unexpected)} unexpected in all)"
        )
    if "lm_head.weight" in tensors and config.tied_head:
        head, embed = (tensors[name].get_slice(name) for name in ("lm_head.weight", "model.embed_tokens.weight"))
        rows = range(0, config.vocab_size, 16_384)
        if head.get_shape() != embed.get_shape() or any(
            not torch.equal(head[i : i + 16_384], embed[i : i + 16_384]) for i in rows
        ):
            raise ValueError(
                f"{folder}: config.json ties the head to the embedding, but lm_head.weight differs from it: set "
                "tie_word_embeddings to false, or remove the tensor"
            )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    for name, place in places.items():
        expected = (place.stop - place.start, *shapes[place.parameter][1:])
        found = tuple(tensors[name].get_slice(name).get_shape())
        if found != expected:
            raise ValueError(f"{folder}: tensor {name!r} has shape {found}, but config.json asks for {expected}")


def copy_rows(parameter: Tensor, place: Place, source: Any) -> None:
    """Copy a file's tensor into its rows of the parameter, or into those rows that this rank's shard holds."""
    local, first_row = local_rows(parameter)
    start, stop = max(place.start, first_row), min(place.stop, first_row + local.shape[0])
    if start < stop:
        rows = source[start - place.start : stop - place.start]
        local[start - first_row : stop - first_row].copy_(rows)
