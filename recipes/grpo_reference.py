"""The reference of a GRPO run: where it comes from, its refreshes, and where it waits between updates."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common import load_frozen
from grpo_options import GrpoRecipe
from run_folder import hash_inputs

from psychecore.durable import remove_folder
from psychecore.model.decoder import Decoder
from psychecore.rollout.graphs import whole
from psychecore.runtime import Runtime
from psychecore.train.run_state import list_checkpoints


def load_reference(config: GrpoRecipe, step: int, dtype: torch.dtype, runtime: Runtime) -> Decoder | None:
    """The reference after `step` steps: its folder, or the last refresh; none where the KL term is off."""
    if config.train.loss.kl_coefficient == 0:
        return None
    gc.collect()  # one that was refreshed: FSDP2's modules lie in cycles
    every = config.reference.refresh_every
    path = config.reference.path or config.model.path
    if every and step >= every:
        path = str(reference_folder(config, last_refresh(config, step)))
    return load_frozen(path, dtype, config.sharding, runtime, on_cpu=config.reference.device == "cpu")


def last_refresh(config: GrpoRecipe, step: int) -> int:
    """The step whose policy is the reference after `step` steps."""
    return step - step % config.reference.refresh_every


def reference_folder(config: GrpoRecipe, step: int) -> Path:
    """Where a refreshed reference is kept, so that a run can continue with it."""
    return config.run.folder / "reference" / f"step_{step:06}"


def reference_hashes(config: GrpoRecipe, step: int, runtime: Runtime) -> dict[str, str]:
    """SHA-256 of a refreshed reference's files, by their paths in the run folder, which may be moved."""
    hashes = hash_inputs({"": reference_folder(config, step)}, [], runtime)
    return {str(Path(path).relative_to(config.run.folder)): sha256 for path, sha256 in hashes.items()}


def prune_references(config: GrpoRecipe, runtime: Runtime) -> None:
    """Remove the references that no checkpoint needs any more."""
    checkpoints, folder = list_checkpoints(config.run.folder / "checkpoints"), config.run.folder / "reference"
    if runtime.first and checkpoints and config.reference.refresh_every and folder.is_dir():
        steps = {last_refresh(config, int(path.name[5:])) for path in checkpoints}
        newest = reference_folder(config, max(steps)).name  # a checkpoint may be on its way
        for old in sorted(folder.glob("step_*")):
            if old.name < newest and old not in {reference_folder(config, step) for step in steps}:
                remove_folder(old)


@contextmanager
def on_device(reference: Decoder | None, device: torch.device) -> Iterator[None]:
    """A parked reference visits the device for the update only; under FSDP2 its offload policy does the same."""
    parked = reference is not None and whole(reference) and reference.device.type == "cpu" != device.type
    if parked:
        reference.to(device)
    try:
        yield
    finally:
        if parked:
            reference.to("cpu")
