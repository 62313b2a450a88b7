"""The gate says plainly that there is no GPU, rehearses on a CPU, and a part that fails leaves the others alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gpu_gate
import pytest
import torch

GATE = Path(gpu_gate.__file__).with_suffix(".sh")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run benchmarks/gpu_gate.sh itself")
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    done = subprocess.run([GATE], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA device here, so nothing was checked" in done.stdout


def test_the_rehearsal_runs_every_part_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run([GATE, "--cpu", "--out", tmp_path / "gate.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / "gate.json").read_text())
    assert result["rehearsal"]
    assert result["passed"]
    assert list(result["parts"]) == list(gpu_gate.TIMEOUTS)
    assert result["parts"]["sampler"]["found"]["replayed"] > 0


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
