"""NaN and infinity: found on any rank before the optimizer's step, named, and never written to disk."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from psychecore.model.shards import gather_tensor, local_part
from psychecore.runtime import CPU, gather_json, max_over_ranks


class NonFiniteError(FloatingPointError):
    """A loss, gradient or weight is NaN or infinite; the message names which, on which rank."""


def global_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm over all tensors and, where they are shards, all ranks (then a collective)."""
    return gather_tensor(torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors]))


def all_finite(*local: float) -> bool:
    """Whether these numbers are finite on every rank (a collective)."""
    (bad,) = max_over_ranks([float(not all(map(math.isfinite, local)))], CPU)
    return bad == 0


def describe_nonfinite(kinds: Mapping[str, Mapping[str, Tensor | None]], loss: float = 0.0) -> str:
    """Name what is not finite, by rank (a collective): the loss, and up to three tensors of each kind."""
    found = [] if math.isfinite(loss) else [f"loss is {loss}"]
    for kind, tensors in kinds.items():
        counts = {name: count_nonfinite(tensor) for name, tensor in tensors.items() if tensor is not None}
        bad = [f"{kind} {name} ({count} values)" for name, count in counts.items() if count]
        found += [*bad[:3], f"{len(bad) - 3} more of kind {kind}"] if len(bad) > 3 else bad
    parts = [f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(gather_json(found, CPU)) if names]
    return "; ".join(parts) or "the norms overflow, though every value is finite"


def count_nonfinite(tensor: Tensor) -> int:
    """How many values of a tensor, or of this rank's shard of it, are NaN or infinite."""
    return int((~torch.isfinite(local_part(tensor))).sum())
