"""A checkpoint continues exactly; a damaged one is named, passed over, and nothing is ever half-written."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import psychecore as pc
from psychecore.durable import require_shared
from psychecore.runtime import Runtime
from psychecore.train import run_state
from psychecore.train.finite import NonFiniteError
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.run_state import Checkpoints, list_checkpoints, load_checkpoint

ALONE = Runtime(0, 1, torch.device("cpu"))
CONFIG = OptimizerConfig(lr=1e-2, schedule="cosine", warmup_steps=2)


def train(optimizer: Optimizer, model: pc.Decoder, steps: range) -> None:
    for step in steps:
        ids_BS = torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(step))
        model.logits(ids_BS).float().square().mean().backward()
        optimizer.step()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def optimizer(tiny_model: Callable[..., pc.Decoder]) -> Optimizer:
    return Optimizer(tiny_model(torch.float32), CONFIG, 6)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_run_that_continues_equals_one_that_never_stopped(
    dtype: torch.dtype, background: bool, tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    whole = tiny_model(dtype)
    optimizer = Optimizer(whole, CONFIG, 6)
    train(optimizer, whole, range(3))
    torch.manual_seed(5)
    checkpoints = Checkpoints(tmp_path, ALONE, background=background)
    checkpoints.save(3, optimizer, {"cursor": 12})
    drawn = torch.rand(3)
    train(optimizer, whole, range(3, 6))  # in the background case, while the file is being written
    checkpoints.finish()

    resumed = tiny_model(dtype, seed=8)  # other weights: everything must come from the checkpoint
    again = Optimizer(resumed, CONFIG, 6)
    newest, skipped = checkpoints.newest()
    assert (newest, skipped) == (tmp_path / "step_000003", [])
    state = load_checkpoint(newest, again, ALONE)
    assert (state["step"], state["cursor"]) == (3, 12)
    assert torch.equal(torch.rand(3), drawn)
    train(again, resumed, range(3, 6))
    expected = optimizer.state_tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_tensors().items())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_newest_checkpoints_and_the_marked_ones_stay(optimizer: Optimizer, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
    for step in (1, 2, 10, 11, 12):
        checkpoints.save(step, optimizer, {}, mark=step == 2)
    assert names(tmp_path) == ["step_000002", "step_000011", "step_000012"]
    with pytest.raises(ValueError, match="at least 2"):
        Checkpoints(tmp_path, ALONE, keep=1)


def damage_of(kind: str, folder: Path, other: Path) -> None:
    shard = folder / "shard_00000.safetensors"
    if kind == "bit flipped":
        content = bytearray(shard.read_bytes())
        content[random.Random(3).randrange(len(content))] ^= 4
        shard.write_bytes(content)
    elif kind == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif kind == "file removed":
        (folder / "state.json").unlink()
    elif kind == "manifest removed":
        (folder / "manifest.json").unlink()
    elif kind == "manifest garbled":
        (folder / "manifest.json").write_bytes(b"\xff{")
    elif kind == "manifest nested":
        (folder / "manifest.json").write_text("[" * 100_000)
    elif kind == "manifest infinite":
        (folder / "manifest.json").write_text('{"state.json": {"bytes": 1e999, "sha256": ""}}')
    elif kind == "file swapped":
        shutil.copyfile(other / shard.name, shard)
    else:
        shutil.rmtree(folder)
        shutil.copytree(other, folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bit flipped", "SHA-256 differs"),
        ("truncated", "bytes, not"),
        ("file removed", "state.json is missing"),
        ("manifest removed", "manifest.json is missing"),
        ("manifest garbled", "manifest.json cannot be read"),
        ("manifest nested", "manifest.json cannot be read"),
        ("manifest infinite", "manifest.json cannot be read"),
        ("file swapped", "SHA-256 differs"),
        ("folder swapped", "it holds step 1"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(
    kind: str, message: str, optimizer: Optimizer, tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(1, optimizer, {})
    train(optimizer, tiny_model(torch.float32), range(1))
    optimizer.masters["norm.weight"].data += 1
    checkpoints.save(2, optimizer, {})
    damage_of(kind, tmp_path / "step_000002", tmp_path / "step_000001")
    newest, (line,) = checkpoints.newest()
    assert newest == tmp_path / "step_000001"
    assert "step_000002 is passed over: " in line
    assert message in line
    assert [name[:20] for name in names(tmp_path)] == ["damaged_step_000002_", "step_000001"]  # set aside, not lost
    damage_of("truncated", tmp_path / "step_000001", tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*step_000001"):
        checkpoints.newest()
    assert "step_000001" in names(tmp_path)


def test_a_checkpoint_of_another_model_or_schedule_is_named(
    optimizer: Optimizer, tiny_model: Callable[..., pc.Decoder], tmp_path: Path
) -> None:
    folder = Checkpoints(tmp_path, ALONE).save(1, optimizer, {})
    for changes, message in (
        ({"layers": 3}, r"step_000001 cannot be read: tensor '.*layers\.2.*' has 0 rows"),
        ({"layers": 1}, r"step_000001 cannot be read: tensor '.*layers\.1.*' does not fit"),
        ({"vocab_size": 62}, r"step_000001 cannot be read: tensor '.*' has 61 rows, not 62"),
        ({"feed_forward_width": 44}, r"step_000001 cannot be read: tensor '.*' has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(folder, Optimizer(tiny_model(torch.float32, **changes), CONFIG, 6), ALONE)
    with pytest.raises(ValueError, match="schedule has 6 optimizer steps, this one 7"):
        load_checkpoint(folder, Optimizer(tiny_model(torch.float32), CONFIG, 7), ALONE)


def test_weights_that_are_not_finite_are_never_written(optimizer: Optimizer, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(1, optimizer, {})
    with torch.no_grad():
        optimizer.masters["layers.1.down.weight"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"master/layers.1.down.weight has 1 values that are not finite"):
        checkpoints.save(2, optimizer, {})
    assert names(tmp_path) == ["step_000001"]


def test_too_little_room_is_told_before_anything_is_written(
    optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"GiB are needed, 0.00 GiB are free: free space"):
        Checkpoints(tmp_path, ALONE).save(1, optimizer, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize("background", [False, True])
def test_a_write_that_fails_leaves_the_older_ones_and_is_told(
    background: bool, optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE, background=background)
    checkpoints.save(1, optimizer, {})
    checkpoints.finish()

    def half(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_state, "save_file", half)
        if background:
            checkpoints.save(2, optimizer, {})  # the failure belongs to a later step
            with pytest.raises(OSError, match=r"could not be written: .*No space left on device"):
                checkpoints.finish()
        else:
            with pytest.raises(OSError, match=r"could not be written: .*No space left on device"):
                checkpoints.save(2, optimizer, {})
    assert checkpoints.newest()[0] == tmp_path / "step_000001"
    checkpoints.save(2, optimizer, {})
    checkpoints.finish()
    assert names(tmp_path) == ["step_000001", "step_000002"]


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_is_not_called_unwritten_where_an_old_one_cannot_be_removed(
    background: bool, optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(run_state, "remove_folder", refuse)
    checkpoints = Checkpoints(tmp_path, ALONE, background=background)
    checkpoints.save(1, optimizer, {})
    checkpoints.save(2, optimizer, {})

    def save_and_finish() -> None:
        checkpoints.save(3, optimizer, {})
        checkpoints.finish()

    with pytest.raises(OSError, match=r"step_000003 is written, but an older checkpoint could not be removed: .*deni"):
        save_and_finish()
    assert names(tmp_path) == ["step_000001", "step_000002", "step_000003"]


def test_a_writer_that_is_interrupted_says_no_more_than_that(
    optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_state, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, ALONE).save(1, optimizer, {})


def test_a_second_background_write_waits_for_the_first(
    optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, real = [], [], run_state.save_file
    held = threading.Event()

    def slow(*arguments: object, **options: object) -> None:
        running.append(1)
        most.append(len(running))
        held.wait(0.2)
        real(*arguments, **options)
        running.pop()

    monkeypatch.setattr(run_state, "save_file", slow)
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    for step in (1, 2, 3):
        checkpoints.save(step, optimizer, {})
    checkpoints.finish()
    assert most == [1, 1, 1]
    assert names(tmp_path) == ["step_000002", "step_000003"]


def test_a_run_of_a_cpu_continues_on_a_gpu(
    optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Checkpoints(tmp_path, ALONE).save(1, optimizer, {})
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: pytest.fail("the checkpoint has no such state"))
    assert load_checkpoint(folder, optimizer, Runtime(0, 1, torch.device("cuda")))["step"] == 1


def test_a_folder_of_rank_0_that_another_rank_does_not_see_is_told(tmp_path: Path) -> None:
    late = threading.Timer(0.3, (tmp_path / "there").mkdir)
    late.start()
    require_shared(tmp_path / "there")  # a network's file system takes its time
    with pytest.raises(FileNotFoundError, match=r"made by rank 0 and not seen here.*'.*absent'"):
        require_shared(tmp_path / "absent", patience=0)


FULL_DISK = """
import sys, torch, psychecore as pc
from pathlib import Path
from psychecore.runtime import Runtime
from psychecore.train.optimizer import Optimizer, OptimizerConfig
from psychecore.train.run_state import Checkpoints
import resource, signal
model = pc.Decoder(pc.ModelConfig("qwen2", 61, 24, 2, 3, 1, 8, 40, qkv_bias=True)).initialise(0)
optimizer = Optimizer(model, OptimizerConfig(), 6)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in map(int, sys.argv[2:]):
    checkpoints = Checkpoints(Path(sys.argv[1]) / str(limit), Runtime(0, 1, torch.device("cpu")))
    checkpoints.save(1, optimizer, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    told = "nothing"
    try:
        checkpoints.save(2, optimizer, {})
    except OSError as error:
        told = str(error)
    newest = checkpoints.newest()[0].name
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # what is printed may go to a file
    print(limit, newest, "told:", told, flush=True)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on a file's size")
def test_the_system_refusing_to_write_more_leaves_the_older_one(tmp_path: Path) -> None:
    limits = ("0", "10", "5000", "50000")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), *limits],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    for limit, line in zip(limits, lines, strict=True):
        assert line.startswith(f"{limit} step_000001 told: the checkpoint could not be written")
        assert names(tmp_path / limit) == ["step_000001"]


