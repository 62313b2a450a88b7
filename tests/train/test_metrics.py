"""What a run writes down: rows that stay readable, FLOPs that add up, a line a person can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psychecore.model.config import ModelConfig
from psychecore.runtime import Runtime
from psychecore.train.metrics import RunLog, Stopwatch, matmul_peak, peak_memory_gib, step_line, training_flops

ALONE = Runtime(0, 1, torch.device("cpu"))


def test_rows_are_json_objects_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, ALONE)
    log.write(
        "m.jsonl",
        {"step": 1, "loss": float("nan"), "text": "心理\n\u2028\x85", "nested": {"x": [float("inf"), 1.23456789]}},
    )
    log.keep_until("m.jsonl", 1)  # these separators are no ends of lines
    (row,) = log.read("m.jsonl")
    assert row == {"step": 1, "loss": None, "text": "心理\n\u2028\x85", "nested": {"x": [None, 1.23457]}}


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    RunLog(tmp_path, Runtime(1, 2, torch.device("cpu"))).write("m.jsonl", {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_drops_later_rows_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    log = RunLog(tmp_path, ALONE)
    for step in (1, 1, 2, 3):
        log.write("m.jsonl", {"step": step})
    with open(tmp_path / "m.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1, "te')
    log.keep_until("m.jsonl", 2)
    assert [row["step"] for row in log.read("m.jsonl")] == [1, 1, 2]
    log.keep_until("absent.jsonl", 1)


@pytest.mark.parametrize("line", [b"\0\0\0", b"[]", b"{", b'{"step": "1"}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_is_named_and_the_file_left_alone(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    before = path.read_bytes()
    log = RunLog(tmp_path, ALONE)
    for read in (lambda: log.read("m.jsonl"), lambda: log.keep_until("m.jsonl", 1)):
        with pytest.raises(ValueError, match=r"m\.jsonl line 2: .*remove the line, or restore the file"):
            read()
    assert path.read_bytes() == before


def test_training_flops_are_six_per_weight_and_token_the_head_for_labels_only() -> None:
    config = ModelConfig("llama", 100, 8, 1, 2, 1, 4, 16, tied_head=True)
    layer = 8 * 16 + 8 * 8 + 3 * 8 * 16 + 2 * 8  # qkv, out, the three of the MLP, two norms
    assert training_flops(config, 10, 3) == 6 * ((layer + 8) * 10 + 100 * 8 * 3)


def test_the_machine_s_figures_are_plausible() -> None:
    assert 0.01 < peak_memory_gib(torch.device("cpu")) < 1000
    assert 1e8 < matmul_peak(ALONE, torch.float32, size=256, seconds=0.01) < 1e15


def test_peak_memory_is_this_process_s_own_not_its_starter_s() -> None:
    peak = 600 * 2**20
    held = torch.ones(peak // 4)  # all resident
    code = "import torch; from psychecore.train.metrics import peak_memory_gib as g; print(g(torch.device('cpu')))"
    child = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    own = peak_memory_gib(torch.device("cpu"))
    assert own * 2**30 > held.nbytes
    assert child * 2**30 < own * 2**30 - peak / 4


def test_the_stopwatch_adds_up_by_phase() -> None:
    watch = Stopwatch(ALONE)
    for _ in range(2):
        with watch("rollout"):
            pass
    assert set(watch.seconds) == {"rollout"}
    assert 0 < watch.seconds["rollout"] < 1


def test_the_line_of_a_step_names_what_it_shows() -> None:
    line = step_line("grpo", 3, 20, {"reward": 0.5, "kl": 0.01}, {"reward": ".3f", "kl": ".4f", "absent": ".1f"})
    assert line == "grpo  3/20  reward 0.500  kl 0.0100"
