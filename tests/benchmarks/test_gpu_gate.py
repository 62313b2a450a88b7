"""The gate says plainly that there is no GPU, rehearses on a CPU, and a part that fails leaves the others alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gate_parts
import gpu_gate
import pytest
import torch
from kernel_cases import CASES

GATE = Path(gpu_gate.__file__).with_suffix(".sh")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run benchmarks/gpu_gate.sh itself")
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    done = subprocess.run([GATE], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA device here, so nothing was checked" in done.stdout


def test_a_rehearsal_goes_through_the_script_and_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_gate.TIMEOUTS, "attention", 300)  # a busy machine may take a minute to import torch
    assert gpu_gate.main(["--cpu", "--parts", "attention", "--out", str(tmp_path / "gate.json")]) == 0
    result = json.loads((tmp_path / "gate.json").read_text())
    assert result["rehearsal"]
    assert result["passed"]
    assert result["parts"]["attention"]["found"]["largest_gap"] < 1e-6


@pytest.mark.parametrize("part", sorted(gpu_gate.TIMEOUTS.keys() - {"attention"}))
def test_every_part_can_be_rehearsed(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_gate.run_part(part, rehearsal=True) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    if part == "sampler":
        assert found["replayed"] > found["steps"] / 2


def test_a_kernel_that_is_two_percent_off_does_not_pass() -> None:
    case, device = CASES[0], torch.device("cpu")
    (sizes,) = gate_parts.odd_sizes(rehearsal=True)
    right = gate_parts.errors(case, case.reference(), sizes, device)
    wrong = gate_parts.errors(case, lambda *inputs: 1.02 * case.reference()(*inputs), sizes, device)
    assert max(right.values()) < 1 < max(wrong.values())


def test_a_part_that_fails_or_hangs_is_told_and_the_next_one_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "gpu_gate.py"
    script.write_text(
        "import sys, time\n"
        "part = sys.argv[sys.argv.index('--part') + 1]\n"
        "if part == 'kernels': raise ValueError('rms_norm is off by 3')\n"
        "if part == 'attention': time.sleep(60)\n"
        "print('a line before'); print('{\"same\": 32}')\n"
    )
    monkeypatch.setattr(gpu_gate, "HERE", tmp_path)
    monkeypatch.setitem(gpu_gate.TIMEOUTS, "attention", 1)
    code = gpu_gate.main(["--cpu", "--out", str(tmp_path / "gate.json"), "--parts", "kernels", "attention", "sampler"])
    parts = json.loads((tmp_path / "gate.json").read_text())["parts"]
    assert code == 1
    assert "rms_norm is off by 3" in parts["kernels"]["error"]
    assert parts["attention"] == {"passed": False, "error": "not done after 1 s"}
    assert parts["sampler"]["found"] == {"same": 32}
    assert "kernels     FAILED" in capsys.readouterr().out


def test_all_time_outs_together_are_within_ten_minutes() -> None:
    assert sum(gpu_gate.TIMEOUTS.values()) <= 600
