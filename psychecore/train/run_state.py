"""Checkpoints of a run: masters, optimizer moments and counters, enough to continue exactly.

A checkpoint is a folder checkpoints/step_000040 with state.safetensors (tensors by name) and state.json, written
beside its place, flushed to disk and renamed. Random numbers need no saving: they are hashes of seed, step, prompt and
sample. Every rank must call both functions; rank 0 writes, and each rank reads only the rows of its shards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from psychecore.model.pretrained import Place, copy_rows, gather_tensor, replace_folder
from psychecore.runtime import Runtime
from psychecore.train.optimizer import Optimizer

NAME = re.compile(r"step_\d{6,}")


def save_checkpoint(
    folder: Path, step: int, optimizer: Optimizer, state: dict[str, Any], runtime: Runtime, keep: int = 2
) -> None:
    """Write folder/step_XXXXXX and remove all but the newest `keep`. `state` is JSON: counters, cursor, config."""
    target = folder / f"step_{step:06}"
    temporary = folder / f".{target.name}.partial"
    tensors = {}
    for name, tensor in optimizer.state_tensors().items():
        full = gather_tensor(tensor)
        if runtime.first:
            tensors[name] = full.to("cpu", copy=True).contiguous()
    if runtime.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "state.safetensors")
        row = {"step": step, "optimizer_steps": optimizer.steps, **state}
        (temporary / "state.json").write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        replace_folder(temporary, target)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    if dist.is_initialized():
        dist.barrier()


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


@torch.no_grad()
def load_checkpoint(folder: Path, optimizer: Optimizer) -> dict[str, Any]:
    """Fill masters, parameters and moments from one checkpoint folder; returns its state.json.

    Raises ValueError naming file and tensor where the checkpoint is damaged or of another model.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = optimizer.allocate_state(int(state["optimizer_steps"]))
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            found = set(file.keys())
            if found != set(tensors):
                odd = sorted(found ^ set(tensors))[0]
                raise ValueError(f"tensor {odd!r} does not fit this model")
            for name, tensor in tensors.items():
                source = file.get_slice(name)
                if tuple(source.get_shape()) != tuple(tensor.shape):
                    raise ValueError(f"tensor {name!r} has shape {source.get_shape()}, not {list(tensor.shape)}")
                copy_rows(tensor, Place(name, 0, tensor.shape[0]), source)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"checkpoint {folder} cannot be read: {error}") from error
    optimizer.publish()
    return state
