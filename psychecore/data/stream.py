"""A shuffled, resumable cursor over n rows, the same for every rank.

Each epoch is its own permutation, drawn from (seed, epoch), so the order depends on neither the number of ranks nor
on what was drawn before. The cursor's whole state is one number. Ranks take their share of a batch with `share`, or
with `balanced_shares` where the lengths of its items are known.
"""

from __future__ import annotations

import heapq
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


def balanced_shares(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Indices of the items that each rank takes, so that the ranks' sums of lengths (tokens) are nearly equal.

    The longest item first, each to the rank with the least so far: the largest sum is at most 4/3 - 1 / (3 world_size)
    of the smallest possible one (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969). The result
    depends on the arguments alone, so ranks that know all lengths agree without a word. Each share is in the order of
    the batch, and may be empty. Example: lengths 7 5 4 3 3 over 2 ranks give [0, 3] and [1, 2, 4], sums 10 and 12.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, 0, rank) for rank in range(world_size)]  # tokens, items, rank: equal sums are filled evenly
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, items, rank = loads[0]
        shares[rank].append(i)
        heapq.heapreplace(loads, (tokens + lengths[i], items + 1, rank))
    return [sorted(part) for part in shares]
