"""A JSONL file that a run is writing: each look takes up what came since, and notices a file that was replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psychecore.untrusted import parse_json

LARGEST = 1e300  # of a number: means of larger ones leave the floats, and whole ones can have 400 digits
MAX_LINE = 64_000_000  # bytes, as in psychecore/data/records.py


def number(value: Any, name: str) -> float | None:
    """The value where it is a number, else None. Raises ValueError for one that is too large to draw.

    >>> number(0.5, "kl"), number("0.5", "kl"), number(True, "kl")
    (0.5, None, None)
    """
    if type(value) not in (int, float):
        return None
    if not abs(value) <= LARGEST:
        raise ValueError(f"{name:.80} is {value!s:.20}... ({len(str(value))} characters), but must be within 1e300")
    found: float = value
    return found


class Tail:
    """Follows one file, which may not exist yet.

    `reset` is set by a look that finds another file in its place, a shorter one, or one in which another line ends
    where it had read to (a run that was resumed drops the rows that it writes again, and a file system may give its
    file the number of an earlier one), until the reader clears it: what came before does not count any more. `lines` is
    the number of the line that was read last.
    """

    def __init__(self, path: Path):
        self.path = path
        self.reset = False
        self.offset = self.lines = 0
        self._taken = self._inode = 0  # lines before `offset`
        self._last = b""  # the end of them

    def look(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield (byte offset, bytes, row) of each whole new line; a last line without its end waits for the next look.

        Raises ValueError with file and line for what is no JSON object.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115 - closed below, after the one error that may be expected
        except FileNotFoundError:
            self.reset |= self.offset > 0
            self.offset = self._taken = self._inode = 0
            self._last = b""
            return
        with file:
            size, inode = file.seek(0, 2), os.fstat(file.fileno()).st_ino
            file.seek(self.offset - len(self._last))
            if self.offset > 0 and (
                inode != self._inode or size < self.offset or file.read(len(self._last)) != self._last
            ):
                self.reset, self.offset, self._taken, self._last = True, 0, 0, b""
            self._inode, self.lines = inode, self._taken
            file.seek(self.offset)
            while (raw := file.readline(MAX_LINE + 1)).endswith(b"\n"):
                row = self._row(raw) if raw.strip() else None  # a damaged line stays ahead, so every look names it
                self.lines += 1
                if row is not None:
                    yield self.offset, len(raw), row  # one that its reader can't take is named by every look as well
                self.offset, self._taken, self._last = self.offset + len(raw), self.lines, raw[-256:]
            if len(raw) > MAX_LINE:
                raise ValueError(f"{self.path} line {self.lines + 1}: longer than {MAX_LINE:,} bytes")

    def _row(self, raw: bytes) -> dict[str, Any]:
        try:
            row = parse_json(raw.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} line {self.lines + 1}: not a JSON object in UTF-8 ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{self.path} line {self.lines + 1}: a {type(row).__name__}, but must be a JSON object")
        return row
