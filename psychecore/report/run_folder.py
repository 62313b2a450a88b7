"""A run folder as the report shows it: name, configuration, curves, rollouts, evaluation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psychecore.report.curves import Curves
from psychecore.report.evaluation import evaluation_rows
from psychecore.report.rollouts import Rollouts
from psychecore.untrusted import within

MARKS = ("config.toml", "metrics.jsonl", "evaluation.json")  # a folder with one of them is a run folder
MODEL = re.compile(rb"^\[model\]", re.MULTILINE)  # in the config.toml of a run; that of a curation has other tables
MAX_CONFIG = 100_000  # bytes that are shown


class RunFolder:
    """One run; `look` takes up what its process wrote since."""

    def __init__(self, path: Path, name: str = ""):
        """Raises ValueError for what is no run folder, naming those that lie in it."""
        if not any(_marks(path / mark) for mark in MARKS):
            inside = sorted({str(found.parent) for mark in MARKS for found in path.glob(f"*/{mark}") if _marks(found)})
            hint = f"; did you mean {', '.join(inside[:8])}?" if inside else ""
            raise ValueError(f"{path} is no run folder: it has none of {', '.join(MARKS)}{hint}")
        for file in (*MARKS, "timings.jsonl", "samples.jsonl"):
            within(path, file)
        self.path, self.name = path, name or path.resolve().name
        self.curves, self.rollouts = Curves(path), Rollouts(path)
        self._seen: list[tuple[int, int] | None] = []

    def look(self) -> bool:
        """Whether anything changed since the last look. Raises ValueError with file and line for damaged files."""
        seen = [_stamp(self.path / name) for name in ("config.toml", "evaluation.json")]
        changed, self._seen = seen != self._seen, seen
        return self.curves.look() | self.rollouts.look() | changed

    def to_row(self) -> dict[str, Any]:
        """The run as a JSON object, without its rollouts."""
        config = self.path / "config.toml"
        text = ""
        if config.is_file():
            with open(config, "rb") as file:
                text = file.read(MAX_CONFIG).decode("utf-8", errors="replace")
        return {
            "name": self.name,
            "folder": str(self.path),
            "step": self.curves.last_step,
            "config": text,
            "curves": self.curves.to_rows(),
            "evaluation": evaluation_rows(self.path / "evaluation.json"),
            "groups": len(self.rollouts),
        }


def _marks(file: Path) -> bool:
    """Whether its folder is a run's."""
    if not file.is_file():
        return False
    if file.name != "config.toml":
        return True
    with open(file, "rb") as opened:
        return MODEL.search(opened.read(MAX_CONFIG)) is not None


def open_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """The run folders under names that differ: the folder's own, with its parent's where two are the same.

    Raises ValueError for none, for one that is given twice, and for what is no run folder.
    """
    real = [path.resolve() for path in paths]
    if not real:
        raise ValueError("name at least one run folder, such as runs/demo/grpo")
    for path in real:
        if real.count(path) > 1:
            raise ValueError(f"{path} is given twice")
    names = [path.name for path in real]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in real]
    return [RunFolder(path, name) for path, name in zip(paths, names, strict=True)]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
