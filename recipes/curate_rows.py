"""Rows on their way between the stages of recipes/curate.py."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psychecore.curate.line_index import LineIndex
from psychecore.curate.stage import Outcome, Rejection, Stage, StageCounts
from psychecore.data.records import read_jsonl
from psychecore.durable import replace_file


class OnlyNew:
    """A stage that ready questions pass by."""

    def __init__(self, stage: Stage):
        self.stage, self.name = stage, stage.name

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a row; those that are given are kept as they are."""
        judged = iter(self.stage.batch([row for row in rows if not row.get("given")]))
        return [Outcome([row], []) if row.get("given") else next(judged) for row in rows]


class DistinctOptions:
    """The stage clean over questions: those in which it made two options the same are rejected."""

    def __init__(self, stage: Stage):
        self.stage, self.name = stage, stage.name

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One Outcome a row."""
        return [_distinct(outcome) for outcome in self.stage.batch(rows)]


def _distinct(outcome: Outcome) -> Outcome:
    for row in outcome.kept:
        texts = list(row["options"].values())
        if len(set(texts)) < len(texts):
            return Outcome([], [Rejection(row, "duplicate_options", f"cleaned, they are {texts!r:.120}")])
    return outcome


class Passages(Mapping[str, str]):
    """Texts by passage id, read from their file when they are asked for; use it in a `with` statement."""

    def __init__(self, path: Path):
        self._index = LineIndex(path)
        self._lines = {row["id"]: number for number, row in read_jsonl(path)}

    def __getitem__(self, key: str) -> str:
        return str(self._index.row(self._lines[key])["text"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __enter__(self) -> Passages:
        return self

    def __exit__(self, *error: Any) -> None:
        self._index.__exit__(*error)


def first(rows: Iterator[dict[str, Any]], limit: int, option: str) -> Iterator[dict[str, Any]]:
    """The first `limit` rows, all where it is 0; that there are more is said, with the option that leaves them out."""
    for number, row in enumerate(rows):
        if limit and number == limit:
            print(f"  the first {limit} only: {option}")
            return
        yield row


def remove_passes(folder: Path, selectors: int) -> None:
    """Remove what selectors beyond these left in an earlier run; the last one's pass is select, and has no number."""
    for path in folder.glob("select_*.*"):
        number = path.name.partition(".")[0].removeprefix("select_")
        if number.isdigit() and int(number) >= selectors:
            path.unlink()


def counted(outcomes: Sequence[Outcome]) -> StageCounts:
    """How many rows there were, stayed, and went for which reason."""
    reasons = Counter(rejection.reason for outcome in outcomes for rejection in outcome.rejected)
    return StageCounts(len(outcomes), sum(len(one.kept) for one in outcomes), dict(sorted(reasons.items())))


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write rows in place of a file; returns their number."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for row in rows:
            count += 1
            yield json.dumps(row, ensure_ascii=False) + "\n"

    replace_file(path, lines())
    return count
