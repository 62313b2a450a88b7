"""What every curation stage shares: an outcome for each row, and a runner that goes on at the row where it was killed.

A stage turns rows into kept rows and rejections with their reasons. `run_stage` streams a JSONL file through it and
writes NAME.jsonl and NAME.rejects.jsonl; until the end their names bear ".partial", and a small file says how many rows
and bytes are done, so that a killed run cuts off what came after and continues. The bytes do not depend on kills.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tqdm import tqdm

from psychecore.data.records import read_jsonl
from psychecore.durable import digest, replace_file, sync_folder

Row = dict[str, Any]


@dataclass(frozen=True)
class Rejection:
    """A row, or what was made from one, that does not go on."""

    row: Row
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one input row became: kept rows, and rejections; a passage may give several of each."""

    kept: list[Row] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


class Stage(Protocol):
    """A step of the pipeline that looks at rows one by one, or in batches for a generator's sake."""

    @property
    def name(self) -> str:
        """The stem of the files that it writes."""

    def batch(self, rows: Sequence[Row]) -> list[Outcome]:
        """One outcome for each row, in order; the same for the same rows."""


@dataclass(frozen=True)
class StageCounts:
    """How many rows came in and went on, and how many were rejected for which reason."""

    name: str
    rows: int
    kept: int
    rejected: dict[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.rejected.items()))
        return f"{self.name:<10} {self.rows:>7} in {self.kept:>7} kept" + (f"   rejected: {reasons}" if reasons else "")


def run_stage(stage: Stage, source: Path, folder: Path, batch_size: int = 32, *, settings: str = "") -> StageCounts:
    """Run `stage` over the rows of `source`; a stage that is done for this source and these settings is not run again.

    `settings` is any text that the outcome depends on, such as the stage's configuration. Raises ValueError naming
    file and line for a row without an id, or with one that stood before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept, rejects, progress = (folder / f"{stage.name}{end}" for end in (".jsonl", ".rejects.jsonl", ".progress.json"))
    key = hashlib.sha256(f"{digest(source)}\n{settings}".encode()).hexdigest()
    state = _read_state(progress, key)
    if state["done"] and kept.exists() and rejects.exists():
        return StageCounts(stage.name, state["rows"], state["kept"], state["rejected"])
    files = [path.with_name(f"{path.name}.partial") for path in (kept, rejects)]
    with (
        tqdm(total=_count_lines(source), desc=stage.name, disable=None, leave=False) as bar,
        _continued(files[0], state["bytes"][0]) as good,
        _continued(files[1], state["bytes"][1]) as bad,
    ):
        rows = itertools.islice(check_rows(source), state["rows"], None)
        bar.update(state["rows"])
        while part := list(itertools.islice(rows, batch_size)):
            outcomes = stage.batch(part)
            if len(outcomes) != len(part):
                raise RuntimeError(f"stage {stage.name} gave {len(outcomes)} outcomes for {len(part)} rows")
            for outcome in outcomes:
                _write(good, outcome.kept)
                lines = [{**r.row, "reason": r.reason, "detail": r.detail} for r in outcome.rejected]
                _write(bad, lines)
                state["kept"] += len(outcome.kept)
                for rejection in outcome.rejected:
                    state["rejected"][rejection.reason] = state["rejected"].get(rejection.reason, 0) + 1
            state |= {"rows": state["rows"] + len(part), "bytes": [_flush(good), _flush(bad)]}
            replace_file(progress, [json.dumps(state)])
            bar.update(len(part))
    for partial, path in zip(files, (kept, rejects), strict=True):
        os.replace(partial, path)
    sync_folder(folder)
    replace_file(progress, [json.dumps(state | {"done": True})])
    return StageCounts(stage.name, state["rows"], state["kept"], state["rejected"])


def check_rows(source: Path) -> Iterator[Row]:
    """The rows of a file, each with an id of its own. Raises ValueError naming file and line."""
    seen: set[bytes] = set()
    for number, row in read_jsonl(source):
        name = row.get("id")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{source} line {number}: id is {name!r:.80}, but must be a non-empty text")
        short = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:12]  # 75,000 long ids are a lot of text
        if short in seen:
            raise ValueError(f"{source} line {number}: id {name!r:.80} stands on an earlier line too")
        seen.add(short)
        yield row


def write_outcomes(name: str, outcomes: Iterable[Outcome], folder: Path) -> StageCounts:
    """Write the outcomes of a stage that needs all rows at once, whole or not at all."""
    outcomes = list(outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [row for outcome in outcomes for row in outcome.kept]
    rejected = [rejection for outcome in outcomes for rejection in outcome.rejected]
    lines = (_line({**r.row, "reason": r.reason, "detail": r.detail}) for r in rejected)
    replace_file(folder / f"{name}.rejects.jsonl", lines)
    replace_file(folder / f"{name}.jsonl", map(_line, kept))
    return StageCounts(name, len(outcomes), len(kept), dict(Counter(rejection.reason for rejection in rejected)))


def _read_state(path: Path, key: str) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["key"] == key:
            return state
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return {"key": key, "rows": 0, "kept": 0, "rejected": {}, "bytes": [0, 0], "done": False}


def _continued(path: Path, size: int) -> BinaryIO:
    """The file opened for writing after its first `size` bytes; what a killed run wrote beyond goes."""
    if not path.exists() or path.stat().st_size < size:
        if size:
            raise ValueError(f"{path} is shorter than its progress file says: remove both to begin this stage anew")
        path.touch()
    file = open(path, "r+b")  # noqa: SIM115 (the caller's with block closes it)
    file.truncate(size)
    file.seek(size)
    return file


def _write(file: BinaryIO, rows: Iterable[Row]) -> None:
    for row in rows:
        file.write(_line(row).encode())


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _flush(file: BinaryIO) -> int:
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())
