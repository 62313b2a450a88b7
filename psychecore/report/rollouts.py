"""The rollouts of a run, from samples.jsonl: where each group stands in the file, a page of them, a search.

The file may be larger than memory: only an index of its lines is held, and a search gives up after a stretch of the
file and says where to go on.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psychecore.report.curves import MAX_STEP
from psychecore.report.tail import Tail, number

PAGE = 8  # groups
STRETCH = 32_000_000  # bytes that one search reads
MAX_TEXT, MAX_SAMPLES = 20_000, 64  # characters of a text and samples of a group that are shown
MAX_PAGE = 4_000_000  # characters of all groups of a page


class Rollouts:
    """The groups of one run folder; `look` takes up what is new."""

    def __init__(self, folder: Path):
        self._tail = Tail(folder / "samples.jsonl")
        self._starts, self._sizes, self._steps = array("Q"), array("Q"), array("q")
        self._differ = bytearray()

    def __len__(self) -> int:
        return len(self._starts)

    def look(self) -> bool:
        """Index what was appended; returns whether anything changed. Raises ValueError with file and line."""
        before, changed = len(self), False
        for start, size, row in self._tail.look():
            changed |= self._drop_if_reset()
            step = row.get("step")
            if type(step) is not int or not 0 <= step < MAX_STEP or not isinstance(row.get("samples"), list):
                raise ValueError(f"{self._tail.path} line {self._tail.lines}: no row with a step and a list of samples")
            try:
                totals = {_scores(sample).get("total") for sample in row["samples"]}
            except ValueError as error:
                raise ValueError(f"{self._tail.path} line {self._tail.lines}: {error}") from None
            self._starts.append(start)
            self._sizes.append(size)
            self._steps.append(step)
            self._differ.append(len(totals) > 1)
        return self._drop_if_reset() or changed or len(self) != before

    def _drop_if_reset(self) -> bool:
        reset, self._tail.reset = self._tail.reset, False
        if reset:
            self._starts, self._sizes, self._steps = array("Q"), array("Q"), array("q")
            self._differ = bytearray()
        return reset

    def page(self, words: str = "", step: int | None = None, differ: bool = False, below: int | None = None) -> Any:
        """Up to PAGE groups, newest first, of those numbered under `below` (None: all).

        words: a text that stands, in any case, in prompt, question id or a sample. step: only this one. differ: only
        groups whose rewards differ. Returns {"groups": [..], "next": what to pass as `below` to go on, or None,
        "total": groups in the file}.
        """
        wanted, read, length = words.casefold(), 0, 0
        groups: list[dict[str, Any]] = []
        number = len(self) if below is None else min(max(below, 0), len(self))
        with self._open() as read_row:
            while number > 0 and len(groups) < PAGE and read < STRETCH and length < MAX_PAGE:
                number -= 1
                if (step is not None and self._steps[number] != step) or (differ and not self._differ[number]):
                    continue
                read += self._sizes[number]
                row = read_row(number)
                if not wanted or wanted in _said(row):
                    groups.append(_shown(row, number))
                    length += sum(len(sample["text"]) for sample in groups[-1]["samples"])
        return {"groups": groups, "next": number or None, "total": len(self)}

    def spread(self, size: int = 1_500_000, groups: int = 160) -> Any:
        """Groups spread evenly over the run, the newest among them, within a budget of bytes; as `page` returns."""
        count = min(groups, len(self))
        while True:
            chosen = [len(self) - 1 - place * len(self) // count for place in range(count)]
            total = sum(self._sizes[number] for number in chosen)
            if total <= size or count <= 1:
                break
            count = max(min(count - 1, count * size // total), 1)
        with self._open() as read_row:
            shown = [_shown(read_row(number), number) for number in chosen]
        return {"groups": shown, "next": None, "total": len(self)}

    def _open(self) -> _Reader:
        return _Reader(self._tail.path, self._starts, self._sizes)


class _Reader:
    """Reads rows by number; the file is opened once for many."""

    def __init__(self, path: Path, starts: array[int], sizes: array[int]):
        self._path, self._starts, self._sizes = path, starts, sizes

    def __enter__(self) -> Any:
        self._file = open(self._path, "rb") if self._starts else None
        return self._row

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def _row(self, number: int) -> dict[str, Any]:
        assert self._file is not None
        self._file.seek(self._starts[number])
        row: dict[str, Any] = json.loads(self._file.read(self._sizes[number]))
        return row


def _scores(sample: Any) -> dict[str, float]:
    """A sample's scores that are numbers. Raises ValueError for a total that is none, and for too large a number."""
    scores = sample.get("scores") if isinstance(sample, dict) else None
    if not isinstance(scores, dict):
        return {}
    found = {name: known for name, value in scores.items() if (known := number(value, name)) is not None}
    if scores.get("total") is not None and "total" not in found:
        raise ValueError(f"a sample's scores have {scores['total']!r:.80} as total, but it must be a number")
    return found


def _said(row: dict[str, Any]) -> str:
    """All texts of a group that a search looks through."""
    return "\0".join([str(row.get("question")), str(row.get("prompt")), *_texts(row)]).casefold()


def _texts(row: dict[str, Any]) -> Iterator[str]:
    for sample in row["samples"]:
        if isinstance(sample, dict):
            yield str(sample.get("text"))


def _shown(row: dict[str, Any], number: int) -> dict[str, Any]:
    """What the page gets of a group: texts, and scores that are numbers, within bounds."""
    samples = []
    for sample in row["samples"][:MAX_SAMPLES]:
        if isinstance(sample, dict):
            finish = str(sample.get("finish_reason") or "")
            samples.append({"text": _cut(sample.get("text")), "finish": finish, "scores": _scores(sample)})
    question, prompt = str(row.get("question") or ""), _cut(row.get("prompt"))
    more = len(row["samples"]) - len(samples)
    shown = {"number": number, "step": row["step"], "question": question, "prompt": prompt}
    return {**shown, "samples": samples, "more": more}


def _cut(value: object) -> str:
    said = str(value or "")
    return said if len(said) <= MAX_TEXT else f"{said[:MAX_TEXT]} … ({len(said) - MAX_TEXT:,} more characters)"
