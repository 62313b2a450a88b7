"""The table of `make bench` holds one machine's figures, and results of other machines and dtypes stay apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import measure
import pytest
import table
import torch

from psychecore.model import products


def result(folder: Path, name: str, cpu: str, **more: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"machine": {"cpu": cpu}, **more}))


def test_rows_of_another_processor_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    one = {"times_faster": {"peer": 2.0}, "median": {"psychecore": 10.0}, "memory_share": {"peer": 0.5}}
    result(tmp_path, "rollouts", "mine", cases={"one": one})
    result(tmp_path, "grpo_step", "mine", **one)
    result(tmp_path, "sft_step", "theirs", **one)
    result(tmp_path, "where_time_goes", "theirs", cases={"one": {"bound": {}}})
    assert [what for what, _, _ in table.rows("")] == ["one sequence", "GRPO step, 4 x 8 samples of 128 tokens"]
    assert table.profile("") == ""


def test_a_result_is_continued_on_its_own_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    here = {"cpu": "c", "torch": "2", "threads": 2, "date": "today"}
    found = {"machine": here | {"gpu": "H100"}, "dtype": "bfloat16", "cases": {"one": 1}}
    (tmp_path / "x.json").write_text(json.dumps(found))
    for gpu, same in (("H100", True), ("H200", False), (None, False)):
        monkeypatch.setattr(measure, "machine", lambda gpu=gpu: here | ({"gpu": gpu} if gpu else {}))
        assert bool(measure.comparable("x", torch.bfloat16)) is same
        assert not measure.comparable("x", torch.float32)


def test_every_place_and_dtype_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for slow in (frozenset(), frozenset([torch.bfloat16])):
        monkeypatch.setattr(products, "SLOW_ON_CPU", slow)
        dtypes = (torch.bfloat16, torch.float32)
        names += [measure.named("rollouts", dtype, torch.device("cpu")) for dtype in dtypes]
    names += [measure.named("rollouts", dtype, torch.device("cuda")) for dtype in dtypes]
    assert names == [
        "rollouts",
        "rollouts_float32",
        "rollouts_without_bf16_bfloat16",
        "rollouts_without_bf16_float32",
        "rollouts_gpu",
        "rollouts_gpu_float32",
    ]
