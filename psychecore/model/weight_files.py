"""The safetensors files of a model folder: one, or several with an index; read where they lie, written in shards."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from psychecore.durable import require_space
from psychecore.untrusted import read_json, within

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"[^/\\\0]{1,200}\.safetensors")  # a file of the folder itself, by a name that a file can have


def open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """For each tensor name the open safetensors file that holds it."""
    names, index = ["model.safetensors"], None
    if within(folder, INDEX).is_file() and not within(folder, names[0]).is_file():  # which stands first, as elsewhere
        index = _read_index(folder / INDEX)
        names = sorted(set(index.values()))
    keys: dict[str, set[str]] = {}
    tensors: dict[str, Any] = {}
    for name in names:
        path = within(folder, name)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged or truncated safetensors file ({error!s:.200})") from None
        keys[name] = set(file.keys())
        tensors |= dict.fromkeys(keys[name], file)
    for key, name in (index or {}).items():
        if key not in keys[name]:
            raise ValueError(f"{folder / INDEX}: places tensor {key!r:.80} in {name}, which does not hold it")
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """The index's map of tensor names to files, all of them plain names."""
    try:
        index = read_json(path).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{path}: not a safetensors index ({error})") from None
    if not isinstance(index, dict) or not index:
        raise ValueError(f"{path}: not a safetensors index (weight_map is {index!r:.80})")
    for name in index.values():
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise ValueError(f"{path}: names the file {name!r:.80}, but shards must lie in the folder itself")
    return index


class ShardWriter:
    """Collects tensors and writes safetensors files of bounded size, with an index of several, into a new folder."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self.pending: dict[str, Tensor] = {}
        self.written: list[list[str]] = []
        self.bytes = self.total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        if self.pending and self.bytes + tensor.nbytes > self.max_bytes:
            self._flush()
        self.pending[name] = tensor
        self.bytes += tensor.nbytes

    def finish(self) -> None:
        self._flush()
        names = ["model.safetensors"]
        if len(self.written) > 1:
            names = [f"model-{i + 1:05}-of-{len(self.written):05}.safetensors" for i in range(len(self.written))]
        for i, name in enumerate(names):
            (self.folder / f"part-{i}").rename(self.folder / name)
        if len(names) > 1:
            weight_map = {key: names[i] for i, keys in enumerate(self.written) for key in keys}
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if not self.written:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        require_space(self.folder, self.bytes + 2**20)
        try:
            save_file(self.pending, self.folder / f"part-{len(self.written)}", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{self.folder} could not be written: {error}") from None
        self.written.append(list(self.pending))
        self.total += self.bytes
        self.pending, self.bytes = {}, 0
