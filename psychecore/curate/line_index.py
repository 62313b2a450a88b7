"""A JSONL file whose rows can be read again by line number, so that a sort holds keys in memory and not rows."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any


class LineIndex:
    """Opens `path` and notes where each line starts (8 bytes a line); use it in a `with` statement.

    Lines count from 1, blank ones too, as in read_jsonl, which is to have validated the file before.
    """

    def __init__(self, path: Path):
        self._file = open(path, "rb")  # noqa: SIM115  (__exit__ closes it)
        self._starts = array("Q", [0])
        for line in self._file:
            self._starts.append(self._starts[-1] + len(line))

    def __enter__(self) -> LineIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def row(self, number: int) -> dict[str, Any]:
        """The object on line `number`."""
        self._file.seek(self._starts[number - 1])
        raw = self._file.read(self._starts[number] - self._starts[number - 1])
        row: dict[str, Any] = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        return row
