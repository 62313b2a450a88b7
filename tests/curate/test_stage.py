"""The runner of stages: what it writes, and that kills, repeats and changes of its input are handled."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import in_a_fork

from psychecore.curate.stage import Outcome, Rejection, run_stage


class Halves:
    """Keeps even numbers twice over and rejects odd ones."""

    name = "halves"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        self.seen += [row["id"] for row in rows]
        return [
            Outcome([{**row, "id": f"{row['id']}-{i}"} for i in range(2)], [])
            if row["n"] % 2 == 0
            else Outcome([], [Rejection(row, "odd", f"{row['n']} is odd")])
            for row in rows
        ]


def write(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"id": f"r{n}", "n": n, "text": "心理\u2028"}) + "\n" for n in range(count)))
    return path


def test_kept_rows_and_rejections_with_their_reasons_are_written_and_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", 5)
    counts = run_stage(Halves(), source, tmp_path / "out", batch_size=2)
    assert (counts.read, counts.kept, counts.rejected) == (5, 6, {"odd": 2})
    kept = [json.loads(line) for line in (tmp_path / "out" / "halves.jsonl").read_text().split("\n") if line]
    assert [row["id"] for row in kept] == ["r0-0", "r0-1", "r2-0", "r2-1", "r4-0", "r4-1"]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "halves.rejects.jsonl").read_text().split("\n") if line]
    assert rejects[0] == {"id": "r1", "n": 1, "text": "心理\u2028", "reason": "odd", "detail": "1 is odd"}
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_stage_that_is_done_is_not_run_again_unless_its_input_or_settings_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "in.jsonl", 4)
    first = run_stage(Halves(), source, tmp_path / "out")
    again = Halves()
    assert run_stage(again, source, tmp_path / "out") == first
    assert again.seen == []
    assert caplog.messages == []
    run_stage(again, source, tmp_path / "out", settings="other")
    assert len(again.seen) == 4
    assert caplog.messages == ["stage halves runs again: settings None, and now it is 'other'"]
    write(source, 5)
    assert run_stage(again, source, tmp_path / "out", settings="other").read == 5
    (tmp_path / "out" / "halves.jsonl").unlink()
    assert run_stage(again, source, tmp_path / "out", settings="other").read == 5
    assert "inputs[0].sha256" in caplog.messages[1]
    assert "not all of its files" in caplog.messages[2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a"}', '{"n": 1}'], "line 2: id is None"),
        (['{"id": "a"}', '{"id": "a"}'], "line 2: id 'a' already stands on line 1"),
        (['{"id": "a"}', "{"], "line 2: not a JSON object"),
        (['{"id": ""}'], "line 1: id is ''"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(lines: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"in\.jsonl {message}"):
        run_stage(Halves(), tmp_path / "in.jsonl", tmp_path / "out")


class Deadly(Halves):
    """Dies by SIGKILL at its n-th batch, or right after a file operation."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(rows)


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_point_it_goes_on_at_the_row_where_it_was(seed: int, tmp_path: Path) -> None:
    source, draw = write(tmp_path / "in.jsonl", 40), random.Random(seed)
    run_stage(Halves(), source, tmp_path / "whole", batch_size=3)
    operation = draw.choice(["batch", "fsync", "replace"])
    count, real = draw.randint(1, 14), getattr(os, operation, None)

    def dying(*arguments: Any) -> None:
        nonlocal count
        count -= 1
        if count == 0 and seed % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:  # dies in a batch, or before or after flushing or renaming
        if real is not None:
            setattr(os, operation, dying)
        run_stage(Deadly(count if real is None else 10**9), source, tmp_path / "out", batch_size=3)

    log = tmp_path / "log"
    assert in_a_fork(work, log) in (-signal.SIGKILL, 0), log.read_text()
    again = Halves()
    counts = run_stage(again, source, tmp_path / "out", batch_size=3)
    assert (counts.read, counts.kept, counts.rejected) == (40, 40, {"odd": 20})
    for name in ("halves.jsonl", "halves.rejects.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_that_were_done_are_not_done_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", 40)
    died = in_a_fork(lambda: run_stage(Deadly(5), source, tmp_path / "out", batch_size=3), tmp_path / "log")
    assert died == -signal.SIGKILL
    again = Halves()
    run_stage(again, source, tmp_path / "out", batch_size=3)
    assert again.seen == [f"r{n}" for n in range(12, 40)]
