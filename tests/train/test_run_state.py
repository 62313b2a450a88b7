"""A checkpoint continues exactly; a damaged one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import psychecore as pc
from psychecore.runtime import Runtime
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.run_state import list_checkpoints, load_checkpoint, save_checkpoint

ALONE = Runtime(0, 1, torch.device("cpu"))
CONFIG = OptimizerConfig(lr=1e-2, schedule="cosine", warmup_steps=2)


def train(optimizer: Optimizer, model: pc.Decoder, steps: range) -> None:
    for step in steps:
        ids_BS = torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(step))
        model.logits(ids_BS).float().square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_run_that_continues_equals_one_that_never_stopped(
    dtype: torch.dtype, tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    whole = tiny_model(dtype)
    optimizer = Optimizer(whole, CONFIG, 6)
    train(optimizer, whole, range(3))
    save_checkpoint(tmp_path, 3, optimizer, {"cursor": 12}, ALONE)
    train(optimizer, whole, range(3, 6))

    resumed = tiny_model(dtype, seed=8)  # other weights: everything must come from the checkpoint
    again = Optimizer(resumed, CONFIG, 6)
    state = load_checkpoint(list_checkpoints(tmp_path)[-1], again)
    assert (state["step"], state["cursor"]) == (3, 12)
    train(again, resumed, range(3, 6))
    expected = optimizer.state_tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_tensors().items())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_only_the_newest_checkpoints_stay(tiny_model: Callable[..., pc.Decoder], tmp_path: Path) -> None:
    optimizer = Optimizer(tiny_model(torch.float32), CONFIG, 6)
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, step, optimizer, {}, ALONE, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_000010", "step_000011"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010", "step_000011"]


def test_a_checkpoint_that_is_damaged_or_of_another_model_is_named(
    tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, 1, Optimizer(tiny_model(torch.float32), CONFIG, 6), {}, ALONE)
    (folder,) = list_checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"step_000001 cannot be read: tensor '.*layers\.2.*' does not fit"):
        load_checkpoint(folder, Optimizer(tiny_model(torch.float32, layers=3), CONFIG, 6))
    with pytest.raises(ValueError, match=r"step_000001 cannot be read: tensor '.*' has shape"):
        load_checkpoint(folder, Optimizer(tiny_model(torch.float32, vocab_size=62), CONFIG, 6))
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="step_000001 cannot be read"):
        load_checkpoint(folder, Optimizer(tiny_model(torch.float32), CONFIG, 6))
    (folder / "state.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(ValueError, match="optimizer_steps"):
        load_checkpoint(folder, Optimizer(tiny_model(torch.float32), CONFIG, 6))
