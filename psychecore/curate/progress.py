"""How far a stage is, with an estimate: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts `total` rows, of which `initial` were done by an earlier run; use it in a `with` statement."""

    def __init__(self, name: str, total: int, initial: int = 0):
        self.name, self.total, self.initial, self.done = name, total, initial, initial
        self.bar = tqdm(total=total, initial=initial, desc=name, unit="row", disable=None, leave=False)
        self.started = self.told = time.monotonic()

    def update(self, count: int) -> None:
        """Say that `count` more rows are done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            rate = (self.done - self.initial) / (now - self.started)
            left = (self.total - self.done) / rate / 60
            print(f"{self.name}: {self.done} of {self.total} rows, {rate:.3g} a second, {left:.1f} minutes left",
                  file=sys.stderr, flush=True)  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
