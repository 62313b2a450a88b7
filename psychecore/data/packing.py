"""PackedBatch: the one place where anything is packed. No padding, no attention mask, no second batch format.

T tokens stand in one row. Attention runs over segments (model/attention.py); the head runs over R prediction rows:
row r takes the hidden state at token predict_from_R[r] and should give the token labels_R[r].

Sequences that begin alike are laid out as a prefix tree: a common beginning (the prompt of a GRPO group, the system
prompt of a whole batch) stands once, and each branch is a segment whose keys are its path from the root. Layers, norms
and head then run once per distinct token, and gradients through a shared token are the exact sum over its branches.
Rows are kept apart from tokens because a shared prompt's last token predicts a different first token in each branch.

A worked example: sequences [5 6 7 8] and [5 6 9] with labels after [5 6], sharing from 2 tokens on:
    tokens_T        5 6 7 8 9        positions_T  0 1 2 3 2
    segments        queries 0..2 keys 0 1 | queries 2..4 keys 0 1 2 3 | queries 4..5 keys 0 1 4
    predict_from_R  1 2 1            labels_R     7 8 9            sequence_R  0 0 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """T tokens, their attention segments, and R rows of (hidden state -> label).

    tokens_T, positions_T: int64. cu_q, cu_k: cumulative queries and keys by segment. key_index_I: int64 places of the
    keys among the T tokens, None where each segment's keys are its own tokens. predict_from_R, labels_R, sequence_R:
    int64; sequence_R numbers the sequences of the batch in the order given. places: for each sequence the packed token
    at each of its positions.
    """

    tokens_T: Tensor
    positions_T: Tensor
    cu_q: list[int]
    cu_k: list[int]
    key_index_I: Tensor | None
    predict_from_R: Tensor
    labels_R: Tensor
    sequence_R: Tensor
    places: list[list[int]]

    @property
    def tokens(self) -> int:
        """T, what a forward pass pays for."""
        return self.tokens_T.numel()

    def to(self, device: torch.device) -> PackedBatch:
        """The batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[bool]]], min_shared: int = 16) -> PackedBatch:
    """Pack (ids, is_label) sequences; beginnings of at least `min_shared` tokens that several have stand once.

    A token is a label where its mask is true; a first token can't be predicted and is never one. An empty list gives a
    batch of one token and no labels, what a rank without work computes to keep step with the others. Shorter common
    beginnings are not worth a segment. Raises ValueError for an empty sequence or a mask of another length.
    """
    for index, (ids, mask) in enumerate(sequences):
        if not ids or len(ids) != len(mask):
            raise ValueError(f"sequence {index} has {len(ids)} ids and a label mask of {len(mask)}")
    tree = _Tree([ids for ids, _ in sequences], min_shared)
    tree.branch(list(range(len(sequences))), 0, [])
    if not sequences:
        tree.segment([0], [])
    predict_from: list[int] = []
    labels: list[int] = []
    sequence: list[int] = []
    for index, (ids, mask) in enumerate(sequences):
        for position in range(1, len(ids)):
            if mask[position]:
                predict_from.append(tree.places[index][position - 1])
                labels.append(ids[position])
                sequence.append(index)
    return PackedBatch(
        tokens_T=torch.tensor(tree.tokens),
        positions_T=torch.tensor(tree.positions),
        cu_q=tree.cu_q,
        cu_k=tree.cu_k,
        key_index_I=torch.tensor(tree.keys) if tree.shared else None,
        predict_from_R=torch.tensor(predict_from, dtype=torch.int64),
        labels_R=torch.tensor(labels, dtype=torch.int64),
        sequence_R=torch.tensor(sequence, dtype=torch.int64),
        places=[tree.places[index] for index in range(len(sequences))],
    )


class _Tree:
    """Lays sequences out as a prefix tree; `places` tells for each sequence which packed token stands where in it."""

    def __init__(self, ids: list[Sequence[int]], min_shared: int):
        self.ids, self.min_shared = ids, max(min_shared, 1)
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.cu_q, self.cu_k, self.keys = [0], [0], []  # type: tuple[list[int], list[int], list[int]]
        self.places: dict[int, list[int]] = {}
        self.shared = False

    def branch(self, members: list[int], start: int, path: list[int]) -> None:
        """Lay out what `members` hold from position `start` on; `path` are the places of what they share before."""
        clusters: dict[tuple[int, ...], list[int]] = {}
        for member in members:
            clusters.setdefault(tuple(self.ids[member][start : start + self.min_shared]), []).append(member)
        for beginning, cluster in clusters.items():
            if len(cluster) == 1 or len(beginning) < self.min_shared:
                for member in cluster:
                    self.places[member] = path + self.segment(self.ids[member][start:], path)
            else:
                stop = self._common(cluster, start)
                trunk = path + self.segment(self.ids[cluster[0]][start:stop], path)
                self.shared = True
                self.branch(cluster, stop, trunk)

    def segment(self, ids: Sequence[int], path: list[int]) -> list[int]:
        """Append tokens that attend to `path` and themselves; returns their places."""
        if not len(ids):  # a sequence that ends where others go on
            return []
        own = list(range(len(self.tokens), len(self.tokens) + len(ids)))
        self.tokens += ids
        self.positions += range(len(path), len(path) + len(ids))
        self.keys += path + own
        self.cu_q.append(len(self.tokens))
        self.cu_k.append(len(self.keys))
        return own

    def _common(self, cluster: list[int], start: int) -> int:
        first = self.ids[cluster[0]]
        stop = min(len(self.ids[member]) for member in cluster)
        for position in range(start, stop):
            if any(self.ids[member][position] != first[position] for member in cluster):
                return position
        return stop


def plan_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Sort items into micro-batches of at most `token_budget` tokens (first fit, longest first).

    Returns lists of item indices, the fullest first, so that memory runs out on the first step or never. An item longer
    than the budget gets a micro-batch of its own: it can't be made shorter here, refusing it is the reader's business.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    loads: list[int] = []
    for i in order:
        for b, load in enumerate(loads):
            if load + lengths[i] <= token_budget:
                bins[b].append(i)
                loads[b] += lengths[i]
                break
        else:
            bins.append([i])
            loads.append(lengths[i])
    return [bins[b] for b in sorted(range(len(bins)), key=lambda b: -loads[b])]