def test_what_a_killed_run_left_is_tidied_away(optimizer: Optimizer, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE)
    checkpoints.save(1, optimizer, {})
    shutil.copytree(tmp_path / "step_000001", tmp_path / ".step_000002.partial")
    (tmp_path / ".step_000000.old").mkdir()
    assert checkpoints.newest()[0] == tmp_path / "step_000001"
    assert names(tmp_path) == ["step_000001"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000001"]


def test_what_a_kill_kept_from_being_pruned_is_pruned_by_the_next_run(optimizer: Optimizer, tmp_path: Path) -> None:
    many = Checkpoints(tmp_path, ALONE, keep=5)
    for step in (1, 2, 3):
        many.save(step, optimizer, {})
    assert Checkpoints(tmp_path, ALONE, keep=2).newest()[0] == tmp_path / "step_000003"
    assert names(tmp_path) == ["step_000002", "step_000003"]


def test_a_checkpoint_holds_the_configuration_and_no_pickle(optimizer: Optimizer, tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, ALONE, config="[run]\n").save(1, optimizer, {"cursor": 3})
    assert names(folder) == ["config.toml", "manifest.json", "shard_00000.safetensors", "state.json"]
    assert (folder / "config.toml").read_text() == "[run]\n"
    assert "config.toml" in json.loads((folder / "manifest.json").read_text())
    assert json.loads((folder / "state.json").read_text())["cursor"] == 3
