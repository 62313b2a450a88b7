"""Families: the rows that must stay on one side of every split.

Two rows are relatives when they share a passage, a post, or a near-duplicate cluster of questions or of passages; by
option also when they share a source, such as a book. A family is everything that such links join, directly or through
others (the connected parts of the graph). A row without links is a family of its own, and so is a row without
relatives. Splits that take whole families are disjoint by all these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

LINKS = ("passage_id", "passage_cluster", "post_id", "post_cluster", "cluster")


class Families:
    """A growing partition of row ids (union-find); memory is a few short strings a row, never the rows.

    `by_source` makes rows of one non-empty source relatives too. Off by default: where all rows have one source, no
    split is left.

    Example: rows {"id": "a", "passage_id": "p"}, {"id": "b", "passage_id": "p", "cluster": 3} and
    {"id": "c", "cluster": 3} are one family, though a and c share no key.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), by_source: bool = False):
        self._parent: dict[str, str] = {}
        self._by_source = by_source
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row with its links. Raises ValueError for a link that is neither a text nor a whole number."""
        member = f"id/{row['id']}"
        self._root(member)
        for key in LINKS:
            if (value := row.get(key)) is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
                raise ValueError(f"row {row['id']!r}: {key} is {value!r:.80}, but must be a text, a number or null")
            self._join(member, f"{key}/{value}")
        if self._by_source and row.get("source"):
            self._join(member, f"source/{row['source']}")

    def of(self, row_id: str) -> str:
        """The family's name, the same for all its rows, whatever the order they came in until now."""
        member = f"id/{row_id}"
        if member not in self._parent:
            raise KeyError(f"row {row_id!r} was never added")
        return self._root(member)

    def _root(self, node: str) -> str:
        root = self._parent.setdefault(node, node)
        while root != self._parent[root]:
            root = self._parent[root]
        while node != root:  # shorten the path, so that later look-ups are one step
            self._parent[node], node = root, self._parent[node]
        return root

    def _join(self, one: str, other: str) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parent[high] = low  # the smallest name leads, so that names don't depend on the order of rows


def lot(seed: int, *names: str) -> str:
    """A seeded pseudo-random sort key of an item: orders by it are shuffles that don't depend on the input's order.

    Adding or dropping an item leaves the order of the others as it was.
    """
    return hashlib.sha256("\0".join([str(seed), *names]).encode()).hexdigest()
