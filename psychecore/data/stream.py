"""A shuffled, resumable cursor over n rows, the same for every rank.

Each epoch is its own permutation, drawn from (seed, epoch), so the order depends on neither the number of ranks nor
on what was drawn before. The cursor's whole state is one number. Ranks take their share of a batch with `share`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Stream:
    """Endless batches of row indices; `position` counts the rows given out since the start."""

    def __init__(self, rows: int, seed: int, position: int = 0):
        if rows < 1:
            raise ValueError(f"a stream needs at least one row, not {rows}")
        self.rows, self.seed, self.position = rows, seed, position
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def epoch(self) -> float:
        """Epochs given out so far, a fraction."""
        return self.position / self.rows

    def take(self, count: int) -> list[int]:
        """The next `count` row indices; a batch may span two epochs."""
        taken = []
        for _ in range(count):
            epoch, offset = divmod(self.position, self.rows)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            taken.append(int(self._order[offset]))
            self.position += 1
        return taken


def share(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """Rank's part of a batch: every world_size-th item, so parts differ by at most one and may be empty."""
    return list(items[rank::world_size])
