"""Faults put into a run: what it says, what it leaves, and that it goes on from there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

QUICK = ["--evaluation.files", ""]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module", params=["sft", "grpo"])
def whole(request: pytest.FixtureRequest, server: Any) -> tuple[str, Path]:
    """A run that nothing happened to."""
    codes, output = server.run(request.param, f"{request.param}-undisturbed", QUICK)
    assert codes == [0], output
    return request.param, server.workplace / f"{request.param}-undisturbed"


def assert_same(folder: Path, whole: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl", "export/model.safetensors"):
        if (whole / name).exists():
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_lets_the_step_finish_saves_and_exits_0(
    number: int, ranks: int, whole: tuple[str, Path], server: Any
) -> None:
    recipe, undisturbed = whole
    if ranks == 2 and (recipe, number) != ("grpo", signal.SIGTERM):
        pytest.skip("two ranks are slow to start: one case of them is enough")
    name, flags = f"{recipe}-signal-{number}-{ranks}", [*QUICK, "--run.checkpoint_every", "100"]
    stop = [["stop_after", {"step": 2, "number": number}]]
    codes, output = server.run(recipe, name, flags, faults=stop, ranks=ranks, rank=ranks - 1)
    assert codes == [0] * ranks, output
    assert f"stopped by {signal.Signals(number).name} after step 2, which is saved" in output[0]
    folder = server.workplace / name
    assert checkpoints(folder) == ["step_000002"]
    assert not (folder / "export").exists()
    codes, output = server.run(recipe, name, flags, ranks=ranks)
    assert codes == [0] * ranks, output
    assert "after step 2" in output[0]
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4]
    if ranks == 1:
        assert_same(folder, undisturbed)


def test_a_signal_saves_even_where_nobody_reads_the_output_any_more(server: Any) -> None:
    stop = [["deaf", {}], ["stop_after", {"step": 2, "number": signal.SIGINT}]]
    codes, _ = server.run("sft", "deaf", [*QUICK, "--run.checkpoint_every", "100"], faults=stop)
    assert codes == [0]
    assert checkpoints(server.workplace / "deaf") == ["step_000002"]


def test_a_second_signal_ends_at_once(server: Any) -> None:
    stop = [["stop_after", {"step": 2, "number": signal.SIGTERM, "again": True}]]
    codes, output = server.run("sft", "twice", [*QUICK, "--run.checkpoint_every", "100"], faults=stop)
    assert codes == [128 + signal.SIGTERM]
    assert "once more to stop at once" in output[0]
    assert checkpoints(server.workplace / "twice") == [] if (server.workplace / "twice/checkpoints").exists() else True


@pytest.mark.parametrize("background", ["false", "true"])
def test_a_damaged_checkpoint_costs_its_steps_only(background: str, whole: tuple[str, Path], server: Any) -> None:
    recipe, undisturbed = whole
    name, flags = f"{recipe}-flipped-{background}", [*QUICK, "--run.checkpoint_in_background", background]
    stop = [["stop_after", {"step": 3, "number": signal.SIGTERM}]]
    assert server.run(recipe, name, flags, faults=stop)[0] == [0]
    path = server.workplace / name / "checkpoints" / "step_000003" / "shard_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    codes, output = server.run(recipe, name, flags)
    assert codes == [0], output
    assert "step_000003 is passed over: shard_00000.safetensors is not what was written" in output[0]
    assert "after step 2" in output[0]
    assert_same(server.workplace / name, undisturbed)


@pytest.mark.parametrize("fault", [[], [["trusting", {}]]], ids=["looks before", "in the middle of a save"])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    fault: list[Any], whole: tuple[str, Path], server: Any
) -> None:
    recipe, undisturbed = whole
    name = f"{recipe}-full-{len(fault)}"
    folder = server.workplace / name
    folder.mkdir()
    # a checkpoint has 9 MiB: two fit, not three
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=25m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    try:
        codes, output = server.run(recipe, name, QUICK, faults=fault)
        assert codes == [2], output
        message = "the checkpoint could not be written: " if fault else "GiB are needed, 0.01 GiB are free: free space"
        assert message in output[0]
        assert "Traceback" not in output[0]
        assert checkpoints(folder)[:2] == ["step_000001", "step_000002"]
        subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        codes, output = server.run(recipe, name, QUICK)
        assert codes == [0], output
        assert "after step 2" in output[0]
        assert_same(folder, undisturbed)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("what", ["model bit", "model truncated", "model removed", "tokenizer", "file added", "data"])
def test_a_model_or_data_that_changed_between_runs_is_named(what: str, server: Any, tmp_path: Path) -> None:
    shutil.copytree(server.workplace / "model", tmp_path / "model")
    shutil.copyfile(server.workplace / "data" / "sft.jsonl", tmp_path / "sft.jsonl")
    flags = [*QUICK, "--model.path", str(tmp_path / "model"), "--data.train", str(tmp_path / "sft.jsonl")]
    name = f"changed-{what.replace(' ', '-')}"
    stop = [["stop_after", {"step": 1, "number": signal.SIGTERM}]]
    assert server.run("sft", name, flags, faults=stop)[0] == [0]
    model = tmp_path / "model" / "model.safetensors"
    expected = "has changed since"
    if what == "model bit":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif what == "model truncated":
        model.write_bytes(model.read_bytes()[:-64])
        expected = "damaged or truncated safetensors file"
    elif what == "model removed":
        model.unlink()
        expected = "model.safetensors is missing"
    elif what == "tokenizer":
        path = tmp_path / "model" / "tokenizer_config.json"
        path.write_text(path.read_text() + " ")
    elif what == "file added":
        (tmp_path / "model" / "added.json").write_text("{}")
    else:
        rows = (tmp_path / "sft.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "sft.jsonl").write_text("".join(rows[:1] + rows[2:] + rows[1:2]))
    before = {path: path.read_bytes() for path in (server.workplace / name).rglob("*") if path.is_file()}
    codes, output = server.run("sft", name, flags)
    assert codes == [2], output
    assert expected in output[0]
    assert {path: path.read_bytes() for path in before} == before
    assert "Traceback" not in output[0]


def test_what_is_not_finite_in_the_base_model_is_named(server: Any, tmp_path: Path) -> None:
    shutil.copytree(server.workplace / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    for recipe in ("sft", "grpo"):
        flags = [*QUICK, "--model.path", str(tmp_path / "model")]
        codes, output = server.run(recipe, f"{recipe}-nan-base", flags)
        assert codes == [2], output
        assert "weight layers.1.down.weight has 1 values that are not finite" in output[0]


def test_a_run_folder_is_held_by_one_process(server: Any) -> None:
    codes, output = server.run("sft", "one-process", [*QUICK, "--run.steps", "1"], faults=[["second", {}]])
    assert codes == [0], output
    assert "second: another process is at work on the run" in output[0]


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_what_is_not_finite_stops_the_run_before_it_is_written(what: str, whole: tuple[str, Path], server: Any) -> None:
    recipe, undisturbed = whole
    updates = 2 if recipe == "grpo" else 1
    name = f"{recipe}-nan-{what}"
    fault = [["nonfinite", {"what": what, "step": 2 * updates + 1, "value": float("nan")}]]
    codes, output = server.run(recipe, name, QUICK, faults=fault)
    assert codes == [2], output
    named = {"loss": "loss is nan", "gradient": "gradient embed.weight (1 values)", "weight": "weight embed.weight"}
    assert f"not finite at optimizer step {2 * updates}, nothing was updated: rank 0: {named[what]}" in output[0]
    folder = server.workplace / name
    assert checkpoints(folder) == ["step_000001", "step_000002"]
    codes, output = server.run(recipe, name, QUICK)  # without the fault
    assert codes == [0], output
    assert_same(folder, undisturbed)


def test_a_step_that_is_not_finite_is_skipped_where_the_policy_says_so(server: Any) -> None:
    flags = [*QUICK, "--optimizer.nonfinite", "skip"]
    fault = [["nonfinite", {"what": "gradient", "step": 2, "value": float("inf")}]]
    codes, output = server.run("sft", "skipped", flags, faults=fault)
    assert codes == [0], output
    rows = metrics(server.workplace / "skipped")
    assert [row["gradient_norm"] is None for row in rows] == [False, True, False, False]
    assert rows[2]["lr"] == rows[1]["lr"]
    state = json.loads((server.workplace / "skipped" / "checkpoints" / "step_000004" / "state.json").read_text())
    assert state["optimizer"] == {"steps": 3, "total_steps": 4, "skips_in_row": 0}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "sample 2: the reward failed with KeyError: 'my bug'"),
        ("hangs", "no result after reward.timeout_seconds 0.5"),
        ("is nan", "sample 2: the score 'total' is nan, but must be finite"),
    ],
)
def test_a_reward_that_fails_ends_the_run_with_question_and_sample(kind: str, message: str, server: Any) -> None:
    name = f"reward-{kind.replace(' ', '-')}"
    flags = [*QUICK, "--reward.timeout_seconds", "0.5"]
    codes, output = server.run("grpo", name, flags, faults=[["reward", {"kind": kind}]])
    assert codes == [2], output
    assert "error: question '" in output[0]
    assert message in output[0]
    assert "phase 'reward'" in output[0]
    if kind == "raises":
        assert "in bad" in output[0]  # the traceback into the user's own function
    assert not (server.workplace / name / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("fault", "flags", "expected"),
    [
        ("same_reward", [], {"informative": 0.0, "reward": 0.55}),
        ("says_nothing", [], {"length": 1.0, "truncated": 0.0, "reward": 0.0}),
        ("never_stops", [], {"length": 8.0, "truncated": 1.0}),
        ("never_stops", ["--train.loss.mask_overlong", "true"], {"truncated": 1.0, "loss": 0.0, "tokens": 2.0}),
    ],
)
def test_a_batch_that_teaches_nothing_is_survived_and_can_be_seen(
    fault: str, flags: list[str], expected: dict[str, float], server: Any
) -> None:
    name = f"{fault}-{len(flags)}"
    codes, output = server.run("grpo", name, [*QUICK, *flags, "--run.steps", "2"], faults=[[fault, {}]])
    assert codes == [0], output
    for row in metrics(server.workplace / name):
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert row["gradient_norm"] is not None


def test_a_phase_that_hangs_is_ended_with_its_name_and_where_it_stands(server: Any) -> None:
    flags = [*QUICK, "--run.timeout_minutes", "0.03"]
    codes, output = server.run("grpo", "hangs", flags, faults=[["stuck", {"phase": "reward", "step": 2}]])
    assert codes == [3], output
    assert "phase 'reward' has lasted longer than --run.timeout_minutes" in output[0]
    assert "in hang" in output[0]  # the stack


def test_a_finished_run_is_not_trained_again(whole: tuple[str, Path], server: Any) -> None:
    recipe, undisturbed = whole
    before = (undisturbed / "metrics.jsonl").read_bytes()
    codes, output = server.run(recipe, undisturbed.name, QUICK)
    assert codes == [0], output
    assert (undisturbed / "metrics.jsonl").read_bytes() == before
