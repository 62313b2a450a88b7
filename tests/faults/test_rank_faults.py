"""One of two ranks fails, dies or hangs: the other ends in time and says where, and the run goes on when restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_flags import recipe_flags

from psychecore.runtime import PeerError, _naming_the_network

QUICK = ["--evaluation.files", "", "--run.timeout_minutes", "0.15"]


def test_a_rank_s_own_lack_of_memory_is_not_told_as_another_s_loss() -> None:
    said = (
        "NCCL error in: a.cpp:1, unhandled cuda error\nncclUnhandledCudaError: failed.\nCuda failure 2 'out of memory'"
    )
    own = pytest.raises(RuntimeError, match=r"rank 1, phase 'update': Cuda failure 2 'out of memory'")
    with own as caught, _naming_the_network("rank 1, phase 'update'"):
        raise torch.distributed.DistBackendError(said)
    assert not isinstance(caught.value, PeerError)
    with pytest.raises(PeerError, match="another rank is gone or stuck"), _naming_the_network("here"):
        raise torch.distributed.DistBackendError("NCCL communicator was aborted")


@pytest.mark.parametrize(
    ("error", "told"),
    [("", "after"), ("OSError", "error: no space left"), ("MemoryError", "MemoryError: no space left")],
)
def test_on_gpus_an_error_is_told_and_ends_the_process_though_leaving_the_group_would_hang(
    error: str, told: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("leaves.py")), error],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"WORLD_SIZE": "2", "RANK": "0", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == bool(error)
    assert told in (done.stderr if error else done.stdout)


@pytest.mark.parametrize("stop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stuck_rank_ends_the_other_within_the_time_out(stop: bool, server: Any) -> None:
    fault = [["stuck", {"phase": "update", "step": 2, "stop": stop}]]
    start = time.monotonic()
    codes, output = server.run("sft", f"stuck-{stop}", QUICK, ranks=2, rank=1, faults=fault, abandon=True)
    assert time.monotonic() - start < 60
    assert codes[0] in (1, 3), output
    assert "rank 0, phase 'update'" in output[0]
    if not stop:
        assert codes[1] == 3 or codes[1] == -9, output


@pytest.mark.parametrize("phase", ["rollout", "update", "checkpoint"])
def test_a_killed_rank_ends_the_other_with_the_phase_s_name(phase: str, server: Any) -> None:
    fault = [["killed", {"phase": phase, "step": 2}]]
    codes, output = server.run("grpo", f"killed-{phase}", QUICK, ranks=2, rank=1, faults=fault)
    assert codes == [1, -9], output
    assert f"rank 0, phase '{phase}': another rank is gone or stuck" in output[0]
    assert "Traceback" not in output[0]


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_what_is_not_finite_on_one_rank_stops_both(what: str, server: Any) -> None:
    fault = [["nonfinite", {"what": what, "step": 2, "value": float("inf")}]]
    codes, output = server.run("sft", f"one-rank-{what}", QUICK, ranks=2, rank=1, faults=fault)
    assert codes == [2, 2], output
    named = "loss is inf" if what == "loss" else f"{what} "
    for text in output:
        assert "nothing was updated: rank 1: " + named in text
    folder = server.workplace / f"one-rank-{what}"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000001"]


def test_a_reward_that_fails_on_one_rank_is_told_once(server: Any) -> None:
    codes, output = server.run("grpo", "one-reward", QUICK, ranks=2, rank=1, faults=[["reward", {"kind": "raises"}]])
    assert codes == [1, 2], output
    assert "error: rank 1, reward: RewardError: question" in output[0]
    assert output[1] == ""


def test_a_row_that_only_one_rank_reads_wrongly_is_told_once_and_stops_both(server: Any) -> None:
    codes, output = server.run("sft", "one-row", QUICK, ranks=2, rank=1, faults=[["bad_row", {}]])
    assert codes == [1, 2], output
    assert "error: rank 1, reading the data: ValueError: " in output[0]
    assert output[0].count("line 1: not a JSON object") == 1
    assert output[1] == ""


def test_a_row_that_every_rank_reads_wrongly_is_told_once(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n")
    codes, output = server.run("sft", "bad-start", [*QUICK, "--data.train", str(path)], ranks=2)
    assert codes == [2, 2]
    assert output[0].count("line 1: not a JSON object") == 1
    assert output[1] == ""


def test_ranks_that_see_the_run_folder_differently_evaluate_together(server: Any) -> None:
    flags = ["--run.steps", "1", "--run.evaluate_first", "false", "--run.timeout_minutes", "0.5"]
    for faults in ([], [["blind", {"name": "evaluation.json"}]]):
        codes, output = server.run("sft", "one-blind", flags, ranks=2, rank=1, faults=faults)
        assert codes == [0, 0], output
    assert "held-out accuracy" not in output[0]  # rank 0 has seen that it is done


@pytest.mark.slow
def test_ranks_that_finish_at_very_different_times_do_the_same_work(server: Any) -> None:
    results = []
    for name, faults in (("even", []), ("late", [["slow", {"phase": "reward", "seconds": 1.5}]])):
        codes, output = server.run("grpo", name, QUICK, ranks=2, rank=1, faults=faults)
        assert codes == [0, 0], output
        results.append((server.workplace / name / "metrics.jsonl").read_bytes())
    assert results[0] == results[1]


@pytest.mark.slow
def test_torchrun_s_restart_continues(server: Any, workplace: Path) -> None:
    flags = recipe_flags("sft", workplace, "restarted", QUICK[:2])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "--max-restarts", "1", str(Path(__file__).with_name("dies_once.py")), *flags],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MARK": str(workplace / "died")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "after step 2" in done.stdout
    rows = [json.loads(line) for line in (workplace / "restarted" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    codes, output = server.run("sft", "not-restarted", QUICK[:2], ranks=2)
    assert codes == [0, 0], output
    whole = workplace / "not-restarted"
    for name in ("metrics.jsonl", "export/model.safetensors"):
        assert (workplace / "restarted" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "same"), [("sft", ("labels",)), ("grpo", ("reward", "new_tokens"))])
def test_a_run_goes_on_with_another_number_of_ranks(recipe: str, same: tuple[str, ...], server: Any) -> None:
    """The same rows in the same order (in GRPO the same samples), and a loss that is equal within fp32 rounding."""
    stop = [["stop_after", {"step": 2, "number": signal.SIGTERM}]]
    rows = {}
    for name, ranks, then in (("one", 1, 1), ("two-one", 2, 1), ("one-two", 1, 2)):
        codes, output = server.run(recipe, f"{recipe}-world-{name}", QUICK, ranks=ranks, faults=stop)
        assert codes == [0] * ranks, output
        codes, output = server.run(recipe, f"{recipe}-world-{name}", QUICK, ranks=then)
        assert codes == [0] * then, output
        assert (f"written by {ranks} rank(s), continued by {then}" in output[0]) == (ranks != then)
        text = (server.workplace / f"{recipe}-world-{name}" / "metrics.jsonl").read_text()
        rows[name] = [json.loads(line) for line in text.splitlines()]
    for name in ("two-one", "one-two"):
        for one, other in zip(rows["one"], rows[name], strict=True):
            assert [other[key] for key in ("epoch", *same)] == [one[key] for key in ("epoch", *same)]
            assert other["loss"] == pytest.approx(one["loss"], rel=2e-4, abs=1e-5)
